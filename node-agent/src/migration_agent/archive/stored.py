"""A checkpoint that lies in a store, read and written by whoever has its key: no agent, no API server."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import zstandard

from migration_agent.paths import SHARED_DIRECTORY
from migration_agent.transport.chunks import (
    CHUNK_BYTES,
    HEADER_BYTES,
    FormatError,
    Header,
    Opener,
    Record,
    Seal,
    Sealer,
    blob_name,
    entry_tag,
    packed,
)
from migration_agent.transport.manifest import (
    MANIFEST_NAME,
    Manifest,
    ManifestEntry,
    checked_path,
    chunk_length,
    opened_manifest,
    sealed_manifest,
)
from migration_agent.transport.store import BlobMissing, Store

READ_BYTES = 4 * 1024 * 1024
"""No reader here gives more at once: the header of an archive's member may ask for any number of bytes."""
_ZSTD_LEVEL = 1


class StoredCheckpoint:
    """A checkpoint that is complete in its store; each chunk is verified when it is read."""

    def __init__(self, store: Store, key: bytes, migration: str) -> None:
        """Read the manifest.

        Raises:
            FormatError: it is damaged, another migration's, sealed with another key, or lists what no checkpoint has.
            StoreFailure: it cannot be fetched.
        """
        self._store, self._seal = store, Seal(key, migration)
        try:
            blob = store.get(MANIFEST_NAME)
        except BlobMissing as error:
            raise FormatError(f"there is no complete checkpoint of {migration}: {error}") from None
        self.digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
        """Of the sealed manifest."""
        self.manifest = opened_manifest(self._seal, blob, migration)
        names = {entry.path.partition("/")[0] for entry in self.manifest.entries} - {SHARED_DIRECTORY}
        self.containers = tuple(sorted(names))
        self._entries = {checked_path(entry.path, self.containers): entry for entry in self.manifest.entries}

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all entries."""
        return tuple(sorted(self._entries))

    def size(self, path: str) -> int:
        """Return how many bytes an entry has."""
        return self._entries[path].size

    def reader(self, path: str) -> EntryReader:
        """Return an entry as a file."""
        entry = self._entries[path]
        return EntryReader(self, path, entry.size, entry.records)

    def chunk(self, path: str, index: int, record: Record, opener: Opener) -> memoryview:
        """Return a chunk, which is good until the opener's next one.

        Raises:
            FormatError: it is missing, or not the one that the manifest lists; the message names entry and chunk.
            StoreFailure: it cannot be fetched.
        """
        name = blob_name(path, index)
        try:
            blob = memoryview(self._store.get(name))
        except BlobMissing:
            raise FormatError(f"entry {path}, chunk {index} is missing") from None
        header = Header.parse(blob[:HEADER_BYTES])
        if len(blob) != HEADER_BYTES + header.sealed or (header.entry, header.index) != (entry_tag(path), index):
            raise FormatError(f"entry {path}, chunk {index}: blob {name} holds something else, or is cut short")
        found, plain = opener.opened(header, path, blob[HEADER_BYTES:])
        length = chunk_length(self.size(path), index, self.manifest.chunk_bytes)
        if found != record or len(plain) != length:
            raise FormatError(f"entry {path}, chunk {index} is not the one that the manifest lists")
        return plain

    def opener(self) -> Opener:
        return Opener(self._seal)


class EntryReader:
    """Reads an entry with one chunk in memory; what is skipped is not fetched."""

    def __init__(self, checkpoint: StoredCheckpoint, path: str, size: int, records: list[Record]) -> None:
        self.size = size
        self._checkpoint, self._path, self._records = checkpoint, path, records
        self._opener = checkpoint.opener()
        self._at = 0
        self._index: int = -1
        self._chunk = memoryview(b"")

    def read(self, count: int = -1, /) -> bytes:
        """Return `count` bytes, fewer only at the end.

        Raises:
            FormatError: too many are wanted, or a chunk cannot be used.
        """
        left = self.size - self._at
        count = left if count < 0 else min(count, left)
        if count > READ_BYTES:
            raise FormatError(f"entry {self._path} has a header of {count} bytes")
        parts: list[bytes] = []
        while count > 0:
            part = self._part(count)
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _part(self, count: int) -> bytes:
        chunk_bytes = self._checkpoint.manifest.chunk_bytes
        index, offset = divmod(self._at, chunk_bytes)
        if index != self._index:
            self._index = -1
            self._chunk = self._checkpoint.chunk(self._path, index, self._records[index], self._opener)
            self._index = index
        part = bytes(self._chunk[offset : offset + count])
        self._at += len(part)
        return part

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Go to a place, counted from the beginning."""
        if whence or offset < 0:
            raise ValueError("only from the beginning")
        self._at = min(offset, self.size)
        return self._at

    def tell(self) -> int:
        return self._at


@dataclass
class StoreWriter:
    """Writes a checkpoint into a store, entry after entry; what is there counts only with its manifest."""

    store: Store
    key: bytes = field(repr=False)
    migration: str
    bytes_written: int = 0
    _entries: list[ManifestEntry] = field(default_factory=list[ManifestEntry])

    def __post_init__(self) -> None:
        self._seal = Seal(self.key, self.migration)
        self._sealer = Sealer(self._seal)
        self._zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)

    def entry(self, path: str) -> EntryWriter:
        """Begin an entry."""
        return EntryWriter(self, path)

    def put(self, path: str, index: int, plain: memoryview) -> Record:
        """Seal and put one chunk; raises `StoreFailure`."""
        record, blob = self._sealer.sealed(path, index, plain, self._zstd.compress(plain))
        self.store.put(blob_name(path, index), blob)
        self.bytes_written += len(plain)
        return record

    def add(self, entry: ManifestEntry) -> None:
        self._entries.append(entry)

    def finish(self) -> None:
        """Write the manifest: from now on it is a checkpoint.

        Raises:
            StoreFailure: it cannot be put.
            ValueError: what was written cannot be one.
        """
        manifest = Manifest(migration=self.migration, chunk_bytes=CHUNK_BYTES, entries=tuple(self._entries))
        self.store.put(MANIFEST_NAME, sealed_manifest(self._seal, manifest))


class EntryWriter:
    """A file that is written chunk by chunk; `close` ends it."""

    def __init__(self, writer: StoreWriter, path: str) -> None:
        self._writer, self._path = writer, path
        self._records: list[Record] = []
        self._buffer = memoryview(bytearray(CHUNK_BYTES))
        self._filled = self._size = 0

    def write(self, content: bytes | memoryview, /) -> int:
        """Take some bytes; raises `StoreFailure`."""
        rest = memoryview(content)
        while rest:
            part = rest[: CHUNK_BYTES - self._filled]
            self._buffer[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            rest = rest[len(part) :]
            if self._filled == CHUNK_BYTES:
                self._put()
        return len(content)

    def tell(self) -> int:
        return self._size + self._filled

    def close(self) -> None:
        """List the entry in the manifest; raises `StoreFailure`."""
        if self._filled:
            self._put()
        chunks = base64.b64encode(packed(self._records)).decode()
        self._writer.add(ManifestEntry(path=self._path, size=self._size, chunks=chunks))

    def _put(self) -> None:
        self._records.append(self._writer.put(self._path, len(self._records), self._buffer[: self._filled]))
        self._size += self._filled
        self._filled = 0


def blocks(reader: EntryReader, start: int, end: int) -> Iterator[bytes]:
    """Yield a part of an entry."""
    reader.seek(start)
    while start < end:
        block = reader.read(min(CHUNK_BYTES, end - start))
        start += len(block)
        yield block
