"""What the two sides of a migration need from the world, as small interfaces that tests replace."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from migration_agent.processes import Processes
from migration_agent.runtime.interface import Container, ContainerStatus, Dump, MemoryCopierLike, Shared
from migration_agent.seen import Gone, Seen
from migration_api.migration import Decision, Outcome
from migration_api.shipping import Shipping
from migration_api.wire import Connections, Failure, MigrationRef


class ApiUnreachable(Exception):
    """The API server did not answer, or refused what it must allow: nothing is known, so everything stays as it is."""


class PeerUnreachable(Exception):
    """The other node's agent does not answer, or is not trusted yet: nothing is known."""


class TransferFailed(Exception):
    """The checkpoint did not arrive complete and verified; the message is for an admin."""


class PeerState(StrEnum):
    """What the target's agent says of a migration (docs/protocol.md, section 6)."""

    UNDECIDED = "undecided"
    DESTROYED = "destroyed"
    """The promise: the ticket is destroyed and the held tree is dead; it will never resume."""
    RESUMED = "resumed"


class PodState(StrEnum):
    """What the API says of the target pod."""

    LIVE = "live"
    GONE = "gone"
    """Deleted, being deleted, failed, or another pod has its name: it will never run the container."""
    UNKNOWN = "unknown"


class Comer(StrEnum):
    """Who has the name that a successor waits for."""

    NOBODY = "nobody"
    """Nobody, the source, or a pod that does not concern this node yet."""
    HERE = "here"
    """The successor, on this node."""
    ANOTHER = "another"
    """A pod that is not marked for this migration, or of another revision."""


@dataclass(frozen=True)
class NamedPod:
    """The pod that has a name now, as far as it matters who it is."""

    uid: str
    node: str | None
    migration: str | None
    """The UID of the migration that it is marked for."""
    revision: str | None
    """Its `controller-revision-hash`."""
    live: bool
    """It may still run a container: neither being deleted nor ended."""


class Clock(Protocol):
    """Time that goes on while the machine sleeps, and the boot that it belongs to. Blocks for microseconds only."""

    def boottime_ns(self) -> int: ...

    def boot_id(self) -> str: ...


class FenceLike(Protocol):
    """See `freeze.Fence`."""

    def raise_(self) -> None: ...

    def lift(self) -> None: ...

    def has_pod(self) -> bool: ...

    def is_up(self) -> bool: ...


class PacketDropLike(Protocol):
    """See `freeze.PacketDrop`."""

    def drop(self) -> None: ...

    def reset(self) -> None: ...

    def lift(self) -> None: ...


class FreezerLike(Protocol):
    """What a source side does to the containers that move; see `freezer.Freezer`. All methods block and are idempotent.

    Raises:
        RuntimeFailure, FreezeFailure: any of them, with a message for an admin.
    """

    @property
    def processes(self) -> Processes:
        """This boot's processes."""
        ...

    def find(self, names: Sequence[str]) -> tuple[Container, ...]:
        """Return the containers of these names, which run."""
        ...

    def shared(self) -> Shared:
        """Return what they share; before the freeze."""
        ...

    def copier(self, dump: Dump) -> MemoryCopierLike:
        """Begin to copy the memory of a container that runs, and whose dump will leave it in the processes."""
        ...

    def prepare(self, dump: Dump) -> None:
        """Do all of a dump that can be done while the container runs."""
        ...

    def fence(self) -> None:
        """Keep others from starting them."""
        ...

    def fence_again(self) -> None:
        """Make sure of the fence after a restart."""
        ...

    def fenced(self) -> bool:
        """Say whether nobody else starts them."""
        ...

    def drop(self, shared: Shared) -> None:
        """Hold their packets back."""
        ...

    def pause(self, containers: Sequence[Container]) -> None:
        """Let none of them run an instruction more, as far as that is no part of the dump."""
        ...

    def dump(self, dump: Dump, *, while_frozen: Callable[[], None]) -> Path:
        """Make one container's checkpoint; return its directory."""
        ...

    def memory_owner(self, containers: Sequence[Container]) -> Container:
        """Return the container whose checkpoint holds their System V objects."""
        ...

    def connections(self, shared: Shared) -> Connections:
        """Return their connections."""
        ...

    def copy_shared(self, shared: Shared, directory: Path) -> Connections:
        """Write what they share, and return their connections."""
        ...

    def look(self, containers: Sequence[Container]) -> tuple[ContainerStatus, ...]:
        """Return the status of each: paused is what stands still and can go on with nothing lost."""
        ...

    def frozen(self, containers: Sequence[Container]) -> bool:
        """Say whether the checkpoint is what they would go on from."""
        ...

    def thaw(self, containers: Sequence[Container]) -> None:
        """Let them go on; nothing for the dead."""
        ...

    def release(self, containers: Sequence[Container]) -> None:
        """End them for ever, so that not one runs an instruction more."""
        ...


