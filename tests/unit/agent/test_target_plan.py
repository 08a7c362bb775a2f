"""The target's decisions over every combination of what can be known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

from migration_agent.ports import PodState
from migration_agent.seen import Verdict
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.wire import TargetState

BOOLEANS = (False, True)
STATES = (TargetState.PREPARED, TargetState.RESUMING, TargetState.DESTROYED)


def unsettled() -> Iterator[TargetObservation]:
    """Yield all observations of a migration that has not ended."""
    for state, verdict, ticket, pod in product(STATES, Verdict, TicketState, PodState):
        for flags in product(BOOLEANS, repeat=13):
            ours, received, gate, restoring, held, sent, clear, dead, promise, waited, failed, losing, company = flags
            if (gate and restoring) or (sent and not held) or (dead and held):
                continue  # these exclude each other by what they mean
            # `company` says nothing as long as nothing is held: there it stands for somebody at the late gate
            late = company and not (gate or restoring or held)
            yield TargetObservation(
                state,
                verdict,
                ticket,
                ours=ours,
                received=received,
                gate=gate,
                late=late,
                called=late and not ours,  # which says nothing as long as nothing is held
                restoring=restoring,
                held=held,
                resume_sent=sent,
                clear=clear,
                dead=dead,
                pod=pod,
                promise_asked=promise,
                waited=waited,
                failed=failed,
                losing=losing,
                accompanied=company,
            )


PENDING, RESUMING_TICKET, DESTROYED = TicketState.PENDING, TicketState.RESUMING, TicketState.DESTROYED
UNUSED = {TicketState.NONE, PENDING}
STILL_POSSIBLE = {Verdict.UNDECIDED, Verdict.UNREACHABLE, Verdict.COMMIT}

RULES: dict[TargetStep, tuple[str, Callable[[TargetObservation], bool]]] = {
    TargetStep.RESUME: (
        "I1: nothing runs without Commit, the ticket and a held tree of ours",
        lambda it: it.verdict is Verdict.COMMIT and it.ticket is PENDING and it.held and it.ours and not it.losing,
    ),
    TargetStep.COMMIT: (
        "I1, I2, I6: Commit is proposed only over a held, verified tree that nobody has given up",
        lambda it: (
            it.verdict is Verdict.UNDECIDED
            and it.ticket is PENDING
            and (it.held, it.ours, it.received, it.accompanied) == (True, True, True, True)
            and not (it.failed or it.promise_asked or it.losing)
            and it.pod is PodState.LIVE
        ),
    ),
    TargetStep.RESTORE: (
        "I1, I6: one tree at a time, only from what was verified",
        lambda it: (
            (it.ticket is PENDING and it.received and it.clear and it.gate and it.verdict in STILL_POSSIBLE)
            and not it.losing
        ),
    ),
    TargetStep.OPEN: (
        "I1, I2: the kubelet goes on past the late gate only to what is verified, or about to come, and not given up",
        lambda it: (
            (it.ticket is PENDING and it.late and it.verdict in STILL_POSSIBLE)
            and (it.received or it.called)
            and not it.losing
            and not (it.verdict is not Verdict.COMMIT and (it.failed or it.promise_asked))
        ),
    ),
    TargetStep.LOSE: ("I1: called back only before it may run", lambda it: it.ticket is PENDING and it.losing),
    TargetStep.WRITE_RESUMED: (
        "I1: only the hook's rename makes Resumed",
        lambda it: it.ticket is RESUMING_TICKET and it.verdict is Verdict.COMMIT,
    ),
    TargetStep.END_RESUMED: ("I1: as above", lambda it: it.ticket is RESUMING_TICKET and not it.restoring),
    TargetStep.PROMISE: ("I1: promised only when all is dead", lambda it: it.ticket is DESTROYED and it.dead),
    TargetStep.WRITE_RETURNED: (
        "I1: returned only after the promise is on disk",
        lambda it: it.ticket is DESTROYED and it.dead and it.state is TargetState.DESTROYED,
    ),
    TargetStep.GIVE_UP: (
        "what went on is ended only when the source goes on",
        lambda it: it.ticket is RESUMING_TICKET and it.verdict is Verdict.RETURNED and not it.dead,
    ),
    TargetStep.END_RETURNED: ("I1: nothing runs any more", lambda it: it.dead and it.verdict is Verdict.RETURNED),
    TargetStep.DESTROY: ("a used ticket stays", lambda it: it.ticket in UNUSED),
    TargetStep.RETURN_IF_INTACT: ("a used ticket stays", lambda it: it.ticket in UNUSED),
    TargetStep.RETURN_ANYWAY: ("a used ticket stays", lambda it: it.ticket in UNUSED),
    TargetStep.MAKE_TICKET: (
        "a ticket is made only while the migration may still commit",
        lambda it: it.ticket is TicketState.NONE and it.verdict in STILL_POSSIBLE,
    ),
}


def test_invariants_of_every_step() -> None:
    taken: set[TargetStep] = set()
    for it in unsettled():
        step = next_target_step(it)
        taken.add(step)
        rule = RULES.get(step)
        assert rule is None or rule[1](it), f"{rule and rule[0]}: {step} at {it}"
    assert taken >= RULES.keys(), "every rule was put to the test"


def test_i2_after_commit_the_ticket_is_destroyed_only_with_the_sources_answer() -> None:
    for it in unsettled():
        if it.verdict is Verdict.COMMIT and it.ticket is TicketState.PENDING:
            assert next_target_step(it) is not TargetStep.DESTROY, it


def test_i1_resuming_on_disk_always_becomes_resumed() -> None:
    """Unless an admin has declared this node out of service, and the operator has written Returned for it."""
    allowed = {TargetStep.WRITE_RESUMED, TargetStep.END_RESUMED, TargetStep.WAIT}
    overruled = {TargetStep.GIVE_UP, TargetStep.END_RETURNED}
    for it in unsettled():
        if it.ticket is TicketState.RESUMING:
            assert next_target_step(it) in (overruled if it.verdict is Verdict.RETURNED else allowed), it


def test_i4_every_end_is_reached_from_a_destroyed_ticket() -> None:
    def it(verdict: Verdict, *, dead: bool, state: TargetState) -> TargetStep:
        return next_target_step(TargetObservation(state, verdict, TicketState.DESTROYED, dead=dead))

    for verdict in Verdict:
        assert it(verdict, dead=False, state=TargetState.PREPARED) is TargetStep.CLEAR
        assert it(verdict, dead=True, state=TargetState.PREPARED) is TargetStep.PROMISE
    destroyed = TargetState.DESTROYED
    assert it(Verdict.COMMIT, dead=True, state=destroyed) is TargetStep.WRITE_RETURNED
    assert it(Verdict.RETURNED, dead=True, state=destroyed) is TargetStep.END_RETURNED
    assert it(Verdict.ABORT, dead=True, state=destroyed) is TargetStep.END_DESTROYED
    assert it(Verdict.GONE, dead=True, state=destroyed) is TargetStep.END_DESTROYED
    assert it(Verdict.UNDECIDED, dead=True, state=destroyed) is TargetStep.WAIT


def test_a_commit_that_was_on_its_way_after_the_promise_becomes_returned() -> None:
    late = TargetObservation(TargetState.DESTROYED, Verdict.COMMIT, TicketState.DESTROYED, promise_asked=True)
    assert next_target_step(late) is TargetStep.WRITE_RETURNED


def test_the_promise_is_given_only_before_the_commit_or_when_it_cannot_go_on() -> None:
    pending = TicketState.PENDING
    asked = TargetObservation(TargetState.PREPARED, Verdict.UNREACHABLE, pending, promise_asked=True, held=True)
    assert next_target_step(asked) is TargetStep.DESTROY
    committed = TargetObservation(
        TargetState.PREPARED, Verdict.COMMIT, pending, promise_asked=True, received=True, held=True
    )
    assert next_target_step(committed) is TargetStep.RESUME


def test_a_failed_restore_is_not_tried_again_before_the_commit_and_is_after_it() -> None:
    pending = TicketState.PENDING
    before = TargetObservation(TargetState.PREPARED, Verdict.UNDECIDED, pending, received=True, gate=True, failed=True)
    assert next_target_step(before) is TargetStep.REFUSE
    after = TargetObservation(TargetState.PREPARED, Verdict.COMMIT, pending, received=True, gate=True, failed=True)
    assert next_target_step(after) is TargetStep.RESTORE


def test_a_lost_pod_or_image_returns_after_the_commit() -> None:
    def step(*, received: bool = True, pod: PodState = PodState.LIVE, waited: bool = False) -> TargetStep:
        it = TargetObservation(
            TargetState.PREPARED, Verdict.COMMIT, TicketState.PENDING, received=received, pod=pod, waited=waited
        )
        return next_target_step(it)

    assert step() is TargetStep.WAIT
    assert step(waited=True) is TargetStep.RETURN_IF_INTACT
    assert step(pod=PodState.GONE) is TargetStep.RETURN_ANYWAY
    assert step(received=False) is TargetStep.RETURN_ANYWAY


def test_the_word_resumed_is_kept_until_the_source_has_heard_it() -> None:
    def step(verdict: Verdict, state: TargetState, *, acknowledged: bool) -> TargetStep:
        it = TargetObservation(state, verdict, TicketState.RESUMING, settled=True, acknowledged=acknowledged)
        return next_target_step(it)

    assert step(Verdict.GONE, TargetState.RESUMED, acknowledged=False) is TargetStep.WAIT
    assert step(Verdict.GONE, TargetState.RESUMED, acknowledged=True) is TargetStep.FORGET
    assert step(Verdict.RESUMED, TargetState.RESUMED, acknowledged=True) is TargetStep.WAIT
    assert step(Verdict.GONE, TargetState.DESTROYED, acknowledged=False) is TargetStep.FORGET


def test_a_checkpoint_stays_while_memory_is_filled_in_from_it() -> None:
    ends = [it for it in unsettled() if next_target_step(it) is TargetStep.END_RESUMED]
    assert ends
    for it in ends:
        assert next_target_step(replace(it, filling=True)) is TargetStep.WAIT
