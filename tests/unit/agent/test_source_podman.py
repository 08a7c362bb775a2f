"""The source side of a Podman container: stopped by its checkpoint, back from what Podman keeps, and removed once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from migration_agent.freeze_turn import FreezeTurn
from migration_agent.journal import SourceRecord
from migration_agent.podman_freezer import PodmanFreezer
from migration_agent.processes import Processes
from migration_agent.runtime.interface import RuntimeFailure
from migration_agent.source import SourceSide, SourceTools
from migration_agent.transport.manifest import PODMANS_ARCHIVE
from migration_agent.vault import Vault
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.wire import RunBy, SourceState, Thaw
from support.agent import MIGRATION, SECOND, SHIPPING, Cluster, FakeClock, FakePeers, FakeRegisters, journal_at
from support.agent import source_request as pods_request
from support.archives import CONFIG, podman_archive
from support.fake_podman import CONTAINER_ID, NAME, FakePodman, container, podman_at


@dataclass
class World:
    """A source node with one Podman container, and the agent's life that finds it."""

    root: Path
    thaw: Thaw = Thaw.DECIDED
    cluster: Cluster = field(default_factory=Cluster)
    clock: FakeClock = field(default_factory=FakeClock)
    peers: FakePeers = field(default_factory=FakePeers)

    def __post_init__(self) -> None:
        self.journal = journal_at(self.root)
        self.podman: FakePodman = podman_at(self.root)
        self.podman.containers[CONTAINER_ID] = container()
        for pid in (1, 4242, 4343):
            namespace = self.root / f"proc/{pid}/ns/net"
            namespace.parent.mkdir(parents=True)
            namespace.touch()
        self.registers = FakeRegisters(self.cluster)
        Vault(self.journal.layout).keep(MIGRATION, SHIPPING)
        assert self.cluster.migration is not None
        ids = {"source_pod_uid": CONTAINER_ID, "target_pod_uid": CONTAINER_ID}
        self.cluster.migration = replace(self.cluster.migration, **ids)
        request = pods_request(containers=("container",), thaw=self.thaw).model_copy(
            update={"run_by": RunBy.PODMAN, "pod_uid": CONTAINER_ID, "pod_name": NAME, "refuse_connections": True}
        )
        self.journal.claim(CONTAINER_ID, MIGRATION)
        self.journal.save(SourceRecord(request=request.task, boot_id=self.clock.boot))
        self.side = self.agent(restarted=False)

    def freezer(self) -> PodmanFreezer:
        return PodmanFreezer(
            container_id=CONTAINER_ID,
            podman=self.podman,
            processes=Processes(lambda pid: 1 if pid == self.status[1] else None, exited=lambda _: False),
            archive=self.journal.layout.image(MIGRATION, "container") / PODMANS_ARCHIVE,
        )

    @property
    def status(self) -> tuple[str, int]:
        it = self.podman.containers.get(CONTAINER_ID)
        return (it.status, it.pid) if it else ("", 0)

    def agent(self, *, restarted: bool = True) -> SourceSide:
        record = self.journal.source(MIGRATION)
        assert record is not None
        vault = Vault(self.journal.layout)
        tools = SourceTools(
            journal=self.journal,
            vault=vault,
            registers=self.registers,
            peers=self.peers,
            clock=self.clock,
            freezer=self.freezer(),
            node="node-a",
            turn=FreezeTurn(),
        )
        self.side = SourceSide(record, tools, changed=lambda: None, restarted=restarted)
        return self.side

    async def restart(self) -> None:
        await self.side.stop()
        self.agent()
        await self.side.prepare()

    async def until(self, holds: Callable[[], bool], limit: int = 40) -> None:
        for _ in range(limit):
            await self.side.round()
            if self.side.copying is not None:
                await asyncio.wait([self.side.copying])
            if holds():
                return
        pytest.fail(f"did not come to pass: {self.side.record.state}, {self.podman.log}")

    async def reach(self, state: SourceState) -> None:
        await self.until(lambda: self.side.record.state is state)

    def conclude(self, outcome: Outcome) -> None:
        self.cluster.decide(Decision.COMMIT)
        assert self.cluster.migration is not None
        self.cluster.migration = replace(self.cluster.migration, outcome=outcome)

    def connect(self, local: str, remote: str) -> None:
        """Let the container's network have an established connection."""
        line = f"   0: {local}:1F90 {remote}:C350 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0 20"
        (self.root / "proc/4242/net").mkdir()
        (self.root / "proc/4242/net/tcp").write_text(f"  sl  local_address\n{line}\n")
        (self.root / "proc/4242/ns/net").rename(self.root / "proc/4242/ns/other")
        (self.root / "proc/4242/ns/net").touch()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_it_is_stopped_by_its_checkpoint_and_what_describes_it_lies_beside_the_archive(world: World) -> None:
    await world.reach(SourceState.SENT)
    assert world.podman.log == ["checkpoint"]
    assert world.status == ("exited", 0)
    directory = world.journal.layout.image(MIGRATION, "container")
    files = {str(it.relative_to(directory)): it.stat().st_mode & 0o77 for it in directory.rglob("*") if it.is_file()}
    assert files.keys() == {"images/podman.tar", "images/inventory.img", "config.dump", "spec.dump"}
    assert await world.side.intact()
    report = world.side.report()
    assert (report.frozen, report.alive) == (True, True)


