"""Answering other nodes' agents: mutual TLS over blocking sockets in threads (docs/protocol.md, section 6)."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from migration_agent.metrics import REFUSED
from migration_agent.pages.source import Lending, serve
from migration_agent.ports import PeerState
from migration_agent.transport.bandwidth import Bandwidth
from migration_agent.transport.chunks import CHUNK_BYTES_MAX, FormatError, Seal
from migration_agent.transport.frames import Answer, FrameError, Question, read_frame, write_frame
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.transport.receiver import Receiver
from migration_agent.transport.store import StoreFailure, StoreOf, no_store
from migration_agent.transport.streams import Streams, is_stream
from migration_agent.transport.workspace import Workspace
from migration_agent.trust import Trust, Untrusted
from migration_api.shipping import Shipping

log = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 5.0
_DATA_SECONDS = 30.0
_CONNECTIONS_MAX = 64
_CHUNK_BYTES_MIN = 1024 * 1024
_PAGE_BYTES = 4096


class Refused(Exception):
    """The question is not answered; the message tells the peer why.

    Attributes:
        again: it may be answered in a moment.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        super().__init__(message)
        self.again = again


@dataclass(frozen=True)
class Admission:
    """What one peer may send now."""

    migration: str
    directory: Path
    containers: tuple[str, ...]
    shipping: Shipping
    progress: Callable[[int, int | None], None]
    """Called with the bytes that are here and those that are expected; raises when no more is wanted."""
    complete: bool = False
    """All of it was received and verified before: nothing is to be sent, and `admitted_done` is not called."""


class PeerHandler(Protocol):
    """What the agent does with questions; called in the connections' threads, may block. All raise `Refused`."""

    def admit(self, peer: str, question: Question) -> Admission:
        """Let this peer send, and nobody else until `admitted_done`."""
        ...

    def admitted_done(
        self, migration: str, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool
    ) -> None:
        """Take the end of an admitted sending: verified entries, or why there are none.

        With `again` the rest may still come; what is here is kept for it.
        """
        ...

    def settle(self, peer: str, question: Question) -> PeerState:
        """Say what became of a migration here."""
        ...

    def intact(self, peer: str, migration: str) -> bool:
        """Say whether the source of a migration could go on."""
        ...

    def lend(self, peer: str, question: Question) -> Lending:
        """Let the target of a migration read memory of the frozen source."""
        ...

    def ready(self, peer: str, migration: str) -> bool:
        """Let the target's pod come to the gate, and say whether it is there."""
        ...

    def memory_moved(self, peer: str, migration: str) -> None:
        """Take note that the target of a migration needs no such memory any more."""
        ...


class PeerServer:
    """Accepts known agents and answers one question per connection, each in a thread of its own."""

    def __init__(
        self,
        trust: Trust,
        handler: PeerHandler,
        host: str,
        port: int,
        *,
        store_of: StoreOf = no_store,
        limit: Bandwidth | None = None,
    ) -> None:
        """Bind; the port is open when this returns. `limit`: what this node may send for all migrations together."""
        self._limit = [limit] if limit else []
        self._trust = trust
        self._store_of = store_of
        self._streams = Streams()
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
                if is_stream(plain):
                    self._streams.serve(plain)
                    return
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
                case "ready":
                    answer = Answer(ok=self._handler.ready(peer, question.migration))
                case "memory-moved":
                    self._handler.memory_moved(peer, question.migration)
                    answer = Answer(ok=True)
                case "pages":
                    self._lend(connection, peer, question)
                    return
                case _:
                    raise Refused(f"unknown operation {question.op[:64]!r}")  # noqa: TRY301  # one way out
        except (Refused, FormatError, StoreFailure) as error:
            log.warning("migration %s: %s of node %s: %s", question.migration, question.op[:64], peer, error)
            REFUSED.labels("peer", "refused").inc()
            answer = Answer(error=str(error), again=isinstance(error, Refused) and error.again)
        write_frame(connection, answer)

    def _lend(self, connection: ssl.SSLSocket, peer: str, question: Question) -> None:
        lending = self._handler.lend(peer, question)
        write_frame(connection, Answer(ok=True))
        serve(connection, lending, self._limit)

    def _receive(self, connection: ssl.SSLSocket, peer: str, question: Question) -> Answer:
        if not _CHUNK_BYTES_MIN <= question.chunk_bytes <= CHUNK_BYTES_MAX or question.chunk_bytes % _PAGE_BYTES:
            raise Refused(f"chunks of {question.chunk_bytes} bytes are not accepted")
        admission = self._handler.admit(peer, question)
        if admission.complete:
            return Answer(ok=True, complete=True)
        entries: tuple[ManifestEntry, ...] | None = None
        error, again = "the connection broke", True
        try:
            entries = self._received(connection, admission, question)
        except (FormatError, StoreFailure) as failure:
            error, again = str(failure), False
            raise
        except (FrameError, OSError) as failure:
            error = str(failure)
            # The control connection may live: then the peer learns at once that it is to send the rest.
            raise Refused(f"a connection broke: {failure}", again=True) from failure
        except Refused as failure:
            error, again = str(failure), failure.again
            raise
        finally:
            self._handler.admitted_done(question.migration, entries, error, again=again)
        return Answer(ok=True)

    def _received(
        self, connection: ssl.SSLSocket, admission: Admission, question: Question
    ) -> tuple[ManifestEntry, ...]:
        seal = Seal(admission.shipping.key_bytes, question.migration)
        store = self._store_of(question.migration, admission.shipping) if question.streams == 0 else None
        workspace = Workspace(admission.directory, admission.containers, seal, question.chunk_bytes)
        try:
            receiver = Receiver(workspace, seal, question, store, admission.progress)
            with self._streams.granted(receiver, question.streams) as tokens:
                write_frame(connection, Answer(ok=True, tokens=tokens, have=workspace.have()))
                return receiver.run(connection)
        finally:
            workspace.close()
