"""What the benchmark moves: redis, a light writer and a clock; runs in the container, standard library only.

    python3 -c SOURCE MEBIBYTES

It starts redis on a Unix socket, so that nothing depends on TCP, fills it with values that do not compress, and writes
`READY`. From then on a thread ticks every millisecond and another one increments a counter about 1000 times a second;
both keep their longest gaps by the wall clock, which the nodes share: CRIU lets the monotonic one stand still. When the
mount namespace is another one, it has been moved: it reads random keys as fast as it can in the first second and in the
tenth, compares what was acknowledged with what redis has, writes `FINDINGS` and stays.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import random
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

SOCKET = "/tmp/redis.sock"
READY, FINDINGS = Path("/tmp/ready.json"), Path("/tmp/findings.json")
VALUE_BYTES = 1000
KEY_BYTES = 1100
"""What redis needs for a key with its value."""
TICK = 0.001
GAP = 5_000_000
"""Nanoseconds; shorter gaps are the scheduler's."""
KEPT_GAPS = 50
CHECKED = 2000
BATCH = 500
NAMESPACE = Path("/proc/self/ns/mnt")
SECOND = 1_000_000_000


class Redis:
    """Just enough of the redis protocol."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(SOCKET)
        self.answers = self.socket.makefile("rb")

    def send(self, *commands: tuple[bytes, ...]) -> None:
        words = (
            b"*%d\r\n" % len(it) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in it) for it in commands
        )
        self.socket.sendall(b"".join(words))

    def answer(self) -> bytes:
        head = self.answers.readline()
        if not head or head.startswith(b"-"):
            raise RuntimeError(f"redis: {head!r}")
        if head[:1] != b"$":
            return head[1:-2]
        size = int(head[1:])
        return self.answers.read(size + 2)[:-2] if size >= 0 else b""

    def call(self, *words: bytes) -> bytes:
        self.send(words)
        return self.answer()


class Gaps:
    """The longest gaps between two moments."""

    def __init__(self) -> None:
        self.last = time.time_ns()
        self.kept: list[tuple[int, int, int]] = []

    def pass_(self) -> int:
        """Return the gap since the last time."""
        now = time.time_ns()
        gap, began = now - self.last, self.last
        self.last = now
        if gap > GAP:
            heapq.heappush(self.kept, (gap, began, now))
            if len(self.kept) > KEPT_GAPS:
                heapq.heappop(self.kept)
        return gap

    def told(self) -> list[tuple[int, int]]:
        return [(began, ended) for _, began, ended in sorted(self.kept, reverse=True)]


class Ticker(threading.Thread):
    """Notices every time in which the process stood still, and the move."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gaps = Gaps()
        self.moved = threading.Event()
        self.moved_at = 0

    def run(self) -> None:
        home = NAMESPACE.readlink()
        while True:
            time.sleep(TICK)
            if self.gaps.pass_() > GAP and not self.moved.is_set() and NAMESPACE.readlink() != home:
                self.moved_at = self.gaps.last
                self.moved.set()


class Writer(threading.Thread):
    """Increments a counter and counts what was acknowledged."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.gaps = Gaps()
        self.acknowledged = 0
        self.going = True

    def run(self) -> None:
        redis = Redis()
        while self.going:
            redis.call(b"INCR", b"written")
            self.acknowledged += 1
            self.gaps.pass_()
            time.sleep(TICK)


def value(number: int) -> bytes:
    return hashlib.shake_128(b"%d" % number).digest(VALUE_BYTES)


def fill(redis: Redis, keys: int) -> None:
    for first in range(0, keys, BATCH):
        numbers = range(first, min(first + BATCH, keys))
        redis.send(*((b"SET", b"key:%d" % it, value(it)) for it in numbers))
        for _ in numbers:
            redis.answer()


def rate(redis: Redis, keys: int, began: int) -> float:
    """Return how many random keys could be read per second until one second after that moment."""
    done, until = 0, began + SECOND
    while time.time_ns() < until:
        redis.call(b"GET", b"key:%d" % random.randrange(keys))  # noqa: S311 - not a secret
        done += 1
    return float(done)


def write(path: Path, **values: object) -> None:
    new = path.with_suffix(".new")
    new.write_text(json.dumps(values))
    new.replace(path)


def connect() -> Redis:
    for _ in range(1000):
        try:
            return Redis()
        except OSError:
            time.sleep(0.01)
    return Redis()


def main() -> None:
    keys = int(sys.argv[1]) * 1024 * 1024 // KEY_BYTES
    server = ("redis-server", "--port", "0", "--unixsocket", SOCKET, "--save", "", "--appendonly", "no")
    subprocess.Popen(server, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    redis = connect()
    fill(redis, keys)
    before = rate(redis, keys, time.time_ns())
    ticker, writer = Ticker(), Writer()
    writer.start()
    ticker.start()
    write(READY, requestsPerSecond=before)

    ticker.moved.wait()
    began = ticker.moved_at
    first = rate(redis, keys, began)
    time.sleep(max(0.0, (began + 9 * SECOND - time.time_ns()) / SECOND))
    tenth = rate(redis, keys, began + 9 * SECOND)
    writer.going = False
    writer.join()
    checked = random.sample(range(keys), min(CHECKED, keys))
    write(
        FINDINGS,
        movedAt=began,
        gaps=ticker.gaps.told(),
        writerGaps=writer.gaps.told(),
        acknowledged=writer.acknowledged,
        found=int(redis.call(b"GET", b"written") or 0),
        wrong=sum(redis.call(b"GET", b"key:%d" % it) != value(it) for it in checked),
        checked=len(checked),
        requestsBefore=before,
        requestsFirst=first,
        requestsTenth=tenth,
        residentBytes=int(redis.call(b"INFO", b"memory").split(b"used_memory_rss:")[1].split()[0]),
    )
    threading.Event().wait()


if __name__ == "__main__":
    main()
