"""A node's disk is full when a migration is to begin there: it is refused, and nothing of it stays (I4, I8)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from migration_agent import journal, ticket
from support.agent import MIGRATION, SOURCE_POD, source_request, target_request
from support.node import AgentNode
from support.pair import Pair


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with Pair(tmp_path) as it:
        yield it


def no_space(*_: object) -> None:
    raise OSError("no space left on device")


def nothing_stays(node: AgentNode) -> None:
    assert node.journal.migrations() == ()
    assert node.journal.holder(SOURCE_POD) is None
    assert not node.layout.shipping(MIGRATION).exists()


@pytest.mark.parametrize("writes", ["write_durably", "sync_directory"])
async def test_i4_a_source_that_could_not_be_journalled_holds_no_pod(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, writes: str
) -> None:
    with monkeypatch.context() as full:
        full.setattr(journal, writes, no_space)
        with pytest.raises(OSError, match="no space"):
            await pair.a.migrations.put_source(source_request())
    await pair.a.migrations.housekeeping()
    nothing_stays(pair.a)
    await pair.a.migrations.put_source(source_request())


@pytest.mark.parametrize("where", [(journal, "write_durably"), (ticket.Tickets, "create")])
async def test_i4_a_target_that_could_not_be_journalled_is_unknown(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, where: tuple[Callable[..., object], str]
) -> None:
    with monkeypatch.context() as full:
        full.setattr(*where, no_space)
        with pytest.raises(OSError, match="no space"):
            await pair.b.migrations.put_target(target_request())
    await pair.b.migrations.housekeeping()
    nothing_stays(pair.b)
    await pair.b.migrations.put_target(target_request())
