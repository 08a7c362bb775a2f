"""The receiving end of one connection: frames on the control connection, sealed chunks on streams or from a store.

Blocking, in threads: one for the control connection, one for each stream, a few that fetch from a store.
"""

from __future__ import annotations

import queue
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from migration_agent.transport.chunks import (
    CHUNK_BYTES_MAX,
    HEADER_BYTES,
    TAG_BYTES,
    FormatError,
    Header,
    Opener,
    Seal,
    entry_tag,
)
from migration_agent.transport.frames import Frame, FrameError, Question, read_frame, read_into
from migration_agent.transport.manifest import (
    ENTRIES_MAX,
    Manifest,
    ManifestEntry,
    checked_path,
    opened_manifest,
)
from migration_agent.transport.store import BlobMissing, Store, StoreFailure
from migration_agent.transport.workspace import Workspace
from migration_api.failpoints import Failpoint, reach_in_thread

IDLE_SECONDS = 30.0
"""The sender says something every few seconds; a connection without a word for so long is dead."""

_LOOK_SECONDS = 0.2
_FETCHERS = 4
_FETCH_PAUSE_SECONDS = 0.5
_MISSING_TRIES = 40
"""A blob that was announced may be seen a little later on another node."""


@dataclass
class Receiver:
    """One connection's reception into a workspace, which may hold chunks of an earlier one."""

    workspace: Workspace
    seal: Seal
    question: Question
    store: Store | None
    """Where the blobs lie that are announced; None when chunks come on streams."""
    progress: Callable[[int, int | None], None]
    """Called with the bytes that are here and those that are expected; what it raises ends the reception."""
    _paths: dict[bytes, str] = field(default_factory=dict[bytes, str])
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _failure: Exception | None = None
    _streams: set[socket.socket] = field(default_factory=set[socket.socket])
    _streams_ended: int = 0
    _blobs: queue.SimpleQueue[str | None] = field(default_factory=queue.SimpleQueue[str | None])
    _blobs_left: int = 0
    _bytes: int = 0
    _expected: int | None = None

    def run(self, control: socket.socket) -> tuple[ManifestEntry, ...]:
        """Receive until the manifest has come and everything in it is here.

        Raises:
            FrameError: the peer broke the protocol or the connection; what is here stays.
            FormatError: a part is not authentic, missing or too much; the message names it.
            StoreFailure: a chunk cannot be fetched.
            OSError: the connection broke, or a file could not be written.
        """
        self._bytes = self.workspace.bytes_kept
        with self._fetching():
            manifest = self._manifest(control)
            self._wait_for_chunks(control)
            self.workspace.complete(manifest)
            return manifest.entries

    def fail(self, error: Exception) -> None:
        """End the reception; the first reason is the one that counts."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
            for stream in self._streams:
                with suppress(OSError):
                    stream.shutdown(socket.SHUT_RDWR)

    def stream(self, connection: socket.socket) -> None:
        """Take the chunks of one data connection until it ends."""
        with self._changed:
            self._streams.add(connection)
            if self._failure is not None:
                return
        connection.settimeout(None)  # `fail` ends it
        opener = Opener(self.seal)
        head, body = bytearray(HEADER_BYTES), memoryview(bytearray(CHUNK_BYTES_MAX + TAG_BYTES))
        try:
            while _more(connection, memoryview(head)):
                header = Header.parse(head)
                _fill(connection, body[: header.sealed])
                self._take(header, body[: header.sealed], opener)
        except Exception as error:  # noqa: BLE001  # whatever it is, `run` must end with it
            self.fail(error)
        finally:
            with self._changed:
                self._streams.discard(connection)
                self._streams_ended += 1
                self._changed.notify_all()

    def _manifest(self, control: socket.socket) -> Manifest:
        while True:
            self._wait_for_frame(control)
            frame = read_frame(control, Frame)
            if frame.entry is not None:
                self._declare(checked_path(frame.entry, self.workspace.containers))
            if frame.blob is not None:
                self._announced(frame.blob)
            if frame.expected is not None:
                self._expected = frame.expected
                self.progress(self._bytes, self._expected)
            if frame.manifest is not None:
                blob = bytearray(frame.manifest)
                read_into(control, memoryview(blob))
                return opened_manifest(self.seal, bytes(blob), self.question.migration)

    def _wait_for_frame(self, control: socket.socket) -> None:
        """Return when there is something to read; raise what ended a stream meanwhile."""
        deadline = time.monotonic() + IDLE_SECONDS
        while not readable(control, _LOOK_SECONDS):
            self._demand()
            if time.monotonic() > deadline:
                raise FrameError(f"the peer said nothing for {IDLE_SECONDS:.0f} s")

    def _declare(self, path: str) -> None:
        with self._changed:
            known = self._paths.setdefault(entry_tag(path), path)
            if known != path or len(self._paths) > ENTRIES_MAX:
                raise FormatError(f"entry {path} cannot be told from {known}, or there are too many entries")
            self._changed.notify_all()

    def _announced(self, name: str) -> None:
        if self.store is None:
            raise FrameError("the peer speaks of a store, but none was agreed on")
        with self._changed:
            self._blobs_left += 1
        self._blobs.put(name)

    def _take(self, header: Header, sealed: memoryview, opener: Opener) -> None:
        path = self._path_of(header.entry)
        record, plain = opener.opened(header, path, sealed)
        reach_in_thread(Failpoint.TARGET_CHUNK)
        self.workspace.keep(path, header.index, plain, record)
        with self._changed:
            self._bytes += len(plain)
            count = self._bytes
        self.progress(count, self._expected)

    def _path_of(self, tag: bytes) -> str:
        """Return the entry of a chunk; its announcement may still be on its way."""
        with self._changed:
            self._changed.wait_for(lambda: tag in self._paths or self._failure is not None, IDLE_SECONDS)
            if tag not in self._paths:
                raise FormatError(f"a chunk came of an entry that was not announced ({tag.hex()})")
            return self._paths[tag]

    def _wait_for_chunks(self, control: socket.socket) -> None:
        """Return when all streams have ended and all blobs were fetched; the peer must still be there."""
        while not self._all_came():
            self._demand()
            if readable(control, 0):
                read_frame(control, Frame)
        self._demand()

    def _all_came(self) -> bool:
        def came() -> bool:
            return self._streams_ended >= self.question.streams and not self._blobs_left

        with self._changed:
            return self._changed.wait_for(lambda: came() or self._failure is not None, _LOOK_SECONDS) and came()

    def _demand(self) -> None:
        """Raise what ended the reception elsewhere, or the migration altogether."""
        if self._failure is not None:
            raise self._failure
        self.progress(self._bytes, self._expected)

    @contextmanager
    def _fetching(self) -> Generator[None]:
        """Let threads fetch what is announced while the context is open."""
        count = _FETCHERS if self.store is not None else 0
        threads = [threading.Thread(target=self._fetch, args=(self.store,), name="fetch") for _ in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        except BaseException as error:
            self.fail(error if isinstance(error, Exception) else FrameError("ended"))
            raise
        finally:
            for _ in threads:
                self._blobs.put(None)
            for thread in threads:
                thread.join()

    def _fetch(self, store: Store) -> None:
        opener = Opener(self.seal)
        try:
            while (name := self._blobs.get()) is not None and self._failure is None:
                blob = memoryview(self._got(store, name))
                if len(blob) < HEADER_BYTES:
                    raise FormatError(f"blob {name} is cut short: it has {len(blob)} bytes")  # noqa: TRY301
                header = Header.parse(blob[:HEADER_BYTES])
                if len(blob) != HEADER_BYTES + header.sealed:
                    raise FormatError(f"blob {name} has {len(blob)} bytes; its header speaks of others")  # noqa: TRY301
                self._take(header, blob[HEADER_BYTES:], opener)
                with self._changed:
                    self._blobs_left -= 1
                    self._changed.notify_all()
        except Exception as error:  # noqa: BLE001  # whatever it is, `run` must end with it
            self.fail(error)

    def _got(self, store: Store, name: str) -> bytes:
        """Fetch a blob; a store that is away is asked again for as long as the sender goes on."""
        missing = 0
        while True:
            try:
                return store.get(name)
            except StoreFailure as error:
                missing += isinstance(error, BlobMissing)
                if missing > _MISSING_TRIES or not (error.passing or isinstance(error, BlobMissing)):
                    raise
            with self._changed:
                self._changed.wait_for(lambda: self._failure is not None, _FETCH_PAUSE_SECONDS)
                self._demand()


def readable(control: socket.socket, seconds: float) -> bool:
    """Say whether something can be read, within so many seconds."""
    if isinstance(control, ssl.SSLSocket) and control.pending():
        return True
    return bool(select.select([control], [], [], seconds)[0])


def _fill(connection: socket.socket, buffer: memoryview) -> None:
    """Fill the buffer, in one call where possible: each return from the kernel waits for the interpreter."""
    done = 0
    while done < len(buffer):
        count = connection.recv_into(buffer[done:], 0, socket.MSG_WAITALL)
        if count == 0:
            raise FrameError(f"the connection ended after {done} of {len(buffer)} bytes")
        done += count


def _more(connection: socket.socket, head: memoryview) -> bool:
    """Read a header; False when the connection ended where a chunk may begin."""
    count = connection.recv_into(head)
    if count:
        read_into(connection, head[count:])
    return count > 0
