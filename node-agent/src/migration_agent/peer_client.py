"""Asking other nodes' agents: mutual TLS over blocking sockets in threads (docs/protocol.md, section 6)."""

from __future__ import annotations

import logging
import socket
import ssl
import struct
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager

from migration_agent.pages.wire import Lost
from migration_agent.ports import GaveUp, PeerState, PeerUnreachable, Sending, Stop, TransferFailed
from migration_agent.transport.bandwidth import Bandwidth
from migration_agent.transport.chunks import CHUNK_BYTES, FormatError
from migration_agent.transport.frames import HAVE_BYTES, Answer, FrameError, Question, read_frame, write_frame
from migration_agent.transport.sender import Lane, Sender, StoreLane, StreamLane
from migration_agent.transport.store import Store, StoreFailure, StoreOf, no_store
from migration_agent.transport.storing import nobody
from migration_agent.transport.streams import STREAM_HELLO, STREAMS
from migration_agent.trust import Peer, Trust, Untrusted

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_DATA_SECONDS = 30.0
_SETTLE_SECONDS = 15.0
_PAUSES_SECONDS = (0.3, 1.0)
_AGAIN_SECONDS = 0.5
_STORE_LANES = 4


class PeerClient:
    """Asks other agents; implements `ports.Peers`."""

    def __init__(self, trust: Trust, store_of: StoreOf = no_store, *, limit: Bandwidth | None = None) -> None:
        """`limit`: what this node may send for all migrations together."""
        self._trust = trust
        self._store_of = store_of
        self._limit = limit

    def send(self, sending: Sending) -> None:
        """Send a checkpoint. See `Peers`."""
        own = sending.shipping.bytes_per_second
        limits = [limit for limit in (Bandwidth(own) if own else None, self._limit) if limit]
        while True:
            try:
                answer = self._attempt(sending, limits)
            except (OSError, FrameError, Untrusted) as error:
                trouble = f"{f'node {sending.node}' if sending.node else 'the store'} cannot be sent to: {error}"
            except (FormatError, StoreFailure) as error:
                raise TransferFailed(f"the checkpoint cannot be sent: {error}") from error
            else:
                if answer.ok:
                    return
                if not answer.again:
                    raise TransferFailed(answer.error or "the peer did not accept it")
                trouble = f"node {sending.node}: {answer.error}"
            if sending.stop.is_set():
                raise GaveUp
            log.warning("migration %s: %s; what is missing is sent again", sending.migration, trouble)
            sending.progress.trouble = trouble
            if sending.stop.wait(_AGAIN_SECONDS):
                raise GaveUp
            self._trust.refresh()

    def settle(self, node: str, migration: str, *, promise: bool, settled: bool = False) -> PeerState:
        """Ask the target what became of it. See `Peers`."""
        question = Question(op="settle", migration=migration, promise=promise, settled=settled)
        answer = self._asked(node, question)
        try:
            return PeerState(answer.state or "")
        except ValueError:
            raise PeerUnreachable(f"node {node} answered: {answer.error or answer.state}") from None

    def intact(self, node: str, migration: str) -> bool:
        """Ask the source whether it could go on. See `Peers`."""
        answer = self._asked(node, Question(op="intact", migration=migration))
        if answer.intact is None:
            raise PeerUnreachable(f"node {node} answered: {answer.error}")
        return answer.intact

    def ready(self, node: str, migration: str) -> bool:
        """Ask the target whether its pod waits at the gate. See `Peers`."""
        answer = self._asked(node, Question(op="ready", migration=migration))
        if answer.ok is None:
            raise PeerUnreachable(f"node {node} answered: {answer.error}")
        return answer.ok

    def memory_moved(self, node: str, migration: str) -> None:
        """Tell the source that its memory is not needed any more. See `Peers`."""
        answer = self._asked(node, Question(op="memory-moved", migration=migration))
        if not answer.ok:
            raise PeerUnreachable(f"node {node} answered: {answer.error}")

    @contextmanager
    def borrow(self, node: str, migration: str, container: str) -> Generator[socket.socket]:
        """Open a connection on which a container's memory can be asked for (docs/protocol.md, section 10).

        Raises:
            PeerUnreachable: the source's agent does not answer now.
            Lost: it has nothing to give, and never will.
        """
        try:
            connection = self._connect(node)
        except (OSError, Untrusted) as error:
            self._trust.refresh()
            raise PeerUnreachable(f"the agent of node {node} cannot be asked: {error}") from error
        with connection:
            connection.settimeout(_DATA_SECONDS)
            write_frame(connection, Question(op="pages", migration=migration, container=container))
            answer = read_frame(connection, Answer)
            if not answer.ok and answer.again:
                raise PeerUnreachable(f"node {node} answered: {answer.error}")
            if not answer.ok:
                raise Lost(answer.error or "its agent refuses without a reason")
            yield connection

    def _attempt(self, sending: Sending, limits: Sequence[Bandwidth]) -> Answer:
        """Send what the peer does not have and return its last word."""
        store = self._store_of(sending.migration, sending.shipping)
        if sending.node is None:
            return self._stored(sending, store, limits)
        node = sending.node
        question = Question(
            op="send",
            migration=sending.migration,
            chunk_bytes=CHUNK_BYTES,
            streams=0 if store is not None else STREAMS,
        )
        with self._connect(node) as control, sending.stop.guarding(control), ExitStack() as streams:
            control.settimeout(_DATA_SECONDS)
            write_frame(control, question)
            answer = read_frame(control, Answer, HAVE_BYTES)
            if not answer.ok or answer.complete:
                return answer

            def lanes(tell: Callable[[str], None]) -> list[Lane]:
                if store is not None:
                    return [StoreLane(store, sending, tell) for _ in range(_STORE_LANES)]
                if len(answer.tokens) != STREAMS:
                    raise FrameError(f"{len(answer.tokens)} streams were granted, not {STREAMS}")
                opened = (self._stream(node, token, sending.stop) for token in answer.tokens)
                return [StreamLane(streams.enter_context(stream)) for stream in opened]

            return Sender(control, sending, answer, lanes, store, limits).run()

    def _stored(self, sending: Sending, store: Store | None, limits: Sequence[Bandwidth]) -> Answer:
        """Put all of it into its store, where nobody fetches it."""
        if store is None:
            raise FormatError("no store is named to keep it in")
        with nobody() as control, sending.stop.guarding(control):

            def lanes(tell: Callable[[str], None]) -> list[Lane]:
                return [StoreLane(store, sending, tell) for _ in range(_STORE_LANES)]

            return Sender(control, sending, Answer(ok=True), lanes, store, limits).run()

    @contextmanager
    def _stream(self, node: str, token: str, stop: Stop) -> Generator[socket.socket]:
        """Open a data connection: in the clear, since what travels there is sealed; the token says whose it is."""
        address = self._peer(node).address
        with socket.create_connection(address, timeout=_CONNECT_SECONDS) as plain, stop.guarding(plain):
            # The kernel's own timeout leaves the socket blocking: a chunk is one call, not one for each piece of it.
            plain.settimeout(None)
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(_DATA_SECONDS), 0))
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.sendall(STREAM_HELLO + bytes.fromhex(token))
            yield plain

    def _asked(self, node: str, question: Question) -> Answer:
        """Connect, ask, and return the answer.

        It is tried again with a fresh list of agents: the peer may have moved, or may not have known us yet.
        """
        for pause in (*_PAUSES_SECONDS, None):
            try:
                with self._connect(node) as connection:
                    connection.settimeout(_SETTLE_SECONDS)
                    write_frame(connection, question)
                    return read_frame(connection, Answer)
            except (OSError, FrameError, Untrusted) as error:
                if pause is None or isinstance(error, TimeoutError):
                    raise PeerUnreachable(f"the agent of node {node} cannot be asked: {error}") from error
                time.sleep(pause)
                self._trust.refresh()
        raise AssertionError("the last pause is None")

    def _peer(self, node: str) -> Peer:
        peer = self._trust.peer(node)
        if peer is None:
            raise Untrusted(f"there is no MigrationNode {node} with endpoint and certificate")
        return peer

    def _connect(self, node: str) -> ssl.SSLSocket:
        peer = self._peer(node)
        plain = socket.create_connection(peer.address, timeout=_CONNECT_SECONDS)
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = self._trust.context(server=False).wrap_socket(plain)
        except BaseException:
            plain.close()
            raise
        if self._trust.node_of(connection) != node:
            connection.close()
            raise Untrusted(f"another node's agent answers at {peer.endpoint}")
        return connection
