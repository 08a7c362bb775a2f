"""A node agent's world in memory: registers, containers, fences, processes, the clock. Shared by its tests."""

# fakes have the signatures of what they stand for

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from migration_agent.gate import Gates
from migration_agent.journal import Journal
from migration_agent.paths import Layout
from migration_agent.ports import ApiUnreachable, GaveUp, NamedPod, PeerState, PeerUnreachable, PodState, Sending
from migration_agent.processes import Processes
from migration_agent.seen import Gone, Seen
from migration_agent.target import TargetTools
from migration_agent.ticket import Tickets
from migration_agent.vault import Vault
from migration_api.migration import Decision, Outcome
from migration_api.shipping import Shipping
from migration_api.wire import Failure, MigrationRef, RefKind, SourceRequest, TargetRequest, Thaw

MIGRATION = "0b0e2b8e-migration"
SOURCE_POD = "5a5a5a5a-source"
TARGET_POD = "7e7e7e7e-target"
NAME = "redis-0"
"""Of a pod of a StatefulSet."""
REF = MigrationRef(namespace="default", name="move", uid=MIGRATION)
SECOND = 10**9
SHIPPING = Shipping(key=SecretStr("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="))


def source_request(
    budget: int = 30,
    containers: tuple[str, ...] = ("main",),
    order: tuple[str, ...] = (),
    thaw: Thaw = Thaw.DECIDED,
    *,
    taking: bool = False,
    post_copy: bool = False,
    pre_copy: bool = False,
) -> SourceRequest:
    return SourceRequest(
        migration=REF.model_copy(update={"kind": RefKind.CONTAINER_CHECKPOINT}) if taking else REF,
        pod_name="redis",
        pod_uid=SOURCE_POD,
        containers=containers,
        order=order,
        post_copy=post_copy,
        pre_copy=pre_copy,
        target_node=None if taking else "node-b",
        thaw=Thaw.DUMPED if taking else thaw,
        freeze_budget_seconds=budget,
        shipping=SHIPPING,
    )


def target_request(
    budget: int = 30, containers: tuple[str, ...] = ("main",), order: tuple[str, ...] = (), **init: Any
) -> TargetRequest:
    return TargetRequest(
        migration=REF,
        pod_name="redis-moved",
        pod_uid=TARGET_POD,
        containers=containers,
        order=order,
        source_node="node-a",
        freeze_budget_seconds=budget,
        shipping=SHIPPING,
        **init,
    )


@dataclass
class Cluster:
    """The API server's part: one migration's registers, write-once as the CRD's rules make them, and the pods."""

    migration: Seen | None = field(
        default_factory=lambda: Seen(
            source_node="node-a", source_pod_uid=SOURCE_POD, target_node="node-b", target_pod_uid=TARGET_POD
        )
    )
    failure: Failure | None = None
    outcome_message: str | None = None
    pod_state: PodState = PodState.LIVE
    named: NamedPod | None = None
    """Who has the name of a pod of a StatefulSet."""
    deleted: list[str] = field(default_factory=list[str])
    writes: list[str] = field(default_factory=list[str])

    @property
    def decision(self) -> Decision | None:
        return self.migration.decision if self.migration else None

    @property
    def outcome(self) -> Outcome | None:
        return self.migration.outcome if self.migration else None

    def decide(self, decision: Decision) -> None:
        assert self.migration is not None
        if self.migration.decision is None:
            self.migration = replace(self.migration, decision=decision)
            self.writes.append(decision)


