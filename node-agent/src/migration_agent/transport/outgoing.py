"""What is to be sent of a checkpoint, chunk by chunk, also while it is still being made."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.transport.chunks import CHUNK_BYTES, FormatError, Record, entry_tag, packed, unpacked
from migration_agent.transport.frames import Held
from migration_agent.transport.manifest import (
    Entry,
    Manifest,
    ManifestEntry,
    chunk_count,
    chunk_length,
    entries_below,
    growing_below,
    read_chunk,
)


@dataclass(frozen=True)
class Job:
    """One chunk."""

    path: str
    file: Path
    index: int
    length: int
    held: Record | None
    """What the target says that it has."""


@dataclass
class Outgoing:
    """One attempt's view of a directory. `jobs` is for one thread, `done` for many."""

    directory: Path
    complete: Callable[[], bool]
    """Whether the checkpoint is made; before that only files that are merely appended to are looked at."""
    have: Sequence[Held] = ()
    announce: Callable[[str], None] = lambda _: None
    """Called with each entry's path before its first chunk."""
    size: int = 0
    """Bytes that were seen so far; of the whole checkpoint when `exhausted`."""
    exhausted: bool = False
    _held: dict[tuple[str, int], Record] = field(default_factory=dict[tuple[str, int], Record])
    _next: dict[str, int] = field(default_factory=dict[str, int])
    _tags: dict[bytes, str] = field(default_factory=dict[bytes, str])
    _records: dict[tuple[str, int], Record] = field(default_factory=dict[tuple[str, int], Record])
    _entries: tuple[Entry, ...] = ()

    def __post_init__(self) -> None:
        self._held = held_chunks(self.have)

    def jobs(self) -> Iterator[Job]:
        """Yield what is ready and was not yielded before; call again until `exhausted`.

        Raises:
            FormatError: what lies there is no checkpoint, or is not what it was when parts of it were sent.
        """
        try:
            yield from self._jobs()
        except OSError as error:
            raise FormatError(f"the checkpoint cannot be read: {error}") from error

    def _jobs(self) -> Iterator[Job]:
        complete = self.complete()  # before the look: what is seen then is final
        if not complete:
            growing = growing_below(self.directory)
            self.size = max(self.size, sum(entry.size for entry in growing))
            for entry in growing:
                yield from self._of(entry, entry.size // CHUNK_BYTES)
            return
        self._entries = entries_below(self.directory)
        self.size = sum(entry.size for entry in self._entries)
        for entry in self._entries:
            count = chunk_count(entry.size)
            if self._next.get(entry.path, 0) > count:
                raise FormatError(f"entry {entry.path} became shorter after a part of it was sent")
            self._declare(entry.path)
            yield from self._of(entry, count)
        for path in self._next.keys() - {entry.path for entry in self._entries}:
            raise FormatError(f"entry {path} vanished after a part of it was sent")
        self.exhausted = True

    def done(self, job: Job, record: Record) -> None:
        """Note that the target has, or will have, this chunk."""
        self._records[job.path, job.index] = record

    def manifest(self, migration: str) -> Manifest:
        """Return the manifest when all jobs are done."""
        return Manifest(
            migration=migration, chunk_bytes=CHUNK_BYTES, entries=tuple(self._listed(entry) for entry in self._entries)
        )

    def _listed(self, entry: Entry) -> ManifestEntry:
        records = [self._records[entry.path, index] for index in range(chunk_count(entry.size))]
        return ManifestEntry(path=entry.path, size=entry.size, chunks=base64.b64encode(packed(records)).decode())

    def _of(self, entry: Entry, end: int) -> Iterator[Job]:
        for index in range(self._next.get(entry.path, 0), end):
            self._declare(entry.path)
            self._next[entry.path] = index + 1
            length = chunk_length(entry.size, index)
            yield Job(entry.path, entry.file, index, length, self._held.get((entry.path, index)))

    def _declare(self, path: str) -> None:
        tag = entry_tag(path)
        known = self._tags.get(tag)
        if known is None:
            self._tags[tag] = path
            self.announce(path)
        elif known != path:
            raise FormatError(f"the entries {path} and {known} have the same tag")


def held_chunks(have: Sequence[Held]) -> dict[tuple[str, int], Record]:
    """Return the records of what is there already, by entry and index."""
    found: dict[tuple[str, int], Record] = {}
    for run in have:
        for offset, record in enumerate(unpacked(base64.b64decode(run.records))):
            found[run.entry, run.first + offset] = record
    return found


def read_job(job: Job, buffer: memoryview) -> memoryview:
    """Return the job's chunk, read into the buffer.

    Raises:
        FormatError: it cannot be read, or its file became shorter.
    """
    plain = buffer[: job.length]
    try:
        descriptor = os.open(job.file, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            read_chunk(descriptor, job.index * CHUNK_BYTES, plain)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise FormatError(f"entry {job.path} cannot be read: {error}") from error
    return plain
