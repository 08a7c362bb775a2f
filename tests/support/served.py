"""A small server, told what to do over HTTP, its standard input and files. Runs in a pod: standard library only.

It prints 1, 2, 3, …, and `told LINE` for each line of its standard input. GET /health is 200 unless /tmp/sick is there;
GET /end/N ends it with that exit code; anything else is answered with the last number.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

n = 0


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/end/"):
            os._exit(int(self.path.rpartition("/")[2]))
        sick = self.path == "/health" and Path("/tmp/sick").exists()
        self.send_response(500 if sick else 200)
        self.end_headers()
        self.wfile.write(str(n).encode())

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # as the base class has it
        """The log is for the numbers."""


def listen() -> None:
    for line in sys.stdin:
        print(f"told {line.strip()}", flush=True)


if __name__ == "__main__":
    threading.Thread(target=ThreadingHTTPServer(("", 8080), Handler).serve_forever, daemon=True).start()
    threading.Thread(target=listen, daemon=True).start()
    while True:
        n += 1
        print(n, flush=True)
        time.sleep(0.1)
