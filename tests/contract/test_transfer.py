"""A checkpoint's way between two agents over real TLS: whole, damaged, cut off, too big, astray, from a stranger."""

# fakes have the signatures of what they stand for

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from migration_agent.certificate import ensure_certificate
from migration_agent.paths import Layout
from migration_agent.peer import Admission, PeerClient, PeerServer, Refused
from migration_agent.ports import PeerState, PeerUnreachable, Sending, TransferFailed
from migration_agent.transport.frames import (
    Answer,
    ChunkFrame,
    EntryFrame,
    FrameError,
    Question,
    SendFrame,
    read_frame,
    write_frame,
)
from migration_agent.transport.manifest import EntryDigest, ManifestError, checkpoint_bytes, entries_below, verify
from migration_agent.trust import Identity, Peer, Trust
from migration_api.base import Model
from support.agent import MIGRATION


@dataclass
class Handler:
    """The receiving agent."""

    directory: Path
    results: list[tuple[tuple[EntryDigest, ...] | None, str | None]] = field(
        default_factory=list[tuple[tuple[EntryDigest, ...] | None, str | None]]
    )
    peers: list[str] = field(default_factory=list[str])
    done: threading.Event = field(default_factory=threading.Event)

    def admit(self, peer: str, question: Question) -> Admission:
        self.peers.append(peer)
        if question.migration != MIGRATION:
            raise Refused("this node was not told of this migration")
        return Admission(self.directory, ("main",), lambda _: None)

    def admitted_done(self, migration: str, entries: tuple[EntryDigest, ...] | None, error: str | None) -> None:
        self.results.append((entries, error))
        self.done.set()

    def settle(self, peer: str, question: Question) -> PeerState:
        return PeerState.DESTROYED if question.promise else PeerState.UNDECIDED

    def intact(self, peer: str, migration: str) -> bool:
        return True


class Nodes:
    """Two agents that know each other, and whoever else is made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.known: dict[str, Peer] = {}
        self.handler = Handler(root / "received" / MIGRATION)
        self.trust = self.node("node-b")
        self.server = PeerServer(self.trust, self.handler, "127.0.0.1", 0)
        self.server.start()
        self.publish("node-b", self.server.port)
        self.client = self.node("node-a")
        self.publish("node-a", 1)

    def node(self, name: str) -> Trust:
        layout = Layout(self.root / name)
        layout.prepare()
        ensure_certificate(layout.certificate, layout.key, name, "127.0.0.1")
        identity = Identity(layout.certificate, layout.key)
        return Trust(identity, layout.peers, lambda: tuple(self.known.values()), refresh_seconds=0)

    def publish(self, name: str, port: int) -> None:
        pem = Layout(self.root / name).certificate.read_text()
        self.known[name] = Peer(node=name, endpoint=f"127.0.0.1:{port}", certificate=pem)

    def send(self, directory: Path, migration: str = MIGRATION, stop: threading.Event | None = None) -> None:
        sending = Sending("node-b", migration, directory, lambda _: None, stop or threading.Event())
        PeerClient(self.client).send(sending)

    def raw(self, *frames: Model | bytes, entries: int = 1, announced: int = 1000) -> Answer | None:
        """Speak the protocol by hand; return the last answer, None when the other end closed."""
        self.trust.refresh()
        self.client.refresh()
        address = ("127.0.0.1", self.server.port)
        with (
            socket.create_connection(address, timeout=10) as plain,
            self.client.context(server=False).wrap_socket(plain) as connection,
        ):
            write_frame(connection, Question(op="send", migration=MIGRATION, entries=entries, bytes=announced))
            answer = read_frame(connection, Answer)
            if not answer.ok:
                return answer
            for frame in frames:
                if isinstance(frame, bytes):
                    connection.sendall(frame)
                else:
                    write_frame(connection, frame)
            plain_end = connection.unwrap if not frames else None
            try:
                if plain_end:
                    plain_end()
                return read_frame(connection, Answer)
            except (FrameError, OSError, ValueError):
                return None


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    it = Nodes(tmp_path)
    yield it
    it.server.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    images = tmp_path / "checkpoint/main/images"
    images.mkdir(parents=True)
    (images / "inventory.img").write_bytes(b"inventory")
    (images / "pages-1.img").write_bytes(bytes(range(256)) * 40_000)
    (images / "empty.img").touch()
    (images.parent / "rootfs-diff.tar").write_bytes(b"diff")
    (images.parent / "work").mkdir()
    (images.parent / "work/dump.log").write_text("not sent")
    return tmp_path / "checkpoint"


def test_a_checkpoint_arrives_as_it_was_and_private(nodes: Nodes, checkpoint: Path) -> None:
    nodes.send(checkpoint)
    received = nodes.handler.directory
    for entry in entries_below(checkpoint):
        copy = received / entry.path
        assert copy.read_bytes() == entry.file.read_bytes()
        assert copy.stat().st_mode & 0o777 == 0o600
    assert received.stat().st_mode & 0o777 == 0o700
    assert not (received / "main/work").exists()
    assert "node-a" in nodes.handler.peers
    entries, error = nodes.handler.results[-1]
    assert error is None
    assert entries is not None
    assert verify(received, entries)
    with (received / "main/images/pages-1.img").open("r+b") as file:
        file.seek(5_000_000)
        file.write(b"!")
    assert not verify(received, entries)


def test_the_total_is_what_arrives(nodes: Nodes, checkpoint: Path) -> None:
    """An admin's progress ends at its total."""
    nodes.send(checkpoint)
    entries, _ = nodes.handler.results[-1]
    assert checkpoint_bytes(checkpoint) == sum(entry.size for entry in entries or ())


