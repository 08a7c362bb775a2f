"""A checkpoint between two agents through a real volume and a real S3 server: whole, damaged, away, full, limited."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import SecretStr

from migration_agent.peer_client import PeerClient
from migration_agent.ports import TransferFailed
from migration_agent.transport.bandwidth import Bandwidth
from migration_agent.transport.chunks import CHUNK_BYTES
from migration_agent.transport.manifest import MANIFEST_NAME
from migration_agent.transport.objects import Bucket
from migration_agent.transport.store import Place, Store, StoreFailure
from migration_agent.transport.volume import Folder, Volume
from support import s3_server
from support.agent import SHIPPING
from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server
from support.transfer import Nodes, make_checkpoint

pytestmark = pytest.mark.timeout(900)  # the server is built when the test bed has not built it yet

UID = "5f0c7c1e-0000-4000-8000-0000000000ff"
PAGES = os.urandom(3 * CHUNK_BYTES + 4096)
MARKER = b"a-marker-that-must-not-be-readable"


@dataclass
class Spoilt:
    """A store that does something to what it gives, or takes."""

    inner: Store
    got: Callable[[str, bytes], bytes] = lambda _, blob: blob
    before_put: Callable[[str], None] = lambda _: None

    def put(self, name: str, blob: bytes | bytearray | memoryview) -> None:
        self.before_put(name)
        self.inner.put(name, blob)

    def get(self, name: str) -> bytes:
        return self.got(name, self.inner.get(name))

    def list(self) -> tuple[str, ...]:
        return self.inner.list()

    def wipe(self) -> None:
        self.inner.wipe()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server.running(s3_server.server_in(tmp_path_factory.mktemp("s3"), s3_server.binary())) as it:
        yield it


@pytest.fixture
def bucket(server: S3Server) -> Iterator[Bucket]:
    keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    it = Bucket(f"s3://{BUCKET}", keys, endpoint=server.endpoint)
    yield it
    it.store(UID).wipe()


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    path = tmp_path / "volume"
    path.mkdir()
    return Volume(Folder(path, (path,)))


@pytest.fixture(params=["volume", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    return request.getfixturevalue(request.param)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", MARKER + PAGES[len(MARKER) :])


@pytest.fixture
def nodes_of(tmp_path: Path) -> Iterator[Callable[[Store], Nodes]]:
    made: list[Nodes] = []

    def make(store: Store) -> Nodes:
        made.append(Nodes(tmp_path, lambda _, __: store))
        return made[-1]

    yield make
    for nodes in made:
        nodes.server.close()


def test_a_checkpoint_arrives_and_cannot_be_read_on_its_way(
    place: Place, nodes_of: Callable[[Store], Nodes], checkpoint: Path
) -> None:
    store = place.store(UID)
    nodes = nodes_of(store)
    nodes.send(checkpoint)
    received = nodes.handler.directory / "main/images/pages-1.img"
    assert received.read_bytes() == (checkpoint / "main/images/pages-1.img").read_bytes()
    names = store.list()
    assert MANIFEST_NAME in names
    assert len(names) >= 7, "four chunks of memory, one of each other entry that is not empty, the manifest"
    for name in names:
        blob = store.get(name)
        assert MARKER not in blob
        assert b"pages-1" not in blob
        assert b"inventory" not in blob


def flipped(_: str, blob: bytes) -> bytes:
    middle = len(blob) // 2
    return blob[:middle] + bytes([blob[middle] ^ 1]) + blob[middle + 1 :]


def cut(_: str, blob: bytes) -> bytes:
    return blob[:-1]


def empty(_: str, __: bytes) -> bytes:
    return b""


@pytest.mark.parametrize("spoil", [flipped, cut, empty])
def test_i6_a_chunk_that_was_changed_in_the_store_is_refused_and_named(
    place: Place, nodes_of: Callable[[Store], Nodes], checkpoint: Path, spoil: Callable[[str, bytes], bytes]
) -> None:
    nodes = nodes_of(Spoilt(place.store(UID), got=spoil))
    with pytest.raises(TransferFailed, match=r"entry main/\S+, chunk \d+|blob [0-9a-f]{16}-[0-9a-f]{8}"):
        nodes.send(checkpoint)
    assert not nodes.handler.endings[-1].again
    assert nodes.handler.endings[-1].entries is None


def test_i6_a_chunk_in_the_place_of_another_is_refused(
    place: Place, nodes_of: Callable[[Store], Nodes], checkpoint: Path
) -> None:
    seen: list[bytes] = []

    def swapped(_: str, blob: bytes) -> bytes:
        seen.append(blob)
        return seen[0]

    nodes = nodes_of(Spoilt(place.store(UID), got=swapped))
    with pytest.raises(TransferFailed):
        nodes.send(checkpoint)
    assert nodes.handler.endings[-1].entries is None


def test_i6_with_another_key_nothing_is_accepted(
    place: Place, nodes_of: Callable[[Store], Nodes], checkpoint: Path
) -> None:
    nodes = nodes_of(place.store(UID))
    other = SecretStr(base64.b64encode(bytes(32)).decode())
    with pytest.raises(TransferFailed):
        nodes.send(checkpoint, shipping=SHIPPING.model_copy(update={"key": other}))
    assert nodes.handler.endings[-1].entries is None


def test_i4_a_server_that_is_away_for_a_while_costs_only_time(
    server: S3Server, bucket: Bucket, nodes_of: Callable[[Store], Nodes], checkpoint: Path
) -> None:
    """The server is stopped before the third chunk, and started again when a put has failed."""
    counted: list[str] = []
    back = threading.Event()

    def before(name: str) -> None:
        counted.append(name)
        if len(counted) == 3:
            server.stop()
            threading.Timer(2, lambda: (server.start(), back.set())).start()

    nodes = nodes_of(Spoilt(bucket.store(UID), before_put=before))
    sent = nodes.send(checkpoint)
    assert back.is_set()
    assert len(counted) > len(set(counted)), "a put was tried again"
    assert sent.progress.chunks_sent == 6
    received = nodes.handler.directory / "main/images/pages-1.img"
    assert received.read_bytes() == (checkpoint / "main/images/pages-1.img").read_bytes()


def test_a_volume_that_becomes_full_ends_it_with_what_to_do(
    volume: Volume, nodes_of: Callable[[Store], Nodes], checkpoint: Path
) -> None:
    store = volume.store(UID)

    def before(_: str) -> None:
        if len(store.list()) >= 2:
            raise StoreFailure("the shared volume /mnt/shared is full: free some of it, or make it larger")

    nodes = nodes_of(Spoilt(store, before_put=before))
    with pytest.raises(TransferFailed, match="is full: free some of it"):
        nodes.send(checkpoint)


@dataclass
class Counting(Bandwidth):
    """A limit that is never reached, and counts what was asked of it."""

    counts: list[int] = field(default_factory=list[int])

    def take(self, count: int) -> float:
        self.counts.append(count)
        return 0.0


def test_everything_that_is_sent_is_under_the_node_s_limit(
    volume: Volume, nodes_of: Callable[[Store], Nodes], checkpoint: Path
) -> None:
    store = volume.store(UID)
    nodes, limit = nodes_of(store), Counting(1)
    PeerClient(nodes.client, nodes.store_of, limit=limit).send(nodes.sending(checkpoint))
    chunks = [name for name in store.list() if name != MANIFEST_NAME]
    assert sorted(limit.counts) == sorted(len(store.get(name)) for name in chunks)
