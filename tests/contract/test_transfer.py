"""A checkpoint's way between two agents over real TLS: whole, damaged, cut off, too big, astray."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from pydantic import SecretStr

from migration_agent.peer_client import PeerClient
from migration_agent.ports import GaveUp, TransferFailed
from migration_agent.transport.chunks import (
    CHUNK_BYTES,
    HEADER_BYTES,
    TAG_BYTES,
    Encoding,
    FormatError,
    Header,
    Opener,
    Record,
    Seal,
    entry_tag,
)
from migration_agent.transport.frames import Frame
from migration_agent.transport.manifest import (
    MANIFEST_BYTES,
    Manifest,
    ManifestEntry,
    checkpoint_bytes,
    entries_below,
    sealed_manifest,
    verify,
)
from migration_api.base import Model
from migration_api.shipping import Shipping
from support.agent import MIGRATION, SHIPPING
from support.transfer import SEAL, Nodes, listed, make_checkpoint, record_of, sealed

INVENTORY = "main/images/inventory.img"
PAGES = "main/images/pages-1.img"
OTHER_KEY = Shipping(key=SecretStr(base64.b64encode(b"k" * 32).decode()))
CONTENT = b"data"
GOOD = sealed(INVENTORY, 0, CONTENT)
LARGE = os.urandom(5 * CHUNK_BYTES // 2)


def end(*entries: ManifestEntry, seal: Seal = SEAL, migration: str = MIGRATION) -> tuple[Model | bytes, ...]:
    blob = sealed_manifest(seal, Manifest(migration=migration, entries=entries))
    return (Frame(manifest=len(blob)), blob)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    it = Nodes(tmp_path)
    yield it
    it.server.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", LARGE + bytes(CHUNK_BYTES) + b"text " * 400_000)


@pytest.mark.parametrize("compression", [True, False])
def test_a_checkpoint_arrives_as_it_was_and_private(nodes: Nodes, checkpoint: Path, compression: bool) -> None:
    sending = nodes.send(checkpoint, shipping=SHIPPING.model_copy(update={"compression": compression}))
    received = nodes.handler.directory
    for entry in entries_below(checkpoint):
        copy = received / entry.path
        assert copy.read_bytes() == entry.file.read_bytes()
        assert copy.stat().st_mode & 0o777 == 0o600
    assert received.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in received.iterdir()) == ["_pod", "main"]
    assert not (received / "main/work").exists()
    assert "node-a" in nodes.handler.peers
    assert sending.progress.done == checkpoint_bytes(checkpoint) == sending.progress.expected
    ending = nodes.handler.endings[-1]
    assert ending.error is None or ending.entries is not None
    assert ending.entries is not None
    assert verify(SEAL, received, ending.entries)
    with (received / PAGES).open("r+b") as file:
        file.seek(2_000_000)
        file.write(b"!")
    assert not verify(SEAL, received, ending.entries)


def test_a_hole_is_left_where_the_checkpoint_is_empty(nodes: Nodes, tmp_path: Path) -> None:
    size = 16 * CHUNK_BYTES
    nodes.send(make_checkpoint(tmp_path / "zeros", bytes(size)))
    status = (nodes.handler.directory / PAGES).stat()
    assert status.st_size == size
    assert status.st_blocks * 512 < size // 2


def test_the_target_refuses_what_it_was_not_told_of(nodes: Nodes, checkpoint: Path) -> None:
    with pytest.raises(TransferFailed, match="not told"):
        nodes.send(checkpoint, migration="other")


def test_giving_up_ends_the_transfer(nodes: Nodes, checkpoint: Path) -> None:
    sending = nodes.sending(checkpoint)
    sending.stop.set()
    with pytest.raises(GaveUp):
        PeerClient(nodes.client).send(sending)


def test_giving_up_ends_a_transfer_whose_peer_says_nothing(nodes: Nodes, checkpoint: Path) -> None:
    """I5: a thaw does not wait for a network that is gone."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        nodes.publish("node-b", deaf.getsockname()[1])
        nodes.client.refresh()
        sending = nodes.sending(checkpoint)
        ended = threading.Event()

        def send() -> None:
            with pytest.raises(GaveUp):
                PeerClient(nodes.client).send(sending)
            ended.set()

        thread = threading.Thread(target=send)
        thread.start()
        deaf.accept()[0].close()  # the first attempt fails
        kept = deaf.accept()  # the second one waits
        sending.stop.set()
        thread.join(20)
        assert ended.is_set()
        kept[0].close()


def test_i6_with_the_wrong_key_nothing_is_accepted(nodes: Nodes, checkpoint: Path) -> None:
    with pytest.raises(TransferFailed, match=r"entry main/.*, chunk \d+ is not authentic"):
        nodes.send(checkpoint, shipping=OTHER_KEY)
    ending = nodes.handler.endings[-1]
    assert ending.entries is None
    assert not ending.again


