"""Two agents that know each other over real TLS: node-a sends a checkpoint to node-b, or somebody speaks by hand."""

# fakes have the signatures of what they stand for

from __future__ import annotations

import base64
import socket
import ssl
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.certificate import ensure_certificate
from migration_agent.pages.source import Lending
from migration_agent.paths import Layout
from migration_agent.peer import Admission, PeerServer, Refused
from migration_agent.peer_client import PeerClient
from migration_agent.ports import PeerState, Progress, Sending, Stop
from migration_agent.transport.chunks import CHUNK_BYTES, HEADER_BYTES, Header, Record, Seal, Sealer, packed
from migration_agent.transport.frames import HAVE_BYTES, Answer, FrameError, Question, read_frame, write_frame
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.transport.store import StoreOf, no_store
from migration_agent.transport.streams import STREAM_HELLO
from migration_agent.trust import Identity, Peer, Trust
from migration_api.base import Model
from migration_api.shipping import Shipping
from support.agent import MIGRATION, SHIPPING

SEAL = Seal(SHIPPING.key_bytes, MIGRATION)


@dataclass
class Ending:
    """How a reception ended."""

    entries: tuple[ManifestEntry, ...] | None
    error: str | None
    again: bool


@dataclass
class Handler:
    """The receiving agent."""

    directory: Path
    shipping: Shipping = SHIPPING
    endings: list[Ending] = field(default_factory=list[Ending])
    peers: list[str] = field(default_factory=list[str])
    done: threading.Event = field(default_factory=threading.Event)
    lending: Lending | None = None
    called: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(peer, migration) of each question whether the pod is there; it comes at the second."""
    moved: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """(peer, migration) of each word that no memory is needed any more."""
    progress: Callable[[int, int | None], None] = lambda _, __: None

    def admit(self, peer: str, question: Question) -> Admission:
        self.peers.append(peer)
        if question.migration != MIGRATION:
            raise Refused("this node was not told of this migration")
        return Admission(MIGRATION, self.directory, ("main",), self.shipping, self.progress)

    def admitted_done(
        self, migration: str, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool
    ) -> None:
        self.endings.append(Ending(entries, error, again))
        self.done.set()

    def settle(self, peer: str, question: Question) -> PeerState:
        return PeerState.DESTROYED if question.promise else PeerState.UNDECIDED

    def intact(self, peer: str, migration: str) -> bool:
        return True

    def lend(self, peer: str, question: Question) -> Lending:
        if self.lending is None:
            raise Refused("no memory stays here")
        return self.lending

    def ready(self, peer: str, migration: str) -> bool:
        self.called.append((peer, migration))
        return len(self.called) > 1

    def memory_moved(self, peer: str, migration: str) -> None:
        self.moved.append((peer, migration))


class Nodes:
    """Two agents that know each other, and whoever else is made."""

    def __init__(self, root: Path, store_of: StoreOf = no_store) -> None:
        self.root = root
        self.store_of = store_of
        self.known: dict[str, Peer] = {}
        self.handler = Handler(root / "received" / MIGRATION)
        self.trust = self.node("node-b")
        self.serve()
        self.client = self.node("node-a")
        self.publish("node-a", 1)

    def serve(self) -> None:
        """Begin a life of the receiving agent."""
        self.server = PeerServer(self.trust, self.handler, "127.0.0.1", 0, store_of=self.store_of)
        self.server.start()
        self.publish("node-b", self.server.port)

    def node(self, name: str) -> Trust:
        layout = Layout(self.root / name)
        layout.prepare()
        ensure_certificate(layout.certificate, layout.key, name, "127.0.0.1")
        identity = Identity(layout.certificate, layout.key)
        return Trust(identity, layout.peers, lambda: tuple(self.known.values()), refresh_seconds=0)

    def publish(self, name: str, port: int) -> None:
        pem = Layout(self.root / name).certificate.read_text()
        self.known[name] = Peer(node=name, endpoint=f"127.0.0.1:{port}", certificate=pem)

    def sending(self, directory: Path, migration: str = MIGRATION, shipping: Shipping = SHIPPING) -> Sending:
        complete = threading.Event()
        complete.set()
        return Sending("node-b", migration, directory, shipping, complete, Stop(), Progress())

    def send(self, directory: Path, migration: str = MIGRATION, shipping: Shipping = SHIPPING) -> Sending:
        sending = self.sending(directory, migration, shipping)
        PeerClient(self.client, self.store_of).send(sending)
        return sending

    @contextmanager
    def by_hand(self, streams: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Generator[ByHand]:
        """Ask to send, and speak the protocol by hand."""
        self.trust.refresh()
        self.client.refresh()
        address = ("127.0.0.1", self.server.port)
        with (
            socket.create_connection(address, timeout=10) as plain,
            self.client.context(server=False).wrap_socket(plain) as connection,
        ):
            question = Question(op="send", migration=MIGRATION, streams=streams, chunk_bytes=chunk_bytes)
            write_frame(connection, question)
            yield ByHand(connection, address, read_frame(connection, Answer, HAVE_BYTES))


@dataclass
class ByHand:
    """A source that says whatever a test lets it say."""

    connection: ssl.SSLSocket
    address: tuple[str, int]
    answer: Answer

    def say(self, *frames: Model | bytes) -> None:
        for frame in frames:
            if isinstance(frame, bytes):
                self.connection.sendall(frame)
            else:
                write_frame(self.connection, frame)

    def stream(self, *content: bytes, token: str | None = None) -> bool:
        """Send bytes on a data connection and end it; False when it was not let in, or was ended by the other."""
        with socket.create_connection(self.address, timeout=10) as plain:
            try:
                plain.sendall(STREAM_HELLO + bytes.fromhex(token or self.answer.tokens[0]))
                for part in content:
                    plain.sendall(part)
                plain.shutdown(socket.SHUT_WR)
                return plain.recv(1) == b""
            except OSError:
                return False

    def last_answer(self) -> Answer | None:
        """Return what the target says in the end; None when it only closed."""
        try:
            return read_frame(self.connection, Answer)
        except (FrameError, OSError):
            return None


def sealed(path: str, index: int, plain: bytes, seal: Seal = SEAL) -> bytes:
    """Return a chunk as it travels."""
    return bytes(Sealer(seal).sealed(path, index, memoryview(plain), None)[1])


def record_of(chunk: bytes, plain: bytes, seal: Seal = SEAL) -> Record:
    """Return what a manifest says of a chunk that travels so."""
    nonce = Header.parse(chunk[:HEADER_BYTES]).nonce
    return Record(nonce, seal.digest(nonce, plain))


def listed(path: str, size: int, *records: Record) -> ManifestEntry:
    """Return an entry of a manifest."""
    return ManifestEntry(path=path, size=size, chunks=base64.b64encode(packed(list(records))).decode())


def make_checkpoint(directory: Path, pages: bytes) -> Path:
    """Make what a dump leaves of one container."""
    images = directory / "main/images"
    images.mkdir(parents=True)
    (images / "inventory.img").write_bytes(b"inventory")
    (images / "pages-1.img").write_bytes(pages)
    (images / "empty.img").touch()
    (images.parent / "rootfs-diff.tar").write_bytes(b"diff")
    (images.parent / "work").mkdir()
    (images.parent / "work/dump.log").write_text("not sent")
    return directory