def test_the_target_refuses_what_it_was_not_told_of(nodes: Nodes, checkpoint: Path) -> None:
    with pytest.raises(TransferFailed, match="not told"):
        nodes.send(checkpoint, migration="other")


def test_giving_up_ends_the_transfer(nodes: Nodes, checkpoint: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(TransferFailed, match="given up"):
        nodes.send(checkpoint, stop=stop)
    assert nodes.handler.done.wait(10)
    assert nodes.handler.results[-1][0] is None


def entry(path: str, size: int = 4) -> EntryFrame:
    return EntryFrame(entry=path, size=size, mode=0o600)


def chunk(content: bytes = b"data", digest: str | None = None) -> ChunkFrame:
    return ChunkFrame(chunk=len(content), sha256=digest or hashlib.sha256(content).hexdigest())


GOOD = "main/images/inventory.img"
DIGEST = hashlib.sha256(hashlib.sha256(b"data").digest()).hexdigest()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ((entry(GOOD), chunk(digest="0" * 64), b"data"), "damaged"),
        ((entry("main/images/../../../evil"),), "no entry"),
        ((entry("/etc/passwd"),), "no entry"),
        ((entry("other/images/inventory.img"),), "no entry"),
        ((entry("main/images/a/b"),), "no entry"),
        ((entry("main/hook.json"),), "no entry"),
        ((entry(GOOD, size=1001),), "more than it announced"),
        ((entry(GOOD), chunk(), b"data", entry(GOOD)), "twice"),
        ((entry(GOOD), chunk(), b"data", entry("main/rootfs-diff.tar")), "more than it announced"),
        ((entry(GOOD), chunk(), b"data", SendFrame(end=True)), "manifest"),
        (
            (
                entry("main/rootfs-diff.tar"),
                chunk(),
                b"data",
                SendFrame(end=True, entries=(EntryDigest(path="main/rootfs-diff.tar", size=4, sha256=DIGEST),)),
            ),
            "inventory",
        ),
    ],
)
def test_i6_what_is_not_exactly_right_is_refused(nodes: Nodes, frames: tuple[Model | bytes, ...], message: str) -> None:
    answer = nodes.raw(*frames)
    assert answer is not None
    assert message in (answer.error or "")
    assert nodes.handler.results[-1][0] is None


