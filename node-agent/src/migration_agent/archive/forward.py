"""Reads tars that nobody vouches for, from front to back, with bounded memory."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Protocol

import zstandard

from migration_agent.archive.names import NotTransferable

HEADER_BYTES = 4 * 1024 * 1024
"""The most that a member's headers may have: names, attributes, the map of a file with holes."""

_SKIP_BYTES = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_WINDOW_BYTES = 128 << 20
"""What unpacking may keep in memory; Podman's archives need 8 MiB."""


class Source(Protocol):
    """What is read from front to back."""

    def read(self, count: int, /) -> bytes: ...


class Forward:
    """A file for `tarfile` that only goes forward.

    Attributes:
        allowance: how many bytes may still be read; None: any number. What is skipped does not count.
    """

    def __init__(self, source: Source) -> None:
        self.allowance: int | None = HEADER_BYTES
        self._source, self._at = source, 0
        self._last = b""

    def read(self, count: int = -1, /) -> bytes:
        """Return `count` bytes, fewer only at the end.

        Raises:
            NotTransferable: more than is allowed.
        """
        if count < 0 or (self.allowance is not None and count > self.allowance):
            raise NotTransferable(f"a member of the archive has headers of more than {HEADER_BYTES} bytes")
        if self.allowance is not None:
            self.allowance -= count
        parts: list[bytes] = []
        while count > 0 and (part := self._source.read(count)):
            parts.append(part)
            count -= len(part)
        self._last = parts[0] if len(parts) == 1 else b"".join(parts)
        self._at += len(self._last)
        return self._last

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Skip what comes before a place."""
        if whence or offset < self._at:
            raise NotTransferable("the archive's members do not follow each other")
        while self._at < offset and (part := self._source.read(min(_SKIP_BYTES, offset - self._at))):
            self._at += len(part)
        return self._at

    def tell(self) -> int:
        return self._at

    @property
    def ended_well(self) -> bool:
        """Whether what was read last is the mark of an archive's end; `tarfile` takes anything else for it, too."""
        return len(self._last) == tarfile.BLOCKSIZE and not any(self._last)


class Seeking(Forward):
    """Of a plain file: what is skipped is not read."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file

    def seek(self, offset: int, whence: int = 0, /) -> int:
        """Skip what comes before a place."""
        if whence or offset < self._at:
            raise NotTransferable("the archive's members do not follow each other")
        self._at = self._file.seek(offset)
        return self._at


def members(source: Source | Forward, what: str) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Yield the members of a tar, each to be read before the next one.

    Raises:
        NotTransferable: it cannot be read, is cut off, or asks for too much memory.
    """
    forward = source if isinstance(source, Forward) else Forward(source)
    file: Any = forward
    with explained(what), tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8") as tar:
        while (member := tar.next()) is not None:
            forward.allowance = None
            yield tar, member
            forget(tar)
            forward.allowance = HEADER_BYTES
    if not forward.ended_well:
        raise NotTransferable(f"{what} is cut off or damaged: it has no end")


@contextmanager
def explained(what: str) -> Generator[None]:
    """Turn what a damaged archive makes its readers say into `NotTransferable`."""
    try:
        yield
    except (tarfile.TarError, EOFError, OSError, zstandard.ZstdError, zlib.error) as error:
        raise NotTransferable(f"{what} cannot be read: {error}") from error


def forget(tar: Any) -> None:
    """Let a tar that is read forget its members so far: there may be millions."""
    tar.members = []


def unpacked(file: Any) -> Source:
    """Return the tar in a file that may be compressed, with gzip or zstd as Podman does it."""
    head = file.read(4)
    file.seek(0)
    if head == _ZSTD:
        reader = zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES)
        return reader.stream_reader(file, read_across_frames=True)
    if head.startswith(_GZIP):
        packed: Any = gzip.GzipFile(fileobj=file, mode="rb")
        return packed
    return file
