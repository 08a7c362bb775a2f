"""Frames between agents: a 4-byte big-endian length and that many bytes of JSON (docs/protocol.md, section 6)."""

from __future__ import annotations

import socket
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from migration_agent.transport.manifest import CHUNK_BYTES, ENTRIES_MAX, EntryDigest, Sha256
from migration_api.base import Model
from migration_api.migration import Uid

FRAME_BYTES = 64 * 1024
END_BYTES = 16 * 1024 * 1024
"""The last frame of a checkpoint lists all its entries."""

_LENGTH_BYTES = 4


class FrameError(Exception):
    """The peer broke the protocol or the connection; the message is for an admin."""


class Question(Model):
    """The first frame of a connection."""

    op: str
    migration: Uid
    promise: bool = False
    """`settle`: an undecided target shall destroy its ticket when it can."""
    settled: bool = False
    """`settle`: the source's agent knows the end and will not ask again: the target may forget."""
    entries: Annotated[int, Field(ge=0, le=ENTRIES_MAX)] = 0
    """`send`: how many entries follow."""
    bytes: Annotated[int, Field(ge=0)] = 0
    """`send`: how many bytes they have together."""


class EntryFrame(Model):
    """Announces one file."""

    entry: str
    size: Annotated[int, Field(ge=0)]
    mode: int


class ChunkFrame(Model):
    """Announces one chunk of the file."""

    chunk: Annotated[int, Field(ge=1, le=CHUNK_BYTES)]
    sha256: Sha256


class SendFrame(Model):
    """What may follow between two files: the next one, or the end of all."""

    entry: str | None = None
    size: Annotated[int, Field(ge=0)] = 0
    mode: int = 0
    end: bool = False
    entries: Annotated[tuple[EntryDigest, ...], Field(max_length=ENTRIES_MAX)] = ()


class Answer(Model):
    """What the asked agent says; only the fields of the operation are set."""

    ok: bool | None = None
    state: str | None = None
    intact: bool | None = None
    error: Annotated[str, Field(max_length=32768)] | None = None


FrameT = TypeVar("FrameT", bound=BaseModel)


def write_frame(connection: socket.socket, frame: Model) -> None:
    """Send one frame."""
    content = frame.model_dump_json(by_alias=True, exclude_none=True).encode()
    connection.sendall(len(content).to_bytes(_LENGTH_BYTES, "big") + content)


def read_frame(connection: socket.socket, model: type[FrameT], limit: int = FRAME_BYTES) -> FrameT:
    """Receive one frame.

    Raises:
        FrameError: it is too long, not what was expected, or the connection ended.
    """
    header = bytearray(_LENGTH_BYTES)
    read_into(connection, memoryview(header))
    length = int.from_bytes(header, "big")
    if length > limit:
        raise FrameError(f"the peer announced a frame of {length} bytes; at most {limit} are allowed")
    content = bytearray(length)
    read_into(connection, memoryview(content))
    try:
        return model.model_validate_json(bytes(content))
    except ValidationError as error:
        raise FrameError(f"the peer sent something else than expected: {error.errors()[0]['msg']}") from error


def read_into(connection: socket.socket, buffer: memoryview) -> None:
    """Receive exactly as many bytes as the buffer has.

    Raises:
        FrameError: the connection ended first.
    """
    done = 0
    while done < len(buffer):
        count = connection.recv_into(buffer[done:])
        if count == 0:
            raise FrameError(f"the connection ended after {done} of {len(buffer)} bytes")
        done += count
