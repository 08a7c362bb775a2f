"""The target side of a Podman container: nothing is restored without Commit, and nothing runs after the promise."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from migration_agent.journal import TargetRecord
from migration_agent.ports import PeerState, PeerUnreachable
from migration_agent.target_podman import PodmanTargetSide
from migration_agent.ticket import Tickets, TicketState
from migration_agent.transport.chunks import Record, Seal, packed
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.vault import Vault
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.wire import RunBy, TargetState
from support.agent import (
    MIGRATION,
    SECOND,
    SHIPPING,
    Cluster,
    FakeClock,
    FakePeers,
    FakeRegisters,
    journal_at,
    target_tools,
)
from support.agent import target_request as pods_request
from support.fake_podman import CONTAINER_ID, NAME, FakePodman, container, podman_at


@dataclass
class World:
    """A target node's disk, its Podman, and the agent's life that finds them."""

    root: Path
    cluster: Cluster = field(default_factory=Cluster)
    clock: FakeClock = field(default_factory=FakeClock)
    peers: FakePeers = field(default_factory=FakePeers)

    def __post_init__(self) -> None:
        self.journal = journal_at(self.root)
        self.podman: FakePodman = podman_at(self.root)
        self.tickets = Tickets(self.journal.layout)
        self.registers = FakeRegisters(self.cluster)
        self.vault = Vault(self.journal.layout)
        self.vault.keep(MIGRATION, SHIPPING)
        assert self.cluster.migration is not None
        ids = {"source_pod_uid": CONTAINER_ID, "target_pod_uid": CONTAINER_ID}
        self.cluster.migration = replace(self.cluster.migration, **ids)
        request = pods_request(containers=("container",)).model_copy(
            update={"run_by": RunBy.PODMAN, "pod_uid": CONTAINER_ID, "pod_name": NAME}
        )
        self.journal.save(TargetRecord(request=request.task, boot_id=self.clock.boot))
        self.side = self.agent(restarted=False)

    def agent(self, *, restarted: bool = True) -> PodmanTargetSide:
        """Begin a life of the agent."""
        record = self.journal.target(MIGRATION)
        assert record is not None
        tools = target_tools(self.journal, self.vault, self.tickets, self.registers, peers=self.peers, clock=self.clock)
        self.side = PodmanTargetSide(record, tools, self.podman, changed=lambda: None, restarted=restarted)
        return self.side

    async def restart(self) -> None:
        self.agent()
        await self.side.prepare()

    async def rounds(self, count: int = 8) -> None:
        for _ in range(count):
            await self.side.round()

    async def receive(self, content: bytes | None = None) -> None:
        """Put a checkpoint where the transfer puts it, and let its end be known."""
        images = self.journal.layout.image(MIGRATION, "container") / "images"
        images.mkdir(parents=True)
        content = self.podman.archive[0] if content is None else content
        (images / "podman.tar").write_bytes(content)
        nonce = bytes(12)
        record = Record(nonce, Seal(SHIPPING.key_bytes, MIGRATION).digest(nonce, content))
        chunks = base64.b64encode(packed([record])).decode()
        entry = ManifestEntry(path="container/images/podman.tar", size=len(content), chunks=chunks)
        await self.side.admitted_done((entry,), None, again=False)

    @property
    def ticket(self) -> TicketState:
        return self.tickets.state(CONTAINER_ID)

    @property
    def runs(self) -> bool:
        it = self.podman.containers.get(CONTAINER_ID)
        return it is not None and it.running


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_it_is_ready_when_podman_answers_and_the_name_is_free(world: World) -> None:
    world.podman.broken.append("no answer")
    await world.rounds(2)
    assert not world.side.report().at_late_gate
    world.podman.broken.clear()
    await world.rounds(1)
    report = world.side.report()
    assert report.at_late_gate
    assert report.failure is None
    assert world.podman.log == []


@pytest.mark.parametrize("taken", [{"id": CONTAINER_ID, "name": "other"}, {"id": "6" * 64, "name": NAME}])
async def test_a_container_that_is_there_before_is_left_as_it_is_whatever_happens(
    world: World, taken: dict[str, str]
) -> None:
    other = container(**taken)
    world.podman.containers[other.id] = other
    await world.rounds(2)
    assert world.side.record.failure is not None
    assert world.side.record.failure.reason is Reason.TARGET_FAILED
    assert not world.side.report().at_late_gate
    world.cluster.decide(Decision.ABORT)
    await world.rounds()
    assert world.side.record.settled
    assert world.podman.containers == {other.id: other}
    assert world.podman.log == []


async def test_i1_nothing_is_restored_before_commit_and_the_outcome_comes_after_it_runs(world: World) -> None:
    seen: list[tuple[str, bool]] = []
    world.registers.before_propose = lambda: seen.append(("propose", world.runs))
    await world.rounds(2)
    await world.receive()
    await world.rounds()
    assert seen == [("propose", False)]
    assert world.podman.log == ["restore-from"]
    assert world.runs
    assert world.cluster.writes == ["Commit", "Resumed"]
    assert world.side.record.state is TargetState.RESUMED
    assert world.side.word() is PeerState.RESUMED
    assert not world.journal.layout.images(MIGRATION).exists(), "I7"
    assert world.ticket is TicketState.NONE, "the container may come again"


async def test_i1_who_loses_the_race_restores_nothing(world: World) -> None:
    world.registers.before_propose = lambda: world.cluster.decide(Decision.ABORT)
    await world.rounds(2)
    await world.receive()
    await world.rounds()
    assert world.podman.log == []
    assert world.side.word() is PeerState.DESTROYED


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, "cut", "other"])
async def test_i6_what_is_not_whole_or_of_another_container_is_never_committed(
    world: World, content: bytes | str
) -> None:
    whole = world.podman.archive[0]
    if content == "other":
        content = whole.replace(CONTAINER_ID.encode(), b"7" * 64)
    await world.rounds(2)
    await world.receive(content if isinstance(content, bytes) else whole[: len(whole) // 2])
    await world.rounds()
    assert world.cluster.writes == []
    assert world.side.record.failure is not None
    assert world.side.record.failure.reason is Reason.TRANSFER_FAILED


async def test_i1_a_restore_that_fails_is_tried_again_and_then_given_back_when_nothing_is_left(world: World) -> None:
    world.podman.failing.add("restore-from")
    await world.rounds(2)
    await world.receive()
    await world.rounds(3)
    assert world.podman.log.count("restore-from") > 1
    assert world.cluster.writes == ["Commit"]
    assert world.side.word() is PeerState.UNDECIDED
    world.clock.now_ns += 31 * SECOND
    await world.rounds()
    assert world.cluster.writes == ["Commit", "Returned"]
    assert "could not restore" in (world.cluster.outcome_message or "")
    assert world.podman.containers == {}
    assert world.podman.log[-1] == "remove"


async def test_i4_without_an_intact_source_it_goes_on_trying(world: World) -> None:
    world.podman.failing.add("restore-from")
    world.peers.is_intact = False
    await world.rounds(2)
    await world.receive()
    await world.rounds(2)
    world.clock.now_ns += 31 * SECOND
    await world.rounds(2)
    assert world.ticket is TicketState.PENDING
    world.podman.failing.clear()
    await world.rounds()
    assert world.cluster.writes == ["Commit", "Resumed"]


async def test_i2_nothing_is_returned_while_the_source_does_not_answer(world: World) -> None:
    world.podman.failing.add("restore-from")
    world.peers.is_intact = None
    await world.rounds(2)
    await world.receive()
    await world.rounds(2)
    world.clock.now_ns += 31 * SECOND
    with pytest.raises(PeerUnreachable):
        await world.side.round()
    assert world.ticket is TicketState.PENDING


async def test_i1_a_restore_of_an_earlier_life_is_waited_for(world: World) -> None:
    """Neither a promise nor another restore comes before it is known what became of it."""
    await world.rounds(2)
    await world.receive()
    await world.side.save(restore_begun=True)
    world.cluster.decide(Decision.COMMIT)
    world.podman.busy.append("podman container restore")
    await world.restart()
    world.clock.now_ns += 100 * SECOND
    await world.rounds(3)
    assert await world.side.settle(promise=True, settled=False, seconds=0.01) is PeerState.UNDECIDED
    await world.rounds(3)
    assert world.podman.log == []
    assert world.ticket is TicketState.PENDING
    world.podman.busy.clear()
    world.podman.containers[CONTAINER_ID] = container(restored=True)
    await world.rounds()
    assert world.cluster.writes == ["Commit", "Resumed"]
    assert world.podman.log == []


@pytest.mark.parametrize("status", ["running", "exited"])
async def test_i4_what_ran_before_the_agent_died_is_resumed_also_when_it_has_ended_since(
    world: World, status: str
) -> None:
    await world.rounds(2)
    await world.receive()
    await world.side.save(restore_begun=True)
    world.cluster.decide(Decision.COMMIT)
    world.podman.containers[CONTAINER_ID] = container(restored=True, status=status)
    await world.restart()
    world.clock.now_ns += 100 * SECOND
    await world.rounds()
    assert world.cluster.writes == ["Commit", "Resumed"]


async def test_i1_no_promise_while_a_process_lives_that_podman_does_not_know(world: World) -> None:
    await world.rounds(2)
    await world.receive()
    await world.side.save(restore_begun=True)
    world.podman.stray.append(99)
    world.podman.failing.add("remove")
    world.cluster.decide(Decision.ABORT)
    await world.side.round()
    for _ in range(3):
        with pytest.raises(Exception, match="remove failed"):
            await world.side.round()
    assert world.side.word() is PeerState.UNDECIDED
    world.podman.failing.clear()
    await world.rounds()
    assert world.side.word() is PeerState.DESTROYED
    assert world.podman.stray == []


async def test_after_a_reboot_without_the_archive_the_container_goes_back(world: World) -> None:
    await world.rounds(2)
    await world.receive()
    await world.side.save(restore_begun=True)
    world.cluster.decide(Decision.COMMIT)
    world.podman.containers[CONTAINER_ID] = container(status="created", pid=0)
    world.clock.boot = "boot-2"
    await world.restart()
    await world.rounds()
    assert world.cluster.outcome is Outcome.RETURNED
    assert world.podman.containers == {}


async def test_i1_a_node_that_was_out_of_service_ends_what_went_on(world: World) -> None:
    await world.rounds(2)
    await world.receive()
    await world.side.save(restore_begun=True)
    world.podman.containers[CONTAINER_ID] = container(restored=True)
    world.tickets.resume(CONTAINER_ID)
    world.cluster.decide(Decision.COMMIT)
    assert world.cluster.migration is not None
    world.cluster.migration = replace(world.cluster.migration, outcome=Outcome.RETURNED)
    await world.restart()
    await world.rounds()
    assert world.podman.containers == {}
    assert world.side.word() is PeerState.DESTROYED
    assert world.side.record.settled
