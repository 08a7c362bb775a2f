"""A real S3 server on loopback: versitygw, over a directory."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REGION = "us-east-1"
ACCESS_KEY = "AKIDFORTESTS"
SECRET_KEY = "a-secret-that-must-not-be-seen-anywhere"
BUCKET = "checkpoints"

_START_SECONDS = 20.0
_TESTBED = Path(__file__).parents[1] / "kind" / "cluster"


def binary() -> str:
    """Return the path of versitygw, as the test bed builds it; from its cache at once."""
    command = (str(_TESTBED), "tool", "--path", "versitygw")
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class S3Server:
    """A server process; what it keeps lies below `directory`, one directory per bucket.

    Attributes:
        certificate: a file with certificate and one with key: the server speaks TLS.
    """

    directory: Path
    binary: str
    port: int
    certificate: tuple[Path, Path] | None = None
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    @property
    def bucket(self) -> Path:
        return self.directory / BUCKET

    def objects(self) -> list[str]:
        """Return the names of all objects in the bucket."""
        return sorted(p.relative_to(self.bucket).as_posix() for p in self.bucket.rglob("*") if p.is_file())

    def start(self) -> None:
        """Start it, and return when it answers."""
        self.bucket.mkdir(parents=True, exist_ok=True)
        keys = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY}
        tls = ("--cert", str(self.certificate[0]), "--key", str(self.certificate[1])) if self.certificate else ()
        self.process = subprocess.Popen(
            (self.binary, "--port", f"127.0.0.1:{self.port}", "--region", REGION, *tls, "posix", str(self.directory)),
            env={**os.environ, **keys},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, "the S3 server has ended"
            assert time.monotonic() < deadline, "the S3 server does not answer"
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        try:
            urllib.request.urlopen(self.endpoint, timeout=1).close()  # noqa: S310  our own server
        except urllib.error.HTTPError:
            return True  # without credentials it is 403
        except urllib.error.URLError as error:
            return "CERTIFICATE_VERIFY_FAILED" in str(error)
        except OSError:
            return False
        return True


@contextmanager
def running(server: S3Server) -> Generator[S3Server, None, None]:
    """Start the server, and stop it at the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def server_in(directory: Path, path: str, certificate: tuple[Path, Path] | None = None) -> S3Server:
    """Return a server of the binary at `path`, on a free port, not started."""
    with socket.create_server(("127.0.0.1", 0)) as it:
        port = it.getsockname()[1]
    return S3Server(directory, path, port, certificate)
