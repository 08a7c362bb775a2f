"""The workload of the chaos tests: counts, and tells the witness of every increment before it makes the next one.

Standard library only: it runs in a pod. Usage: counter.py NAME HOST PORT MEBIBYTES [LISTEN], the last for a probe.

What tells copies apart lies in its memory: a random life, new with every cold start, and a random mark, new with every
increment. A connection may break at any time; then the same increment is told again.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import zlib

TIMEOUT = 2.0
EVERY = 0.02
CHECK_EVERY = 5
"""Increments after which another MiB is compared; a wrong one ends the process, and so this life."""
BALLAST: list[bytes] = []
"""Incompressible memory, so that dump and transfer take their time."""


class Line:
    """One connection to the witness after another."""

    def __init__(self, host: str, port: int) -> None:
        self.where = (host, port)
        self.connection: socket.socket | None = None

    def tell(self, text: str) -> bool:
        """Say a line; False when the witness did not take it: nobody knows whether it came."""
        try:
            if self.connection is None:
                self.connection = socket.create_connection(self.where, TIMEOUT)
            self.connection.sendall(f"{text}\n".encode())
            answer = b""
            while not answer.endswith(b"\n"):
                part = self.connection.recv(100)
                if not part:
                    raise ConnectionResetError
                answer += part
        except OSError:
            if self.connection is not None:
                self.connection.close()
            self.connection = None
            return False
        return answer == b"ok\n"


def answer(port: int) -> None:
    """Take every connection, for ever."""
    with socket.create_server(("", port)) as server:
        while True:
            server.accept()[0].close()


def main(name: str, host: str, port: str, mebibytes: str, listen: str = "") -> None:
    """Count for ever."""
    if listen:
        threading.Thread(target=answer, args=(int(listen),), daemon=True).start()
    BALLAST.extend(os.urandom(1 << 20) for _ in range(int(mebibytes)))
    digests = [zlib.crc32(block) for block in BALLAST]
    line, life, number = Line(host, int(port)), os.urandom(8).hex(), 0
    while True:
        number += 1
        mark = os.urandom(6).hex()
        if number % CHECK_EVERY == 0 and BALLAST:
            at = number // CHECK_EVERY % len(BALLAST)
            if zlib.crc32(BALLAST[at]) != digests[at]:
                sys.exit(f"MiB {at} of the memory is not what it was")
        while not line.tell(f"{name} {life} {number} {mark}"):
            time.sleep(EVERY)
        time.sleep(EVERY)


if __name__ == "__main__":
    main(*sys.argv[1:])
