"""The ticket of a target pod: the one file whose name decides on this node (docs/protocol.md, section 3).

All functions block for an fsync and are called in threads.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from pydantic import ValidationError

from migration_agent.paths import Layout, create_durably, sync_directory
from migration_api.base import Model
from migration_api.migration import ContainerName, Uid
from migration_api.wire import TargetTask

_TICKET_BYTES = 64 * 1024


class TicketState(StrEnum):
    """The name of the ticket's file."""

    NONE = "none"
    PENDING = "pending"
    RESUMING = "resuming"
    """The container may run here, for ever."""
    DESTROYED = "destroyed"
    """The container will never run here."""


class TicketConflict(Exception):
    """The pod's ticket is used up or belongs to another migration."""


class Ticket(Model):
    """What the file holds."""

    migration: Uid
    containers: tuple[ContainerName, ...]
    generated: tuple[ContainerName, ...] = ()
    """Init containers that the operator added: in every sandbox of the pod they do nothing."""


def ticket_for(request: TargetTask) -> Ticket:
    """Return the ticket of the pod that was asked for."""
    return Ticket(migration=request.migration.uid, containers=request.containers, generated=request.generated)


@dataclass(frozen=True)
class Tickets:
    """All tickets of this node. Only the agent creates them; agent and hook rename them."""

    layout: Layout
    _creating: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def create(self, pod_uid: str, ticket: Ticket) -> TicketState:
        """Make the pod's ticket, `pending`; return what is on disk now, which is not `pending` when it is used up.

        Raises:
            TicketConflict: another migration has it.
        """
        with self._creating:
            state = self.state(pod_uid)
            if state is TicketState.NONE:
                self._make(pod_uid, TicketState.PENDING, ticket)
                state = self.state(pod_uid)
        held = self.read(pod_uid)
        if held is not None and held.migration != ticket.migration:
            raise TicketConflict(f"the ticket of pod {pod_uid} belongs to migration {held.migration}")
        return state

    def state(self, pod_uid: str) -> TicketState:
        """Return what is on disk.

        `pending` is looked for first: it only ever turns into one of the others, so none is missed in between.
        """
        directory = self.layout.ticket(pod_uid)
        for state in (TicketState.PENDING, TicketState.RESUMING, TicketState.DESTROYED):
            if (directory / state).exists():
                return state
        return TicketState.NONE

    def read(self, pod_uid: str) -> Ticket | None:
        """Return the ticket, whatever its state."""
        directory = self.layout.ticket(pod_uid)
        for state in (TicketState.PENDING, TicketState.RESUMING, TicketState.DESTROYED):
            ticket = _read(directory / state)
            if ticket is not None:
                return ticket
        return None

    def destroy(self, pod_uid: str, ticket: Ticket) -> TicketState:
        """Turn `pending`, or nothing, into `destroyed`; return what is on disk now: the hook may have been faster."""
        directory = self.layout.ticket(pod_uid)
        with self._creating:
            try:
                (directory / TicketState.PENDING).rename(directory / TicketState.DESTROYED)
                sync_directory(directory)
            except FileNotFoundError:
                if self.state(pod_uid) is TicketState.NONE:
                    self._make(pod_uid, TicketState.DESTROYED, ticket)
        return self.state(pod_uid)

    def resume(self, pod_uid: str) -> TicketState:
        """Turn `pending` into `resuming`, where no hook does it; return what is on disk now."""
        directory = self.layout.ticket(pod_uid)
        with self._creating, suppress(FileNotFoundError):
            (directory / TicketState.PENDING).rename(directory / TicketState.RESUMING)
            sync_directory(directory)
        return self.state(pod_uid)

    def remove(self, pod_uid: str) -> None:
        """Remove a ticket that nobody asks for any more; nothing when there is none."""
        shutil.rmtree(self.layout.ticket(pod_uid), ignore_errors=True)
        sync_directory(self.layout.tickets)

    def sync(self, pod_uid: str) -> None:
        """Bring the ticket's present name to the disk before something is built on it."""
        sync_directory(self.layout.ticket(pod_uid))

    def of_migration(self, uid: str) -> tuple[str, ...]:
        """Return the pods whose tickets belong to a migration; for migrations that the journal does not know."""
        found: list[str] = []
        for directory in self.layout.tickets.iterdir():
            ticket = self.read(directory.name) if directory.is_dir() else None
            if ticket is not None and ticket.migration == uid:
                found.append(directory.name)
        return tuple(sorted(found))

    def sweep(self, keep: Collection[str]) -> tuple[str, ...]:
        """Remove tickets of pods that are gone from the node; return their UIDs.

        Args:
            keep: pods of migrations that are not settled.
        """
        swept: list[str] = []
        for directory in list(self.layout.tickets.iterdir()):
            pod_uid = directory.name
            if pod_uid in keep or self.layout.kubelet_pod(pod_uid).exists() or _claimed(directory):
                continue
            shutil.rmtree(directory)
            swept.append(pod_uid)
        if swept:
            sync_directory(self.layout.tickets)
        return tuple(swept)

    def _make(self, pod_uid: str, state: TicketState, ticket: Ticket) -> None:
        directory = self.layout.ticket(pod_uid)
        directory.mkdir(mode=0o700, exist_ok=True)
        sync_directory(directory.parent)
        create_durably(directory / state, ticket.model_dump_json(by_alias=True).encode())


def _read(path: Path) -> Ticket | None:
    """Return a ticket; one that cannot be read belongs to nobody, but its name still counts."""
    try:
        with path.open("rb") as file:
            return Ticket.model_validate_json(file.read(_TICKET_BYTES))
    except (FileNotFoundError, ValidationError):
        return None


def _claimed(directory: Path) -> bool:
    """Say whether an interposer is creating one of the pod's containers: it holds the lock of a claim."""
    for claim in directory.glob("*.claim"):
        descriptor = os.open(claim, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
    return False
