"""A whole node agent in the test's process: real journal, gate socket and TLS between agents; containers are fakes."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.bridge import PeerBridge
from migration_agent.certificate import ensure_certificate
from migration_agent.freeze_turn import FreezeTurn
from migration_agent.gate import Gates
from migration_agent.gate_desk import GateDesk
from migration_agent.gate_server import GateServer
from migration_agent.host import Host
from migration_agent.journal import Journal, SourceRecord, TargetRecord
from migration_agent.migrations import Migrations
from migration_agent.paths import Layout
from migration_agent.peer import PeerServer
from migration_agent.peer_client import PeerClient
from migration_agent.peer_questions import PeerQuestions
from migration_agent.processes import Processes
from migration_agent.room import Room
from migration_agent.source import SourceSide, SourceTools
from migration_agent.target import TargetSide, TargetTools
from migration_agent.ticket import Tickets, TicketState
from migration_agent.trust import Identity, Peer, Trust
from migration_agent.vault import Vault
from support import interposer
from support.agent import TARGET_POD, Cluster, FakeClock, FakeRegisters
from support.fake_node import FakeNode


async def until(what: str, holds: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something holds."""
    try:
        async with asyncio.timeout(seconds):
            while not holds():  # noqa: ASYNC110  # what is waited for is another's state
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {seconds} s: {what}") from None


@dataclass
class Network:
    """The list of agents, as the MigrationNodes hold it."""

    peers: dict[str, Peer] = field(default_factory=dict[str, Peer])

    def fetch(self) -> tuple[Peer, ...]:
        return tuple(self.peers.values())


@dataclass
class AgentNode:
    """One node; `start` and `stop` are the lives of its agent."""

    name: str
    root: Path
    cluster: Cluster
    network: Network
    containers: FakeNode = field(default_factory=FakeNode)
    clock: FakeClock = field(default_factory=FakeClock)
    room: Room = field(default_factory=lambda: Room(memory=1 << 40, disk=0))
    children: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def __post_init__(self) -> None:
        self.layout = Layout(self.root)
        self.layout.prepare()
        self.journal, self.vault, self.tickets = Journal(self.layout), Vault(self.layout), Tickets(self.layout)
        self.registers = FakeRegisters(self.cluster)
        self.processes = Processes(Host().process_start)

    def source(self, record: SourceRecord, *, changed: Callable[[], None], restarted: bool) -> SourceSide:
        freezer = self.containers.freezer()
        tools = SourceTools(
            self.journal, self.vault, self.registers, self.peers, self.clock, freezer, self.name, FreezeTurn()
        )
        return SourceSide(record, tools, changed=changed, restarted=restarted)

    def target(self, record: TargetRecord, *, changed: Callable[[], None], restarted: bool) -> TargetSide:
        tools = TargetTools(
            self.journal,
            self.vault,
            self.tickets,
            self.registers,
            self.peers,
            self.gates,
            self.clock,
            self.processes,
            self.name,
        )
        return TargetSide(record, tools, changed=changed, restarted=restarted)

    async def start(self) -> None:
        """Begin a life of the agent."""
        layout = self.layout
        pem = ensure_certificate(layout.certificate, layout.key, self.name, "127.0.0.1")
        trust = Trust(Identity(layout.certificate, layout.key), layout.peers, self.network.fetch)
        self.gates = Gates()
        self.peers = PeerClient(trust)
        self.migrations = Migrations(
            self.journal, self.vault, self.tickets, self.clock, self, gates=self.gates, room=lambda: self.room
        )
        desk = GateDesk(self.tickets, self.migrations.target_of, self.migrations.expecting)
        self.gate_server = GateServer(layout.socket, self.gates, desk, self.processes, _no_dump)
        self.server = PeerServer(
            trust, PeerBridge(PeerQuestions(self.migrations), asyncio.get_running_loop()), "127.0.0.1", 0
        )
        self.network.peers[self.name] = Peer(node=self.name, endpoint=f"127.0.0.1:{self.server.port}", certificate=pem)
        await self.migrations.start()
        await self.gate_server.start()
        self.server.start()

    async def stop(self) -> None:
        """End this life; what is frozen or held stays so."""
        await asyncio.to_thread(self.server.close)
        await self.migrations.stop()
        await self.gate_server.stop()

    async def destroy(self) -> None:
        """Stop, and end every process that this node's tests have started."""
        await self.stop()
        for child in self.children:
            child.kill()
            child.wait()
        for ran in self.layout.ticket(TARGET_POD).glob("ran.*"):
            process = self.processes.ref(int(ran.read_text()))
            if process is not None:
                self.processes.kill(process)

    def create(self, behaviour: str = interposer.NORMAL, container: str = "main") -> subprocess.Popen[bytes]:
        """Let an interposer create a container of the target pod, as the kubelet does."""
        ticket = self.layout.ticket(TARGET_POD)
        argv = [sys.executable, "-I", "-S", interposer.__file__, str(self.layout.socket), str(ticket), TARGET_POD]
        child = subprocess.Popen([*argv, container, behaviour])
        self.children.append(child)
        return child

    @property
    def ticket(self) -> TicketState:
        return self.tickets.state(TARGET_POD)

    @property
    def ran(self) -> tuple[str, ...]:
        """The containers whose restored trees have run."""
        return tuple(sorted(path.suffix[1:] for path in self.layout.ticket(TARGET_POD).glob("ran.*")))

    @property
    def started(self) -> tuple[str, ...]:
        """The containers that were left out and have started afresh."""
        return tuple(sorted(path.suffix[1:] for path in self.layout.ticket(TARGET_POD).glob("started.*")))

    @property
    def passed(self) -> tuple[str, ...]:
        """The init containers that ended, having done nothing."""
        return tuple(sorted(path.suffix[1:] for path in self.layout.ticket(TARGET_POD).glob("passed.*")))


async def _no_dump(migration: str, container: str) -> bool:
    return False
