"""Agent to agent: mutual TLS over blocking sockets in threads (docs/protocol.md, section 6)."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from migration_agent.metrics import REFUSED
from migration_agent.ports import PeerState, PeerUnreachable, Sending, TransferFailed
from migration_agent.transport.direct import Receiver, send_entries
from migration_agent.transport.frames import Answer, FrameError, Question, read_frame, write_frame
from migration_agent.transport.manifest import EntryDigest, ManifestError, entries_below
from migration_agent.trust import Trust, Untrusted

log = logging.getLogger(__name__)

_CONNECT_SECONDS = 5.0
_HANDSHAKE_SECONDS = 5.0
_DATA_SECONDS = 30.0
_SETTLE_SECONDS = 15.0
_CONNECTIONS_MAX = 32
_PAUSES_SECONDS = (0.3, 1.0)


class Refused(Exception):
    """The question is not answered; the message tells the peer why."""


@dataclass(frozen=True)
class Admission:
    """What one peer may send now."""

    directory: Path
    containers: tuple[str, ...]
    progress: Callable[[int], None]
    """Raises when the migration was given up."""


class PeerHandler(Protocol):
    """What the agent does with questions; called in the connections' threads, may block. All raise `Refused`."""

    def admit(self, peer: str, question: Question) -> Admission:
        """Let this peer send, and nobody else until `admitted_done`."""
        ...

    def admitted_done(self, migration: str, entries: tuple[EntryDigest, ...] | None, error: str | None) -> None:
        """Take the end of an admitted sending: verified entries, or why there are none."""
        ...

    def settle(self, peer: str, question: Question) -> PeerState:
        """Say what became of a migration here."""
        ...

    def intact(self, peer: str, migration: str) -> bool:
        """Say whether the source of a migration could go on."""
        ...


class PeerServer:
    """Accepts known agents and answers one question per connection, each in a thread of its own."""

    def __init__(self, trust: Trust, handler: PeerHandler, host: str, port: int) -> None:
        """Bind; the port is open when this returns."""
        self._trust = trust
        self._handler = handler
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._thread = threading.Thread(target=self._accept, name="peers", daemon=True)

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Accept nobody any more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        if self._thread.is_alive():
            self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, address = self._listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                log.warning("a connection from %s is refused: %d are open", address[0], _CONNECTIONS_MAX)
                connection.close()
                continue
            threading.Thread(target=self._serve, args=(connection, address[0]), daemon=True).start()

    def _serve(self, plain: socket.socket, address: str) -> None:
        try:
            with plain:
                plain.settimeout(_HANDSHAKE_SECONDS)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._trust.context(server=True).wrap_socket(plain, server_side=True) as connection:
                    self._answer(connection, self._trust.node_of(connection))
        except (Untrusted, ssl.SSLCertVerificationError) as error:
            log.warning("an agent at %s is not known (yet): %s", address, error)
            REFUSED.labels("peer", "untrusted").inc()
            self._trust.refresh()
        except (OSError, FrameError) as error:
            log.info("the connection from %s ended: %s", address, error)
        except Exception:
            log.exception("the connection from %s failed", address)
        finally:
            self._slots.release()

    def _answer(self, connection: ssl.SSLSocket, peer: str) -> None:
        connection.settimeout(_DATA_SECONDS)
        question = read_frame(connection, Question)
        try:
            match question.op:
                case "send":
                    answer = self._receive(connection, peer, question)
                case "settle":
                    answer = Answer(state=self._handler.settle(peer, question))
                case "intact":
                    answer = Answer(intact=self._handler.intact(peer, question.migration))
                case _:
                    raise Refused(f"unknown operation {question.op[:64]!r}")  # noqa: TRY301  # one way out
        except (Refused, ManifestError) as error:
            log.warning("migration %s: %s of node %s: %s", question.migration, question.op[:64], peer, error)
            REFUSED.labels("peer", "refused").inc()
            answer = Answer(error=str(error))
        write_frame(connection, answer)

    def _receive(self, connection: ssl.SSLSocket, peer: str, question: Question) -> Answer:
        admission = self._handler.admit(peer, question)
        entries: tuple[EntryDigest, ...] | None = None
        error: str | None = "the connection broke"
        try:
            receiver = Receiver(admission.directory, admission.containers, question, admission.progress)
            write_frame(connection, Answer(ok=True))
            entries, error = receiver.receive(connection), None
        except (ManifestError, FrameError, Refused, OSError) as failure:
            error = str(failure)
            raise
        finally:
            self._handler.admitted_done(question.migration, entries, error)
        return Answer(ok=True)


