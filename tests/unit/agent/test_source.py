"""The source side with a fake node: the way forward, every way back, and a restart at every journal state."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from migration_agent import source_copy
from migration_agent.journal import SourceRecord
from migration_agent.ports import PeerState, PeerUnreachable, TransferFailed
from migration_agent.runtime.interface import ContainerStatus
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.wire import SourceState
from support.agent import MIGRATION, SECOND, SOURCE_POD, source_request
from support.node import until
from support.source_world import World

PAUSED, RUNNING, STOPPED = ContainerStatus.PAUSED, ContainerStatus.RUNNING, ContainerStatus.STOPPED


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_forward_in_the_order_that_loses_nothing(world: World) -> None:
    await world.reach(SourceState.SENT)
    assert world.node.log == ["fence", "drop", "pause", "dump", "copy-shared"]
    assert world.node.status_ is PAUSED
    assert world.peers.sent == ["node-b"]
    report = world.side.report()
    assert report.fenced
    assert report.frozen
    assert report.alive
    assert not report.settled
    assert report.bytes_total == 5_000_019, "what is sent; CRIU's log is not"
    assert await world.side.intact()


async def test_every_act_is_journalled_before_it_is_done(world: World) -> None:
    seen: dict[str, SourceState] = {}

    def watch(act: str) -> None:
        record = world.journal.source(MIGRATION)
        assert record is not None
        seen[act] = record.state

    world.node.watch = watch
    await world.reach(SourceState.SENT)
    frozen = SourceState.FROZEN
    assert seen == {"fence": SourceState.FENCED, "drop": frozen, "pause": frozen, "dump": frozen, "copy-shared": frozen}


async def test_i1_commit_keeps_it_frozen_and_resumed_kills_it_frozen(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.decide(Decision.COMMIT)
    world.expire()
    for _ in range(5):
        await world.side.round()
    assert world.node.status_ is PAUSED
    await world.registers.write_outcome(world.side.ref, Outcome.RESUMED)
    await world.reach(SourceState.RELEASED)
    assert world.node.log[-2:] == ["reset", "kill"]
    assert world.node.fenced
    assert world.cluster.deleted == []
    assert world.side.report().settled
    assert not world.journal.layout.images(MIGRATION).exists()


@pytest.mark.parametrize("outcome", [None, Outcome.RETURNED])
async def test_i2_abort_or_returned_lets_it_go_on(world: World, outcome: Outcome | None) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.decide(Decision.COMMIT if outcome else Decision.ABORT)
    if outcome:
        await world.registers.write_outcome(world.side.ref, outcome)
    await world.reach(SourceState.THAWED)
    assert world.node.log[-3:] == ["resume", "undrop", "unfence"]
    assert world.node.status_ is RUNNING
    assert world.journal.holder(SOURCE_POD) is None
    assert not await world.side.intact()


async def test_i5_the_budget_ends_the_freeze(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.expire()
    await world.reach(SourceState.THAWED)
    assert world.cluster.decision is Decision.ABORT
    assert world.cluster.failure is not None
    assert world.cluster.failure.reason is Reason.FREEZE_BUDGET_EXCEEDED
    assert world.node.status_ is RUNNING


async def test_i5_the_budget_also_ends_a_dump_that_hangs(world: World) -> None:
    world.node.dump_gate = threading.Event()
    await world.rounds_until(lambda: "dump" in world.node.log, 1000)
    world.expire()
    stuck = asyncio.create_task(world.reach(SourceState.THAWED))
    await until("Abort is written", lambda: world.cluster.decision)
    assert world.node.status_ is PAUSED  # the thaw waits for the dump's end
    world.node.dump_gate.set()
    await stuck
    assert world.node.log[-3:] == ["resume", "undrop", "unfence"]


async def test_i1_the_loser_of_the_race_obeys(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.expire()
    world.registers.before_propose = lambda: world.cluster.decide(Decision.COMMIT)
    for _ in range(5):
        await world.side.round()
    assert world.cluster.decision is Decision.COMMIT
    assert world.node.status_ is PAUSED
    assert world.side.record.state is SourceState.SENT


@pytest.mark.parametrize(
    "change",
    [
        {"given_up": True},
        {"source_pod_uid": "another"},
        {"source_node": "node-c"},
        {"target_node": "node-c"},
        {"decision": Decision.ABORT},
        {"decision": Decision.COMMIT},
    ],
)
async def test_i8_nothing_is_touched_when_the_object_does_not_ask_for_it(
    world: World, change: dict[str, object]
) -> None:
    assert world.cluster.migration is not None
    world.cluster.migration = replace(world.cluster.migration, **change)
    for _ in range(3):
        await world.side.round()
    assert world.node.log == []
    if change.get("decision") is not Decision.COMMIT:
        assert world.side.record.state is SourceState.THAWED
        assert world.journal.holder(SOURCE_POD) is None


async def test_nothing_is_touched_while_the_api_is_away(world: World) -> None:
    world.registers.reachable = False
    for _ in range(3):
        await world.side.round()
    assert world.node.log == []
    world.registers.reachable = True
    await world.reach(SourceState.SENT)


async def test_a_failed_dump_aborts_with_its_reason_and_goes_on(world: World) -> None:
    world.node.dump_error = "Error (criu/files-reg.c:1031): Can't dump ghost file"
    await world.reach(SourceState.THAWED)
    assert world.cluster.failure is not None
    assert world.cluster.failure.reason is Reason.CHECKPOINT_FAILED
    assert "ghost file" in world.cluster.failure.message
    assert world.node.status_ is RUNNING


async def test_connections_that_came_after_the_preflight_are_refused_when_that_is_asked(world: World) -> None:
    task = source_request().task.model_copy(update={"refuse_connections": True})
    world.journal.save(SourceRecord(request=task, boot_id=world.clock.boot))
    world.agent(restarted=False)
    await world.reach(SourceState.THAWED)
    assert world.cluster.failure is not None
    assert "1 TCP connections with others, and spec.tcpConnections is Refuse" in world.cluster.failure.message
    assert world.node.log == ["fence", "drop", "pause", "resume", "undrop", "unfence"], "it was dumped all the same"


async def test_a_failed_transfer_aborts_unless_the_target_has_committed(world: World) -> None:
    world.peers.send_error = TransferFailed("the last answer was lost")
    world.registers.before_propose = lambda: world.cluster.decide(Decision.COMMIT)
    await world.reach(SourceState.DUMPED)
    for _ in range(4):
        await world.side.round()
    assert world.node.status_ is PAUSED
    await world.registers.write_outcome(world.side.ref, Outcome.RESUMED)
    await world.reach(SourceState.RELEASED)


async def test_nobody_is_frozen_for_a_target_that_does_not_take_the_checkpoint(world: World) -> None:
    world.peers.connect_error = TransferFailed("node-b refuses it")
    await world.reach(SourceState.THAWED)
    assert not {"fence", "drop", "pause"} & set(world.node.log)
    assert world.cluster.failure is not None
    assert (world.cluster.failure.reason, "node-b refuses it" in world.cluster.failure.message) == (
        Reason.TRANSFER_FAILED,
        True,
    )


async def test_nobody_is_frozen_for_a_target_that_cannot_be_reached(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_copy, "_CONNECT_SECONDS", 0.05)
    world.peers.reachable = False
    await world.reach(SourceState.THAWED)
    assert not {"fence", "drop", "pause"} & set(world.node.log)
    assert world.cluster.failure is not None
    assert "could not be reached" in world.cluster.failure.message


async def test_a_container_that_ran_during_its_dump_is_a_failure(world: World) -> None:
    def watch(act: str) -> None:
        if act == "copy-shared":
            world.node.status_ = ContainerStatus.RUNNING

    world.node.watch = watch
    await world.reach(SourceState.THAWED)
    assert world.cluster.failure is not None
    assert "not paused any more after its dump" in world.cluster.failure.message


async def test_a_source_that_dies_undecided_is_unfenced_after_abort(world: World) -> None:
    world.node.watch = lambda act: world.node.die() if act == "dump" else None
    await world.reach(SourceState.LOST)
    assert world.cluster.decision is Decision.ABORT
    assert not world.node.fenced
    assert not world.node.dropped
    assert world.node.status_ is STOPPED, "what is left frozen of a dead container can never be removed"


async def test_a_source_that_dies_after_all_was_sent_leaves_the_target_its_chance(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.node.die()
    for _ in range(4):
        await world.side.round()
    assert world.cluster.decision is None
    assert world.node.fenced
    assert not await world.side.intact()
    world.expire()
    await world.reach(SourceState.LOST)
    assert world.side.record.failure is not None
    assert world.side.record.failure.reason is Reason.SOURCE_LOST
    assert not world.node.fenced


async def test_i1_a_container_that_was_set_running_is_paused_again_and_its_copy_is_not_used(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.node.status_ = RUNNING
    await world.side.round()
    assert world.node.status_ is PAUSED
    await world.reach(SourceState.THAWED)
    assert world.cluster.decision is Decision.ABORT


async def test_api_away_after_the_budget_thaws_only_by_promise_and_pays_the_abort_later(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.registers.reachable = False
    await world.side.round()
    assert world.peers.asked == []
    world.expire()
    for answer in (None, PeerState.UNDECIDED, PeerState.RESUMED):
        world.peers.answer = answer
        for _ in range(3):
            with suppress(PeerUnreachable):  # the loop says it and goes on
                await world.side.round()
        assert world.node.status_ is PAUSED
    world.peers.answer = PeerState.DESTROYED
    await world.reach(SourceState.THAWED)
    assert not world.side.report().settled
    await world.restart()
    world.registers.reachable = True
    await world.rounds_until(lambda: world.side.record.settled)
    assert world.cluster.decision is Decision.ABORT
    assert world.node.log.count("pause") == 1


async def test_object_gone_and_target_resumed_kills_deletes_the_pod_and_forgets(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.migration = None
    world.peers.answer = PeerState.RESUMED
    await world.rounds_until(lambda: world.side.forgotten)
    assert world.node.status_ is STOPPED
    assert world.cluster.deleted == [SOURCE_POD]
    assert world.peers.asked == [(True, False), (False, True)]


async def test_i4_object_gone_after_the_release_leaves_no_dead_pod_behind(world: World) -> None:
    """Released by the register; then somebody forces the object away before the operator has deleted the pod."""
    await world.reach(SourceState.SENT)
    world.cluster.decide(Decision.COMMIT)
    await world.registers.write_outcome(world.side.ref, Outcome.RESUMED)
    await world.reach(SourceState.RELEASED)
    assert world.cluster.deleted == []
    world.cluster.migration = None
    await world.rounds_until(lambda: world.side.forgotten)
    assert world.cluster.deleted == [SOURCE_POD]


async def test_the_word_resumed_is_asked_for_once_even_over_a_crash(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.migration = None
    world.peers.answer = PeerState.RESUMED

    def crash(act: str) -> None:
        raise KeyError(act)

    world.node.watch = crash
    for _ in range(3):
        try:
            await world.side.round()
        except KeyError:
            break
    await world.restart()
    world.node.watch = lambda _: None
    world.peers.answer = PeerState.DESTROYED  # a target that has forgotten must not be believed any more
    await world.reach(SourceState.RELEASED)
    assert world.node.status_ is STOPPED


async def test_object_gone_and_target_destroyed_thaws_and_owes_nothing(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.migration = None
    world.peers.answer = PeerState.DESTROYED
    await world.rounds_until(lambda: world.side.forgotten)
    assert world.node.status_ is RUNNING


CRASHES = ["fence", "drop", "pause", "dump", "send", "sent"]
VERDICTS = ["undecided", "abort", "commit", "resumed", "returned", "away", "gone"]


@pytest.mark.parametrize("reboot", [False, True])
@pytest.mark.parametrize("verdict", VERDICTS)
@pytest.mark.parametrize("point", CRASHES)
async def test_i4_restart_at_every_journal_state(world: World, point: str, verdict: str, *, reboot: bool) -> None:
    """The agent dies before the named act; whatever the registers say then, the rules hold and it ends."""
    await _crash_before(world, point)
    await _let_registers_say(world, verdict)
    if reboot:
        world.clock.boot, world.clock.now_ns = "boot-2", SECOND
        world.node.reboot()
    await world.restart()
    assert world.node.fenced, "I3: before anything else"
    before = world.node.status_
    world.peers.send_error = None
    for _ in range(6):
        await world.side.round()
        if world.side.copying is not None:
            await asyncio.wait([world.side.copying])
    undecided_and_sent = verdict == "undecided" and (point == "sent" or (point == "send" and not reboot))
    if point == "send" and verdict in {"undecided", "away"} and not reboot:
        assert world.side.record.state is SourceState.SENT, "the dump was complete: only what is missing is sent"
        assert world.node.log.count("dump") == 1
    if verdict in {"away", "gone", "commit"} or undecided_and_sent:
        assert not world.side.record.ended, "unsure means: stay frozen"
        assert (world.node.status_, world.node.fenced) == (before, True)
    else:
        state, status, fenced = _expected_end(verdict, reboot=reboot)
        assert world.side.record.state is state
        assert (world.node.status_, world.node.fenced) == (status, fenced)
        assert not world.node.dropped or state is SourceState.RELEASED
    if verdict == "undecided" and not undecided_and_sent:
        assert world.cluster.failure is not None
        assert world.cluster.failure.reason is (Reason.SOURCE_LOST if reboot else Reason.AGENT_RESTARTED)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [("resumed", SourceState.RELEASED), ("abort", SourceState.LOST), ("returned", SourceState.LOST)],
)
async def test_a_pod_that_was_removed_while_its_agent_was_away_needs_no_fence(
    world: World, verdict: str, state: SourceState
) -> None:
    """A pod without its directory could not be fenced, so its migration never came to an end."""
    await _crash_before(world, "sent")
    await _let_registers_say(world, verdict)
    world.node.remove()
    await world.restart()
    await world.rounds_until(lambda: world.side.record.ended)
    assert world.side.record.state is state


def _expected_end(verdict: str, *, reboot: bool) -> tuple[SourceState, ContainerStatus, bool]:
    """Return state, container and fence at the end of a migration whose registers say something final."""
    if verdict == "resumed":
        return SourceState.RELEASED, STOPPED, True
    return (SourceState.LOST, STOPPED, False) if reboot else (SourceState.THAWED, RUNNING, False)


async def _let_registers_say(world: World, verdict: str) -> None:
    if verdict in {"commit", "resumed", "returned"}:
        world.cluster.decide(Decision.COMMIT)
    if verdict in {"resumed", "returned"}:
        await world.registers.write_outcome(world.side.ref, Outcome[verdict.upper()])
    if verdict == "abort":
        world.cluster.decide(Decision.ABORT)
    if verdict == "gone":
        world.cluster.migration = None
    world.registers.reachable = verdict != "away"
    world.peers.answer = PeerState.UNDECIDED


async def _crash_before(world: World, point: str) -> None:
    def crash(act: str) -> None:
        if act == point:
            raise KeyError(act)

    world.node.watch = crash
    if point == "send":
        world.peers.send_error = KeyError("send")
    await world.side.round()
    world.side.record = await _crashed(world)
    world.node.watch = lambda _: None
    states = {"fence": SourceState.FENCED, "send": SourceState.DUMPED, "sent": SourceState.SENT}
    assert world.side.record.state is states.get(point, SourceState.FROZEN)


async def _crashed(world: World) -> SourceRecord:
    """Let the copy run into its crash, and take the journal as the crash left it: without what was saved after it."""
    assert world.side.copying is not None
    journal, kept = world.journal, world.journal.source(MIGRATION)
    original = type(journal).save
    saved: list[SourceRecord] = []

    def save(record: SourceRecord) -> None:
        if record.failure is None:
            original(journal, record)
            saved.append(record)

    object.__setattr__(journal, "save", save)
    await asyncio.wait([world.side.copying])
    object.__delattr__(journal, "save")
    record = saved[-1] if saved else kept
    assert record is not None
    return record
