"""What the agent needs from a container runtime: a small interface, so that another runtime is another module.

All methods block and are called in threads. All are idempotent: pausing a paused container is no error.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from migration_agent.processes import ProcessRef
from migration_api.wire import Connections


class RuntimeFailure(Exception):
    """A runtime's command failed; the message is for an admin and holds the tool's own last lines."""


class ContainerStatus(StrEnum):
    """What the OCI runtime says of a container."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    """Also when the runtime does not know the container any more."""


@dataclass(frozen=True)
class Container:
    """A container of a pod on this node, not the pod's sandbox."""

    name: str
    container_id: str
    pod_uid: str
    init_pid: int
    """In the host's PID namespace."""
    init_start: int
    """Field 22 of /proc/PID/stat: with the pid it names one process for ever."""
    bundle: Path
    memory_bytes: int
    runtime: str
    """`runc`; what the container was started with."""

    @property
    def init(self) -> ProcessRef:
        """Its first process."""
        return ProcessRef(pid=self.init_pid, start=self.init_start)


@dataclass(frozen=True)
class Dump:
    """Where one container's checkpoint goes: `directory/images` for CRIU, `directory/rootfs-diff.tar` beside it."""

    container: Container
    directory: Path
    migration: str
    memory_stays: bool = False
    """Its memory is not written: whoever needs it reads it from the processes, so they must stay frozen until then."""


@dataclass(frozen=True)
class Copied:
    """What one round of copying found, in bytes."""

    looked: int
    """How much memory there is."""
    written: int
    """How much of it was not yet as it is."""


class MemoryCopierLike(Protocol):
    """Copies a container's memory while it runs, in rounds. All methods block and raise `RuntimeFailure`."""

    def round(self, limit: int | None = None) -> Copied:
        """Copy what has changed since the last round, all in the first one, but about so many bytes at most."""
        ...

    def last(self) -> Copied:
        """Make the copy exact: the processes stand still, and their dump has left the memory in them."""
        ...

    def close(self) -> None:
        """End it, from any thread; what waits for a round fails."""
        ...


@dataclass(frozen=True)
class Shared:
    """What a pod's containers have in common, found before the freeze so that nothing is looked for in it."""

    pod_uid: str
    shared_memory: str | None
    """The sandbox's /dev/shm on the host."""
    network_pid: int | None
    """See `Runtime.network_pid`."""


class Runtime(Protocol):
    """Freezes, dumps, thaws and describes containers by the runtime's own commands."""

    name: str

    def containers(self, pod_uid: str) -> tuple[Container, ...]:
        """Return the pod's existing containers, in order of creation; empty when the pod is not on this node."""
        ...

    def network_pid(self, pod_uid: str) -> int | None:
        """Return a process in the pod's network namespace that lives as long as the sandbox, so longer than containers.

        None when the pod has no sandbox on this node. What drops the pod's packets must be lifted through this
        process: a container that was killed while frozen has none left, and the next one gets the same network.
        """
        ...

    def status(self, container: Container) -> ContainerStatus:
        """Return what the OCI runtime says now; in no time when it is paused, for a freeze waits for the answer."""
        ...

    def pause(self, container: Container) -> None:
        """Freeze every task of the container.

        Raises:
            RuntimeFailure: it is not running or paused, or the command failed.
        """
        ...

    def copier(self, dump: Dump) -> MemoryCopierLike:
        """Begin to copy the memory of a container whose dump will leave it in the processes.

        Raises:
            RuntimeFailure: that cannot be begun.
        """
        ...

    def resume(self, container: Container) -> None:
        """Let a paused container go on; nothing when it runs or is gone.

        Raises:
            RuntimeFailure: the command failed and the container is still paused.
        """
        ...

    def prepare(self, dump: Dump) -> None:
        """Make the dump's directory anew, with all that is known before the freeze; the container may run.

        Raises:
            RuntimeFailure: the container cannot be dumped, or the directory could not be made.
        """
        ...

    def dump(self, dump: Dump, *, file_locks: bool, while_frozen: Callable[[], None] | None = None) -> None:
        """Write the paused container's checkpoint and its root file system's changes into what `prepare` made.

        Whether it was paused all through must be looked at afterwards: once, for all containers of the pod. The changes
        are copied while CRIU holds the tasks in its `post-dump` hook: link remaps exist only then.
        `while_frozen` is called there too.

        Raises:
            RuntimeFailure: with CRIU's own last error lines.
        """
        ...

    def attaches_memory(self, container: Container) -> bool:
        """Say whether a process of the container has System V shared memory attached.

        Raises:
            RuntimeFailure: the runtime's commands failed.
        """
        ...

    def shared(self, pod_uid: str) -> Shared:
        """Return what the pod's containers share.

        Raises:
            RuntimeFailure: the runtime's commands failed.
        """
        ...

    def copy_shared(self, shared: Shared, directory: Path) -> Connections:
        """Write what a frozen pod's containers share, its emptyDir volumes and /dev/shm, into `directory`.

        Returns the connections that the pod has.

        Raises:
            RuntimeFailure: it could not be read or written, or holds what no archive can carry.
        """
        ...

    def connections(self, shared: Shared) -> Connections:
        """Count the TCP connections that the pod has now; none for a pod without a network of its own.

        Raises:
            RuntimeFailure: they could not be read.
        """
        ...

    def shared_bytes(self, shared: Shared) -> int:
        """Return about how much `copy_shared` would write, in bytes."""
        ...

    def kill_frozen(self, container: Container) -> None:
        """Kill every task of a paused container so that not one runs an instruction more; returns when all are dead."""
        ...
