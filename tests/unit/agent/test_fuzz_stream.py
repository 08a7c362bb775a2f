"""Whatever a peer sends after it was let in, the reception ends, and leaves what was meant or nothing that counts.

Seeded, so that a failure comes again; `SEED=… pytest` looks elsewhere.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from migration_agent.transport.chunks import CHUNK_BYTES, HEADER_BYTES, FormatError
from migration_agent.transport.frames import Frame, FrameError, Question
from migration_agent.transport.manifest import Manifest, checked_path, sealed_manifest
from migration_agent.transport.receiver import Receiver
from migration_agent.transport.workspace import Workspace
from support.agent import MIGRATION
from support.transfer import SEAL, listed, record_of, sealed

SEED = int(os.environ.get("SEED", "7"))
ROUNDS = 300
CONTENTS = {"main/images/inventory.img": b"inventory", "main/images/pages-1.img": bytes(range(256)) * 64}
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**63, 1e308, "", "..", "/etc/passwd", "main/images/../../../evil", "main/images/a\x00b",
    "main/images/new.img", "_receipts", "_shared/mqueue.tar", "x" * 600, [], {}, "\ud800",
)  # fmt: skip


class Sent(NamedTuple):
    """What a peer sends."""

    frames: list[dict[str, Any] | bytes]
    """On the control connection; bytes are sent as they are."""
    chunks: list[bytes]


def honest() -> Sent:
    """Return a whole transfer."""
    chunks = [sealed(path, 0, content) for path, content in CONTENTS.items()]
    entries = [
        listed(path, len(content), record_of(chunk, content))
        for (path, content), chunk in zip(CONTENTS.items(), chunks, strict=True)
    ]
    blob = sealed_manifest(SEAL, Manifest(migration=MIGRATION, chunk_bytes=CHUNK_BYTES, entries=tuple(entries)))
    announced = [Frame(entry=path).dump() for path in CONTENTS]
    return Sent([*announced, Frame(expected=20_000).dump(), Frame(manifest=len(blob)).dump(), blob], chunks)


def mutants() -> Iterator[Sent]:
    """Yield transfers with parts changed, left out, repeated, in another order, cut off, or sealed for other places."""
    chance = random.Random(SEED)  # noqa: S311  # repeatable
    deeds: tuple[Callable[[Sent, random.Random], None], ...] = (_field, _part, _byte, _place, _cut)
    for _ in range(ROUNDS):
        whole = honest()
        for _ in range(chance.randint(1, 3)):
            chance.choice(deeds)(whole, chance)
        yield whole


def _field(sent: Sent, chance: random.Random) -> None:
    frames = [frame for frame in sent.frames if isinstance(frame, dict)]
    if frames:
        field = chance.choice(("entry", "blob", "expected", "manifest", "unknown"))
        chance.choice(frames)[field] = chance.choice(NASTY)


def _part(sent: Sent, chance: random.Random) -> None:
    parts: list[Any] = chance.choice((sent.frames, sent.chunks))
    if parts:
        at = chance.randrange(len(parts))
        chance.choice((lambda: parts.pop(at), lambda: parts.append(parts[at]), lambda: chance.shuffle(parts)))()


def _byte(sent: Sent, chance: random.Random) -> None:
    if sent.chunks:
        at = chance.randrange(len(sent.chunks))
        chunk = bytearray(sent.chunks[at])
        if chunk:
            place = chance.randrange(min(len(chunk), 2 * HEADER_BYTES))
            chunk[place] ^= 1 << chance.randrange(8)
        sent.chunks[at] = bytes(chunk)


def _place(sent: Sent, chance: random.Random) -> None:
    """Add a chunk that is authentic and belongs nowhere: who was let in has the key."""
    path = chance.choice((*CONTENTS, "main/images/new.img", "main/rootfs-diff.tar", "../evil"))
    index = chance.choice((0, 1, 2, 2**20, 2**32 - 1))
    sent.chunks.append(sealed(path, index, chance.choice((b"evil", bytes(CHUNK_BYTES), b"x" * 5000))))
    if chance.random() < 0.5:
        sent.frames.insert(0, {"entry": path})


def _cut(sent: Sent, chance: random.Random) -> None:
    parts: list[Any] = chance.choice((sent.frames, sent.chunks))
    if parts and isinstance(parts[-1], bytes):
        parts[-1] = parts[-1][: chance.randrange(len(parts[-1]) + 1)]


def wire(frames: list[dict[str, Any] | bytes]) -> bytes:
    """Return frames as they are sent."""
    said = bytearray()
    for frame in frames:
        if isinstance(frame, dict):
            content = json.dumps(frame).encode("utf-8", "surrogatepass")
            said += len(content).to_bytes(4, "big") + content
        else:
            said += frame
    return bytes(said)


def receive(directory: Path, sent: Sent) -> bool:
    """Receive it all; False when it was refused."""
    workspace = Workspace(directory, ("main",), SEAL, CHUNK_BYTES)
    question = Question(op="send", migration=MIGRATION, streams=1, chunk_bytes=CHUNK_BYTES)
    receiver = Receiver(workspace, SEAL, question, None, lambda _, __: None)
    control, stream = socket.socketpair(), socket.socketpair()
    said = ((control[0], wire(sent.frames)), (stream[0], b"".join(sent.chunks)))
    threads = [threading.Thread(target=_say, args=it) for it in said]
    threads.append(threading.Thread(target=receiver.stream, args=(stream[1],)))
    try:
        for thread in threads:
            thread.start()
        receiver.run(control[1])
    except (FormatError, FrameError):
        return False
    finally:
        control[1].close()
        for thread in threads:
            thread.join()
        for it in (control[0], *stream):
            it.close()
        workspace.close()
    return True


def _say(to: socket.socket, content: bytes) -> None:
    try:
        to.sendall(content)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the other end has heard enough


def test_an_honest_transfer_is_received(tmp_path: Path) -> None:
    assert receive(tmp_path / "it", honest())


@pytest.mark.timeout(120)
def test_i6_i8_whatever_comes_ends_and_what_is_accepted_is_what_was_meant(tmp_path: Path) -> None:
    accepted = 0
    for number, sent in enumerate(mutants()):
        directory = tmp_path / str(number) / "it"
        if receive(directory, sent):
            accepted += 1
            for path, content in CONTENTS.items():
                assert (directory / path).read_bytes() == content, sent
        for file in tmp_path.joinpath(str(number)).rglob("*"):
            if file.is_file() and file.name != "_receipts":
                checked_path(str(file.relative_to(directory)), ("main",))
    assert 0 < accepted < ROUNDS, "some are refused and some are accepted"
