"""The source side of a clone: it stands still for its dump alone, and nothing that happens later can end it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from migration_agent.journal import SourceRecord
from migration_agent.ports import PeerState, Sending, TransferFailed
from migration_agent.runtime.interface import ContainerStatus
from migration_agent.seen import Verdict
from migration_agent.source_plan import ENDED, SourceObservation, SourceStep, next_source_step
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.wire import SourceState, Thaw
from support.agent import MIGRATION, SECOND, SOURCE_POD
from support.source_world import World

PAUSED, RUNNING = ContainerStatus.PAUSED, ContainerStatus.RUNNING
BOOLEANS = (False, True)
DUMPED = {SourceState.DUMPED, SourceState.SENT}


def everything() -> Iterator[SourceObservation]:
    """Yield all observations of a source that is apart; it goes on early only when it was dumped."""
    for state, verdict, peer in product(SourceState, Verdict, (None, *PeerState)):
        debts = BOOLEANS if state in ENDED else (False,)
        free = BOOLEANS if state in DUMPED else (False,)
        for owed, let_go in product(debts, free):
            for flags in product(BOOLEANS, repeat=7):
                yield SourceObservation(state, verdict, peer, *flags, owes_abort=owed, apart=True, let_go=let_go)


def test_i2_nothing_of_it_is_ever_killed_and_nobody_is_asked() -> None:
    never = {SourceStep.RELEASE, SourceStep.REFREEZE, SourceStep.ASK_PROMISE}
    assert not {next_source_step(it) for it in everything()} & never


def test_i5_once_dumped_it_goes_on_whatever_anybody_says() -> None:
    for it in everything():
        if it.state in DUMPED and not it.let_go:
            assert next_source_step(it) is (SourceStep.WAIT if it.working else SourceStep.LET_GO), it


def test_once_it_goes_on_its_containers_are_left_alone() -> None:
    alone = {SourceStep.SEND, SourceStep.ABORT, SourceStep.LEAVE, SourceStep.WAIT}
    assert {next_source_step(it) for it in everything() if it.let_go} == alone


def test_i5_before_the_dump_its_budget_is_enforced_without_anybodys_word() -> None:
    for it in everything():
        if it.state in {SourceState.FENCED, SourceState.FROZEN} and (it.expired or it.failed):
            asked = SourceStep.ABORT if it.verdict is Verdict.UNDECIDED else None
            on = SourceStep.THAW if it.alive else SourceStep.LOSE
            assert next_source_step(it) is (asked or on), it


def test_i4_an_owed_abort_is_moot_once_anything_is_decided() -> None:
    for it in everything():
        if it.owes_abort and it.verdict not in {Verdict.UNDECIDED, Verdict.UNREACHABLE}:
            assert next_source_step(it) is SourceStep.CLEAR_ABORT, it


def test_a_source_that_moves_is_never_let_go() -> None:
    for state, verdict in product(SourceState, Verdict):
        for flags in product(BOOLEANS, repeat=7):
            step = next_source_step(SourceObservation(state, verdict, None, *flags))
            assert step not in {SourceStep.LET_GO, SourceStep.LEAVE}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, thaw=Thaw.DUMPED)


async def test_it_goes_on_before_the_copy_is_complete_at_the_target(world: World) -> None:
    world.peers.send_error = TransferFailed("nobody is there")
    seen: list[tuple[SourceState, bool]] = []

    def watch(act: str) -> None:
        record = world.journal.source(MIGRATION)
        assert record is not None
        if act in {"resume", "undrop", "unfence"}:
            seen.append((record.state, record.let_go))

    world.node.watch = watch
    await world.reach(SourceState.DUMPED)
    assert world.node.log == ["fence", "drop", "pause", "dump", "copy-shared", "resume", "undrop", "unfence"]
    assert seen == [(SourceState.DUMPED, False)] * 3, "its checkpoint is journalled first, that it goes on afterwards"
    report = world.side.report()
    assert (report.fenced, report.frozen, report.settled) == (False, False, False)
    assert report.thawed_at is not None
    assert report.freeze_budget_left_seconds is None


async def test_the_rest_is_sent_only_when_it_goes_on(world: World) -> None:
    """So that the clone never runs while its source stands still."""
    at_the_end: list[ContainerStatus] = []
    world.node.watch = lambda act: at_the_end.extend([world.node.status_] * (act == "unfence" and not world.peers.sent))
    await world.reach(SourceState.SENT)
    assert at_the_end == [RUNNING]
    assert world.side.record.let_go


@pytest.mark.parametrize("verdict", ["abort", "resumed", "returned"])
async def test_whatever_is_decided_the_source_is_left_alone_and_free_for_another(world: World, verdict: str) -> None:
    await world.reach(SourceState.SENT)
    before = list(world.node.log)
    world.cluster.decide(Decision.ABORT if verdict == "abort" else Decision.COMMIT)
    for _ in range(3):
        await world.side.round()
    if verdict != "abort":
        assert not world.side.record.ended, "until the clone's end is known its agent can be asked"
        await world.registers.write_outcome(world.side.ref, Outcome[verdict.upper()])
    await world.reach(SourceState.THAWED)
    assert world.node.log == before
    assert world.node.status_ is RUNNING
    assert world.side.report().settled
    assert world.journal.holder(SOURCE_POD) is None
    assert not world.journal.layout.images(MIGRATION).exists()
    assert world.cluster.deleted == []


async def test_cancelled_in_mid_copy_only_the_copy_ends(world: World) -> None:
    world.peers.send_error = TransferFailed("the target refused it")
    await world.reach(SourceState.THAWED)
    assert world.cluster.decision is Decision.ABORT
    assert world.cluster.failure is not None
    assert world.cluster.failure.reason is Reason.TRANSFER_FAILED
    assert world.node.log.count("resume") == 1


async def test_its_budget_is_over_when_it_goes_on(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.expire()
    for _ in range(3):
        await world.side.round()
    assert world.cluster.decision is None
    assert not world.side.record.ended


async def test_i5_the_budget_ends_a_dump_that_hangs_also_while_the_api_is_away(world: World) -> None:
    world.node.dump_gate = threading.Event()
    await world.rounds_until(lambda: "dump" in world.node.log, 1000)
    world.registers.reachable = False
    world.expire()
    stuck = asyncio.create_task(world.reach(SourceState.THAWED))
    await asyncio.sleep(0.05)
    world.node.dump_gate.set()
    await stuck
    assert world.node.status_ is RUNNING
    assert not world.side.report().settled, "Abort is still to be written"
    world.registers.reachable = True
    await world.rounds_until(lambda: world.side.record.settled)
    assert world.cluster.decision is Decision.ABORT
    assert world.peers.asked == []


async def test_what_dies_after_it_was_let_go_is_no_business_of_the_migration(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.node.die()
    for _ in range(3):
        await world.side.round()
    assert world.cluster.decision is None
    assert await world.side.intact(), "nothing is lost when its clone is given up"
    assert "fence" not in world.node.log[1:]


CRASHES = ["dump", "resume", "undrop", "unfence", "went-on", "send", "sent"]
"""Before the act of that name; `went-on`: before the journal says so."""
VERDICTS = ["undecided", "abort", "commit", "resumed", "returned", "away", "gone"]


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("point", CRASHES)
async def test_i4_restart_at_every_journal_state(world: World, point: str, verdict: str, *, reboot: bool) -> None:
    """The agent dies before the named act; its next life lets the source go on, whatever the registers say."""
    await crash_before(world, point)
    await let_registers_say(world, verdict)
    if reboot:
        world.clock.boot, world.clock.now_ns = "boot-2", SECOND
        world.node.reboot()
        world.vault.wipe(MIGRATION)  # it lay in memory
    await world.restart()
    for _ in range(8):
        with suppress(Exception):
            await world.side.round()
        if world.side.copying is not None:
            await asyncio.wait([world.side.copying])
    assert world.node.status_ is (ContainerStatus.STOPPED if reboot else RUNNING)
    assert not world.node.fenced
    assert not world.node.dropped
    assert "kill" not in world.node.log
    if verdict in {"abort", "resumed", "returned", "gone"}:
        assert world.side.record.ended
        assert not world.journal.layout.images(MIGRATION).exists()


async def crash_before(world: World, point: str) -> None:
    """Let the copy run up to the act, and take the journal as it is then: whatever comes later is not written."""
    journal, original, dead = world.journal, type(world.journal).save, threading.Event()

    def crash(act: str) -> None:
        if act == point or dead.is_set():
            dead.set()
            raise KeyError(act)

    def save(record: SourceRecord) -> None:
        if record.let_go and point == "went-on":
            dead.set()
        if not dead.is_set():
            original(journal, record)

    def send(sending: Sending) -> None:
        crash("send")

    world.node.watch = crash
    if point == "send":
        world.peers.send = send
    object.__setattr__(journal, "save", save)
    await world.side.round()
    assert world.side.copying is not None
    await asyncio.wait([world.side.copying])
    object.__delattr__(journal, "save")
    if point == "send":
        del world.peers.send
    world.node.watch = lambda _: None
    assert dead.is_set() or point == "sent"


async def let_registers_say(world: World, verdict: str) -> None:
    if verdict in {"commit", "resumed", "returned"}:
        world.cluster.decide(Decision.COMMIT)
    if verdict in {"resumed", "returned"}:
        await world.registers.write_outcome(world.side.ref, Outcome[verdict.upper()])
    if verdict == "abort":
        world.cluster.decide(Decision.ABORT)
    if verdict == "gone":
        world.cluster.migration = None
    world.registers.reachable = verdict != "away"
