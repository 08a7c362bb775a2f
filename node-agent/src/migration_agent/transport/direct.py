"""A checkpoint's way over one connection: files cut into chunks, each with its digest, checked before it is kept.

Blocking, in threads: asyncio's TLS was measured several times slower for bulk data.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shutil
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from migration_agent.metrics import RECEIVED, SENT
from migration_agent.paths import SHARED_DIRECTORY
from migration_agent.transport.frames import (
    END_BYTES,
    ChunkFrame,
    EntryFrame,
    FrameError,
    Question,
    SendFrame,
    read_frame,
    read_into,
    write_frame,
)
from migration_agent.transport.manifest import (
    CHUNK_BYTES,
    ENTRY_MODE,
    Entry,
    EntryDigest,
    ManifestError,
    checked_path,
    combined,
)

_ROOM_LEFT_BYTES = 64 * 1024 * 1024
"""What a checkpoint must leave free in the node's /run: others need it too."""


def send_entries(connection: socket.socket, entries: Sequence[Entry], progress: Callable[[int], None]) -> None:
    """Send files after the question; the peer's answer is still to be read.

    `progress` is called with the bytes sent so far after each chunk; what it raises ends the sending.
    """
    sent = 0
    digests: list[EntryDigest] = []
    for entry in entries:
        write_frame(connection, EntryFrame(entry=entry.path, size=entry.size, mode=ENTRY_MODE))
        chunks: list[bytes] = []
        descriptor = os.open(entry.file, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            for offset in range(0, entry.size, CHUNK_BYTES):
                length = min(CHUNK_BYTES, entry.size - offset)
                with (
                    mmap.mmap(descriptor, length, offset=offset, access=mmap.ACCESS_READ) as mapped,
                    memoryview(mapped) as chunk,
                ):
                    digest = hashlib.sha256(chunk)
                    write_frame(connection, ChunkFrame(chunk=length, sha256=digest.hexdigest()))
                    connection.sendall(chunk)
                chunks.append(digest.digest())
                sent += length
                SENT.inc(length)
                progress(sent)
        finally:
            os.close(descriptor)
        digests.append(EntryDigest(path=entry.path, size=entry.size, sha256=combined(chunks)))
    write_frame(connection, SendFrame(end=True, entries=tuple(digests)))


@dataclass
class Receiver:
    """Receives one checkpoint into a migration's directory, which must be empty or absent."""

    directory: Path
    containers: Sequence[str]
    question: Question
    """What the sender announced; nothing beyond it is accepted."""
    progress: Callable[[int], None]
    """Called with the bytes received so far after each chunk; what it raises ends the receiving."""

    def receive(self, connection: socket.socket) -> tuple[EntryDigest, ...]:
        """Return the entries' digests when every chunk matched and the list at the end is the same.

        Raises:
            FrameError: the peer broke the protocol or the connection.
            ManifestError: a digest, a name or a size is wrong, or there is no room.
        """
        self._demand_room()
        self._make_directories()
        self._done = 0
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        received: dict[str, EntryDigest] = {}
        while not (frame := read_frame(connection, SendFrame, END_BYTES)).end:
            path = checked_path(frame.entry or "", self.containers)
            if path in received:
                raise ManifestError(f"entry {path} came twice")
            if len(received) >= self.question.entries or self._done + frame.size > self.question.bytes:
                raise ManifestError("the peer sends more than it announced")
            received[path] = self._entry(connection, path, frame.size)
        if tuple(received.values()) != frame.entries or len(received) != self.question.entries:
            raise ManifestError("the manifest at the end is not what was received")
        for container in self.containers:
            if f"{container}/images/inventory.img" not in received:
                raise ManifestError(f"the checkpoint of container {container} has no inventory.img: it is incomplete")
        return tuple(received.values())

    def _entry(self, connection: socket.socket, path: str, size: int) -> EntryDigest:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(self.directory / path, flags, ENTRY_MODE)
        digests: list[bytes] = []
        left = size
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            while left:
                announced = read_frame(connection, ChunkFrame)
                if announced.chunk != min(CHUNK_BYTES, left):
                    raise FrameError(f"a chunk of {announced.chunk} bytes came where {min(CHUNK_BYTES, left)} were due")
                chunk = self._buffer[: announced.chunk]
                read_into(connection, chunk)
                digest = hashlib.sha256(chunk)
                if digest.hexdigest() != announced.sha256:
                    raise ManifestError(f"a chunk of {path} was damaged on the way")
                _write_all(file.fileno(), chunk)
                digests.append(digest.digest())
                left -= announced.chunk
                self._done += announced.chunk
                RECEIVED.inc(announced.chunk)
                self.progress(self._done)
            os.fsync(file.fileno())
        return EntryDigest(path=path, size=size, sha256=combined(digests))

    def _demand_room(self) -> None:
        self.directory.parent.mkdir(mode=0o700, exist_ok=True)
        free = shutil.disk_usage(self.directory.parent).free
        if self.question.bytes + _ROOM_LEFT_BYTES > free:
            raise ManifestError(
                f"the checkpoint has {self.question.bytes} bytes, but {self.directory.parent} has only {free} bytes "
                "free; use a node with more memory, or enlarge its /run"
            )

    def _make_directories(self) -> None:
        self.directory.mkdir(mode=0o700)
        (self.directory / SHARED_DIRECTORY).mkdir(mode=0o700)
        for container in self.containers:
            (self.directory / container).mkdir(mode=0o700)
            (self.directory / container / "images").mkdir(mode=0o700)


def _write_all(descriptor: int, content: memoryview) -> None:
    done = 0
    while done < len(content):
        done += os.write(descriptor, content[done:])