async def test_i2_abort_lets_it_go_on_from_what_podman_keeps(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.decide(Decision.ABORT)
    await world.reach(SourceState.THAWED)
    assert world.podman.log == ["checkpoint", "restore"]
    assert world.status[0] == "running"
    assert not world.journal.layout.images(MIGRATION).exists(), "I7"


async def test_i1_only_resumed_removes_it(world: World) -> None:
    await world.reach(SourceState.SENT)
    world.cluster.decide(Decision.COMMIT)
    for _ in range(3):
        await world.side.round()
    assert world.status[0] == "exited"
    world.conclude(Outcome.RESUMED)
    await world.reach(SourceState.RELEASED)
    assert world.podman.containers == {}
    assert world.podman.log == ["checkpoint", "remove"]


@pytest.mark.parametrize("state", [SourceState.FROZEN, SourceState.DUMPED, SourceState.SENT])
@pytest.mark.parametrize("stopped", [False, True])
async def test_i4_restart_at_every_state_after_which_it_is_given_up(
    world: World, state: SourceState, *, stopped: bool
) -> None:
    await world.reach(SourceState.SENT)
    if not stopped:
        world.podman.containers[CONTAINER_ID] = container()
    record = world.side.record
    world.journal.save(record.model_copy(update={"state": state}))
    await world.restart()
    world.clock.now_ns += 31 * SECOND
    await world.reach(SourceState.THAWED)
    assert world.cluster.decision is Decision.ABORT
    assert world.status[0] == "running"


async def test_i1_a_command_of_an_earlier_life_is_waited_for(world: World) -> None:
    """A checkpoint that is still under way would stop the container after it was said to go on."""
    await world.reach(SourceState.SENT)
    world.cluster.decide(Decision.ABORT)
    world.podman.busy.append("podman container restore")
    await world.restart()
    for _ in range(3):
        with pytest.raises(RuntimeFailure, match="still works"):
            await world.side.round()
    world.podman.busy.clear()
    await world.reach(SourceState.THAWED)


async def test_i2_what_was_restored_by_an_earlier_life_is_only_paused_while_nobody_knows(world: World) -> None:
    """Its agent died before it wrote that down, and the API server is away."""
    await world.reach(SourceState.SENT)
    world.podman.restore(CONTAINER_ID)
    world.registers.reachable = False
    await world.restart()
    await world.until(lambda: world.status[0] == "paused")
    world.registers.reachable = True
    world.cluster.decide(Decision.ABORT)
    await world.reach(SourceState.THAWED)
    assert world.status[0] == "running"
    assert world.podman.log == ["checkpoint", "restore", "pause", "unpause"]


async def test_i2_an_export_that_fails_after_the_dump_loses_nothing(world: World) -> None:
    """The container is stopped then, and Podman does not call it checkpointed; what it keeps is whole."""
    world.podman.failing.add("export")
    await world.reach(SourceState.THAWED)
    assert world.podman.log == ["checkpoint", "restore"]
    assert world.status[0] == "running"
    assert world.side.record.failure is not None
    assert "no space left" in world.side.record.failure.message


async def test_i2_a_container_that_criu_cannot_dump_goes_on(world: World) -> None:
    world.podman.failing.add("checkpoint")
    await world.reach(SourceState.THAWED)
    assert world.podman.log == ["checkpoint"]
    assert world.status[0] == "running"


async def test_i6_an_archive_without_inventory_is_never_sent(world: World) -> None:
    config = {**CONFIG, "id": CONTAINER_ID}
    world.podman.archive[0] = podman_archive(config=config, without=("checkpoint/inventory.img",))
    await world.reach(SourceState.THAWED)
    assert world.peers.sent == []
    assert world.side.record.failure is not None
    assert "no checkpoint/inventory.img" in world.side.record.failure.message
    assert world.status[0] == "running"


async def test_a_container_that_died_by_itself_is_not_brought_back_from_an_older_checkpoint(world: World) -> None:
    kept = world.root / "proc/1/root" / str(world.root / "kept/checkpoint").lstrip("/")
    kept.mkdir(parents=True)
    world.podman.containers[CONTAINER_ID] = container(checkpoint=world.root / "kept/checkpoint")
    freezer = world.freezer()
    await world.reach(SourceState.SENT)
    assert freezer.frozen(world.side.record.containers)
    world.podman.containers[CONTAINER_ID] = container(status="exited", pid=0)
    await world.until(lambda: not world.side.report().alive)
    world.clock.now_ns += 31 * SECOND
    await world.reach(SourceState.LOST)
    assert world.podman.log == ["checkpoint"]


async def test_a_source_that_is_left_running_goes_on_as_soon_as_files_and_memory_are_taken(tmp_path: Path) -> None:
    it = World(tmp_path / "clone", Thaw.DUMPED)
    await it.until(lambda: it.side.record.sent_at is not None)
    assert it.podman.log == ["checkpoint", "restore"]
    assert it.status == ("running", 4343)
    it.conclude(Outcome.RESUMED)
    await it.reach(SourceState.THAWED)
    assert it.podman.log == ["checkpoint", "restore"]
    assert not it.podman.host.host_file(it.root / "kept/checkpoint").exists(), "I7: no memory image stays"


async def test_connections_with_others_are_refused_while_it_runs(world: World) -> None:
    world.connect("0100000A", "0200000A")
    await world.reach(SourceState.THAWED)
    assert world.podman.log == []
    assert world.side.record.failure is not None
    assert world.side.record.failure.reason is Reason.CHECKPOINT_FAILED
    assert "1 TCP connections with others" in world.side.record.failure.message


async def test_connections_within_it_are_dumped(world: World) -> None:
    world.connect("0100007F", "0100007F")
    await world.reach(SourceState.SENT)
    assert world.podman.log == ["checkpoint established"]
