"""Two agents in one process, with real TLS, gate sockets and processes: whole migrations, forward and back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from migration_agent.ports import PodState
from migration_agent.room import Room
from migration_agent.runtime.interface import ContainerStatus
from migration_agent.ticket import TicketState
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.wire import SourceState, TargetState
from support import interposer
from support.agent import MIGRATION, SECOND, SOURCE_POD, source_request, target_request
from support.node import until
from support.pair import Pair, exit_code

PAUSED, RUNNING, STOPPED = ContainerStatus.PAUSED, ContainerStatus.RUNNING, ContainerStatus.STOPPED


async def forgotten(pair: Pair) -> None:
    """Wait until both agents have forgotten the migration of their own accord."""
    async with asyncio.timeout(30):
        for node in (pair.a, pair.b):
            while node.journal.migrations():
                with suppress(KeyError):
                    await node.migrations.settle(MIGRATION)
                await node.migrations.housekeeping()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as it:
        yield it


async def test_a_whole_migration(pair: Pair) -> None:
    await pair.begin()
    await until("the source is released", lambda: pair.source.settled)
    await until("the target is settled", lambda: pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Resumed"]
    assert pair.source.state is SourceState.RELEASED
    assert pair.a.containers.status_ is STOPPED
    assert pair.a.containers.fenced, "I3: a fenced source never cold-starts"
    assert pair.target.state is TargetState.RESUMED
    assert pair.b.ran
    assert pair.target.bytes_received == pair.source.bytes_sent == 5_000_019
    for node in (pair.a, pair.b):
        assert not node.layout.images(MIGRATION).exists(), "I7: memory images are gone when it is finished"
        await node.migrations.forget(MIGRATION)
        assert node.journal.migrations() == ()
    assert pair.a.journal.holder(SOURCE_POD) is None
    assert await exit_code(pair.b.create()) == 0, "after Resumed a create is an ordinary start"


async def test_a_whole_migration_with_its_files_on_the_disk(pair: Pair) -> None:
    for node in (pair.a, pair.b):
        node.room = Room(memory=0, disk=1 << 40)
    await pair.begin()
    for node in (pair.a, pair.b):
        assert node.layout.images(MIGRATION).is_relative_to(node.layout.state)
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Resumed"]
    assert pair.target.bytes_received == 5_000_019
    assert pair.source.files.on_disk
    assert "/images has 0 MiB left" in pair.target.files.why
    for node in (pair.a, pair.b):
        assert not any(node.layout.images(MIGRATION).iterdir()), "I7: memory images are gone when it is finished"
        await node.migrations.forget(MIGRATION)
        for home in (node.layout.run, node.layout.state):
            assert not any((home / "images").iterdir())


async def test_a_restarted_agent_finds_its_files_on_the_disk_and_sweeps_others(pair: Pair) -> None:
    for node in (pair.a, pair.b):
        node.room = Room(memory=0, disk=1 << 40)
    await pair.begin(interposer.DIES_BEFORE_RENAME)
    await until("the first create has failed", lambda: pair.b.children[0].poll() is not None)
    await pair.b.stop()
    strange = pair.b.layout.images_on_disk("0b0e2b8e-another")
    strange.mkdir()
    pair.b.room = Room(memory=1 << 40, disk=0)
    await pair.b.start()
    assert not strange.exists()
    pair.b.create()
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.outcome is Outcome.RESUMED
    assert pair.target.files.on_disk


async def test_an_abort_while_held_kills_the_tree_and_the_source_goes_on(pair: Pair) -> None:
    pair.b.registers.before_propose = lambda: pair.cluster.decide(Decision.ABORT)
    await pair.begin()
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Abort"]
    assert (pair.source.state, pair.target.state) == (SourceState.THAWED, TargetState.DESTROYED)
    assert pair.a.containers.status_ is RUNNING
    assert not pair.b.ran
    assert pair.b.ticket is TicketState.DESTROYED
    assert await exit_code(pair.b.children[0]) == 1
    assert await exit_code(pair.b.create()) == 1, "I3: the kubelet's retry is refused"


async def test_a_restore_that_fails_before_the_commit_is_reported_and_not_tried_again(pair: Pair) -> None:
    await pair.begin(interposer.CANNOT_RESTORE)
    await until("the failure is reported", lambda: pair.target.failure is not None)
    assert pair.target.failure is not None
    assert pair.target.failure.reason is Reason.RESTORE_FAILED
    assert "No mapping" in pair.target.failure.message
    assert await exit_code(pair.b.create()) == 1
    pair.cluster.decide(Decision.ABORT)  # the operator's part
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.a.containers.status_ is RUNNING


async def test_after_commit_a_lost_tree_is_restored_again(pair: Pair) -> None:
    await pair.begin(interposer.DIES_BEFORE_RENAME)
    await until("the first create has failed", lambda: pair.b.children[0].poll() is not None)
    assert pair.cluster.decision is Decision.COMMIT
    assert pair.a.containers.status_ is PAUSED
    pair.b.create()
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.outcome is Outcome.RESUMED
    assert pair.b.ran


async def test_after_commit_the_container_is_returned_when_nothing_is_held_within_the_budget(pair: Pair) -> None:
    await pair.begin(interposer.DIES_BEFORE_RENAME)
    await until("the create has failed", lambda: pair.b.children[0].poll() is not None)
    pair.b.clock.now_ns += 31 * SECOND
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Returned"]
    assert (pair.source.state, pair.target.state) == (SourceState.THAWED, TargetState.RETURNED)
    assert pair.a.containers.status_ is RUNNING
    assert "the hook killed the tree" in (pair.cluster.outcome_message or "")


async def test_i2_a_committed_target_keeps_trying_while_the_source_is_not_intact(pair: Pair) -> None:
    await pair.begin(interposer.DIES_BEFORE_RENAME)
    await until("the create has failed", lambda: pair.b.children[0].poll() is not None)
    pair.a.containers.die()
    pair.b.clock.now_ns += 31 * SECOND
    for _ in range(3):
        await pair.b.migrations.settle(MIGRATION)
    assert pair.b.ticket is TicketState.PENDING
    assert pair.a.containers.fenced
    pair.cluster.pod_state = PodState.GONE
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert (pair.source.state, pair.target.state) == (SourceState.LOST, TargetState.RETURNED)
    assert "is dead" in (pair.cluster.outcome_message or "")


async def test_i4_the_only_copy_left_is_restored_again_after_the_budget(pair: Pair) -> None:
    await pair.begin(interposer.DIES_BEFORE_RENAME)
    await until("the create has failed", lambda: pair.b.children[0].poll() is not None)
    pair.a.containers.die()
    pair.b.clock.now_ns += 31 * SECOND
    for _ in range(3):
        await pair.b.migrations.settle(MIGRATION)
    assert pair.b.ticket is TicketState.PENDING
    pair.b.create()  # the kubelet's retry
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Resumed"]
    assert pair.b.ran


async def test_the_target_agent_restarts_while_held_and_the_tree_dies_with_its_connection(pair: Pair) -> None:
    pair.b.registers.reachable = False  # so that it is held and not committed
    await pair.begin()
    await until("the tree is held", lambda: pair.target.state is TargetState.HELD)
    await pair.b.stop()
    assert await exit_code(pair.b.children[0]) != 0
    await pair.b.start()
    pair.b.registers.reachable = True
    pair.b.create()  # the kubelet's retry
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Resumed"]


async def test_the_source_agent_restarts_after_all_was_sent(pair: Pair) -> None:
    pair.b.registers.reachable = False
    await pair.begin()
    await until("all is sent", lambda: pair.source.state is SourceState.SENT)
    await pair.a.stop()
    assert pair.a.containers.status_ is PAUSED
    await pair.a.start()
    pair.b.registers.reachable = True
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Resumed"]


async def test_the_api_server_goes_away_and_the_promise_lets_the_source_go_on(pair: Pair) -> None:
    pair.b.registers.reachable = False
    await pair.begin()
    await until("the tree is held", lambda: pair.target.state is TargetState.HELD)
    await until("all is sent", lambda: pair.source.state is SourceState.SENT)
    pair.a.registers.reachable = False
    pair.a.clock.now_ns += 31 * SECOND
    await until("the source is thawed", lambda: pair.source.state is SourceState.THAWED)
    assert pair.b.ticket is TicketState.DESTROYED
    assert await exit_code(pair.b.children[0]) == 1, "the held tree is dead"
    assert not pair.target.settled
    pair.a.registers.reachable = pair.b.registers.reachable = True
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Abort"]


async def test_a_commit_whose_answer_is_lost_and_a_promise_end_as_returned(pair: Pair) -> None:
    """The target asks for Commit, hears nothing, promises; Commit stands all the same: it must write Returned."""
    pair.b.registers.lose_answers = True
    await pair.begin()
    await until("Commit is written", lambda: pair.cluster.decision is Decision.COMMIT)
    pair.a.registers.reachable = False
    pair.a.clock.now_ns += 31 * SECOND
    await until("the source is thawed", lambda: pair.source.state is SourceState.THAWED)
    assert not pair.b.ran
    pair.b.registers.lose_answers = False
    pair.a.registers.reachable = pair.b.registers.reachable = True
    await until("both are settled", lambda: pair.source.settled and pair.target.settled)
    assert pair.cluster.writes == ["Commit", "Returned"]
    assert pair.a.containers.status_ is RUNNING


async def test_the_object_vanishes_before_the_decision(pair: Pair) -> None:
    pair.b.registers.reachable = False
    await pair.begin()
    await until("all is sent", lambda: pair.source.state is SourceState.SENT)
    pair.cluster.migration = None
    pair.b.registers.reachable = True
    await until("the source goes on", lambda: pair.source.settled)
    assert pair.a.containers.status_ is RUNNING
    await until("the target forgets", lambda: pair.target.settled)
    await forgotten(pair)


async def test_the_object_vanishes_after_the_container_runs(pair: Pair) -> None:
    """The source's agent kills and deletes on the target's word, and both forget only then."""
    pair.a.registers.reachable = True
    vanish = pair.b.registers.write_outcome

    async def write_outcome(*_: object) -> object:
        pair.cluster.migration = None
        return await vanish(pair.b.migrations.target_of(target_request().pod_uid).ref, Outcome.RESUMED)  # type: ignore[union-attr]

    pair.b.registers.write_outcome = write_outcome  # type: ignore[method-assign,assignment]
    await pair.begin()
    await until("the source is released", lambda: pair.source.settled)
    assert pair.a.containers.status_ is STOPPED
    assert pair.cluster.deleted == [SOURCE_POD]
    assert pair.b.ran
    await forgotten(pair)


async def test_an_unknown_migration_is_buried_before_it_is_promised(pair: Pair) -> None:
    state = await pair.a.migrations.put_source(source_request())
    assert state.source is not None
    await until("the copy was refused", lambda: pair.source.failure is not None)
    pair.cluster.migration = None
    await until("the source goes on", lambda: pair.source.settled)
    assert pair.a.containers.status_ is RUNNING


async def test_revisions_grow_over_restarts_of_the_agent(pair: Pair) -> None:
    before = (await pair.b.migrations.put_target(target_request())).revision
    await pair.b.stop()
    await pair.b.start()
    assert pair.b.migrations.report(MIGRATION).revision > before


async def test_a_second_migration_does_not_get_the_memory_that_the_first_may_take(pair: Pair) -> None:
    pair.b.room = Room(memory=1 << 30, disk=1 << 40)
    first = target_request(expected_bytes=600 << 20)
    await pair.b.migrations.put_target(first)
    other = first.migration.model_copy(update={"uid": "0b0e2b8e-second"})
    second = first.model_copy(update={"migration": other, "pod_uid": "7e7e7e7e-second"})
    await pair.b.migrations.put_target(second)
    report = pair.b.migrations.report("0b0e2b8e-second").target
    assert report is not None
    assert (pair.target.files.on_disk, report.files.on_disk) == (False, True)
