"""A source node for the tests of its agent's part: fakes around a real journal, one look at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from migration_agent.freeze_turn import FreezeTurn
from migration_agent.journal import SourceRecord
from migration_agent.seen import Seen
from migration_agent.source import SourceSide, SourceTools
from migration_agent.vault import Vault
from migration_api.wire import SourceState, Thaw
from support.agent import (
    MIGRATION,
    SECOND,
    SHIPPING,
    SOURCE_POD,
    Cluster,
    FakeClock,
    FakePeers,
    FakeRegisters,
    journal_at,
    source_request,
)
from support.fake_node import FakeNode


@dataclass
class World:
    """A source node whose agent can be restarted."""

    root: Path
    cluster: Cluster = field(default_factory=Cluster)
    clock: FakeClock = field(default_factory=FakeClock)
    node: FakeNode = field(default_factory=FakeNode)
    peers: FakePeers = field(default_factory=FakePeers)
    thaw: Thaw = Thaw.DECIDED
    taking: bool = False
    """For a ContainerCheckpoint: there is no target."""
    post_copy: bool = False
    pre_copy: bool = False

    def __post_init__(self) -> None:
        self.journal = journal_at(self.root)
        self.vault = Vault(self.journal.layout)
        self.vault.keep(MIGRATION, SHIPPING)
        self.registers = FakeRegisters(self.cluster)
        self.journal.claim(SOURCE_POD, MIGRATION)
        if self.taking:
            self.cluster.migration = Seen(source_node="node-a", source_pod_uid=SOURCE_POD)
        request = source_request(thaw=self.thaw, taking=self.taking, post_copy=self.post_copy, pre_copy=self.pre_copy)
        self.journal.save(SourceRecord(request=request.task, boot_id=self.clock.boot))
        self.side = self.agent(restarted=False)

    def agent(self, *, restarted: bool = True) -> SourceSide:
        """Return the side as a (new) life of the agent makes it from the journal."""
        record = self.journal.source(MIGRATION)
        assert record is not None
        freezer = self.node.freezer()
        tools = SourceTools(
            self.journal, self.vault, self.registers, self.peers, self.clock, freezer, "node-a", FreezeTurn()
        )
        self.side = SourceSide(record, tools, changed=lambda: None, restarted=restarted)
        return self.side

    async def rounds_until(self, holds: Callable[[], bool], limit: int = 40) -> None:
        """Let the side look again and again until something holds."""
        for _ in range(limit):
            await self.side.round()
            copying = self.side.copying
            if copying is not None and (self.node.dump_gate is None or self.node.dump_gate.is_set()):
                await asyncio.wait([copying])
            await asyncio.sleep(0.002)  # the copy's threads need the processor too
            if holds():
                return
        pytest.fail(f"did not come to pass; state {self.side.record.state}, done: {self.node.log}")

    async def reach(self, state: SourceState) -> None:
        await self.rounds_until(lambda: self.side.record.state is state)

    async def restart(self) -> None:
        await self.side.stop()
        self.agent()
        await self.side.prepare()

    def expire(self) -> None:
        self.clock.now_ns += 31 * SECOND
