"""Frames between agents: a 4-byte big-endian length and that many bytes of JSON (docs/protocol.md, section 6)."""

from __future__ import annotations

import socket
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from migration_agent.transport.chunks import CHUNK_BYTES_MAX, INDEX_MAX
from migration_agent.transport.manifest import MANIFEST_BYTES
from migration_api.base import Model
from migration_api.migration import Uid

FRAME_BYTES = 64 * 1024
HAVE_BYTES = MANIFEST_BYTES
"""The answer to `send` lists the chunks that are there already."""
STREAMS_MAX = 8

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
    chunk_bytes: Annotated[int, Field(ge=0, le=CHUNK_BYTES_MAX)] = 0
    """`send`: how large the chunks are."""
    streams: Annotated[int, Field(ge=0, le=STREAMS_MAX)] = 0
    """`send`: how many data connections the chunks come on; none when they lie in a store."""
    container: Annotated[str, Field(max_length=63)] = ""
    """`pages`: whose memory is wanted."""


class Held(Model):
    """Chunks of one entry, one after another, that a target has."""

    entry: str
    first: Annotated[int, Field(ge=0, le=INDEX_MAX)]
    records: str
    """As in a manifest."""


class Answer(Model):
    """What the asked agent says; only the fields of the operation are set."""

    ok: bool | None = None
    state: str | None = None
    intact: bool | None = None
    error: Annotated[str, Field(max_length=32768)] | None = None
    again: bool = False
    """With `error`: it may be otherwise in a moment."""
    complete: bool = False
    """`send`: all of it was received and verified before."""
    tokens: Annotated[tuple[str, ...], Field(max_length=STREAMS_MAX)] = ()
    """`send`: each opens one data connection, once."""
    have: Annotated[tuple[Held, ...], Field(max_length=1 << 20)] = ()
    """`send`: what need not be sent again."""


class Frame(Model):
    """What the source says while chunks travel; one with nothing set only keeps the connection alive."""

    entry: Annotated[str, Field(max_length=512)] | None = None
    """Chunks of this entry may come from now on."""
    blob: Annotated[str, Field(max_length=128)] | None = None
    """This sealed chunk lies in the store."""
    expected: Annotated[int, Field(ge=0)] | None = None
    """How many bytes the checkpoint has; may grow while it is made."""
    manifest: Annotated[int, Field(ge=1, le=MANIFEST_BYTES)] | None = None
    """All chunks are on their way: the sealed manifest follows, that many bytes."""


FrameT = TypeVar("FrameT", bound=BaseModel)


def write_frame(connection: socket.socket, frame: Model) -> None:
    """Send one frame."""
    content = frame.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True).encode()
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
