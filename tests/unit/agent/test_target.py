"""The target side: a restart of its agent at every state of journal and ticket, and what it tells the source."""

from __future__ import annotations

import base64
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from migration_agent import target_acts
from migration_agent.gate import Gates
from migration_agent.journal import Journal, SourceRecord, TargetRecord
from migration_agent.migrations import Conflict, Migrations
from migration_agent.peer import Refused
from migration_agent.peer_questions import PeerQuestions
from migration_agent.ports import PeerState, PeerUnreachable, PodState
from migration_agent.processes import Processes, ProcessRef, has_exited
from migration_agent.room import Room
from migration_agent.source import SourceSide
from migration_agent.target import TargetSide
from migration_agent.ticket import Ticket, Tickets, TicketState
from migration_agent.transport.chunks import Record, Seal, packed
from migration_agent.transport.frames import Question
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.vault import Vault
from migration_api.migration import Decision, Outcome
from migration_api.wire import TargetState
from support.agent import (
    MIGRATION,
    SECOND,
    SHIPPING,
    TARGET_POD,
    Cluster,
    FakeClock,
    FakePeers,
    FakeRegisters,
    journal_at,
    source_request,
    target_request,
    target_tools,
)

TICKET = Ticket(migration=MIGRATION, containers=("main",))
TREE = ProcessRef(pid=555, start=1)


@dataclass
class World:
    """A target node's disk, and the agent's life that finds it."""

    root: Path
    cluster: Cluster = field(default_factory=Cluster)
    clock: FakeClock = field(default_factory=FakeClock)
    peers: FakePeers = field(default_factory=FakePeers)
    tree_lives: bool = False
    tree: ProcessRef = TREE
    """With a real process in its place it can be killed."""

    def __post_init__(self) -> None:
        self.journal = journal_at(self.root)
        self.tickets = Tickets(self.journal.layout)
        self.registers = FakeRegisters(self.cluster)
        self.vault = Vault(self.journal.layout)
        self.vault.keep(MIGRATION, SHIPPING)

    def receive(self) -> tuple[ManifestEntry, ...]:
        """Put a checkpoint where the transfer puts it."""
        directory = self.journal.layout.images(MIGRATION)
        (directory / "main/images").mkdir(parents=True)
        (directory / "main/images/inventory.img").write_bytes(b"data")
        nonce = bytes(12)
        record = Record(nonce, Seal(SHIPPING.key_bytes, MIGRATION).digest(nonce, b"data"))
        chunks = base64.b64encode(packed([record])).decode()
        return (ManifestEntry(path="main/images/inventory.img", size=4, chunks=chunks),)

    def agent(self) -> TargetSide:
        """Begin a life of the agent."""
        record = self.journal.target(MIGRATION)
        assert record is not None
        return self.target(record, changed=lambda: None, restarted=True)

    def target(self, record: TargetRecord, *, changed: Callable[[], None], restarted: bool) -> TargetSide:
        processes = Processes(
            lambda pid: 1 if self.tree_lives and pid == self.tree.pid else None,
            exited=(lambda _: False) if self.tree is TREE else has_exited,
        )
        tools = target_tools(
            self.journal,
            self.vault,
            self.tickets,
            self.registers,
            peers=self.peers,
            clock=self.clock,
            processes=processes,
        )
        return TargetSide(record, tools, changed=changed, restarted=restarted)

    def source(self, record: SourceRecord, *, changed: Callable[[], None], restarted: bool) -> SourceSide:
        raise AssertionError(f"no source side is expected here: {record} {changed} {restarted}")

    def found(self, state: str) -> None:
        """Leave on disk what a crash in this state leaves."""
        record = TargetRecord(request=target_request().task, boot_id=self.clock.boot, processes=(self.tree,))
        if state != "no-ticket":
            self.tickets.create(TARGET_POD, TICKET)
        if state in {"received", "resuming"}:
            record = record.model_copy(update={"entries": self.receive()})
        if state == "resuming":
            directory = self.journal.layout.ticket(TARGET_POD)
            (directory / "pending").rename(directory / "resuming")
        if state in {"destroyed", "promised"}:
            self.tickets.destroy(TARGET_POD, TICKET)
        if state == "promised":
            record = record.model_copy(update={"state": TargetState.DESTROYED})
        self.journal.save(record)

    def say(self, verdict: str) -> None:
        """Let the registers say something."""
        if verdict == "commit":
            self.cluster.decide(Decision.COMMIT)
        if verdict == "returned":
            self.cluster.decide(Decision.COMMIT)
            assert self.cluster.migration is not None
            self.cluster.migration = replace(self.cluster.migration, outcome=Outcome.RETURNED)
        if verdict == "abort":
            self.cluster.decide(Decision.ABORT)
        if verdict == "gone":
            self.cluster.migration = None
        self.registers.reachable = verdict != "away"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


