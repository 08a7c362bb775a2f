"""Files with holes in a tar: GNU's PAX format 1.0, which Go's and GNU's readers understand."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

_BLOCK = 512
_SEGMENTS_MAX = 4096
"""More pieces than that are not worth their map: the file is written with its zeros."""


class SparseFile:
    """Reads as the map of a file's pieces and then the pieces: what follows the header of a sparse entry."""

    def __init__(self, file: BinaryIO, segments: list[tuple[int, int]]) -> None:
        numbers = [len(segments), *(number for segment in segments for number in segment)]
        text = "".join(f"{number}\n" for number in numbers).encode()
        self._pending = text + bytes(-len(text) % _BLOCK)
        self._file = file
        self._segments = segments
        self.size = len(self._pending) + sum(length for _, length in segments)

    def read(self, count: int = -1, /) -> bytes:
        """Return exactly `count` bytes, fewer only at the end; all that is left when it is negative."""
        count = self.size if count < 0 else count
        parts: list[bytes] = []
        while count > 0:
            part = self._next(count)
            if not part:
                break
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _next(self, count: int) -> bytes:
        if self._pending:
            part, self._pending = self._pending[:count], self._pending[count:]
            return part
        if not self._segments:
            return b""
        offset, length = self._segments[0]
        part = os.pread(self._file.fileno(), min(count, length), offset)
        if not part:
            raise OSError("the file became shorter while it was copied")
        rest = (offset + len(part), length - len(part))
        self._segments = [rest, *self._segments[1:]] if rest[1] else self._segments[1:]
        return part


def open_sparse(file: BinaryIO, info: tarfile.TarInfo, status: os.stat_result) -> SparseFile | None:
    """Turn `info` into a sparse entry and return its content; None when the file has no holes worth it."""
    if status.st_blocks * _BLOCK >= status.st_size:
        return None
    segments: list[tuple[int, int]] = []
    for segment in _segments(file.fileno(), status.st_size):
        segments.append(segment)
        if len(segments) > _SEGMENTS_MAX:
            return None
    content = SparseFile(file, segments)
    info.pax_headers = {
        **info.pax_headers,
        "GNU.sparse.major": "1",
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": info.name,
        "GNU.sparse.realsize": str(status.st_size),
    }
    info.size = content.size
    return content


def _segments(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of each piece of data."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        end = min(size, os.lseek(descriptor, start, os.SEEK_HOLE))
        if end > start:
            yield start, end - start
