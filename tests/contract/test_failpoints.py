"""Two real agents; one fails or is restarted at each failpoint: each migration ends with one copy (I1 to I4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migration_agent.runtime.interface import ContainerStatus
from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint
from migration_api.migration import Decision
from migration_api.wire import Failure, SourceState, TargetState
from support.agent import MIGRATION
from support.node import until
from support.pair import Pair, to_the_end

FORWARD = [
    Failpoint.SOURCE_COPY,
    Failpoint.SOURCE_FENCING,
    Failpoint.SOURCE_FENCED,
    Failpoint.SOURCE_FREEZING,
    Failpoint.SOURCE_DROPPED,
    Failpoint.SOURCE_PAUSED,
    Failpoint.SOURCE_DUMPED,
    Failpoint.SOURCE_CHUNK,
    Failpoint.SOURCE_SENT,
    Failpoint.SOURCE_RELEASE,
    Failpoint.SOURCE_RELEASED,
    Failpoint.SOURCE_WIPED,
    Failpoint.TARGET_CHUNK,
    Failpoint.TARGET_RECEIVED,
    Failpoint.TARGET_RESTORE,
    Failpoint.TARGET_RESTORING,
    Failpoint.TARGET_HELD,
    Failpoint.TARGET_COMMIT,
    Failpoint.TARGET_COMMITTED,
    Failpoint.TARGET_WRITE_RESUMED,
    Failpoint.TARGET_RESUMED,
    Failpoint.TARGET_END_RESUMED,
    Failpoint.TARGET_WIPED,
]
BACK = [
    Failpoint.SOURCE_ABORT,
    Failpoint.SOURCE_THAW,
    Failpoint.SOURCE_THAWED,
    Failpoint.TARGET_DESTROY,
    Failpoint.TARGET_CLEAR,
    Failpoint.TARGET_PROMISE,
    Failpoint.TARGET_END_DESTROYED,
]
IN_A_PEERS_THREAD = {Failpoint.TARGET_CHUNK, Failpoint.TARGET_RECEIVED}
"""Only the end of the process ends those threads: `make chaos-matrix`."""


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as it:
        yield it


def one_copy(pair: Pair) -> None:
    """Demand that the registers, both nodes and both reports say the same, and that nothing is left over."""
    moved = pair.cluster.decision is Decision.COMMIT
    assert pair.source.state is (SourceState.RELEASED if moved else SourceState.THAWED)
    assert pair.target.state is (TargetState.RESUMED if moved else TargetState.DESTROYED)
    assert pair.a.containers.status_ is (ContainerStatus.STOPPED if moved else ContainerStatus.RUNNING)
    assert bool(pair.b.ran) is moved
    assert pair.a.containers.fenced is moved
    for node in (pair.a, pair.b):
        assert not node.layout.images(MIGRATION).exists()
        assert node.vault.shipping(MIGRATION) is None


async def begin(pair: Pair, armed: Path, point: Failpoint, deed: str) -> Path:
    """Begin a migration that passes the failpoint; those on the way back after a dump that failed."""
    (armed / point).write_text(deed)
    if point in BACK:
        (armed / Failpoint.SOURCE_DUMPED).write_text("fail")
    await pair.begin()
    return armed / f"{point}.hit"


@pytest.mark.parametrize("point", [*FORWARD, *BACK])
async def test_i4_a_step_that_fails_is_taken_again_or_given_up(pair: Pair, armed: Path, point: Failpoint) -> None:
    hit = await begin(pair, armed, point, "fail")
    await to_the_end(pair)
    assert hit.exists()
    one_copy(pair)


@pytest.mark.parametrize("point", [point for point in (*FORWARD, *BACK) if point not in IN_A_PEERS_THREAD])
async def test_i4_an_agent_that_is_restarted_at_any_step_goes_on(pair: Pair, armed: Path, point: Failpoint) -> None:
    hit = await begin(pair, armed, point, "hang")
    await until(f"{point} is reached", hit.exists)
    node = pair.a if point.startswith("source") else pair.b
    stopping = asyncio.create_task(node.stop())
    await asyncio.sleep(0)
    hit.unlink()  # a thread cannot be cancelled: it ends as soon as it may, and its task goes no further
    await stopping
    await node.start()
    await to_the_end(pair)
    one_copy(pair)


async def test_nothing_is_built_on_a_held_tree_before_it_is_journalled(pair: Pair, armed: Path) -> None:
    """Who promises later must find the tree's processes in the journal, whoever died meanwhile."""
    hit = await begin(pair, armed, Failpoint.TARGET_HELD, "hang")
    await until("the tree is held", hit.exists)
    for _ in range(5):
        await pair.b.migrations.settle(MIGRATION)
    assert pair.cluster.decision is None
    assert pair.target.state is TargetState.RESTORING
    hit.unlink()
    await to_the_end(pair)
    one_copy(pair)


async def test_a_failure_at_the_way_back_says_why_it_went_back(pair: Pair, armed: Path) -> None:
    await begin(pair, armed, Failpoint.SOURCE_THAW, "fail")
    await to_the_end(pair)
    failure: Failure | None = pair.source.failure
    assert failure is not None
    assert failure.reason is Reason.CHECKPOINT_FAILED
    assert Failpoint.SOURCE_DUMPED in failure.message
