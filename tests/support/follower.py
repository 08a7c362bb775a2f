"""Collects a container's log while it is written, so that nothing is lost when the pod is deleted."""

from __future__ import annotations

import subprocess
import threading

from support.cluster import wait_for


class Follower:
    """Collects a container's log as it is written, until the pod is gone."""

    def __init__(self, pod: str, namespace: str, container: str = "") -> None:
        self.lines: list[str] = []
        command = ("kubectl", "logs", "-f", pod, "-n", namespace, *(("-c", container) if container else ()))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        self.lines.extend(line.strip() for line in self._process.stdout)

    def finish(self) -> list[str]:
        """Wait for the end of the log and return it."""
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        return self.lines

    def numbers(self) -> list[int]:
        """Wait for the end of the log and return its lines that are numbers."""
        return [int(line) for line in self.finish() if line.isdigit()]

    def goes_on(self) -> None:
        """Wait until a counter that logs 1, 2, 3, … has counted on, and check that it has lost nothing."""
        count = len(self.lines)
        wait_for("the source to go on", lambda: len(self.lines) > count + 10, seconds=30)
        numbers = self.numbers()
        assert numbers == list(range(1, len(numbers) + 1)), "the source has lost something"
