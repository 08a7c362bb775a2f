"""The source side's `FreezerLike` for a Podman container: it stands still by being checkpointed, and then is stopped.

A stopped container with a whole checkpoint in Podman's keeping is what a paused one is elsewhere: nothing of it runs,
and it can go on with nothing lost, also after a reboot. Nobody starts it meanwhile but whoever types that: what Podman
or systemd would start again is refused before anything is touched.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from migration_agent.archive.names import NotTransferable
from migration_agent.archive.whole import put_beside
from migration_agent.connections import connections
from migration_agent.processes import Processes
from migration_agent.runtime.interface import Container, ContainerStatus, Dump, MemoryCopierLike, RuntimeFailure, Shared
from migration_agent.runtime.podman import Podman, PodmanContainer
from migration_api.wire import Connections

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PodmanFreezer:
    """One Podman container on this node."""

    container_id: str
    podman: Podman
    processes: Processes
    archive: Path
    """Where its archive is made; in no other command's words."""

    def find(self, names: Sequence[str]) -> tuple[Container, ...]:
        """See `FreezerLike`; `names` has the one under which its checkpoint lies."""
        it = self.podman.look(self.container_id)
        init = self.processes.ref(it.pid) if it is not None and it.running else None
        if it is None or init is None:
            state = f"is {it.status}, not running" if it else "does not exist"
            raise RuntimeFailure(f"the Podman container {self.container_id} {state} on this node")
        return (
            Container(
                name=names[0],
                container_id=it.id,
                pod_uid=it.id,
                init_pid=init.pid,
                init_start=init.start,
                bundle=Path("/"),
                memory_bytes=self.podman.memory_bytes(it.id),
                runtime="podman",
            ),
        )

    def shared(self) -> Shared:
        """See `FreezerLike`."""
        it = self.podman.look(self.container_id)
        return Shared(self.container_id, None, (it.pid or None) if it else None)

    def prepare(self, dump: Dump) -> None:
        """Make the directory, and remove an older checkpoint that Podman keeps: nobody may go on from that one."""
        self._demand_rest()
        try:
            shutil.rmtree(dump.directory, ignore_errors=True)
            self.archive.parent.mkdir(mode=0o700, parents=True)
            self._forget_checkpoint()
        except OSError as error:
            raise RuntimeFailure(f"the checkpoint's directory could not be prepared: {error}") from error

    def copier(self, dump: Dump) -> MemoryCopierLike:
        """Raise: what Podman dumps it dumps whole."""
        raise RuntimeFailure(f"the memory of the Podman container {dump.container.name} cannot be copied while it runs")

    def fence(self) -> None:
        """Nothing: no kubelet knows it."""

    def fence_again(self) -> None:
        """Nothing, as `fence`."""

    def fenced(self) -> bool:
        """Say that nobody starts it by himself."""
        return True

    def drop(self, shared: Shared) -> None:
        """Nothing: connections with others that would need it are refused."""

    def pause(self, containers: Sequence[Container]) -> None:
        """Nothing before its checkpoint; one that somebody set running after it is paused, whatever it is by now."""
        del containers
        it = self._at_rest()
        if it is not None and it.running and self._dumped():
            self.podman.pause(it.id)

    def dump(self, dump: Dump, *, while_frozen: Callable[[], None]) -> Path:
        """Checkpoint it; what is to be looked at while it is whole, `while_frozen` looks at right before."""
        while_frozen()
        it = self._at_rest()
        found = (
            own_connections(self.podman, self.container_id, it.pid) if it is not None and it.running else Connections()
        )
        self.podman.checkpoint(self.container_id, self.archive, connections=found.stay)
        try:
            put_beside(self.archive, dump.directory)
        except (NotTransferable, OSError) as error:
            raise RuntimeFailure(f"the archive that Podman made is of no use: {error}") from error
        return dump.directory

    def memory_owner(self, containers: Sequence[Container]) -> Container:
        """See `FreezerLike`."""
        return containers[0]

    def connections(self, shared: Shared) -> Connections:
        """See `FreezerLike`."""
        pid = shared.network_pid
        return Connections() if pid is None else own_connections(self.podman, self.container_id, pid)

    def copy_shared(self, shared: Shared, directory: Path) -> Connections:
        """Nothing is shared: what it has in /dev/shm is in the archive."""
        del directory
        return self.connections(shared)

    def look(self, containers: Sequence[Container]) -> tuple[ContainerStatus, ...]:
        """See `FreezerLike`; while a command of ours works on it, Podman would not answer."""
        if self._under_way():
            return tuple(ContainerStatus.RUNNING for _ in containers)
        status = self._status(self.podman.look(self.container_id))
        return tuple(status for _ in containers)

    def frozen(self, containers: Sequence[Container]) -> bool:
        """Say whether it stands still, and has not changed since the checkpoint."""
        return set(self.look(containers)) == {ContainerStatus.PAUSED}

    def thaw(self, containers: Sequence[Container]) -> None:
        """Let it go on from the checkpoint that Podman keeps."""
        del containers
        it = self._at_rest()
        if it is None or self._status(it) is ContainerStatus.STOPPED:
            return
        if it.status == "paused":
            self.podman.unpause(it.id)
        elif not it.running:
            self.podman.restore(it.id)

    def release(self, containers: Sequence[Container]) -> None:
        """Remove it, with its checkpoint."""
        del containers
        self._at_rest()
        self.podman.remove(self.container_id)
        if self.podman.look(self.container_id) is not None or self.podman.processes(self.container_id):
            raise RuntimeFailure(f"the Podman container {self.container_id} was removed but is still there")

    def _status(self, it: PodmanContainer | None) -> ContainerStatus:
        if it is None:
            return ContainerStatus.STOPPED
        if it.running:
            return ContainerStatus.RUNNING
        return ContainerStatus.PAUSED if it.status == "paused" or it.checkpoint is not None else ContainerStatus.STOPPED

    def _at_rest(self) -> PodmanContainer | None:
        self._demand_rest()
        return self.podman.look(self.container_id)

    def _demand_rest(self) -> None:
        if self._under_way():
            raise RuntimeFailure(f"a command of Podman's still works on container {self.container_id}")

    def _under_way(self) -> bool:
        return self.podman.under_way(self.container_id, str(self.archive))

    def _dumped(self) -> bool:
        """Say whether its checkpoint was complete: only then the description lies beside it."""
        return (self.archive.parent / "inventory.img").exists()

    def _forget_checkpoint(self) -> None:
        it = self.podman.look(self.container_id)
        if it is not None and it.checkpoint is not None:
            shutil.rmtree(self.podman.host.host_file(it.checkpoint))


def own_connections(podman: Podman, container_id: str, pid: int) -> Connections:
    """Return the connections of a container, none when it has ended.

    One that shares the node's network has only those of its own processes, and no loopback of its own: what it has
    there are connections with others.
    """
    host, proc = podman.host, podman.host.path(f"/proc/{pid}")
    with suppress(FileNotFoundError, ProcessLookupError):
        if not host.same_network_as_host(pid):
            return connections(proc)
        sockets = {inode for own in podman.processes(container_id) for inode in podman.sockets(own)}
        found = connections(proc, sockets)
        return Connections(outside=found.within + found.outside)
    return Connections()