def flipped(blob: bytes, at: int) -> bytes:
    return blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]


FOREIGN = Seal(SHIPPING.key_bytes, "another-migration")


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        pytest.param(flipped(GOOD, len(GOOD) - 1), f"entry {INVENTORY}, chunk 0 is not authentic", id="damaged"),
        pytest.param(flipped(GOOD, HEADER_BYTES), f"entry {INVENTORY}, chunk 0 is not authentic", id="damaged-content"),
        pytest.param(flipped(GOOD, 19), f"entry {INVENTORY}, chunk 1 is not authentic", id="another-place"),
        pytest.param(
            GOOD[:8] + entry_tag(PAGES) + GOOD[16:], f"entry {PAGES}, chunk 0 is not authentic", id="another-entry"
        ),
        pytest.param(
            sealed(INVENTORY, 0, CONTENT, FOREIGN), f"entry {INVENTORY}, chunk 0 is not authentic", id="replayed"
        ),
        pytest.param(sealed("main/images/x.img", 0, CONTENT), "not announced", id="unknown-entry"),
        pytest.param(flipped(GOOD, 0), "no chunk of format version", id="magic"),
        pytest.param(flipped(GOOD, 4), "no chunk of format version", id="version"),
        pytest.param(flipped(GOOD, 5), "cannot have", id="encoding"),
        pytest.param(GOOD[:5] + b"\x09" + GOOD[6:], "no chunk of format version", id="unknown-encoding"),
        pytest.param(GOOD[:20] + b"\xff\xff\xff\xff" + GOOD[24:], "cannot have", id="too-large"),
        pytest.param(GOOD[:20] + b"\0\0\0\0" + GOOD[24:], "cannot have", id="empty"),
        pytest.param(GOOD[:24] + b"\xff\xff\xff\xff" + GOOD[28:], "cannot have", id="sealed-too-large"),
    ],
)
def test_i6_a_chunk_that_is_not_exactly_right_is_refused_and_named(
    nodes: Nodes, chunk: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migration_agent.transport.receiver.IDLE_SECONDS", 1.0)
    with nodes.by_hand(streams=1) as source:
        source.say(Frame(entry=INVENTORY), Frame(entry=PAGES))
        source.stream(chunk)
        answer = source.last_answer()
    assert answer is not None
    assert message in (answer.error or "")
    assert not answer.again
    assert nodes.handler.endings[-1].entries is None


ONE = listed(INVENTORY, 4, record_of(GOOD, CONTENT))


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        pytest.param((Frame(entry="main/images/../../../evil"),), "no entry", id="astray"),
        pytest.param((Frame(entry="/etc/passwd"),), "no entry", id="absolute"),
        pytest.param((Frame(entry="other/images/inventory.img"),), "no entry", id="other-container"),
        pytest.param((Frame(entry="main/images/a/b"),), "no entry", id="deeper"),
        pytest.param((Frame(entry="main/hook.json"),), "no entry", id="hook"),
        pytest.param((Frame(entry="_receipts"),), "no entry", id="receipts"),
        pytest.param(
            end(ONE, listed(PAGES, 4, record_of(GOOD, CONTENT))), f"entry {PAGES}, chunk 0 is missing", id="missing"
        ),
        pytest.param(end(listed(PAGES, 0)), f"entry {INVENTORY} came but is not in the manifest", id="unlisted"),
        pytest.param(
            end(listed(INVENTORY, 4, Record(bytes(12), bytes(16)))),
            f"entry {INVENTORY}, chunk 0 is not the one that the manifest lists",
            id="another-chunk",
        ),
        pytest.param(
            end(listed(INVENTORY, 3, record_of(GOOD, CONTENT))),
            f"entry {INVENTORY}, chunk 0 is not the one that the manifest lists",
            id="another-size",
        ),
        pytest.param(end(listed(INVENTORY, 0)), f"entry {INVENTORY} has more chunks", id="truncated"),
        pytest.param(end(ONE, listed("main/hook.json", 0)), "no entry", id="manifest-astray"),
        pytest.param(end(ONE, seal=FOREIGN), "the manifest is not authentic", id="foreign-manifest"),
        pytest.param(end(ONE, migration="other"), "is that of migration other", id="replayed-manifest"),
        pytest.param((Frame(manifest=4), b"junk"), "no manifest of format version", id="no-manifest"),
        pytest.param(
            (Frame(manifest=60), b"CMMF\x02" + bytes(55)), "no manifest of format version", id="other-version"
        ),
        pytest.param((Frame(manifest=60), b"CMMF\x01" + bytes(55)), "not authentic", id="empty-manifest"),
    ],
)
def test_i6_a_manifest_or_entry_that_is_not_exactly_right_is_refused(
    nodes: Nodes, frames: tuple[Model | bytes, ...], message: str
) -> None:
    with nodes.by_hand(streams=1) as source:
        source.say(Frame(entry=INVENTORY))
        source.stream(GOOD)
        source.say(*frames)
        answer = source.last_answer()
    assert answer is not None
    assert message in (answer.error or "")
    assert not answer.again
    assert nodes.handler.endings[-1].entries is None