STATES = ["no-ticket", "pending", "received", "resuming", "destroyed", "promised"]
EXPECTED = {
    # what ends at once; everything else waits with the ticket as it was
    ("resuming", "commit"): (TargetState.RESUMED, TicketState.RESUMING),
    ("resuming", "gone"): (TargetState.RESUMED, TicketState.RESUMING),
    **{
        (state, verdict): (TargetState.DESTROYED, TicketState.DESTROYED)
        for state in STATES
        if state != "resuming"
        for verdict in ("abort", "gone")
    },
    # committed without the images: back to the source, which is intact
    **{
        (state, "commit"): (TargetState.RETURNED, TicketState.DESTROYED)
        for state in ("no-ticket", "pending", "destroyed", "promised")
    },
}


@pytest.mark.parametrize("verdict", ["undecided", "abort", "commit", "away", "gone"])
@pytest.mark.parametrize("state", STATES)
async def test_i4_restart_at_every_state(world: World, state: str, verdict: str) -> None:
    world.found(state)
    world.say(verdict)
    before = world.tickets.state(TARGET_POD)
    side = world.agent()
    await side.prepare()
    for _ in range(8):
        await side.round()
    if (state, verdict) in EXPECTED:
        ended, ticket = EXPECTED[state, verdict]
        assert (side.record.state, world.tickets.state(TARGET_POD)) == (ended, ticket)
        assert side.record.settled
        assert not world.journal.layout.images(MIGRATION).exists(), "I7"
    else:
        assert not side.record.settled
        expected = TicketState.PENDING if before is TicketState.NONE else before
        assert world.tickets.state(TARGET_POD) is expected
    if state != "resuming":
        assert world.cluster.outcome is not Outcome.RESUMED, "I1"


@pytest.mark.parametrize("damage", ["reboot", "content", "missing"])
async def test_i6_only_what_is_still_exactly_as_received_is_used_again(world: World, damage: str) -> None:
    world.found("received")
    image = world.journal.layout.images(MIGRATION) / "main/images/inventory.img"
    if damage == "reboot":
        world.clock.boot = "boot-2"
    elif damage == "content":
        image.write_bytes(b"dat!")
    else:
        image.unlink()
    side = world.agent()
    await side.prepare()
    assert side.record.entries is None
    assert not image.parent.exists()


async def test_i6_what_was_received_before_a_restart_is_used_again(world: World) -> None:
    world.found("received")
    side = world.agent()
    await side.prepare()
    assert side.record.entries is not None


async def test_i1_no_promise_while_a_process_of_the_tree_lives(world: World) -> None:
    world.found("destroyed")
    world.say("abort")
    world.tree_lives = True
    side = world.agent()
    await side.prepare()
    for _ in range(3):
        await side.round()
    assert side.word() is PeerState.UNDECIDED
    world.tree_lives = False
    for _ in range(3):
        await side.round()
    assert side.word() is PeerState.DESTROYED
    assert side.record.settled


def sleeping() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "1000"])


