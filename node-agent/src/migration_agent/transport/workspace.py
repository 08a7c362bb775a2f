"""What has arrived of a checkpoint: its files, and a receipt of each chunk, so that no chunk is sent twice.

Both outlive connection and agent; what lies there is verified again before it counts.
"""

from __future__ import annotations

import base64
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from migration_agent.metrics import RECEIVED
from migration_agent.paths import SHARED_DIRECTORY
from migration_agent.room import ROOM_LEFT_BYTES
from migration_agent.transport.chunks import FormatError, Record, Seal, is_zero, packed
from migration_agent.transport.frames import Held
from migration_agent.transport.manifest import (
    ENTRIES_MAX,
    ENTRY_MODE,
    INVENTORY,
    Manifest,
    checked_path,
    chunk_length,
    read_chunk,
)

_RECEIPTS = "_receipts"


class _Receipt(NamedTuple):
    length: int
    record: Record


class Workspace:
    """One migration's directory on the target. `keep` may be called in several threads."""

    def __init__(self, directory: Path, containers: Sequence[str], seal: Seal, chunk_bytes: int) -> None:
        """Take up what an earlier connection left; blocks for as long as it takes to verify it.

        Raises:
            OSError: the directory cannot be made or read.
        """
        self.directory = directory
        self.containers = containers
        self._seal = seal
        self._chunk_bytes = chunk_bytes
        self._lock = threading.Lock()
        self._kept: dict[str, dict[int, _Receipt]] = {}
        self._written: dict[str, int] = {}
        """How long each file was in the beginning: beyond it all is a hole still."""
        self._make_directories()
        self._load()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW
        self._receipts = os.open(self.directory / _RECEIPTS, flags, ENTRY_MODE)
        for path, chunks in self._kept.items():
            for index, receipt in chunks.items():
                os.write(self._receipts, _line(path, index, receipt))

    def close(self) -> None:
        os.close(self._receipts)

    @property
    def bytes_kept(self) -> int:
        with self._lock:
            return sum(receipt.length for chunks in self._kept.values() for receipt in chunks.values())

    def have(self) -> tuple[Held, ...]:
        """Return what need not be sent again, as runs of chunks."""
        found: list[Held] = []
        for path, chunks in sorted(self._kept.items()):
            run: list[Record] = []
            first = 0
            for index in sorted(chunks):
                if index != first + len(run):
                    found += [Held(entry=path, first=first, records=_encoded(run))] if run else []
                    run, first = [], index
                run.append(chunks[index].record)
            found += [Held(entry=path, first=first, records=_encoded(run))] if run else []
        return tuple(found)

    def keep(self, path: str, index: int, plain: memoryview, record: Record) -> None:
        """Write a chunk where it belongs, then its receipt.

        Raises:
            FormatError: it does not belong into this checkpoint, there is no room, or it could not be written.
        """
        if len(plain) > self._chunk_bytes:
            raise FormatError(f"entry {path}, chunk {index} has {len(plain)} bytes; {self._chunk_bytes} were agreed on")
        self._demand_room(len(plain))
        offset = index * self._chunk_bytes
        try:
            descriptor = os.open(self.directory / path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, ENTRY_MODE)
            try:
                if offset < self._written.get(path, 0) or not is_zero(plain):
                    _write_all(descriptor, plain, offset)
            finally:
                os.close(descriptor)
            os.write(self._receipts, _line(path, index, _Receipt(len(plain), record)))
        except OSError as error:
            raise FormatError(f"entry {path}, chunk {index} could not be written: {error}") from error
        with self._lock:
            self._kept.setdefault(path, {})[index] = _Receipt(len(plain), record)
            if len(self._kept) > ENTRIES_MAX:
                raise FormatError(f"more than {ENTRIES_MAX} entries came")
        RECEIVED.inc(len(plain))

    def complete(self, manifest: Manifest) -> None:
        """Check that exactly what the manifest lists is there, and make it last.

        Raises:
            FormatError: something is missing, another, or too much; the message names entry and chunk.
            OSError: a file could not be brought to its size.
        """
        listed = {checked_path(entry.path, self.containers) for entry in manifest.entries}
        for path in self._kept.keys() - listed:
            raise FormatError(f"entry {path} came but is not in the manifest")
        for container in self.containers:
            if f"{container}/{INVENTORY}" not in listed:
                raise FormatError(f"the checkpoint of container {container} has no inventory.img: it is incomplete")
        if manifest.chunk_bytes != self._chunk_bytes:
            raise FormatError(f"the manifest's chunks have {manifest.chunk_bytes} bytes, not {self._chunk_bytes}")
        for entry in manifest.entries:
            kept = self._kept.get(entry.path, {})
            records = entry.records
            for index, record in enumerate(records):
                receipt = kept.get(index)
                if receipt is None:
                    raise FormatError(f"entry {entry.path}, chunk {index} is missing")
                if receipt != (chunk_length(entry.size, index, self._chunk_bytes), record):
                    raise FormatError(f"entry {entry.path}, chunk {index} is not the one that the manifest lists")
            if len(kept) != len(records):
                raise FormatError(f"entry {entry.path} has more chunks than the manifest lists")
            self._finish(entry.path, entry.size)
        (self.directory / _RECEIPTS).unlink()

    def _finish(self, path: str, size: int) -> None:
        descriptor = os.open(self.directory / path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, ENTRY_MODE)
        try:
            os.ftruncate(descriptor, size)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _load(self) -> None:
        """Count what is on disk exactly as its receipt says; a torn line at the end counts nothing."""
        try:
            lines = (self.directory / _RECEIPTS).read_text(encoding="ascii", errors="replace").splitlines()
        except FileNotFoundError:
            return
        found: dict[tuple[str, int], _Receipt] = {}
        for line in lines:
            parsed = _parsed(line)
            if parsed is not None:
                found[parsed[0], parsed[1]] = parsed[2]
        buffer = memoryview(bytearray(self._chunk_bytes))
        for (path, index), receipt in sorted(found.items()):
            if self._verified(checked_path(path, self.containers), index, receipt, buffer):
                self._kept.setdefault(path, {})[index] = receipt

    def _verified(self, path: str, index: int, receipt: _Receipt, buffer: memoryview) -> bool:
        chunk = buffer[: receipt.length]
        try:
            descriptor = os.open(self.directory / path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            self._written[path] = os.fstat(descriptor).st_size
            read_chunk(descriptor, index * self._chunk_bytes, chunk)
        except FormatError:
            return False
        finally:
            os.close(descriptor)
        return self._seal.digest(receipt.record.nonce, chunk) == receipt.record.digest

    def _demand_room(self, count: int) -> None:
        free = shutil.disk_usage(self.directory).free
        if count + ROOM_LEFT_BYTES > free:
            raise FormatError(
                f"the checkpoint does not fit: {self.directory.parent} has only {free} bytes free; use a node with "
                "more room"
            )

    def _make_directories(self) -> None:
        """All that is there was made here: the parent is root's alone."""
        self.directory.parent.mkdir(mode=0o700, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)
        (self.directory / SHARED_DIRECTORY).mkdir(mode=0o700, exist_ok=True)
        for container in self.containers:
            (self.directory / container).mkdir(mode=0o700, exist_ok=True)
            (self.directory / container / "images").mkdir(mode=0o700, exist_ok=True)


def _encoded(records: list[Record]) -> str:
    return base64.b64encode(packed(records)).decode()


def _line(path: str, index: int, receipt: _Receipt) -> bytes:
    record = receipt.record
    return f"{path} {index} {receipt.length} {record.nonce.hex()} {record.digest.hex()}\n".encode()


def _parsed(line: str) -> tuple[str, int, _Receipt] | None:
    try:
        path, index, length, nonce, digest = line.split(" ")
        return path, int(index), _Receipt(int(length), Record(bytes.fromhex(nonce), bytes.fromhex(digest)))
    except ValueError:
        return None


def _write_all(descriptor: int, content: memoryview, offset: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(descriptor, content[done:], offset + done)