def test_i6_a_checkpoint_without_an_inventory_is_incomplete(nodes: Nodes) -> None:
    diff = "main/rootfs-diff.tar"
    chunk = sealed(diff, 0, CONTENT)
    with nodes.by_hand(streams=1) as source:
        source.say(Frame(entry=diff))
        source.stream(chunk)
        source.say(*end(listed(diff, 4, record_of(chunk, CONTENT))))
        answer = source.last_answer()
    assert answer is not None
    assert "no inventory.img" in (answer.error or "")


@pytest.mark.parametrize("cut", [1, 39, 40, 41, len(GOOD) - 1])
def test_i6_a_stream_that_ends_within_a_chunk_gives_nothing_but_may_come_again(nodes: Nodes, cut: int) -> None:
    with nodes.by_hand(streams=1) as source:
        source.say(Frame(entry=INVENTORY))
        source.stream(GOOD[:cut])
        answer = source.last_answer()
    assert answer is not None
    assert answer.again
    ending = nodes.handler.endings[-1]
    assert ending.entries is None
    assert ending.again


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xff\xff\xff",
        b"\x00\x00\x00\x02[]",
        (MANIFEST_BYTES + 1).to_bytes(4, "big"),
        b'\x00\x00\x00\x16{"manifest":999999999}',
    ],
)
def test_i6_a_control_connection_that_breaks_the_protocol_or_ends_early_gives_nothing(
    nodes: Nodes, content: bytes
) -> None:
    with nodes.by_hand(streams=1) as source:
        source.say(content)
    assert nodes.handler.done.wait(10)
    ending = nodes.handler.endings[-1]
    assert ending.entries is None
    assert ending.error


def test_a_token_lets_one_connection_in_and_only_while_the_transfer_lasts(nodes: Nodes) -> None:
    with nodes.by_hand(streams=2) as source:
        source.say(Frame(entry=INVENTORY))
        source.stream(GOOD)
        source.stream(flipped(GOOD, 50))  # the same token again: not read
        source.stream(flipped(GOOD, 50), token="00" * 32)
        source.stream(token=source.answer.tokens[1])
        source.say(*end(ONE))
        answer = source.last_answer()
        assert answer is not None
        assert answer.ok
    assert (nodes.handler.directory / INVENTORY).read_bytes() == CONTENT


def test_i8_a_chunk_size_is_agreed_on_within_bounds(nodes: Nodes) -> None:
    for size in (0, 4096, CHUNK_BYTES + 1):
        with nodes.by_hand(chunk_bytes=size) as source:
            assert "not accepted" in (source.answer.error or "")


def test_a_blob_is_refused_where_no_store_was_agreed_on(nodes: Nodes) -> None:
    with nodes.by_hand(streams=1) as source:
        source.say(Frame(blob="x"))
        assert source.last_answer() is not None
    assert "store" in (nodes.handler.endings[-1].error or "")


def test_more_than_there_is_room_for_is_refused(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migration_agent.transport.workspace.ROOM_LEFT_BYTES", 1 << 60)
    with nodes.by_hand(streams=1) as source:
        source.say(Frame(entry=INVENTORY))
        source.stream(GOOD)
        answer = source.last_answer()
    assert answer is not None
    assert "bytes free" in (answer.error or "")
    assert not answer.again


def test_a_compressed_chunk_does_not_unpack_to_more_than_it_says() -> None:
    bomb = zstandard.ZstdCompressor().compress(bytes(64 << 20))
    unsized = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(8192))
    two = zstandard.ZstdCompressor().compress(b"a" * 8192) * 2
    for content in (bomb, unsized, two, b"junk"):
        header = Header(entry_tag(PAGES), 7, 8192, len(content) + TAG_BYTES, Encoding.ZSTD, os.urandom(12))
        blob = memoryview(bytearray(header.sealed))
        SEAL.encrypt(header, PAGES, content, blob)
        with pytest.raises(FormatError, match=f"entry {PAGES}, chunk 7"):
            Opener(SEAL).opened(header, PAGES, blob)


def _link(images: Path) -> None:
    (images / "link").symlink_to("/etc/passwd")


def _directory(images: Path) -> None:
    (images / "a").mkdir()


@pytest.mark.parametrize("spoil", [_link, _directory])
def test_only_plain_files_are_sent(checkpoint: Path, spoil: Callable[[Path], None]) -> None:
    spoil(checkpoint / "main/images")
    with pytest.raises(FormatError, match="not a plain file"):
        entries_below(checkpoint)