async def test_i4_a_tree_that_dies_only_with_its_tracer_keeps_nobody_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU was seen to trace the tree of a hook that had failed, and to reap nothing of it for ever."""
    world.found("destroyed")
    world.say("abort")
    with sleeping() as criu, sleeping() as tree:
        world.tree, world.tree_lives = ProcessRef(pid=tree.pid, start=1), True
        world.found("destroyed")
        monkeypatch.setattr(target_acts, "_KILL_AFTER_SECONDS", 0.0)
        side = world.agent()
        looks = Processes(
            lambda pid: 1 if pid in {tree.pid, criu.pid} else None,
            exited=lambda _: criu.poll() is not None,
            tracer=lambda pid: criu.pid if pid == tree.pid else None,
        )
        side.tools = replace(side.tools, processes=looks)
        await side.prepare()
        for _ in range(100):
            await side.round()
            if side.record.settled:
                break
        assert criu.wait(10) == -signal.SIGKILL
        for _ in range(5):
            await side.round()
        assert side.record.settled
        assert side.word() is PeerState.DESTROYED


async def test_i2_nothing_is_returned_while_the_source_does_not_answer(world: World) -> None:
    world.found("received")
    world.say("commit")
    world.peers.is_intact = None
    side = world.agent()
    await side.prepare()
    await side.round()
    world.clock.now_ns += 31 * SECOND
    for _ in range(3):
        with pytest.raises(PeerUnreachable):
            await side.round()
    assert world.tickets.state(TARGET_POD) is TicketState.PENDING
    world.peers.is_intact = True
    for _ in range(5):
        await side.round()
    assert world.cluster.outcome is Outcome.RETURNED


async def test_a_deleted_target_pod_returns_the_container_after_commit(world: World) -> None:
    world.found("received")
    world.say("commit")
    world.cluster.pod_state = PodState.GONE
    side = world.agent()
    await side.prepare()
    for _ in range(6):
        await side.round()
    assert world.cluster.writes == ["Commit", "Returned"]


async def test_i1_a_node_that_was_out_of_service_ends_what_went_on(world: World) -> None:
    """The operator wrote Returned for it, by the admin's taint: the source runs."""
    tree = subprocess.Popen(["sleep", "100"])  # noqa: ASYNC220
    world.tree, world.tree_lives = ProcessRef(pid=tree.pid, start=1), True
    world.found("resuming")
    world.say("returned")
    side = world.agent()
    await side.prepare()
    assert side.word() is PeerState.UNDECIDED, "the register was not read in this life"
    await side.round()
    assert world.cluster.deleted == [TARGET_POD]
    assert tree.wait(timeout=10) == -signal.SIGKILL
    assert side.word() is PeerState.UNDECIDED
    for _ in range(2):
        await side.round()
    assert side.word() is PeerState.DESTROYED
    assert side.record.settled


async def test_the_word_resumed_is_kept_until_the_source_acknowledges(world: World) -> None:
    world.found("resuming")
    world.say("gone")
    side = world.agent()
    await side.prepare()
    for _ in range(4):
        await side.round()
    assert side.word() is PeerState.RESUMED
    assert not side.forgotten
    side.start()
    assert await side.settle(promise=False, settled=True, seconds=5) is PeerState.RESUMED
    await side.looked(5)
    assert side.forgotten
    await side.stop()


def migrations(world: World) -> Migrations:
    return Migrations(
        world.journal, world.vault, world.tickets, world.clock, world, gates=Gates(), room=lambda: Room(1 << 40, 0)
    )


def ask(*, promise: bool = True, settled: bool = False) -> Question:
    return Question(op="settle", migration=MIGRATION, promise=promise, settled=settled)


async def test_i1_an_unknown_migration_is_buried_before_the_promise_and_never_taken_up(world: World) -> None:
    it = migrations(world)
    await it.start()
    assert await PeerQuestions(it).settle("node-a", ask()) is PeerState.DESTROYED
    assert world.journal.buried(MIGRATION)
    with pytest.raises(Conflict, match="promised never"):
        await it.put_target(target_request())
    assert world.tickets.state(TARGET_POD) is TicketState.DESTROYED


