"""The journal: what this node does for each migration, on disk before it is done (docs/protocol.md, section 2).

All functions block for an fsync and are called in threads.
"""

from __future__ import annotations

import shutil
import stat
from collections.abc import Container as Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from migration_agent.paths import Layout, create_durably, sync_directory, write_durably
from migration_agent.processes import ProcessRef
from migration_agent.runtime.interface import Container
from migration_agent.transport.chunks import CHUNK_BYTES
from migration_agent.transport.manifest import ManifestEntry
from migration_api.base import Model, Time
from migration_api.migration import Uid
from migration_api.wire import Connections, Failure, Files, SourceState, SourceTask, TargetState, TargetTask, Thaw

_RECORD_BYTES = 16 * 1024 * 1024


class SourceRecord(Model):
    """The source side. `state` is written before the act that it names: Frozen may mean that nothing is frozen yet."""

    request: SourceTask
    state: SourceState = SourceState.ACCEPTED
    boot_id: str
    files: Files = Files()
    expected_bytes: int = 0
    """What its files may take."""
    frozen_at_ns: int | None = None
    """CLOCK_BOOTTIME of that boot: when the freeze budget began to run."""
    containers: tuple[Container, ...] = ()
    bytes_total: int | None = None
    connections: Connections | None = None
    frozen_at: Time | None = None
    dumped_at: Time | None = None
    sent_at: Time | None = None
    thawed_at: Time | None = None
    failure: Failure | None = None
    word: bool = False
    """It is on its way to be killed: with the object gone, the target's agent said that it resumed; or a target of its
    name is committed. From now on nothing else is asked."""
    promised: bool = False
    """Thaws by the target's promise, not by a register."""
    owes_abort: bool = False
    """Thawed by promise; Abort is still to be written."""
    ran: bool = False
    """Somebody let the containers run after the dump: their memory is not what was dumped."""
    moved: bool = False
    """With `postCopy`: the target's agent said that it needs no memory of the frozen processes any more."""

    @property
    def ended(self) -> bool:
        return self.state in {SourceState.THAWED, SourceState.RELEASED, SourceState.LOST}

    @property
    def settled(self) -> bool:
        return self.ended and not self.owes_abort

    @property
    def lends(self) -> bool:
        """Whether the target may still need memory of the frozen processes."""
        return self.request.post_copy and not self.moved

    @property
    def apart(self) -> bool:
        """Whether the source goes on by itself as soon as it is dumped."""
        return self.request.thaw is Thaw.DUMPED

    @property
    def let_go(self) -> bool:
        """Whether such a source goes on already."""
        return self.apart and self.thawed_at is not None


class TargetRecord(Model):
    """The target side: what must survive the agent; the rest is live fact."""

    request: TargetTask
    state: TargetState = TargetState.PREPARED
    boot_id: str
    files: Files = Files()
    expected_bytes: int = 0
    """What its files may take."""
    entries: tuple[ManifestEntry, ...] | None = None
    """The verified checkpoint's manifest; it lies in memory, so it is only as old as `boot_id`."""
    chunk_bytes: int = CHUNK_BYTES
    secured: str | None = None
    """The digest of the files that were brought to the disk: then they are as old as they want."""
    pod_uid: Uid | None = None
    """The successor that has the ticket; none: it has not come yet, or it went before it resumed."""
    proposed: bool = False
    """Commit was proposed for a successor: it may stand in the register, or still arrive there."""
    committed_at_ns: int | None = None
    """CLOCK_BOOTTIME of that boot when this agent learned of Commit."""
    processes: tuple[ProcessRef, ...] = ()
    """Interposer, hook and first process of the tree of the latest restore: all must be dead before a promise."""
    restore_begun: bool = False
    """Podman was told to restore here: from then on what has the container's ID is this migration's."""
    received_at: Time | None = None
    held_at: Time | None = None
    resumed_at: Time | None = None
    filled_at: Time | None = None
    """When all of its memory was in place, if that came after."""
    moved: bool = False
    """With `postCopy`: the source's agent knows that no memory of its processes is needed any more."""
    memory_lost: str | None = None
    """With `postCopy`: why the source has no memory to give any more."""
    failure: Failure | None = None
    """Why it cannot go on, before the commit."""
    last_error: str | None = None
    """What went wrong last, also after the commit."""
    acknowledged: bool = False
    """The source's agent has said that it knows the end."""
    settled: bool = False

    @property
    def borrows(self) -> bool:
        """Whether the source must stand still for the sake of its memory, once the containers run here."""
        return self.request.post_copy and not self.moved


RecordT = TypeVar("RecordT", SourceRecord, TargetRecord)


class JournalDamaged(Exception):
    """A record cannot be read: nothing may be done or promised for that migration."""


