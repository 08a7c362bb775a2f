"""Two real agents and a source that is left running: it goes on whatever fails, beside one clone or none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migration_agent.runtime.interface import ContainerStatus
from migration_api.failpoints import Failpoint
from migration_api.migration import Decision
from migration_api.wire import SourceState, TargetState, Thaw
from support import interposer
from support.agent import MIGRATION, SOURCE_POD
from support.node import until
from support.pair import Pair, to_the_end

FORWARD = [
    Failpoint.SOURCE_PAUSED,
    Failpoint.SOURCE_DUMPED,
    Failpoint.SOURCE_WENT_ON,
    Failpoint.SOURCE_CHUNK,
    Failpoint.SOURCE_SENT,
    Failpoint.SOURCE_LEAVE,
    Failpoint.SOURCE_WIPED,
    Failpoint.TARGET_RESTORING,
    Failpoint.TARGET_COMMIT,
    Failpoint.TARGET_COMMITTED,
    Failpoint.TARGET_RESUMED,
]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as it:
        yield it


async def end_of(pair: Pair) -> bool:
    """Go on to the end, and demand what `left_running` does."""
    await to_the_end(pair)
    await until("the pod is free for another migration", lambda: pair.a.journal.holder(SOURCE_POD) is None)
    return left_running(pair)


def left_running(pair: Pair) -> bool:
    """Demand that the source goes on and nothing is left over; return whether there is a clone."""
    cloned = pair.cluster.decision is Decision.COMMIT
    assert pair.source.state is SourceState.THAWED
    assert pair.target.state is (TargetState.RESUMED if cloned else TargetState.DESTROYED)
    assert pair.a.containers.status_ is ContainerStatus.RUNNING
    assert (pair.a.containers.fenced, pair.a.containers.dropped) == (False, False)
    assert bool(pair.b.ran) is cloned
    for node in (pair.a, pair.b):
        assert not node.layout.images(MIGRATION).exists()
        assert node.vault.shipping(MIGRATION) is None
    return cloned


async def test_source_and_clone_go_on(pair: Pair) -> None:
    await pair.begin(thaw=Thaw.DUMPED)
    assert await end_of(pair)
    source, target = pair.source, pair.target
    moments = (source.frozen_at, source.dumped_at, source.thawed_at, target.resumed_at)
    known = [moment for moment in moments if moment is not None]
    assert len(known) == len(moments)
    assert known == sorted(known)


async def test_the_source_goes_on_while_the_copy_is_on_its_way(pair: Pair, armed: Path) -> None:
    hit = armed / f"{Failpoint.TARGET_CHUNK}.hit"
    (armed / Failpoint.TARGET_CHUNK).write_text("hang")
    await pair.begin(thaw=Thaw.DUMPED)
    await until("a chunk is on its way", hit.exists)
    await until("the source goes on", lambda: pair.source.thawed_at)
    assert pair.a.containers.status_ is ContainerStatus.RUNNING
    assert not pair.source.settled
    assert pair.target.received_at is None
    hit.unlink()
    assert await end_of(pair)


@pytest.mark.parametrize("point", FORWARD)
async def test_i4_a_step_that_fails_is_taken_again_or_given_up(pair: Pair, armed: Path, point: Failpoint) -> None:
    """Also what comes between the thaw and its entry in the journal: then it is let go again."""
    (armed / point).write_text("fail")
    (armed / Failpoint.SOURCE_LET_GO).write_text("delay 0")
    await pair.begin(thaw=Thaw.DUMPED)
    await end_of(pair)
    assert (armed / f"{point}.hit").exists()
    assert (armed / f"{Failpoint.SOURCE_LET_GO}.hit").exists() is (point is Failpoint.SOURCE_WENT_ON)


@pytest.mark.parametrize("point", FORWARD)
async def test_i4_an_agent_that_is_restarted_at_any_step_goes_on(pair: Pair, armed: Path, point: Failpoint) -> None:
    hit = armed / f"{point}.hit"
    (armed / point).write_text("hang")
    await pair.begin(thaw=Thaw.DUMPED)
    await until(f"{point} is reached", hit.exists)
    node = pair.a if point.startswith("source") else pair.b
    stopping = asyncio.create_task(node.stop())
    await asyncio.sleep(0)
    hit.unlink()
    await stopping
    await node.start()
    await end_of(pair)


async def test_cancelled_after_the_thaw_only_the_clone_is_given_up(pair: Pair, armed: Path) -> None:
    hit = armed / f"{Failpoint.TARGET_RESTORING}.hit"
    (armed / Failpoint.TARGET_RESTORING).write_text("hang")
    await pair.begin(thaw=Thaw.DUMPED)
    await until("the restore is about to begin", hit.exists)
    pair.cluster.decide(Decision.ABORT)
    hit.unlink()
    assert not await end_of(pair)


async def test_a_clone_that_cannot_be_restored_is_given_up(pair: Pair) -> None:
    await pair.begin(interposer.CANNOT_RESTORE, thaw=Thaw.DUMPED)
    assert not await end_of(pair)