@pytest.mark.parametrize(
    "frames",
    [
        (entry(GOOD, size=8), chunk(b"data" * 2), b"half"),
        (entry(GOOD), b"\xff\xff\xff\xff"),
        (entry(GOOD, size=8), chunk()),
        (),
    ],
)
def test_i6_a_stream_that_breaks_the_protocol_or_ends_early_gives_nothing(
    nodes: Nodes, frames: tuple[Model | bytes, ...]
) -> None:
    def cut(it: Nodes) -> None:
        with socket.create_connection(("127.0.0.1", it.server.port), timeout=10) as plain:
            connection = it.client.context(server=False).wrap_socket(plain)
            write_frame(connection, Question(op="send", migration=MIGRATION, entries=1, bytes=1000))
            assert read_frame(connection, Answer).ok
            for frame in frames:
                if isinstance(frame, bytes):
                    connection.sendall(frame)
                else:
                    write_frame(connection, frame)
            connection.close()

    nodes.trust.refresh()
    nodes.client.refresh()
    cut(nodes)
    assert nodes.handler.done.wait(10)
    entries, error = nodes.handler.results[-1]
    assert entries is None
    assert error


def test_more_than_there_is_room_for_is_refused_before_a_byte_comes(nodes: Nodes) -> None:
    answer = nodes.raw(entry(GOOD), announced=1 << 60)
    assert answer is None or "free" in (answer.error or "")
    assert nodes.handler.done.wait(10)
    assert "free" in (nodes.handler.results[-1][1] or "")
    assert not nodes.handler.directory.exists()


def test_a_stranger_is_not_answered(nodes: Nodes, checkpoint: Path) -> None:
    nodes.client = nodes.node("stranger")
    with pytest.raises(PeerUnreachable):
        nodes.send(checkpoint)
    assert nodes.handler.peers == []


def test_an_agent_that_appeared_later_is_trusted_after_one_refusal(nodes: Nodes) -> None:
    nodes.trust.refresh()
    nodes.client = nodes.node("node-c")
    nodes.publish("node-c", 1)
    assert PeerClient(nodes.client).settle("node-b", MIGRATION, promise=True) is PeerState.DESTROYED


def test_another_node_at_the_endpoint_is_not_asked(nodes: Nodes) -> None:
    impostor = nodes.known["node-b"]
    layout = Layout(nodes.root / "node-x")
    layout.prepare()
    pem = ensure_certificate(layout.certificate, layout.key, "node-x", "127.0.0.1")
    nodes.known["node-x"] = Peer(node="node-x", endpoint=impostor.endpoint, certificate=pem)
    with pytest.raises(PeerUnreachable, match="another node's agent"):
        PeerClient(nodes.client).intact("node-x", MIGRATION)


def test_trust_outlives_the_api_server_and_the_agent(nodes: Nodes) -> None:
    nodes.client.refresh()

    def away() -> tuple[Peer, ...]:
        raise ConnectionError("away")

    layout = Layout(nodes.root / "node-a")
    again = Trust(Identity(layout.certificate, layout.key), layout.peers, away)
    assert again.peer("node-b") == nodes.known["node-b"]


def test_old_tls_is_not_spoken(nodes: Nodes) -> None:
    context = nodes.client.context(server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", nodes.server.port), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)


def _link(images: Path) -> None:
    (images / "link").symlink_to("/etc/passwd")


def _directory(images: Path) -> None:
    (images / "a").mkdir()


@pytest.mark.parametrize("spoil", [_link, _directory])
def test_only_plain_files_are_sent(checkpoint: Path, spoil: Callable[[Path], None]) -> None:
    spoil(checkpoint / "main/images")
    with pytest.raises(ManifestError, match="not a plain file"):
        entries_below(checkpoint)
