"""Memory that is copied while it changes: how often, when the container stands still, and what ends it."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from migration_agent import source_copy
from migration_agent.paths import MEMORY_LOG
from migration_agent.ports import GaveUp, Sending
from migration_agent.runtime.interface import Copied
from migration_agent.source_rounds import COPIES_MAX, ROUNDS_MAX, another, limit
from migration_agent.transport.chunks import CHUNK_BYTES
from migration_api.conditions import Reason
from migration_api.migration import Decision
from migration_api.wire import LAZY_FROM_BYTES, SourceState, SourceTask
from support.agent import MIGRATION, FakePeers, source_request
from support.source_world import World

MEBIBYTE = 1 << 20


def world_at(path: Path, memory: int = LAZY_FROM_BYTES) -> World:
    it = World(path, pre_copy=True)
    it.node.memory_bytes = memory
    return it


@pytest.fixture
def world(tmp_path: Path) -> World:
    return world_at(tmp_path)


def rounds(*written: int, looked: int = 1000) -> list[Copied]:
    return [Copied(looked * MEBIBYTE, it * MEBIBYTE) for it in written]


@pytest.mark.parametrize(
    ("found", "more"),
    [
        ((), True),
        ((1000,), True),
        ((1000, 200), True),
        ((1000, 800), False),
        ((1000, 500), False),  # as much as may be written before the last round
        ((1000, 200, 180), False),
        ((1000, 10), False),
        ((1000, 200, 130), True),
        ((1000, 200, 130, 90, 60), True),
        ((1000, 200, 130, 90, 62, 30), False),
    ],
)
def test_it_goes_on_as_long_as_less_is_found_and_there_is_room(found: tuple[int, ...], more: bool) -> None:
    assert another(rounds(*found)) is more


def test_however_much_changes_it_ends_and_what_is_written_fits() -> None:
    for falling in (0.05, 0.5, 0.69, 0.9, 1.0):
        found = rounds(1000)
        while another(found):
            changed = int(found[-1].written * falling)
            found.append(Copied(found[-1].looked, min(changed, limit(found))))
        assert len(found) <= ROUNDS_MAX
        assert sum(it.written for it in found) + found[-1].looked <= COPIES_MAX * found[-1].looked


async def test_memory_is_copied_before_anything_is_touched_and_once_more_when_it_stands_still(world: World) -> None:
    world.node.changes = [100, 30, 0]
    await world.reach(SourceState.SENT)
    assert world.node.log == ["round"] * 3 + ["fence", "drop", "pause", "dump", "copy-shared", "last round"]
    [copier] = world.node.copiers
    assert copier.closed.is_set()
    image = world.journal.layout.image(MIGRATION, "main")
    assert (image / MEMORY_LOG).stat().st_size == 131
    assert not world.side.record.lends


async def test_the_target_s_pod_is_waited_for_and_what_changes_meanwhile_is_copied_before_the_freeze(
    world: World,
) -> None:
    """With a late gate the kubelet may take seconds to bring it to the gate: they are not for the freeze."""
    world.node.changes = [100, 0, 7, 0]
    world.peers.comes_after = 3
    await world.reach(SourceState.SENT)
    assert world.peers.called == 3
    assert world.node.log[:4] == ["round"] * 3 + ["fence"]


async def test_a_target_whose_pod_does_not_come_or_that_does_not_answer_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_copy, "_CALL_SECONDS", 0.3)
    for name, intact in (("comes-not", True), ("silent", None)):
        it = world_at(tmp_path / name)
        it.peers.comes_after, it.peers.is_intact = 1000, intact
        await it.reach(SourceState.SENT)
        assert it.peers.called > 1


async def test_little_memory_is_not_worth_it(tmp_path: Path) -> None:
    it = world_at(tmp_path, LAZY_FROM_BYTES - 1)
    await it.reach(SourceState.SENT)
    assert it.node.copiers == []
    assert it.node.log[0] == "fence"


async def test_a_copier_that_fails_before_the_freeze_touches_nothing(world: World) -> None:
    def fail(act: str) -> None:
        if act == "round":
            raise OSError("no space left on device")

    world.node.watch = fail
    await world.rounds_until(lambda: world.side.record.failure is not None)
    assert world.side.record.failure is not None
    assert world.side.record.failure.reason is Reason.CHECKPOINT_FAILED
    assert "no space left" in world.side.record.failure.message
    assert not world.node.fenced
    assert world.node.copiers[0].closed.is_set()


async def test_a_last_round_that_fails_lets_the_source_go_on(world: World) -> None:
    def fail(act: str) -> None:
        if act == "last round":
            raise OSError("no space left on device")

    world.node.watch = fail
    await world.reach(SourceState.THAWED)
    assert world.cluster.decision is Decision.ABORT
    assert world.node.log[-3:] == ["resume", "undrop", "unfence"]


async def test_a_round_that_takes_long_ends_when_it_is_not_wanted_any_more(world: World) -> None:
    world.node.copy_gate = threading.Event()
    await world.side.round()
    for _ in range(200):
        if world.node.copiers:
            break
        await asyncio.sleep(0.01)
    assert world.cluster.migration is not None
    world.cluster.decide(Decision.ABORT)
    for _ in range(200):
        await world.side.round()
        if world.side.record.settled:
            break
        await asyncio.sleep(0.01)
    assert world.side.record.settled
    assert world.node.copiers[0].closed.is_set()
    assert world.node.log == []


async def test_the_freeze_waits_until_the_target_has_what_was_copied(tmp_path: Path) -> None:
    """Otherwise all that is on its way would be waited for in the freeze."""

    class Slow(FakePeers):
        def __init__(self) -> None:
            super().__init__()
            self.go = threading.Event()

        def send(self, sending: Sending) -> None:
            sending.connected()
            while not self.go.wait(0.01):
                if sending.stop.is_set():
                    raise GaveUp
            sending.progress.count(3 * CHUNK_BYTES)
            super().send(sending)

    it = world_at(tmp_path)
    it.peers = slow = Slow()
    it.agent(restarted=False)
    it.node.scale, it.node.changes = MEBIBYTE, [3, 0]
    await it.side.round()
    for _ in range(200):
        await asyncio.sleep(0.005)
        if "round" in it.node.log:
            break
    await asyncio.sleep(0.2)
    assert it.node.log == ["round"]
    slow.go.set()
    await it.reach(SourceState.SENT)
    assert "last round" in it.node.log


def test_memory_moves_either_before_or_after() -> None:
    with pytest.raises(ValueError, match="either before or after"):
        SourceTask.model_validate({**source_request().task.model_dump(), "post_copy": True, "pre_copy": True})