@dataclass
class FakeRegisters:
    """One agent's way to the cluster; `reachable` can be taken away."""

    cluster: Cluster
    reachable: bool = True
    before_propose: Callable[[], None] = lambda: None
    """Runs when a proposal is on its way: what others do first."""
    lose_answers: bool = False
    """The write arrives, its answer does not, and nothing can be read."""

    def _demand(self) -> None:
        if not self.reachable:
            raise ApiUnreachable("the API server is away")

    async def read(self, ref: MigrationRef) -> Seen | Gone:
        self._demand()
        assert ref.uid == REF.uid
        return self.cluster.migration or Gone()

    async def propose(self, ref: MigrationRef, decision: Decision, failure: Failure | None = None) -> Seen | Gone:
        self._demand()
        self.before_propose()
        if self.cluster.migration is not None:
            if self.cluster.migration.decision is None:
                self.cluster.failure = failure
            self.cluster.decide(decision)
        if self.lose_answers:
            self.reachable = False
        return await self.read(ref)

    async def write_outcome(self, ref: MigrationRef, outcome: Outcome, message: str | None = None) -> Seen | Gone:
        self._demand()
        it = self.cluster.migration
        if it is not None and it.outcome is None:
            assert it.decision is Decision.COMMIT, "the CRD allows an outcome only after Commit"
            self.cluster.migration = replace(it, outcome=outcome)
            self.cluster.outcome_message = message
            self.cluster.writes.append(outcome)
        return await self.read(ref)

    async def pod(self, namespace: str, name: str, uid: str) -> PodState:
        self._demand()
        if name == NAME:
            found = self.cluster.named
            return PodState.LIVE if found is not None and found.live and found.uid == uid else PodState.GONE
        assert (namespace, name, uid) == ("default", "redis-moved", TARGET_POD)
        return self.cluster.pod_state

    async def named_pod(self, namespace: str, name: str) -> NamedPod | None:
        self._demand()
        assert (namespace, name) == ("default", NAME)
        return self.cluster.named

    async def delete_pod(self, namespace: str, name: str, uid: str, *, at_once: bool = False) -> None:
        self._demand()
        self.cluster.deleted.append(uid)
        if at_once and self.cluster.named is not None and self.cluster.named.uid == uid:
            self.cluster.named = None


@dataclass
class FakeClock:
    """Stands still until it is moved."""

    now_ns: int = 1000 * SECOND
    boot: str = "boot-1"

    def boottime_ns(self) -> int:
        return self.now_ns

    def boot_id(self) -> str:
        return self.boot


@dataclass
class FakePeers:
    """The other agent as scripted answers; None means that it does not answer."""

    answer: PeerState | None = PeerState.UNDECIDED
    is_intact: bool | None = True
    send_error: Exception | None = None
    """Why the transfer fails in the end."""
    connect_error: Exception | None = None
    """Why it does not even begin."""
    reachable: bool = True
    sent: list[str] = field(default_factory=list[str])
    asked: list[tuple[bool, bool]] = field(default_factory=list[tuple[bool, bool]])
    """(promise, settled) of each question."""
    called: int = 0
    """How often it was asked whether the pod is there."""
    comes_after: int = 1
    """At which of these questions it is."""
    moved: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(node, migration) of each word that no memory is needed any more."""

    def send(self, sending: Sending) -> None:
        if self.connect_error is not None:
            raise self.connect_error
        if self.reachable:
            sending.connected()
        while not sending.complete.is_set():
            if sending.stop.wait(0.01):
                raise GaveUp
        if self.send_error is not None:
            raise self.send_error
        sending.progress.count(5_000_012, resumed=False)
        self.sent.append(sending.node or "the store")

    def settle(self, node: str, migration: str, *, promise: bool, settled: bool = False) -> PeerState:
        self.asked.append((promise, settled))
        if self.answer is None:
            raise PeerUnreachable("the other agent does not answer")
        return self.answer

    def intact(self, node: str, migration: str) -> bool:
        if self.is_intact is None:
            raise PeerUnreachable("the other agent does not answer")
        return self.is_intact

    def ready(self, node: str, migration: str) -> bool:
        self.called += 1
        if self.is_intact is None:
            raise PeerUnreachable("the other agent does not answer")
        return self.called >= self.comes_after

    def memory_moved(self, node: str, migration: str) -> None:
        if self.is_intact is None:
            raise PeerUnreachable("the other agent does not answer")
        self.moved.append((node, migration))


def journal_at(root: Path) -> Journal:
    """Return a journal with its directories."""
    layout = Layout(root)
    layout.prepare()
    return Journal(layout)


def target_tools(
    journal: Journal,
    vault: Vault,
    tickets: Tickets,
    registers: FakeRegisters,
    *,
    peers: FakePeers,
    clock: FakeClock,
    processes: Processes | None = None,
) -> TargetTools:
    """Return what a target side on node-b works with; nobody is at its gate, and without `processes` nobody lives."""
    return TargetTools(
        journal=journal,
        vault=vault,
        tickets=tickets,
        registers=registers,
        peers=peers,
        gates=Gates(),
        clock=clock,
        processes=processes or Processes(lambda _: None),
        node="node-b",
    )