class PeerClient:
    """Asks other agents; implements `ports.Peers`."""

    def __init__(self, trust: Trust) -> None:
        self._trust = trust

    def send(self, sending: Sending) -> None:
        """Send a checkpoint. See `Peers`."""
        try:
            entries = entries_below(sending.directory)
        except (ManifestError, OSError) as error:
            raise TransferFailed(f"the checkpoint on this node is not usable: {error}") from error
        total = sum(entry.size for entry in entries)
        question = Question(op="send", migration=sending.migration, entries=len(entries), bytes=total)

        def progress(done: int) -> None:
            sending.progress(done)
            if sending.stop.is_set():
                raise TransferFailed("the migration was given up during the transfer")

        with self._asked(sending.node, question, _DATA_SECONDS) as (connection, answer):
            _demand(answer)
            try:
                send_entries(connection, entries, progress)
                _demand(read_frame(connection, Answer))
            except (OSError, FrameError) as error:
                raise TransferFailed(_last_words(connection) or f"the connection broke: {error}") from error

    def settle(self, node: str, migration: str, *, promise: bool, settled: bool = False) -> PeerState:
        """Ask the target what became of it. See `Peers`."""
        question = Question(op="settle", migration=migration, promise=promise, settled=settled)
        with self._asked(node, question, _SETTLE_SECONDS) as (_, answer):
            try:
                return PeerState(answer.state or "")
            except ValueError:
                raise PeerUnreachable(f"node {node} answered: {answer.error or answer.state}") from None

    def intact(self, node: str, migration: str) -> bool:
        """Ask the source whether it could go on. See `Peers`."""
        with self._asked(node, Question(op="intact", migration=migration), _SETTLE_SECONDS) as (_, answer):
            if answer.intact is None:
                raise PeerUnreachable(f"node {node} answered: {answer.error}")
            return answer.intact

    @contextmanager
    def _asked(
        self, node: str, question: Question, timeout: float
    ) -> Generator[tuple[ssl.SSLSocket, Answer], None, None]:
        """Connect, ask, and yield connection and first answer.

        It is tried again with a fresh list of agents: the peer may have moved, or may not have known us yet.
        """
        for pause in (*_PAUSES_SECONDS, None):
            try:
                connection, answer = self._ask(node, question, timeout)
                break
            except (OSError, FrameError, Untrusted) as error:
                if pause is None or isinstance(error, TimeoutError):
                    raise PeerUnreachable(f"the agent of node {node} cannot be asked: {error}") from error
                time.sleep(pause)
                self._trust.refresh()
        else:
            raise AssertionError("the last pause is None")
        with connection:
            yield connection, answer

    def _ask(self, node: str, question: Question, timeout: float) -> tuple[ssl.SSLSocket, Answer]:
        connection = self._connect(node)
        try:
            connection.settimeout(timeout)
            write_frame(connection, question)
            return connection, read_frame(connection, Answer)
        except BaseException:
            connection.close()
            raise

    def _connect(self, node: str) -> ssl.SSLSocket:
        peer = self._trust.peer(node)
        if peer is None:
            raise Untrusted(f"there is no MigrationNode {node} with endpoint and certificate")
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


def _demand(answer: Answer) -> None:
    if not answer.ok:
        raise TransferFailed(answer.error or "the peer did not accept it")


def _last_words(connection: ssl.SSLSocket) -> str | None:
    """Return why the peer broke off, when it said so before it closed."""
    with suppress(OSError, FrameError):
        connection.settimeout(1)
        return read_frame(connection, Answer).error
    return None
