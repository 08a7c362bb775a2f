"""Copying memory while it changes, as a test wants it to go."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.paths import MEMORY_LOG
from migration_agent.runtime.interface import Copied, Dump, RuntimeFailure

MEBIBYTE = 1 << 20


@dataclass
class FakeCopier:
    """Implements `MemoryCopierLike`; its log has `scale` bytes for a MiB."""

    dump: Dump
    changes: list[int]
    """MiB that each round finds."""
    do: Callable[[str], None]
    looked: int = 100 * MEBIBYTE
    rounds: int = 0
    finished: bool = False
    scale: int = 1
    closed: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event | None = None
    """A round waits for it, or for its end."""

    def round(self, limit: int | None = None) -> Copied:
        if self.gate is not None:
            while not (self.gate.is_set() or self.closed.wait(0.01)):
                pass
        if self.closed.is_set():
            raise RuntimeFailure("it was closed")
        self.do("round")
        changed = self.changes[min(self.rounds, len(self.changes) - 1)]
        if limit is not None:
            changed = min(changed, limit // MEBIBYTE)
        self.rounds += 1
        self._append(changed)
        return Copied(self.looked, changed * MEBIBYTE)

    def last(self) -> Copied:
        assert not self.finished
        assert not self.closed.is_set()
        assert (self.dump.directory / "images/inventory.img").exists(), "only a dump says what it has left"
        self.do("last round")
        self.finished = True
        self._append(1)
        return Copied(self.looked, MEBIBYTE)

    def close(self) -> None:
        self.closed.set()

    def _append(self, count: int) -> None:
        log: Path = self.dump.directory / MEMORY_LOG
        with log.open("ab") as file:
            file.write(b"m" * count * self.scale)
