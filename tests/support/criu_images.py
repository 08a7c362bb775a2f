"""The images of one process with one piece of memory, as CRIU writes them: enough for readers, not for a restore."""

from __future__ import annotations

import struct
from pathlib import Path

PAGE_BYTES = 4096
ADDRESS = 0x7F0000000000
_COMMON = 0x54564319
_MAGIC = {"pstree": 0x50273030, "core": 0x55053847, "mm": 0x57492820, "pagemap": 0x56084025}
_PRESENT = 4


def write_process(images: Path, name: str, memory: bytes) -> None:
    """Write process 1, whose memory is whole pages."""
    pages = len(memory) // PAGE_BYTES
    task = _message((1, 1), (2, 0), (3, 0), (4, 0), (5, 0), (6, name.encode()))
    _write(images / "pstree.img", "pstree", _message((1, 1), (2, 0), (3, 1), (4, 1), (5, 1)))
    _write(images / "core-1.img", "core", _message((1, 1), (3, task)))
    _write(images / "mm-1.img", "mm", _message(*((field, 0) for field in range(1, 13))))
    entry = _message((1, ADDRESS), (2, pages), (4, _PRESENT), (5, pages))
    _write(images / "pagemap-1.img", "pagemap", _message((1, 1)), entry)
    (images / "pages-1.img").write_bytes(memory)


def _write(path: Path, kind: str, *entries: bytes) -> None:
    sized = b"".join(struct.pack("<I", len(entry)) + entry for entry in entries)
    path.write_bytes(struct.pack("<II", _COMMON, _MAGIC[kind]) + sized)


def _message(*fields: tuple[int, int | bytes]) -> bytes:
    """Encode a protocol buffer."""
    parts: list[bytes] = []
    for number, value in fields:
        if isinstance(value, int):
            parts.append(_varint(number << 3) + _varint(value))
        else:
            parts.append(_varint(number << 3 | 2) + _varint(len(value)) + value)
    return b"".join(parts)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
