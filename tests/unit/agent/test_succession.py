"""A target whose pod comes only when the source has given it its name: decisions, binding, and what outlives a boot."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from migration_agent.journal import TargetRecord
from migration_agent.ports import Comer, NamedPod, PodState
from migration_agent.seen import Seen, Verdict
from migration_agent.succession_plan import is_committed
from migration_agent.target import TargetSide
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import Tickets, TicketState
from migration_agent.transport.chunks import Record, Seal, packed
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.vault import Vault
from migration_api.migration import Decision, Outcome
from migration_api.wire import Successor, TargetState
from support.agent import (
    MIGRATION,
    NAME,
    SECOND,
    SHIPPING,
    SOURCE_POD,
    Cluster,
    FakeClock,
    FakePeers,
    FakeRegisters,
    journal_at,
    target_request,
    target_tools,
)

BOOLEANS = (False, True)
PENDING, DESTROYED = TicketState.PENDING, TicketState.DESTROYED


def observations() -> Iterator[TargetObservation]:
    """Yield all that can be known of a successor that has not ended."""
    states = (TargetState.PREPARED, TargetState.DESTROYED)
    for state, verdict, ticket, comer, pod in product(states, Verdict, TicketState, Comer, PodState):
        for flags in product(BOOLEANS, repeat=9):
            received, proposed, bound, held, gate, dead, promise, waited, losing = flags
            if (held and dead) or (comer is not Comer.NOBODY and bound) or (held and not bound):
                continue
            yield TargetObservation(
                state,
                verdict,
                ticket,
                received=received,
                held=held,
                gate=gate,
                dead=dead,
                pod=pod,
                promise_asked=promise,
                waited=waited,
                losing=losing,
                successor=True,
                proposed=proposed,
                bound=bound,
                comer=comer,
            )


RULES: dict[TargetStep, tuple[str, Callable[[TargetObservation], bool]]] = {
    TargetStep.COMMIT: (
        "I2: Commit says that all is here",
        lambda it: it.received and it.verdict is Verdict.UNDECIDED and it.ticket is not DESTROYED,
    ),
    TargetStep.BIND: (
        "I1: one pod at a time, and none before Commit",
        lambda it: not it.bound and it.received and it.comer is Comer.HERE and is_committed(it),
    ),
    TargetStep.UNBIND: (
        "I1: nothing of the last pod lives, and its ticket is destroyed",
        lambda it: it.bound and it.dead and it.ticket is DESTROYED and it.state is TargetState.PREPARED,
    ),
    TargetStep.RESTORE: ("I3: a ticket first", lambda it: it.bound and it.ticket is PENDING and it.received),
    TargetStep.RESUME: ("I1: held in the bound pod", lambda it: it.bound and it.ticket is PENDING and it.held),
    TargetStep.RETURN_IF_INTACT: (
        "only with the object gone is the source asked",
        lambda it: it.verdict is Verdict.GONE and it.proposed and not it.bound,
    ),
    TargetStep.DESTROY: (
        "I2: what may be committed is given up only when it is known not to be, lost, or the next pod's turn",
        lambda it: (
            it.verdict in {Verdict.ABORT, Verdict.RETURNED}
            or not it.proposed
            or (it.bound and it.pod is PodState.GONE)
            or not it.received
            or it.comer is Comer.ANOTHER
            or (it.verdict is Verdict.GONE and it.waited)
        ),
    ),
    TargetStep.PROMISE: ("a promise has a destroyed ticket", lambda it: it.ticket is DESTROYED and it.dead),
}


def test_every_step_has_its_reason_in_every_state() -> None:
    taken: set[TargetStep] = set()
    for it in observations():
        step = next_target_step(it)
        taken.add(step)
        if step in RULES:
            words, rule = RULES[step]
            assert rule(it), f"{words}: {step} at {it}"
    assert set(RULES) <= taken


def test_i2_after_the_commit_there_is_no_promise_while_the_checkpoint_is_here() -> None:
    for it in observations():
        if (
            it.verdict is Verdict.COMMIT
            and it.received
            and it.ticket is not DESTROYED
            and it.comer is not Comer.ANOTHER
        ):
            step = next_target_step(it)
            assert step is not TargetStep.DESTROY or it.pod is PodState.GONE


@dataclass
class World:
    """A target node's disk, the API server, and a life of the agent."""

    root: Path
    cluster: Cluster = field(default_factory=Cluster)
    clock: FakeClock = field(default_factory=FakeClock)

    def __post_init__(self) -> None:
        self.journal = journal_at(self.root)
        self.tickets, self.vault = Tickets(self.journal.layout), Vault(self.journal.layout)
        self.vault.keep(MIGRATION, SHIPPING)
        self.journal.place_images(MIGRATION, on_disk=True)
        self.registers, self.peers = FakeRegisters(self.cluster), FakePeers()
        self.cluster.migration = Seen(source_node="node-a", source_pod_uid=SOURCE_POD, target_node="node-b")
        self.named("source", uid=SOURCE_POD, migration=None, node="node-a")
        request = target_request().model_copy(
            update={
                "pod_name": NAME,
                "pod_uid": None,
                "successor": Successor(source_pod_uid=SOURCE_POD, revision="redis-1"),
            }
        )
        self.journal.save(TargetRecord(request=request.task, boot_id=self.clock.boot))
        self.side = self.agent(restarted=False)

    def agent(self, *, restarted: bool = True) -> TargetSide:
        record = self.journal.target(MIGRATION)
        assert record is not None
        tools = target_tools(self.journal, self.vault, self.tickets, self.registers, peers=self.peers, clock=self.clock)
        self.side = TargetSide(record, tools, changed=lambda: None, restarted=restarted)
        return self.side

    def named(self, what: str, *, uid: str | None = None, **changes: Any) -> None:
        """Give the name to a pod."""
        pod = NamedPod(uid=uid or f"pod-{what}", node="node-b", migration=MIGRATION, revision="redis-1", live=True)
        self.cluster.named = replace(pod, **changes)

    async def receive(self) -> None:
        """Take a checkpoint as it comes from the source."""
        file = self.journal.layout.images(MIGRATION) / "main/images/inventory.img"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"data")
        nonce = bytes(12)
        record = Record(nonce, Seal(SHIPPING.key_bytes, MIGRATION).digest(nonce, b"data"))
        chunks = base64.b64encode(packed([record])).decode()
        entry = ManifestEntry(path="main/images/inventory.img", size=4, chunks=chunks)
        await self.side.admitted_done((entry,), None, again=False)

    async def rounds(self, count: int = 3) -> None:
        for _ in range(count):
            await self.side.round()

    async def committed(self) -> None:
        await self.receive()
        await self.rounds(2)
        assert self.cluster.decision is Decision.COMMIT

    def bound(self) -> str | None:
        found = self.journal.target(MIGRATION)
        return found.pod_uid if found else None


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_i2_nothing_is_committed_before_the_checkpoint_is_here(world: World) -> None:
    await world.rounds()
    assert world.cluster.decision is None
    await world.receive()
    await world.rounds(1)
    assert world.cluster.decision is Decision.COMMIT
    found = world.journal.target(MIGRATION)
    assert found is not None
    assert found.secured is not None
    assert found.proposed, "it is journalled before it is proposed"


