"""Freezes, thaws and ends one pod's containers: runtime, fence and packet drop in the order that loses nothing.

All methods block and are idempotent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from migration_agent.freeze import FreezeFailure
from migration_agent.ports import FenceLike, PacketDropLike
from migration_agent.processes import Processes
from migration_agent.runtime.interface import (
    Container,
    ContainerStatus,
    Dump,
    MemoryCopierLike,
    Runtime,
    RuntimeFailure,
    Shared,
)
from migration_api.wire import Connections

log = logging.getLogger(__name__)

_ALIVE = frozenset({ContainerStatus.RUNNING, ContainerStatus.PAUSED})


@dataclass(frozen=True)
class Freezer:
    """One pod's containers on this node."""

    pod_uid: str
    runtime: Runtime
    processes: Processes
    fence_of: Callable[[str], FenceLike]
    """By pod UID."""
    drop_of: Callable[[int], PacketDropLike]
    """By the pid of a process in the pod's network namespace."""

    def find(self, names: Sequence[str]) -> tuple[Container, ...]:
        """Return the pod's containers of these names.

        Raises:
            RuntimeFailure: one does not run.
        """
        running = {container.name: container for container in self.runtime.containers(self.pod_uid)}
        missing = [name for name in names if name not in running]
        if missing:
            raise RuntimeFailure(f"container {', '.join(missing)} of pod {self.pod_uid} does not run on this node")
        return tuple(running[name] for name in names)

    def fence(self) -> None:
        """Keep the kubelet from starting the pod's containers."""
        self.fence_of(self.pod_uid).raise_()

    def fence_again(self) -> None:
        """Make sure of the fence after a restart; a pod that was removed meanwhile needs none.

        Raises:
            FreezeFailure: the kubelet has the pod, and the fence could not be raised.
        """
        if self.fence_of(self.pod_uid).has_pod():
            self.fence()

    def fenced(self) -> bool:
        return self.fence_of(self.pod_uid).is_up()

    def drop(self, shared: Shared) -> None:
        """Drop every packet but those on loopback.

        Raises:
            FreezeFailure: the pod has no sandbox, or the rules could not be set.
        """
        self._drop(shared.network_pid).drop()

    def pause(self, containers: Sequence[Container]) -> None:
        """Freeze every task and make sure of it.

        Raises:
            RuntimeFailure: a container is not paused in the end.
        """
        for container in containers:
            self.runtime.pause(container)
        if not self.frozen(containers):
            raise RuntimeFailure(f"the containers of pod {self.pod_uid} were paused, but the runtime says they are not")

    def prepare(self, dump: Dump) -> None:
        """Make all of a dump that can be made while the container runs."""
        self.runtime.prepare(dump)

    def copier(self, dump: Dump) -> MemoryCopierLike:
        """Begin to copy the memory of a container that runs."""
        return self.runtime.copier(dump)

    def dump(self, dump: Dump, *, while_frozen: Callable[[], None]) -> Path:
        """Checkpoint one paused container; returns the directory."""
        self.runtime.dump(dump, file_locks=True, while_frozen=while_frozen)
        return dump.directory

    def memory_owner(self, containers: Sequence[Container]) -> Container:
        """Return the container whose checkpoint holds the pod's System V objects.

        CRIU can make them in one restore only, and attaches memory only in that one.

        Raises:
            RuntimeFailure: several containers have memory attached: they cannot be restored.
        """
        users = [c for c in containers if self.runtime.attaches_memory(c)] if len(containers) > 1 else []
        if len(users) > 1:
            raise RuntimeFailure(
                f"the containers {', '.join(c.name for c in users)} have System V shared memory attached; CRIU can "
                "restore it to one container only. Use /dev/shm or a volume of medium Memory between containers"
            )
        return users[0] if users else containers[0]

    def shared(self) -> Shared:
        """Return what the pod's containers share; to be asked before the freeze."""
        return self.runtime.shared(self.pod_uid)

    def connections(self, shared: Shared) -> Connections:
        """Return the pod's connections; while it is frozen they stay as they are."""
        return self.runtime.connections(shared)

    def copy_shared(self, shared: Shared, directory: Path) -> Connections:
        """Write what the pod's containers share, and return its connections; only while all are frozen."""
        return self.runtime.copy_shared(shared, directory)

    def look(self, containers: Sequence[Container]) -> tuple[ContainerStatus, ...]:
        """Return the status of each; another process under an old name counts as stopped."""
        return tuple(self.runtime.status(c) if self._same(c) else ContainerStatus.STOPPED for c in containers)

    def frozen(self, containers: Sequence[Container]) -> bool:
        """Say whether all are paused and the same processes as ever."""
        return set(self.look(containers)) == {ContainerStatus.PAUSED}

    def thaw(self, containers: Sequence[Container]) -> None:
        """Let them go on, then packets, then the kubelet.

        A container that died while it was frozen leaves a frozen group behind, with cgroup v1 for ever; the runtime
        calls that paused and could not delete it. So the dead are thawed as well.

        Raises:
            RuntimeFailure: one is still paused.
            FreezeFailure: drop or fence could not be lifted.
        """
        for container in containers:
            self.runtime.resume(container)
        still = [c.name for c in containers if self.runtime.status(c) is ContainerStatus.PAUSED]
        if still:
            raise RuntimeFailure(f"container {', '.join(still)} of pod {self.pod_uid} was resumed but is still paused")
        self._lift_drop()
        self.fence_of(self.pod_uid).lift()

    def release(self, containers: Sequence[Container]) -> None:
        """Kill every task while frozen; the peers of its connections get a reset.

        Raises:
            RuntimeFailure: one still exists.
        """
        alive = [c for c, status in zip(containers, self.look(containers), strict=True) if status in _ALIVE]
        if alive:
            self.pause(alive)
        try:
            self._drop(self.runtime.network_pid(self.pod_uid)).reset()
        except FreezeFailure as error:
            log.warning("pod %s: peers of its connections are not told that it is gone: %s", self.pod_uid, error)
        for container in containers:
            self.runtime.kill_frozen(container)
        still = [c.name for c in containers if self.runtime.status(c) is not ContainerStatus.STOPPED]
        if still:
            raise RuntimeFailure(f"container {', '.join(still)} of pod {self.pod_uid} was killed but still exists")

    def _same(self, container: Container) -> bool:
        return self.processes.alive(container.init)

    def _lift_drop(self) -> None:
        """Lift the drop; a pod without a sandbox has no network namespace that it could be in."""
        pid = self.runtime.network_pid(self.pod_uid)
        if pid is not None:
            self.drop_of(pid).lift()

    def _drop(self, pid: int | None) -> PacketDropLike:
        if pid is None:
            raise FreezeFailure(f"pod {self.pod_uid} has no sandbox on this node")
        return self.drop_of(pid)