async def test_i1_a_ticket_without_journal_still_counts(world: World) -> None:
    it = migrations(world)
    await it.start()
    world.tickets.create(TARGET_POD, TICKET)
    directory = world.journal.layout.ticket(TARGET_POD)
    (directory / "pending").rename(directory / "resuming")
    assert await PeerQuestions(it).settle("node-a", ask()) is PeerState.RESUMED
    assert not world.journal.buried(MIGRATION)


async def test_i1_a_pending_ticket_without_journal_is_destroyed_before_the_promise(world: World) -> None:
    it = migrations(world)
    await it.start()
    world.tickets.create(TARGET_POD, TICKET)
    assert await PeerQuestions(it).settle("node-a", ask()) is PeerState.DESTROYED
    assert world.tickets.state(TARGET_POD) is TicketState.DESTROYED


async def test_a_damaged_journal_promises_nothing_and_takes_nothing(world: World) -> None:
    world.found("received")
    (world.journal.layout.migration(MIGRATION) / "target.json").write_text("{")
    it = migrations(world)
    await it.start()
    with pytest.raises(Refused, match="damaged"):
        await PeerQuestions(it).settle("node-a", ask())
    for request in (it.put_target(target_request()), it.put_source(source_request()), it.forget(MIGRATION)):
        with pytest.raises(Conflict, match="damaged"):
            await request
    assert world.tickets.state(TARGET_POD) is TicketState.PENDING


async def test_only_the_source_of_a_migration_is_listened_to(world: World) -> None:
    world.found("pending")
    it = migrations(world)
    await it.start()
    with pytest.raises(Refused, match="node-a"):
        await PeerQuestions(it).settle("node-x", ask())
    with pytest.raises(Refused, match="node-a"):
        await PeerQuestions(it).admit("node-x", Question(op="send", migration=MIGRATION))
    with pytest.raises(Refused, match="not told"):
        await PeerQuestions(it).admit("node-a", Question(op="send", migration="other"))
    assert world.tickets.state(TARGET_POD) is TicketState.PENDING
    await it.stop()


async def test_requests_are_idempotent_and_contradictions_are_refused(world: World) -> None:
    it = migrations(world)
    await it.start()
    await it.put_target(target_request())
    await it.put_target(target_request())
    with pytest.raises(Conflict, match="before"):
        await it.put_target(target_request(budget=31))
    other = target_request().migration.model_copy(update={"uid": "other"})
    with pytest.raises(Conflict, match="is the target of migration"):
        await it.put_target(target_request().model_copy(update={"migration": other}))
    with pytest.raises(Conflict, match="not settled"):
        await it.forget(MIGRATION)
    await it.stop()


@pytest.mark.parametrize(("verdict", "deleted"), [("gone", [TARGET_POD]), ("abort", [])])
async def test_i4_a_pod_that_never_starts_goes_when_nobody_else_knows_it(
    world: World, verdict: str, deleted: list[str]
) -> None:
    """The object was forced away: the operator deletes nothing any more."""
    world.found("received")
    world.say(verdict)
    side = world.agent()
    for _ in range(8):
        if not side.forgotten:
            await side.round()
    assert side.record.state is TargetState.DESTROYED
    assert world.cluster.deleted == deleted


async def test_i4_a_transfer_whose_end_cannot_be_journalled_is_over_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk was full for a moment: the source sends again, and the way back is not barred."""
    world.found("pending")
    side = world.agent()
    await side.admit("node-a")
    with monkeypatch.context() as full:
        full.setattr(Journal, "save", _no_space)
        with pytest.raises(OSError, match="no space"):
            await side.admitted_done((), None, again=False)
    await side.admit("node-a")
    world.say("abort")
    await side.admitted_done(None, "the connection broke", again=True)
    for _ in range(5):
        await side.round()
    assert side.record.state is TargetState.DESTROYED


def _no_space(_: Journal, __: TargetRecord) -> None:
    raise OSError("no space left on device")
