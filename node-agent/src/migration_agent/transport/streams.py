"""Data connections: plain TCP to the peer port, told from TLS by their first byte, each let in by a one-time token.

What travels on them is sealed; a connection is believed because of its token, which went over the authenticated one.
"""

from __future__ import annotations

import secrets
import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

from migration_agent.transport.frames import FrameError, read_into
from migration_agent.transport.receiver import Receiver

STREAM_HELLO = b"CMST"
"""No TLS record begins with its first byte."""
STREAMS = 2
"""Data connections of one transfer: one reads and seals while another one waits for the network."""
_TOKEN_BYTES = 32


def is_stream(connection: socket.socket) -> bool:
    """Say whether a connection that was just accepted is a data connection; reads nothing."""
    return connection.recv(1, socket.MSG_PEEK) == STREAM_HELLO[:1]


class Streams:
    """The tokens that are out; thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._receivers: dict[bytes, Receiver] = {}

    @contextmanager
    def granted(self, receiver: Receiver, count: int) -> Generator[tuple[str, ...]]:
        """Return tokens that let connections in to a receiver, while the context is open."""
        tokens = [secrets.token_bytes(_TOKEN_BYTES) for _ in range(count)]
        with self._lock:
            self._receivers |= dict.fromkeys(tokens, receiver)
        try:
            yield tuple(token.hex() for token in tokens)
        finally:
            with self._lock:
                for token in tokens:
                    self._receivers.pop(token, None)

    def serve(self, connection: socket.socket) -> None:
        """Let a data connection in and take its chunks until it ends.

        Raises:
            FrameError: its token was never given out, or was used before.
        """
        hello = bytearray(len(STREAM_HELLO) + _TOKEN_BYTES)
        read_into(connection, memoryview(hello))
        with self._lock:
            receiver = self._receivers.pop(bytes(hello[len(STREAM_HELLO) :]), None)
        if receiver is None or not hello.startswith(STREAM_HELLO):
            raise FrameError("a data connection without a token that is good")
        receiver.stream(connection)
