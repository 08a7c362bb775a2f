"""What the two sides of a migration need from the world, as small interfaces that tests replace."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from migration_agent.seen import Gone, Seen
from migration_api.migration import Decision, Outcome
from migration_api.wire import Failure, MigrationRef


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


class Clock(Protocol):
    """Time that goes on while the machine sleeps, and the boot that it belongs to. Blocks for microseconds only."""

    def boottime_ns(self) -> int: ...

    def boot_id(self) -> str: ...


class FenceLike(Protocol):
    """See `freeze.Fence`."""

    def raise_(self) -> None: ...

    def lift(self) -> None: ...

    def is_up(self) -> bool: ...


class PacketDropLike(Protocol):
    """See `freeze.PacketDrop`."""

    def drop(self) -> None: ...

    def reset(self) -> None: ...

    def lift(self) -> None: ...


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

    async def delete_pod(self, namespace: str, name: str, uid: str) -> None:
        """Delete this very pod; nothing when it is gone."""
        ...


@dataclass(frozen=True)
class Sending:
    """One checkpoint on its way to a peer."""

    node: str
    migration: str
    directory: Path
    progress: Callable[[int], None]
    """Called in the sending thread with the bytes sent so far."""
    stop: threading.Event
    """Set to give up between two chunks."""


class Peers(Protocol):
    """The other nodes' agents. Blocking; called in threads. Every method raises `PeerUnreachable`."""

    def send(self, sending: Sending) -> None:
        """Send a checkpoint; returns when the peer has verified all of it.

        Raises:
            TransferFailed: the peer refused it, the connection broke, or `stop` was set.
        """
        ...

    def settle(self, node: str, migration: str, *, promise: bool, settled: bool = False) -> PeerState:
        """Ask the target what became of it; see docs/protocol.md, section 6."""
        ...

    def intact(self, node: str, migration: str) -> bool:
        """Ask the source whether it could go on."""
        ...
