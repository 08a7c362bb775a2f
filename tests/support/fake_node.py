"""A source's containers, fence and packets in memory."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.freeze import FreezeFailure
from migration_agent.freezer import Freezer
from migration_agent.processes import Processes
from migration_agent.runtime.interface import Container, ContainerStatus, Dump, RuntimeFailure, Shared
from migration_api.wire import Connections
from support.agent import SOURCE_POD
from support.fake_copier import FakeCopier


@dataclass
class FakeNode:
    """The source's containers, fence and packets; writes down what was done in which order."""

    status_: ContainerStatus = ContainerStatus.RUNNING
    dead: bool = False
    """Its processes are gone. As in life the runtime says `paused` all the same, until somebody thaws what is left."""
    fenced: bool = False
    removed: bool = False
    """The kubelet has removed the pod, and all its files."""
    dropped: bool = False
    reset_: bool = False
    pid: int = 4242
    start: int = 99
    log: list[str] = field(default_factory=list[str])
    watch: Callable[[str], None] = lambda _: None
    """Called before each act; raises to stand for a crash, or checks an invariant."""
    dump_error: str | None = None
    dump_gate: threading.Event | None = None
    """The dump waits for it."""
    name: str = "fake"
    names: tuple[str, ...] = ("main",)
    attached: tuple[str, ...] = ()
    """Those with System V shared memory."""
    memory_bytes: int = 1 << 20
    """Of each container."""
    changes: list[int] = field(default_factory=lambda: [100, 20, 0])
    """MiB that each round of copying finds."""
    copiers: list[FakeCopier] = field(default_factory=list[FakeCopier])
    copy_gate: threading.Event | None = None
    scale: int = 1
    """Bytes of the log for a MiB of memory."""

    def do(self, act: str) -> None:
        self.watch(act)
        self.log.append(act)

    def die(self) -> None:
        self.dead = True
        if self.status_ is not ContainerStatus.PAUSED:
            self.status_ = ContainerStatus.STOPPED

    def reboot(self) -> None:
        self.dead, self.status_, self.dropped = True, ContainerStatus.STOPPED, False

    def remove(self) -> None:
        """The pod was deleted by force, and the kubelet has taken all of it away."""
        self.reboot()
        self.fenced, self.removed = False, True

    def process_start(self, pid: int) -> int | None:
        return self.start if pid == self.pid and not self.dead else None

    def containers(self, pod_uid: str) -> tuple[Container, ...]:
        if pod_uid != SOURCE_POD or self.status_ is ContainerStatus.STOPPED:
            return ()
        return tuple(
            Container(name, f"c0ffee-{name}", pod_uid, self.pid, self.start, Path("/bundle"), self.memory_bytes, "runc")
            for name in self.names
        )

    def network_pid(self, pod_uid: str) -> int | None:
        return 4000

    def status(self, container: Container) -> ContainerStatus:
        return self.status_

    def pause(self, container: Container) -> None:
        if self.status_ is ContainerStatus.STOPPED:
            raise RuntimeFailure("it has ended")
        self.do("pause")
        self.status_ = ContainerStatus.PAUSED

    def resume(self, container: Container) -> None:
        if self.status_ is ContainerStatus.PAUSED:
            self.do("resume")
            self.status_ = ContainerStatus.STOPPED if self.dead else ContainerStatus.RUNNING

    def copier(self, dump: Dump) -> FakeCopier:
        assert self.status_ is ContainerStatus.RUNNING
        assert dump.memory_stays
        self.copiers.append(FakeCopier(dump, self.changes, self.do, gate=self.copy_gate, scale=self.scale))
        return self.copiers[-1]

    def prepare(self, dump: Dump) -> None:
        (dump.directory / "images").mkdir(parents=True, exist_ok=True)

    def dump(self, dump: Dump, *, file_locks: bool, while_frozen: Callable[[], None] | None = None) -> None:
        self.do("dump")
        if self.status_ is not ContainerStatus.PAUSED:
            raise RuntimeFailure("the container is not paused")
        if self.dump_gate is not None:
            assert self.dump_gate.wait(20)
        if while_frozen is not None:
            try:
                while_frozen()
            except Exception as error:
                raise RuntimeFailure("the post-dump hook failed") from error
        if self.dump_error:
            raise RuntimeFailure(self.dump_error)
        (dump.directory / "images/inventory.img").write_bytes(b"inventory")
        (dump.directory / "images/pages-1.img").write_bytes(b"p" * 5_000_000)
        (dump.directory / "images/empty.img").touch()
        (dump.directory / "images/ipcns-shm-9.img").write_bytes(b"shm")
        (dump.directory / "rootfs-diff.tar").write_bytes(b"tar")
        (dump.directory / "work").mkdir()
        (dump.directory / "work/dump.log").write_text("log")

    def attaches_memory(self, container: Container) -> bool:
        return container.name in self.attached

    def shared(self, pod_uid: str) -> Shared:
        return Shared(pod_uid, None, 4000)

    def copy_shared(self, shared: Shared, directory: Path) -> Connections:
        assert self.status_ is ContainerStatus.PAUSED
        self.do("copy-shared")
        directory.mkdir(parents=True)
        (directory / "volume-data.tar").write_bytes(b"data")
        return self.connections(shared)

    def connections(self, shared: Shared) -> Connections:
        return Connections(within=2, outside=1)

    def shared_bytes(self, shared: Shared) -> int:
        return 4

    def kill_frozen(self, container: Container) -> None:
        if self.status_ is not ContainerStatus.STOPPED:
            self.do("kill")
            assert self.status_ is ContainerStatus.PAUSED, "I1: killed while frozen"
            self.dead, self.status_ = True, ContainerStatus.STOPPED

    def fence_of(self, pod_uid: str) -> FakeFence:
        assert pod_uid == SOURCE_POD
        return FakeFence(self)

    def drop_of(self, pid: int) -> FakeDrop:
        return FakeDrop(self)

    def freezer(self) -> Freezer:
        return Freezer(
            SOURCE_POD, self, Processes(self.process_start, exited=lambda _: False), self.fence_of, self.drop_of
        )


@dataclass
class FakeFence:
    """Implements `ports.FenceLike`."""

    node: FakeNode

    def raise_(self) -> None:
        if self.node.removed:
            raise FreezeFailure("the kubelet has no such pod")
        if not self.node.fenced:
            self.node.do("fence")
            self.node.fenced = True

    def lift(self) -> None:
        if self.node.fenced:
            self.node.do("unfence")
            self.node.fenced = False

    def has_pod(self) -> bool:
        return not self.node.removed

    def is_up(self) -> bool:
        return self.node.fenced


@dataclass
class FakeDrop:
    """Implements `ports.PacketDropLike`."""

    node: FakeNode

    def drop(self) -> None:
        self.node.do("drop")
        self.node.dropped = True

    def reset(self) -> None:
        self.node.do("reset")
        self.node.reset_ = True

    def lift(self) -> None:
        if self.node.dropped:
            self.node.do("undrop")
            self.node.dropped = False
