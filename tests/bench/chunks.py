"""What a chunk of 1 MiB costs, step by step, on this machine: `make bench-chunks`.

Processor time of one thread, so that a busy machine changes it little. Each step is the agent's own code, or the one
call of the kernel that it makes.
"""

from __future__ import annotations

import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import zstandard

from migration_agent.transport.chunks import CHUNK_BYTES, HEADER_BYTES, Header, Opener, Seal, Sealer, is_zero

UID = "be9c0000-0000-4000-8000-000000000000"
PATH = "main/images/pages-1.img"
CHUNKS = 256
REPEATS = 5


def cost(step: Callable[[int], object]) -> float:
    """Return the microseconds of processor time that a step takes for a chunk: the best of a few runs."""
    found: list[float] = []
    for _ in range(REPEATS):
        began = time.thread_time()
        for index in range(CHUNKS):
            step(index)
        found.append((time.thread_time() - began) / CHUNKS * 1e6)
    return min(found)


def say(side: str, what: str, microseconds: float) -> None:
    print(f"| {side} | {what} | {microseconds:.0f} |")


def files(directory: Path, plain: memoryview) -> None:
    """Measure reading from a tmpfs, and writing new pages into one."""
    source = os.open(directory / "source", os.O_RDWR | os.O_CREAT)
    for index in range(CHUNKS):
        os.pwrite(source, plain, index * CHUNK_BYTES)
    buffer = memoryview(bytearray(CHUNK_BYTES))
    say("source", "read from tmpfs", cost(lambda index: os.preadv(source, [buffer], index * CHUNK_BYTES)))
    os.close(source)
    target = os.open(directory / "target", os.O_RDWR | os.O_CREAT)

    def write(index: int) -> None:
        if index == 0:
            os.ftruncate(target, 0)
        os.pwrite(target, plain, index * CHUNK_BYTES)

    say("target", "write to tmpfs", cost(write))
    os.close(target)


def sockets(blob: bytes) -> None:
    """Measure sending and receiving over loopback."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sender = socket.create_connection(listener.getsockname())
        receiver, _ = listener.accept()
    into = memoryview(bytearray(len(blob)))
    received: list[float] = []

    def receive() -> None:
        began = time.thread_time()
        for _ in range(CHUNKS * REPEATS):
            receiver.recv_into(into, 0, socket.MSG_WAITALL)
        received.append((time.thread_time() - began) / CHUNKS / REPEATS * 1e6)

    with sender, receiver:
        thread = threading.Thread(target=receive)
        thread.start()
        say("source", "send", cost(lambda _: sender.sendall(blob)))
        thread.join()
        say("target", "receive", received[0])


def main() -> None:
    """Print a table."""
    seal = Seal(bytes(32), UID)
    sealer, opener = Sealer(seal), Opener(seal)
    plain = memoryview(bytearray(os.urandom(CHUNK_BYTES)))
    _, sealed = sealer.sealed(PATH, 0, plain, None)
    blob = bytes(sealed)
    header, body = Header.parse(blob[:HEADER_BYTES]), memoryview(bytearray(blob[HEADER_BYTES:]))
    into = memoryview(bytearray(CHUNK_BYTES))
    zstd = zstandard.ZstdCompressor(level=1)
    print("| | step, 1 MiB of random bytes | µs |", "|---|---|---|", sep="\n")
    say("both", "digest (GMAC)", cost(lambda _: seal.digest(header.nonce, plain)))
    say("source", "find out that it is not zero", cost(lambda _: is_zero(plain)))
    say("source", "seal, with the digest", cost(lambda index: sealer.sealed(PATH, index, plain, None)))
    say("source", "zstd, which does not pay here", cost(lambda _: zstd.compress(plain)))
    say("target", "decrypt", cost(lambda _: seal.decrypt(header, PATH, body, into)))
    say("target", "open: decrypt and digest", cost(lambda _: opener.opened(header, PATH, body)))
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        files(Path(directory), plain)
    sockets(blob)


if __name__ == "__main__":
    main()