@dataclass(frozen=True)
class Journal:
    """Reads and writes the records, the pods' claims and the tombstones."""

    layout: Layout

    def save(self, record: SourceRecord | TargetRecord) -> None:
        """Write a record; it is on disk when this returns."""
        directory = self.layout.migration(record.request.migration.uid)
        if not directory.is_dir():
            directory.mkdir(mode=0o700)
            sync_directory(directory.parent)
        name = "source.json" if isinstance(record, SourceRecord) else "target.json"
        write_durably(directory / name, record.model_dump_json(by_alias=True, exclude_none=True).encode())

    def source(self, uid: str) -> SourceRecord | None:
        """Read the source side's record.

        Raises:
            JournalDamaged: there is one, but it cannot be read.
        """
        return _read(self.layout.migration(uid) / "source.json", SourceRecord)

    def target(self, uid: str) -> TargetRecord | None:
        """Read the target side's record; raises as `source`."""
        return _read(self.layout.migration(uid) / "target.json", TargetRecord)

    def migrations(self) -> tuple[str, ...]:
        """Return the UIDs of all migrations with a directory here."""
        return tuple(sorted(entry.name for entry in self.layout.migrations.iterdir() if entry.is_dir()))

    def forget(self, uid: str) -> None:
        """Remove everything that is known of a migration, but its ticket."""
        self.wipe_images(uid)
        with suppress(FileNotFoundError):
            self.layout.images_on_disk(uid).rmdir()
        directory = self.layout.migration(uid)
        shutil.rmtree(directory, ignore_errors=True)
        sync_directory(directory.parent)

    def place_images(self, uid: str, *, on_disk: bool) -> None:
        """Choose where a migration's files will lie, until it is forgotten."""
        if on_disk:
            directory = self.layout.images_on_disk(uid)
            directory.mkdir(mode=0o700, exist_ok=True)
            sync_directory(directory.parent)

    def wipe_images(self, uid: str) -> None:
        """Remove the memory images: they are secrets. What lay on the disk is unlinked, not overwritten.

        The directory on the disk stays, empty, as long as the record: what comes again comes to the same place.
        """
        with suppress(FileNotFoundError):
            shutil.rmtree(self.layout.images_in_memory(uid))
        with suppress(FileNotFoundError):
            for child in self.layout.images_on_disk(uid).iterdir():
                if stat.S_ISDIR(child.lstat().st_mode):
                    shutil.rmtree(child)
                else:
                    child.unlink()

    def sweep_images(self, keep: Collection[str]) -> None:
        """Remove the images of all other migrations: a crash came between, or the node was rebooted."""
        for home in (self.layout.run, self.layout.state):
            for path in (home / "images").iterdir():
                if path.name not in keep:
                    shutil.rmtree(path, ignore_errors=True)

    def claim(self, pod_uid: str, uid: str) -> str:
        """Claim a pod for a migration and return the UID of the migration that has it now."""
        path = self.layout.claim(pod_uid)
        while not create_durably(path, uid.encode()):
            holder = self.holder(pod_uid)
            if holder is not None:
                return holder
        return uid

    def holder(self, pod_uid: str) -> str | None:
        """Return the UID of the migration that holds the pod."""
        try:
            return self.layout.claim(pod_uid).read_text(encoding="ascii")
        except FileNotFoundError:
            return None

    def release_claim(self, pod_uid: str, uid: str) -> None:
        """Let other migrations have the pod; nothing when another one has it."""
        if self.holder(pod_uid) == uid:
            path = self.layout.claim(pod_uid)
            path.unlink(missing_ok=True)
            sync_directory(path.parent)

    def drop_stale_claims(self) -> None:
        """Remove claims whose migration never began, or ended without releasing the pod: a crash came between."""
        for path in self.layout.pods.iterdir():
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
                continue
            uid = path.read_text(encoding="ascii")
            with suppress(JournalDamaged):
                record = self.source(uid)
                if record is None or record.state in {SourceState.THAWED, SourceState.LOST}:
                    self.release_claim(path.name, uid)

    def bury(self, uid: str) -> None:
        """Promise on disk never to resume a migration that this node knows nothing of."""
        create_durably(self.layout.tombstone(uid), b"")

    def buried(self, uid: str) -> bool:
        return self.layout.tombstone(uid).exists()

    def next_start(self) -> int:
        """Count this start of the agent; the number grows with every start."""
        try:
            count = int(self.layout.starts.read_text(encoding="ascii"))
        except (FileNotFoundError, ValueError):
            count = 0
        write_durably(self.layout.starts, str(count + 1).encode())
        return count + 1


def _read(path: Path, model: type[RecordT]) -> RecordT | None:
    try:
        with path.open("rb") as file:
            return model.model_validate_json(file.read(_RECORD_BYTES))
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise JournalDamaged(f"{path} cannot be read; nothing is done for this migration here: {error}") from error