class Registers(Protocol):
    """The registers in the API. Every method raises `ApiUnreachable` when it could not find out."""

    async def read(self, ref: MigrationRef) -> Seen | Gone:
        """Read the object live."""
        ...

    async def propose(self, ref: MigrationRef, decision: Decision, failure: Failure | None = None) -> Seen | Gone:
        """Try to write the decision; return the object as it is now: the winner's value is in it.

        `failure`: why the source's agent aborts; stands in the status only when its Abort wins.
        """
        ...

    async def write_outcome(self, ref: MigrationRef, outcome: Outcome, message: str | None = None) -> Seen | Gone:
        """Try to write the outcome; return the object as it is now."""
        ...

    async def pod(self, namespace: str, name: str, uid: str) -> PodState:
        """Say whether this very pod can still run."""
        ...

    async def named_pod(self, namespace: str, name: str) -> NamedPod | None:
        """Return the pod that has the name now."""
        ...

    async def delete_pod(self, namespace: str, name: str, uid: str, *, at_once: bool = False) -> None:
        """Delete this very pod; nothing when it is gone. `at_once`: its name is free when this returns."""
        ...


class GaveUp(Exception):
    """The migration was given up during the transfer."""


class Stop:
    """Gives a transfer up, from any thread: also one that waits for a peer."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def set(self) -> None:
        """Give up: whatever waits on a guarded connection finds it ended."""
        self._event.set()
        with self._lock:
            for connection in self._connections:
                _cut(connection)

    def is_set(self) -> bool:
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)

    @contextmanager
    def guarding(self, connection: socket.socket) -> Generator[None]:
        """End this connection when given up, while the context is open."""
        with self._lock:
            self._connections.add(connection)
            if self._event.is_set():
                _cut(connection)
        try:
            yield
        finally:
            with self._lock:
                self._connections.discard(connection)


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # below TLS, whose state belongs to another thread


class Progress:
    """How far a transfer is; written in its threads, read anywhere."""

    def __init__(self, expected: int = 0) -> None:
        self.expected = expected
        """Bytes; an estimate until the checkpoint is made."""
        self.done = 0
        """Bytes that the peer has, or that are on their way."""
        self.chunks_sent = 0
        """Over all attempts."""
        self.chunks_resumed = 0
        """Those that the last attempt found at the peer already."""
        self.trouble = ""
        """Why it does not go on right now."""
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Count another attempt."""
        with self._lock:
            self.done = self.chunks_resumed = 0
            self.trouble = ""

    def count(self, length: int, *, resumed: bool = False) -> None:
        """Count a chunk."""
        with self._lock:
            self.done += length
            self.chunks_resumed += resumed
            self.chunks_sent += not resumed


@dataclass(frozen=True)
class Sending:
    """One checkpoint on its way to a peer."""

    node: str | None
    """None: nobody receives it, it stays in its store."""
    migration: str
    directory: Path
    shipping: Shipping
    complete: threading.Event
    """Set when the checkpoint is made; what is sent before are files that are only appended to."""
    stop: Stop
    progress: Progress
    connected: Callable[[], None] = lambda: None
    """Called when the way is open, so that the freeze need not wait for it; in the sending thread."""


class Peers(Protocol):
    """The other nodes' agents. Blocking; called in threads. Every method raises `PeerUnreachable`."""

    def send(self, sending: Sending) -> None:
        """Send a checkpoint; returns when the peer has verified all of it.

        A connection that breaks is made again, and only what is missing is sent, until `stop` is set.

        Raises:
            TransferFailed: the peer refused it, or it is no checkpoint.
            GaveUp: `stop` was set.
        """
        ...

    def settle(self, node: str, migration: str, *, promise: bool, settled: bool = False) -> PeerState:
        """Ask the target what became of it; see docs/protocol.md, section 6."""
        ...

    def intact(self, node: str, migration: str) -> bool:
        """Ask the source whether it could go on."""
        ...

    def ready(self, node: str, migration: str) -> bool:
        """Tell the target that the source is about to stand still, and ask whether its pod waits for the checkpoint."""
        ...

    def memory_moved(self, node: str, migration: str) -> None:
        """Tell the source that no memory of its frozen processes is needed any more."""
        ...
