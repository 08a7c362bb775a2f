"""Shells that are kept: a script costs a line over a pipe.

A `kubectl exec` of its own costs API server, kubelet, containerd and runc a third of a second of processor time, and
tests look at nodes again and again.
"""

from __future__ import annotations

import atexit
import os
import secrets
import selectors
import shlex
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO, cast


class ShellGoneError(Exception):
    """The shell ended before it began with the script; the message is what it said."""


class Shell:
    """One command that reads scripts, as `sh` does; runs one at a time."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)

    def run(self, script: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a script in a shell of its own and return its exit code and what it wrote.

        Raises:
            ShellGoneError: it was not begun, so it may be run elsewhere.
            AssertionError: the connection broke while it ran.
            subprocess.TimeoutExpired: it did not end in time.
        """
        mark = secrets.token_hex(8)
        text = (
            f"echo {mark}; sh -c {shlex.quote(script)} </dev/null; code=$?; "
            f"printf '\\n{mark} %d\\n' $code; printf '\\n{mark}\\n' >&2\n"
        )
        try:
            stdin = cast("IO[bytes]", self._process.stdin)
            stdin.write(text.encode())
            stdin.flush()
        except OSError as error:
            raise self._gone(begun=False, script=script, said=self._last_words()) from error
        out, err = self._read(mark.encode(), script, time.monotonic() + timeout, timeout)
        _, _, rest = out.partition(f"{mark}\n".encode())
        stdout, _, code = rest.rpartition(f"\n{mark} ".encode())
        stderr, _, _ = err.rpartition(f"\n{mark}\n".encode())
        return subprocess.CompletedProcess(
            script, int(code), stdout.decode(errors="replace"), stderr.decode(errors="replace")
        )

    def _read(self, mark: bytes, script: str, deadline: float, timeout: float) -> tuple[bytes, bytes]:
        """Return all of both streams, until the script has ended."""
        streams = [cast("IO[bytes]", self._process.stdout), cast("IO[bytes]", self._process.stderr)]
        texts = [b"", b""]
        with selectors.DefaultSelector() as selector:
            for number, stream in enumerate(streams):
                selector.register(stream, selectors.EVENT_READ, number)
            while not (b"\n" + mark + b" " in texts[0] and texts[0].endswith(b"\n") and b"\n" + mark in texts[1]):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(script, timeout)
                for key, _ in ready:
                    piece = os.read(key.fd, 1 << 16)
                    texts[key.data] += piece
                    if not piece:
                        raise self._gone(begun=mark in texts[0], script=script, said=texts[1])
        return texts[0], texts[1]

    def _last_words(self) -> bytes:
        """Return what it said before it hung up."""
        with suppress(subprocess.TimeoutExpired):
            return self._process.communicate(timeout=5)[1]
        return b""

    def _gone(self, *, begun: bool, script: str, said: bytes) -> Exception:
        message = f"{shlex.join(self._command)}: {said.decode(errors='replace').strip() or 'the connection broke'}"
        return AssertionError(f"{message}, while this ran: {script}") if begun else ShellGoneError(message)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            with suppress(OSError):  # what was not sent will not be
                cast("IO[bytes]", stream).close()


@dataclass
class Shells:
    """Those that nobody uses at the moment, by their command. For all threads."""

    _idle: dict[tuple[str, ...], list[Shell]] = field(default_factory=lambda: defaultdict(list[Shell]))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, command: tuple[str, ...], script: str, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run a script in a shell that this command starts; see `Shell.run`. A kept one that is gone is replaced.

        Raises:
            ShellGoneError: no shell can be had; the script was not begun.
            AssertionError: the connection broke while the script ran.
            subprocess.TimeoutExpired: it did not end in time.
        """
        while True:
            with self._lock:
                kept = self._idle[command].pop() if self._idle[command] else None
            shell = kept or Shell(command)
            try:
                done = shell.run(script, timeout)
            except ShellGoneError:
                shell.close()
                if kept is None:
                    raise
                continue
            except BaseException:
                shell.close()
                raise
            with self._lock:
                self._idle[command].append(shell)
            return done

    def close(self) -> None:
        """End all that are kept."""
        with self._lock:
            for shells in self._idle.values():
                for shell in shells:
                    shell.close()
            self._idle.clear()


SHELLS = Shells()
atexit.register(SHELLS.close)