async def test_i3_a_pod_of_the_name_gets_no_ticket_before_the_commit(world: World) -> None:
    world.named("early")
    await world.rounds()
    assert world.bound() is None
    assert world.tickets.state("pod-early") is TicketState.NONE


async def test_the_pod_that_comes_is_bound(world: World) -> None:
    await world.committed()
    await world.rounds()
    assert world.bound() is None, "the source still has the name"
    world.cluster.named = None
    await world.rounds()
    world.named("next")
    await world.rounds()
    assert world.bound() == "pod-next"
    assert world.tickets.state("pod-next") is PENDING
    assert world.side.report().pod_uid == "pod-next"


@pytest.mark.parametrize("changes", [{"node": "node-c"}, {"node": None}, {"live": False}])
async def test_a_pod_that_is_not_here_yet_is_waited_for(world: World, changes: dict[str, Any]) -> None:
    await world.committed()
    world.named("next", **changes)
    await world.rounds()
    assert world.bound() is None
    assert world.cluster.outcome is None


@pytest.mark.parametrize("changes", [{"migration": None}, {"migration": "another"}, {"revision": "redis-2"}])
async def test_another_pod_that_gets_the_name_ends_it(world: World, changes: dict[str, Any]) -> None:
    """A rollout came between: what runs there is not this memory's, and the checkpoint is of no use any more."""
    await world.committed()
    world.named("other", **changes)
    await world.rounds(6)
    assert world.bound() is None
    assert world.cluster.outcome is Outcome.RETURNED
    assert "got the name" in str(world.cluster.outcome_message)


async def test_i4_a_pod_that_goes_before_it_resumed_is_followed_by_the_next(world: World) -> None:
    await world.committed()
    world.named("first")
    await world.rounds()
    world.named("second")
    await world.rounds(5)
    assert world.tickets.state("pod-first") is DESTROYED, "its hook cannot go on any more"
    assert world.bound() == "pod-second"
    assert world.tickets.state("pod-second") is PENDING


async def test_i4_a_crash_between_journal_and_ticket(world: World) -> None:
    await world.committed()
    world.named("next")
    await world.side.save(pod_uid="pod-next")
    world.agent()
    await world.side.prepare()
    await world.rounds(2)
    assert world.tickets.state("pod-next") is PENDING


@pytest.mark.parametrize("damaged", BOOLEANS)
async def test_i6_a_reboot_keeps_what_is_on_the_disk_unless_it_is_damaged(world: World, damaged: bool) -> None:
    """The key is gone with the memory of the machine."""
    await world.committed()
    world.vault.wipe(MIGRATION)
    world.clock.boot = "boot-2"
    if damaged:
        (world.journal.layout.images(MIGRATION) / "main/images/inventory.img").write_bytes(b"DATA")
    world.agent()
    await world.side.prepare()
    world.named("next")
    await world.rounds(6)
    assert world.bound() == (None if damaged else "pod-next")
    assert (world.cluster.outcome is Outcome.RETURNED) is damaged
    if damaged:
        assert "damaged" in str(world.cluster.outcome_message)


@pytest.mark.parametrize("proposed", BOOLEANS)
async def test_i2_a_promise_is_given_only_by_who_has_not_proposed(world: World, proposed: bool) -> None:
    await world.receive()
    if proposed:
        await world.side.save(proposed=True)
    world.registers.reachable = False
    answer = await world.side.settle(promise=True, settled=False, seconds=0)
    await world.rounds()
    assert answer is not None
    assert world.side.promised is not proposed


@pytest.mark.parametrize("intact", BOOLEANS)
async def test_the_object_is_gone_and_the_source_is_asked(world: World, intact: bool) -> None:
    await world.receive()
    await world.side.save(proposed=True)
    world.cluster.migration, world.peers.is_intact = None, intact
    await world.rounds(4)
    assert world.side.promised is intact
    if not intact:
        world.clock.now_ns += 31 * SECOND
        await world.rounds(4)
        assert world.side.promised, "nobody came in a freeze budget's time"
