"""What is asked for memory and what is answered, from pager to agent and from agent to agent.

    request: process uint32 (as the images count), ranges uint32, then for each: address uint64, length uint64
    answer:  status uint32, length uint32, then the bytes of all ranges, or the reason why there are none

All little-endian; `pager_remote.go` is the other side.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import NamedTuple

from migration_agent.transport.frames import FrameError, read_into

RANGES_MAX = 64
BYTES_MAX = 1 << 20
"""Of one answer."""
HERE, LOST = 0, 1
ANSWER = struct.Struct("<II")
_REASON_BYTES = 4096
_HEAD = struct.Struct("<II")
_RANGE = struct.Struct("<QQ")
_PAGE_BYTES = 4096


class Lost(Exception):
    """The memory is gone for good; the message is for an admin."""


class Range(NamedTuple):
    """Memory of a process, in bytes."""

    address: int
    length: int


@dataclass(frozen=True)
class Request:
    """Some memory of one process."""

    pid: int
    """As the images count."""
    ranges: tuple[Range, ...]

    @property
    def size(self) -> int:
        return sum(it.length for it in self.ranges)

    def encoded(self) -> bytes:
        return _HEAD.pack(self.pid, len(self.ranges)) + b"".join(_RANGE.pack(*it) for it in self.ranges)


def read_request(connection: socket.socket) -> Request | None:
    """Receive a request; None when the connection ended where one may begin.

    Raises:
        FrameError: it asks for what nobody may ask, or the connection ended in the middle.
    """
    head = bytearray(_HEAD.size)
    count = connection.recv_into(head)
    if count == 0:
        return None
    read_into(connection, memoryview(head)[count:])
    pid, ranges = _HEAD.unpack(head)
    if not 1 <= ranges <= RANGES_MAX:
        raise FrameError(f"{ranges} ranges of memory were asked for; at most {RANGES_MAX} are allowed")
    raw = bytearray(ranges * _RANGE.size)
    read_into(connection, memoryview(raw))
    request = Request(pid, tuple(Range(*it) for it in _RANGE.iter_unpack(raw)))
    if any(it.length == 0 or it.length % _PAGE_BYTES or it.address % _PAGE_BYTES for it in request.ranges):
        raise FrameError("memory was asked for that is not made of whole pages")
    if request.size > BYTES_MAX:
        raise FrameError(f"{request.size} bytes of memory were asked for; at most {BYTES_MAX} are allowed")
    return request


def read_answer(connection: socket.socket, request: Request, buffer: memoryview) -> memoryview:
    """Receive an answer into the buffer, and return all of it, with its head.

    Raises:
        Lost: the other side says so.
        FrameError: it is not what was asked for, or the connection ended.
    """
    head = buffer[: ANSWER.size]
    read_into(connection, head)
    status, length = ANSWER.unpack(head)
    if status == LOST and length <= _REASON_BYTES:
        reason = bytearray(length)
        read_into(connection, memoryview(reason))
        raise Lost(reason.decode(errors="replace"))
    if status != HERE or length != request.size:
        raise FrameError(f"{length} bytes of memory came with status {status}; {request.size} were asked for")
    read_into(connection, buffer[ANSWER.size : ANSWER.size + length])
    return buffer[: ANSWER.size + length]


def lost_answer(reason: str) -> bytes:
    """Return the answer that says that the memory is gone."""
    text = reason.encode()[:_REASON_BYTES]
    return ANSWER.pack(LOST, len(text)) + text
