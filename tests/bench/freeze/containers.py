"""What the methods have in common that move a container which no kubelet knows, by commands on the nodes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

from bench.freeze.ends import End
from bench.freeze.method import FILL_SECONDS, FINDINGS, FINDINGS_SECONDS, NAME, READY, Findings, Outcome

BASE = f"/run/{NAME}"
"""In tmpfs, on both nodes."""
IMAGES, WORK = f"{BASE}/images", f"{BASE}/work"


@dataclass(frozen=True)
class Commands:
    """How to move it.

    Attributes:
        checkpoint: on the source; it leaves in the directory `IMAGES` what is to be sent.
        restore: on the target.
        daemon: on the target, started before the restore when it serves pages, and the socket it listens at.
    """

    checkpoint: list[str]
    restore: list[str]
    daemon: list[str] = field(default_factory=list[str])
    daemon_socket: str = ""

    def target(self) -> dict[str, Any]:
        """Return what the target's end is told."""
        return {
            "directory": IMAGES,
            "restore": self.restore,
            "log": f"{WORK}/restore.log",
            "daemon": self.daemon,
            "daemonSocket": self.daemon_socket,
            "daemonLog": f"{WORK}/lazy.log",
        }


class InNodes(ABC):
    """A container on one node, moved to another one."""

    name: str

    def __init__(self, source: End, target: End) -> None:
        self.source, self.target = source, target

    @abstractmethod
    def prepare(self) -> None: ...

    @abstractmethod
    def versions(self) -> dict[str, str]: ...

    @abstractmethod
    def start(self, mebibytes: int) -> None:
        """Start the workload on the source, and make the target ready."""

    @abstractmethod
    def pid(self, end: End) -> int:
        """Return the pid of the container's first process."""

    @abstractmethod
    def commands(self) -> Commands: ...

    @property
    @abstractmethod
    def removal(self) -> str:
        """A shell script that removes from a node what `start` and a move make, whatever there is of it."""

    def move(self, mebibytes: int) -> Outcome:
        """See `Method`."""
        for end in (self.source, self.target):
            end("clean_with", script=self.removal)
            end.run(self.removal)
        try:
            return self._move(mebibytes)
        finally:
            for end in (self.source, self.target):
                end("end_children")
                end.run(self.removal)

    def _move(self, mebibytes: int) -> Outcome:
        self.start(mebibytes)
        self.source("wait", pid=self.pid(self.source), file=READY, seconds=FILL_SECONDS)
        commands, before = self.commands(), self.source.counters()
        marks: dict[str, int] = self.source(
            "move",
            checkpoint=commands.checkpoint,
            directory=IMAGES,
            log=f"{WORK}/dump.log",
            target=commands.target(),
            lazy=bool(commands.daemon),
        )["marks"]
        after = self.source.counters()
        told = self.target("wait", pid=self.pid(self.target), file=FINDINGS, seconds=FINDINGS_SECONDS)["content"]
        return Outcome(
            marks=marks,
            findings=Findings.parse(told),
            sent_bytes=after.sentBytes - before.sentBytes,
            processor_seconds=after.processorSeconds - before.processorSeconds,
        )
