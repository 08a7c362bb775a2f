"""Two ends of TCP connections, in pods; standard library only. Usage: talker.py server | talker.py client HOST FILE.

The server acknowledges each number that it has taken, keeps all in memory, and gives them back on the line `all`. The
client keeps one connection busy and one idle, and writes a JSON line to FILE for each acknowledged number, and for each
connection that ended: how. It connects again, for ever.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path

PORT = 7000
PATIENCE = 60.0
"""Seconds without a word after which a connection is taken for dead: a reset is seen at once."""
taken: list[int] = []


def serve(connection: socket.socket) -> None:
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            if line.strip() == "all":
                lines.write(json.dumps(taken) + "\n")
            elif line.strip() != "idle":
                taken.append(int(line))
                lines.write(line)
            lines.flush()


def server() -> None:
    with socket.create_server(("", PORT)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection,), daemon=True).start()


def connect(host: str) -> socket.socket:
    while True:
        try:
            connection = socket.create_connection((host, PORT), 1)
        except OSError:
            time.sleep(0.05)
        else:
            connection.settimeout(PATIENCE)
            return connection


def busy(host: str, file: Path) -> None:
    n = 0
    while True:
        with connect(host) as connection, connection.makefile("rw") as lines:
            try:
                while True:
                    n += 1
                    lines.write(f"{n}\n")
                    lines.flush()
                    if lines.readline() != f"{n}\n":
                        raise EOFError  # noqa: TRY301  # told like what the socket raises
                    say(file, {"acknowledged": n})
                    time.sleep(0.01)
            except (OSError, EOFError) as error:
                say(file, {"busy": type(error).__name__})


def idle(host: str, file: Path) -> None:
    while True:
        with connect(host) as connection:
            connection.sendall(b"idle\n")
            try:
                how = "EOFError" if not connection.recv(1) else "answered"
            except OSError as error:
                how = type(error).__name__
            if how != "TimeoutError":
                say(file, {"idle": how})


lock = threading.Lock()


def say(file: Path, what: dict[str, object]) -> None:
    with lock, file.open("a") as log:
        log.write(json.dumps(what) + "\n")


if __name__ == "__main__":
    if sys.argv[1] == "server":
        server()
    threading.Thread(target=idle, args=(sys.argv[2], Path(sys.argv[3])), daemon=True).start()
    busy(sys.argv[2], Path(sys.argv[3]))
