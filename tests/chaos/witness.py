"""The witness: takes every increment of every counter, outside their pods, and says which came twice or never.

Standard library only: it runs in a pod. `witness.py` serves; `witness.py REPORT` prints what was seen, as JSON.
"""

from __future__ import annotations

import json
import socket
import socketserver
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

PORT = 7000
_RECENT = 400
_SHORTEST_GAP = 0.3


@dataclass
class Counter:
    """What was seen of one counter."""

    life: str = ""
    earlier: set[str] = field(default_factory=set[str])
    marks: list[str] = field(default_factory=list[str])
    """The mark of each increment of this life, in order."""
    doubled: list[str] = field(default_factory=list[str])
    lost: list[str] = field(default_factory=list[str])
    seen: deque[tuple[float, str]] = field(default_factory=lambda: deque[tuple[float, str]](maxlen=_RECENT))
    """When and from where the last increments came."""
    gaps: list[float] = field(default_factory=list[float])
    """How long it stood still, each time, in seconds."""

    def take(self, life: str, number: int, mark: str, peer: str, at: float) -> None:
        """Judge one increment.

        Two copies of one process have the same life and the same last number, and different marks from then on.
        """
        if life in self.earlier:
            self.doubled.append(f"{number}: of an earlier life, from {peer}")
            return
        if life != self.life:
            if self.life:
                self.earlier.add(self.life)
                self.lost.append(f"all of a life that had come to {len(self.marks)}; a new one began at {peer}")
            self.life, self.marks = life, []
        expected = len(self.marks) + 1
        if number < expected:
            if self.marks[number - 1] != mark:
                self.doubled.append(f"{number}: again from {peer}, with another mark; it had come to {expected - 1}")
            return  # told again: the answer was lost
        if number > expected:
            self.lost.append(f"{expected} to {number - 1}, before {number} from {peer}")
            self.marks += [""] * (number - expected)
        self.marks.append(mark)
        if self.seen and at - self.seen[-1][0] > _SHORTEST_GAP:
            self.gaps.append(round(at - self.seen[-1][0], 2))
        self.seen.append((at, peer))

    def report(self, now: float) -> dict[str, Any]:
        """Return it as JSON has it."""
        return {
            "number": len(self.marks),
            "lives": len(self.earlier) + bool(self.life),
            "doubled": self.doubled,
            "lost": self.lost,
            "gaps": self.gaps,
            "recent": [[round(now - at, 3), peer] for at, peer in self.seen],
        }


class Ledger:
    """All counters; for any number of threads."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._lock = threading.Lock()

    def take(self, line: str, peer: str, at: float) -> None:
        """Take a counter's line: NAME LIFE NUMBER MARK."""
        name, life, number, mark = line.split()
        with self._lock:
            self._counters.setdefault(name, Counter()).take(life, int(number), mark, peer, at)

    def report(self, now: float) -> dict[str, Any]:
        """Return what was seen, by the counters' names."""
        with self._lock:
            return {name: counter.report(now) for name, counter in self._counters.items()}


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    ledger = Ledger()


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        try:
            while line := self.rfile.readline(1000).decode().strip():
                if line == "REPORT":
                    self.wfile.write(json.dumps(server.ledger.report(time.monotonic())).encode())
                    return
                server.ledger.take(line, self.client_address[0], time.monotonic())
                self.wfile.write(b"ok\n")
        except OSError:
            pass  # whoever told it comes again


def main() -> None:
    """Serve, or ask the one that serves here."""
    if sys.argv[1:] == ["REPORT"]:
        with socket.create_connection(("127.0.0.1", PORT), 10) as connection:
            connection.sendall(b"REPORT\n")
            print(connection.makefile().read())
        return
    with Server(("", PORT), Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
