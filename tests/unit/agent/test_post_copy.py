"""Memory that follows after the commit: how long the source must stay, and who may read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from migration_agent.checkpoint import memory
from migration_agent.peer import Refused
from migration_agent.ports import PeerState
from migration_agent.processes import ProcessRef
from migration_agent.seen import Verdict
from migration_agent.source_plan import SourceObservation, SourceStep, next_source_step
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.wire import Failure, SourceState, SourceTask, TargetState, Thaw
from support.agent import MIGRATION, source_request
from support.source_world import World

SENT, DUMPED = SourceState.SENT, SourceState.DUMPED


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, post_copy=True)


def resumed(world: World) -> None:
    world.cluster.decide(Decision.COMMIT)
    assert world.cluster.migration is not None
    world.cluster.migration = replace(world.cluster.migration, outcome=Outcome.RESUMED)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("alive", [False, True])
@pytest.mark.parametrize("state", [DUMPED, SENT])
def test_i2_what_is_still_needed_is_neither_killed_nor_let_go(
    state: SourceState, *, alive: bool, running: bool
) -> None:
    for verdict, peer in ((Verdict.RESUMED, None), (Verdict.GONE, PeerState.RESUMED)):
        it = SourceObservation(state, verdict, peer, alive=alive, running=running, lends=True)
        assert next_source_step(it) is (SourceStep.REFREEZE if running else SourceStep.WAIT)
        assert next_source_step(replace(it, lends=False)) is SourceStep.RELEASE


@pytest.mark.parametrize("verdict", [Verdict.ABORT, Verdict.RETURNED])
def test_i2_until_the_target_has_resumed_the_source_can_go_on(verdict: Verdict) -> None:
    assert next_source_step(SourceObservation(SENT, verdict, lends=True)) is SourceStep.THAW


@pytest.mark.parametrize("verdict", [Verdict.RESUMED, Verdict.GONE])
def test_the_source_is_told_when_nothing_is_filled_in_any_more_and_before_the_end(verdict: Verdict) -> None:
    it = TargetObservation(TargetState.RESUMING, verdict, TicketState.RESUMING, received=True, borrows=True)
    assert next_target_step(replace(it, filling=True)) is TargetStep.WAIT
    assert next_target_step(replace(it, restoring=True)) is TargetStep.WAIT
    assert next_target_step(it) is TargetStep.MEMORY_MOVED
    assert next_target_step(replace(it, borrows=False)) is TargetStep.END_RESUMED


def test_resumed_is_written_before_the_memory_has_moved() -> None:
    """Nobody must wait for gigabytes to know which copy runs."""
    it = TargetObservation(TargetState.RESUMING, Verdict.COMMIT, TicketState.RESUMING, borrows=True, filling=True)
    assert next_target_step(it) is TargetStep.WRITE_RESUMED


async def test_i2_the_source_stays_frozen_until_its_memory_has_moved(world: World) -> None:
    await world.reach(SENT)
    resumed(world)
    for _ in range(3):
        await world.side.round()
    report = world.side.report()
    assert (report.state, report.lending, report.frozen) == (SENT, True, True)
    await world.restart()
    await world.side.round()
    assert world.side.record.state is SENT
    await world.side.memory_moved()
    await world.reach(SourceState.RELEASED)
    assert not world.side.report().lending


async def test_memory_is_lent_where_it_was_noted_and_only_while_it_stands_still(world: World) -> None:
    with pytest.raises(Refused, match="does not stand still: it is Accepted"):
        await world.side.memory.lend("main")
    await world.reach(SENT)
    place = world.journal.layout.image(MIGRATION, "main")
    place.mkdir(parents=True, exist_ok=True)
    memory.note(place, {1: ProcessRef(pid=77, start=5)})
    lent = await world.side.memory.lend("main")
    assert dict(lent.processes) == {1: ProcessRef(pid=77, start=5)}
    assert lent.standing() == ""
    world.cluster.decide(Decision.ABORT)
    await world.reach(SourceState.THAWED)
    assert "it is Thawed" in lent.standing()
    with pytest.raises(Refused):
        await world.side.memory.lend("main")


async def test_i2_an_abort_that_lost_the_race_does_not_take_the_memory_away(world: World) -> None:
    """Found by the exploration: the reason was journalled, then Commit had won."""
    await world.reach(SENT)
    world.cluster.decide(Decision.COMMIT)
    world.side.last_verdict = Verdict.UNDECIDED
    await world.side.save(failure=Failure(reason=Reason.FREEZE_BUDGET_EXCEEDED, message="too long"))
    assert (await world.side.memory.lend("main")).standing() == ""


async def test_memory_of_a_source_that_somebody_let_run_is_not_what_was_dumped(world: World) -> None:
    await world.reach(SENT)
    lent = await world.side.memory.lend("main")
    resumed(world)
    world.node.resume(world.side.record.containers[0])
    await world.side.round()
    assert world.side.record.ran
    assert "somebody let the frozen source on node node-a run" in lent.standing()
    with pytest.raises(Refused, match="somebody let the frozen source"):
        await world.side.memory.lend("main")


async def test_without_post_copy_nothing_is_lent(tmp_path: Path) -> None:
    world = World(tmp_path)
    await world.reach(SENT)
    with pytest.raises(Refused, match="no memory stays here"):
        await world.side.memory.lend("main")


def test_a_source_that_goes_on_by_itself_cannot_keep_its_memory_for_others() -> None:
    task = source_request(post_copy=True).task.model_dump()
    with pytest.raises(ValueError, match="must stand still until its memory has moved"):
        SourceTask.model_validate({**task, "thaw": Thaw.DUMPED})
