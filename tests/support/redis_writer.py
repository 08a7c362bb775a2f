"""A client that writes to a redis all the time and remembers what was acknowledged.

Standard library only: it runs in a pod. Usage: redis_writer.py HOST FILE. It appends one line per acknowledged write
to FILE, reads a random earlier write back after each, and goes on through disconnections. `CHECK` as third argument
reads every acknowledged write back instead and prints one JSON line:
{"acknowledged": N, "lost": N, "wrong": N, "longest_gap_seconds": S}.
"""

from __future__ import annotations

import json
import random
import socket
import sys
import time
from pathlib import Path

PORT = 6379
TIMEOUT = 1.0
"""Seconds; a connection that is silent for so long is given up and made anew."""


class Redis:
    """Just enough of the redis protocol (RESP2), with a time-out on everything."""

    def __init__(self, host: str) -> None:
        self.socket = socket.create_connection((host, PORT), TIMEOUT)
        self.socket.settimeout(TIMEOUT)
        self.lines = self.socket.makefile("rb")

    def call(self, *words: str) -> str | None:
        """Send one command and return its answer as text; None is nil."""
        encoded = [word.encode() for word in words]
        self.socket.sendall(
            b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        )
        head = self.lines.readline()
        if not head.endswith(b"\r\n"):
            raise ConnectionError("the connection was closed")
        kind, rest = head[:1], head[1:-2].decode()
        if kind == b"-":
            raise RuntimeError(rest)
        if kind != b"$":
            return rest
        size = int(rest)
        if size < 0:
            return None
        data = self.lines.read(size + 2)
        if len(data) != size + 2:
            raise ConnectionError("the connection was closed")
        return data[:-2].decode()

    def close(self) -> None:
        """Forget the connection."""
        self.lines.close()
        self.socket.close()


def write(host: str, log: Path) -> None:
    """Write for ever; a write whose answer did not come is not counted and its key is not used again."""
    number, acknowledged, wrong = 0, 0, 0
    last = time.monotonic()
    gap = 0.0
    redis: Redis | None = None
    with log.open("a", buffering=1) as file:
        while True:
            number += 1
            try:
                redis = redis or Redis(host)
                redis.call("SET", f"written:{number}", str(number))
                file.write(f"{number}\n")
                acknowledged += 1
                gap = max(gap, time.monotonic() - last)
                last = time.monotonic()
                earlier = random.randint(1, number)  # noqa: S311 - not a secret
                found = redis.call("GET", f"written:{earlier}")
                wrong += found not in {str(earlier), None}
            except OSError:
                if redis is not None:
                    redis.close()
                redis = None
                time.sleep(0.05)
            state = Path(f"{log}.new")
            state.write_text(json.dumps({"longest_gap_seconds": round(gap, 3), "wrong": wrong}))
            state.replace(f"{log}.state")  # whole at any moment: this process ends by a signal


def check(host: str, log: Path) -> None:
    """Read every acknowledged write back and print the result."""
    redis = Redis(host)
    numbers = log.read_text().split()
    lost = sum(redis.call("GET", f"written:{number}") != number for number in numbers)
    state = json.loads(Path(f"{log}.state").read_text())
    print(json.dumps({"acknowledged": len(numbers), "lost": lost, **state}))


if __name__ == "__main__":
    action = check if sys.argv[3:] == ["CHECK"] else write
    action(sys.argv[1], Path(sys.argv[2]))
