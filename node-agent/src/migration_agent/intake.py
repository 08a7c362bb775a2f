"""One checkpoint's arrival: who may send, how far it is, and that it ends when the migration is given up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from migration_agent.peer import Admission, Refused


@dataclass
class Intake:
    """Changed in the event loop; `_progress` runs in the receiving thread and only sets a number."""

    directory: Path
    containers: tuple[str, ...]
    receiving: bool = False
    bytes_received: int = 0
    closed: bool = False
    """The migration was given up: a transfer that is under way ends at its next chunk."""

    def admit(self) -> Admission:
        """Begin.

        Raises:
            Refused: a transfer is under way, or none is wanted any more.
        """
        if self.receiving or self.closed:
            raise Refused("a checkpoint is being received already, or the migration was given up")
        self.receiving = True
        self.bytes_received = 0
        return Admission(self.directory, self.containers, self._progress)

    def _progress(self, count: int) -> None:
        self.bytes_received = count
        if self.closed:
            raise Refused("the migration was given up")
