"""Two agents in one process, and the invariant that every act of the source's runtime is checked against."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path
from typing import Self

from migration_agent.ticket import TicketState
from migration_api.migration import Decision
from migration_api.wire import SourceReport, TargetReport, TargetState, Thaw
from support import interposer
from support.agent import MIGRATION, Cluster, source_request, target_request
from support.node import AgentNode, Network, until


class Pair:
    """Source and target node; every act of the source's runtime checks I1."""

    def __init__(self, root: Path) -> None:
        self.cluster = Cluster()
        network = Network()
        self.a = AgentNode("node-a", root / "a", self.cluster, network)
        self.b = AgentNode("node-b", root / "b", self.cluster, network)
        self.a.containers.watch = self.check_i1

    async def __aenter__(self) -> Self:
        """Begin a life of both agents; they end with the context, and all that they have started."""
        await self.a.start()
        await self.b.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.a.destroy()
        await self.b.destroy()

    def check_i1(self, act: str) -> None:
        if act == "resume":
            assert self.b.ticket is not TicketState.RESUMING, "I1: the source thaws while the target may run"
            assert not self.b.ran, "I1"
        if act == "kill":
            assert self.b.ticket is TicketState.RESUMING, "I2: the source is killed though the target does not run"

    @property
    def source(self) -> SourceReport:
        report = self.a.migrations.report(MIGRATION).source
        assert report is not None
        return report

    @property
    def target(self) -> TargetReport:
        report = self.b.migrations.report(MIGRATION).target
        assert report is not None
        return report

    async def begin(self, behaviour: str = interposer.NORMAL, thaw: Thaw = Thaw.DECIDED) -> None:
        """Prepare the target up to the gate, then tell the source, which may run beside its clone."""
        if thaw is Thaw.DUMPED:
            self.a.containers.watch = never_killed
        await self.b.migrations.put_target(target_request())
        self.b.create(behaviour)
        await until("the gate is reached", lambda: self.target.state is TargetState.AT_GATE)
        await self.a.migrations.put_source(source_request(thaw=thaw))


def never_killed(act: str) -> None:
    """Check an act of the runtime of a source that is left running."""
    assert act != "kill", "I2: what is left running is killed"


async def to_the_end(pair: Pair) -> None:
    """Do the kubelet's and the operator's part until both sides have settled."""
    async with asyncio.timeout(60):
        while True:
            entry = pair.a.migrations.report(MIGRATION).source, pair.b.migrations.report(MIGRATION).target
            source, target = entry
            if source and target and source.settled and target.settled:
                return
            failed = (source and source.failure) or (target and target.failure)
            if failed and pair.cluster.decision is None:
                pair.cluster.decide(Decision.ABORT)
            if pair.b.ticket is not TicketState.RESUMING and all(c.poll() is not None for c in pair.b.children):
                pair.b.create()
            await asyncio.sleep(0.05)


async def exit_code(child: subprocess.Popen[bytes]) -> int:
    """Wait for an interposer's end without holding up the agents in this process."""
    return await asyncio.to_thread(child.wait, 20)
