"""The source's decisions over every combination of what can be known."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from migration_agent.ports import PeerState
from migration_agent.seen import Verdict
from migration_agent.source_plan import ENDED, SourceObservation, SourceStep, abort_reason, next_source_step
from migration_api.conditions import Reason
from migration_api.wire import SourceState

BOOLEANS = (False, True)
FROZEN = SourceState.FROZEN
SENT = SourceState.SENT


def everything() -> Iterator[SourceObservation]:
    """Yield all observations; a debt exists only after the end."""
    for state, verdict, peer in product(SourceState, Verdict, (None, *PeerState)):
        debts = BOOLEANS if state in ENDED else (False,)
        for owed in debts:
            for flags in product(BOOLEANS, repeat=7):
                yield SourceObservation(state, verdict, peer, *flags, owes_abort=owed)


def test_i1_source_is_set_running_only_by_abort_returned_or_the_promise() -> None:
    for it in everything():
        if next_source_step(it) is SourceStep.THAW:
            assert it.verdict in {Verdict.ABORT, Verdict.RETURNED} or it.peer is PeerState.DESTROYED, it


def test_i1_source_is_not_set_running_when_the_register_says_resumed() -> None:
    for it in everything():
        if it.verdict is Verdict.RESUMED:
            assert next_source_step(it) not in {SourceStep.THAW, SourceStep.LOSE, SourceStep.WITHDRAW}, it


def test_i1_i3_fence_is_lifted_under_the_same_rule_when_the_containers_are_dead() -> None:
    for it in everything():
        if next_source_step(it) is SourceStep.LOSE:
            assert not it.alive
            assert it.verdict in {Verdict.ABORT, Verdict.RETURNED} or it.peer is PeerState.DESTROYED, it


def test_i2_source_is_killed_only_by_resumed_or_by_the_targets_word_with_the_object_gone() -> None:
    for it in everything():
        if next_source_step(it) is SourceStep.RELEASE:
            told = it.verdict is Verdict.GONE and it.peer is PeerState.RESUMED
            assert it.verdict is Verdict.RESUMED or told, it


def test_i2_no_abort_is_proposed_unless_the_register_was_read_undecided() -> None:
    for it in everything():
        if next_source_step(it) in {SourceStep.ABORT, SourceStep.PAY_ABORT}:
            assert it.verdict is Verdict.UNDECIDED, it


def test_i8_withdrawing_touches_nothing() -> None:
    """Only a source that was never fenced may end without thawing, and not while a copy is beginning."""
    for it in everything():
        if next_source_step(it) is SourceStep.WITHDRAW:
            assert it.state is SourceState.ACCEPTED, it
            assert not it.working, it


def test_copy_begins_once_and_only_while_undecided_and_wanted() -> None:
    for it in everything():
        if next_source_step(it) is SourceStep.COPY:
            assert it.state is SourceState.ACCEPTED, it
            assert it.verdict is Verdict.UNDECIDED, it
            assert it.wanted, it
            assert not it.working, it
            assert not it.failed, it


def test_sending_begins_again_only_with_a_complete_dump_that_can_still_count() -> None:
    for it in everything():
        if next_source_step(it) is SourceStep.SEND:
            assert it.state is SourceState.DUMPED, it
            assert it.verdict in {Verdict.UNDECIDED, Verdict.UNREACHABLE}, it
            assert not any((it.working, it.failed, it.expired, it.running)), it


def test_nothing_is_frozen_or_set_running_after_the_end() -> None:
    after = {
        SourceStep.WAIT,
        SourceStep.ACKNOWLEDGE,
        SourceStep.PAY_ABORT,
        SourceStep.CLEAR_ABORT,
    }
    for it in everything():
        assert (next_source_step(it) in after) == (it.state in ENDED or next_source_step(it) is SourceStep.WAIT), it


def test_i5_a_frozen_source_asks_for_the_promise_when_its_budget_is_used_up_and_the_api_is_away() -> None:
    it = SourceObservation(SENT, Verdict.UNREACHABLE, expired=True)
    assert next_source_step(it) is SourceStep.ASK_PROMISE
    assert next_source_step(SourceObservation(SENT, Verdict.UNREACHABLE)) is SourceStep.WAIT


def test_i5_commit_without_outcome_is_waited_for_however_long() -> None:
    for it in everything():
        frozen = it.state not in ENDED and it.verdict is Verdict.COMMIT and it.peer is not PeerState.DESTROYED
        if frozen:
            assert next_source_step(it) in {SourceStep.WAIT, SourceStep.REFREEZE}, it


def test_i4_every_undecided_frozen_source_ends_when_its_budget_is_used_up() -> None:
    for it in everything():
        frozen = it.state in {SourceState.FENCED, FROZEN, SourceState.DUMPED, SENT}
        if frozen and it.verdict is Verdict.UNDECIDED and it.expired and it.peer is not PeerState.DESTROYED:
            assert next_source_step(it) in {SourceStep.ABORT, SourceStep.REFREEZE}, it


def test_a_container_that_somebody_set_running_is_paused_again() -> None:
    for verdict in (Verdict.UNDECIDED, Verdict.COMMIT, Verdict.UNREACHABLE, Verdict.GONE):
        assert next_source_step(SourceObservation(SENT, verdict, running=True)) is SourceStep.REFREEZE


@pytest.mark.parametrize(
    ("it", "reason"),
    [
        (SourceObservation(FROZEN, Verdict.UNDECIDED), None),
        (SourceObservation(FROZEN, Verdict.UNDECIDED, alive=False), Reason.SOURCE_LOST),
        (SourceObservation(SENT, Verdict.UNDECIDED, alive=False), None),
        (SourceObservation(SENT, Verdict.UNDECIDED, alive=False, expired=True), Reason.SOURCE_LOST),
        (SourceObservation(FROZEN, Verdict.UNDECIDED, interrupted=True), Reason.AGENT_RESTARTED),
        (SourceObservation(SENT, Verdict.UNDECIDED, interrupted=True), None),
        (SourceObservation(SourceState.DUMPED, Verdict.UNDECIDED, interrupted=True, working=True), None),
        (SourceObservation(SENT, Verdict.UNDECIDED, expired=True), Reason.FREEZE_BUDGET_EXCEEDED),
        (SourceObservation(SENT, Verdict.UNDECIDED, wanted=False), Reason.ABORT_REQUESTED),
    ],
)
def test_reason_of_an_abort(it: SourceObservation, reason: Reason | None) -> None:
    assert abort_reason(it) is reason
    assert next_source_step(it) is (SourceStep.ABORT if reason else SourceStep.WAIT)


def test_object_gone_asks_and_then_follows_the_target() -> None:
    assert next_source_step(SourceObservation(SENT, Verdict.GONE)) is SourceStep.ASK_PROMISE
    assert next_source_step(SourceObservation(SENT, Verdict.GONE, PeerState.UNDECIDED)) is SourceStep.ASK_PROMISE
    assert next_source_step(SourceObservation(SENT, Verdict.GONE, PeerState.RESUMED)) is SourceStep.RELEASE
    assert next_source_step(SourceObservation(SENT, Verdict.GONE, PeerState.DESTROYED)) is SourceStep.THAW


def test_resumed_by_word_alone_does_not_kill_while_the_object_may_exist() -> None:
    it = SourceObservation(SENT, Verdict.UNREACHABLE, PeerState.RESUMED, expired=True)
    assert next_source_step(it) not in {SourceStep.RELEASE, SourceStep.THAW}


def test_thawed_by_promise_writes_abort_later_and_accepts_a_late_commit() -> None:
    thawed = SourceState.THAWED
    assert next_source_step(SourceObservation(thawed, Verdict.UNREACHABLE, owes_abort=True)) is SourceStep.WAIT
    assert next_source_step(SourceObservation(thawed, Verdict.UNDECIDED, owes_abort=True)) is SourceStep.PAY_ABORT
    assert next_source_step(SourceObservation(thawed, Verdict.COMMIT, owes_abort=True)) is SourceStep.WAIT
    assert next_source_step(SourceObservation(thawed, Verdict.RETURNED, owes_abort=True)) is SourceStep.CLEAR_ABORT
