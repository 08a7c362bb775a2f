"""Collects a container's log while it is written, so that nothing is lost when the pod is deleted."""

from __future__ import annotations

import subprocess
import threading
from contextlib import suppress
from typing import ClassVar

from support.cluster import wait_for


class Follower:
    """Collects a container's log as it is written, until the pod is gone."""

    _going: ClassVar[list[Follower]] = []

    def __init__(self, pod: str, namespace: str, container: str = "") -> None:
        self.lines: list[str] = []
        command = ("kubectl", "logs", "-f", pod, "-n", namespace, *(("-c", container) if container else ()))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._going.append(self)

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(line.strip() for line in self._process.stdout)

    def finish(self) -> list[str]:
        """Wait for the end of the log and return it."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(30)
        self._end()
        return self.lines

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self in self._going:
            self._going.remove(self)

    @classmethod
    def end_all(cls) -> None:
        """End those that a test did not wait for."""
        for follower in list(cls._going):
            follower._end()

    def stop(self) -> list[str]:
        """End it though the pod goes on; return what there is of the log."""
        self._process.kill()
        return self.finish()

    def numbers(self) -> list[int]:
        """Wait for the end of the log and return its lines that are numbers."""
        return [int(line) for line in self.finish() if line.isdigit()]

    def goes_on(self) -> None:
        """Wait until a counter that logs 1, 2, 3, … has counted on, and check that it has lost nothing."""
        count = len(self.lines)
        wait_for("the source to go on", lambda: len(self.lines) > count + 10, seconds=30)
        numbers = [int(line) for line in self.stop() if line.isdigit()]
        assert numbers == list(range(1, len(numbers) + 1)), "the source has lost something"
