"""I4: what was sent once is not sent again, over broken connections and the deaths of both agents."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migration_agent.peer_client import PeerClient
from migration_agent.ports import GaveUp, Sending, TransferFailed
from migration_agent.transport.chunks import CHUNK_BYTES
from migration_agent.transport.manifest import chunk_count, entries_below
from support.transfer import Nodes, make_checkpoint

PAGES = "main/images/pages-1.img"
CHUNKS = 24


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    it = Nodes(tmp_path)
    yield it
    it.server.close()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "checkpoint", os.urandom(CHUNKS * CHUNK_BYTES - 100))


def total(checkpoint: Path) -> int:
    return sum(chunk_count(entry.size) for entry in entries_below(checkpoint))


def arrived_whole(nodes: Nodes, checkpoint: Path) -> None:
    assert nodes.handler.endings[-1].entries is not None
    for entry in entries_below(checkpoint):
        assert (nodes.handler.directory / entry.path).read_bytes() == entry.file.read_bytes()
    assert not (nodes.handler.directory / "_receipts").exists()


def breaking_after(nodes: Nodes, chunks: int) -> None:
    """Let the target's connection break once so many chunks are there."""

    def progress(count: int, _: int | None) -> None:
        if count >= chunks * CHUNK_BYTES:
            nodes.handler.progress = lambda _, __: None
            raise ConnectionResetError("broken by the test")

    nodes.handler.progress = progress


def receipts(nodes: Nodes) -> int:
    return len((nodes.handler.directory / "_receipts").read_text().splitlines())


def test_i4_a_broken_connection_costs_only_the_missing_chunks(nodes: Nodes, checkpoint: Path) -> None:
    breaking_after(nodes, 8)
    sending = nodes.send(checkpoint)
    arrived_whole(nodes, checkpoint)
    assert [ending.again for ending in nodes.handler.endings[:-1]] == [True]
    progress = sending.progress
    assert progress.chunks_resumed >= 8
    assert progress.done == progress.expected
    assert progress.trouble == ""


def partly(nodes: Nodes, checkpoint: Path, chunks: int = 8) -> int:
    """Send a part, then let both agents be gone; return how many chunks the target has."""
    breaking_after(nodes, chunks)
    sending = nodes.sending(checkpoint)
    original = nodes.handler.admitted_done

    def done(*args: object, **named: object) -> None:
        sending.stop.set()
        original(*args, **named)  # type: ignore[arg-type]

    nodes.handler.admitted_done = done
    with pytest.raises(GaveUp):
        PeerClient(nodes.client).send(sending)
    nodes.handler.admitted_done = original
    nodes.server.close()
    nodes.serve()
    nodes.client.refresh()
    return receipts(nodes)


def test_i4_both_agents_in_a_new_life_send_only_the_missing_chunks(nodes: Nodes, checkpoint: Path) -> None:
    there = partly(nodes, checkpoint)
    assert 8 <= there < total(checkpoint)
    progress = nodes.send(checkpoint).progress
    arrived_whole(nodes, checkpoint)
    assert progress.chunks_resumed == there
    assert progress.chunks_sent == total(checkpoint) - there


def test_i6_what_was_damaged_at_the_target_meanwhile_is_sent_again(nodes: Nodes, checkpoint: Path) -> None:
    there = partly(nodes, checkpoint)
    lines = (nodes.handler.directory / "_receipts").read_text().splitlines()
    first = next(line for line in lines if line.startswith(PAGES)).split()
    with (nodes.handler.directory / PAGES).open("r+b") as file:
        file.seek(int(first[1]) * CHUNK_BYTES + 5)
        file.write(b"damaged")
    progress = nodes.send(checkpoint).progress
    arrived_whole(nodes, checkpoint)
    assert progress.chunks_resumed == there - 1


def test_i6_what_the_source_has_otherwise_now_is_sent_again(nodes: Nodes, checkpoint: Path) -> None:
    there = partly(nodes, checkpoint)
    with (checkpoint / PAGES).open("r+b") as file:
        file.write(b"another")
    progress = nodes.send(checkpoint).progress
    arrived_whole(nodes, checkpoint)
    assert there - 1 <= progress.chunks_resumed <= there


@pytest.mark.parametrize("tail", [f"{PAGES} 3", "x" * 40 + "\n", f"{PAGES} 3 4 zz zz\n", "\0"])
def test_i4_a_torn_receipt_counts_nothing(nodes: Nodes, checkpoint: Path, tail: str) -> None:
    there = partly(nodes, checkpoint)
    with (nodes.handler.directory / "_receipts").open("a") as file:
        file.write(tail)
    progress = nodes.send(checkpoint).progress
    arrived_whole(nodes, checkpoint)
    assert progress.chunks_resumed == there


def test_what_is_refused_is_not_tried_again(nodes: Nodes, checkpoint: Path) -> None:
    (checkpoint / "main/images/inventory.img").unlink()
    with pytest.raises(TransferFailed, match=r"no inventory.img"):
        nodes.send(checkpoint)
    assert len(nodes.handler.endings) == 1
    assert not nodes.handler.endings[0].again


def follow(nodes: Nodes, sending: Sending) -> tuple[threading.Thread, list[Exception]]:
    failures: list[Exception] = []

    def send() -> None:
        try:
            PeerClient(nodes.client).send(sending)
        except Exception as error:  # noqa: BLE001  # the test looks at it
            failures.append(error)

    thread = threading.Thread(target=send)
    thread.start()
    return thread, failures


def grow(nodes: Nodes, tmp_path: Path) -> tuple[Path, Sending, bytes]:
    """Return a dump under way: two whole chunks and a bit of a third are written."""
    directory = tmp_path / "growing"
    (directory / "main/images").mkdir(parents=True)
    sending = nodes.sending(directory)
    sending.complete.clear()
    return directory, sending, os.urandom(5 * CHUNK_BYTES // 2)


def test_chunks_travel_while_the_dump_is_written(nodes: Nodes, tmp_path: Path) -> None:
    directory, sending, pages = grow(nodes, tmp_path)
    thread, failures = follow(nodes, sending)
    with (directory / PAGES).open("wb", buffering=0) as file:
        file.write(pages[: CHUNK_BYTES + 7])
        wait_until(lambda: sending.progress.chunks_sent == 1)
        file.write(pages[CHUNK_BYTES + 7 :])
        wait_until(lambda: sending.progress.chunks_sent == 2)
    assert thread.is_alive()
    (directory / "main/images/inventory.img").write_bytes(b"inventory")
    sending.complete.set()
    thread.join(20)
    assert failures == []
    arrived_whole(nodes, directory)
    assert sending.progress.chunks_sent == 4


def test_a_dump_that_takes_back_what_was_sent_is_not_believed(nodes: Nodes, tmp_path: Path) -> None:
    directory, sending, pages = grow(nodes, tmp_path)
    thread, failures = follow(nodes, sending)
    (directory / PAGES).write_bytes(pages)
    wait_until(lambda: sending.progress.chunks_sent == 2)
    (directory / PAGES).write_bytes(pages[:10])
    sending.complete.set()
    thread.join(20)
    assert "became shorter" in str(failures[0])
    assert nodes.handler.done.wait(20)
    assert nodes.handler.endings[-1].entries is None


def wait_until(holds: Callable[[], bool], seconds: float = 20) -> None:
    event = threading.Event()
    for _ in range(int(seconds / 0.01)):
        if holds():
            return
        event.wait(0.01)
    raise AssertionError("it did not come to pass")
