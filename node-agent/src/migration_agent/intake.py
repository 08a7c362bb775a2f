"""One checkpoint's arrival: who may send, how far it is, and that it ends when the migration is given up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from migration_agent.peer import Admission, Refused
from migration_api.shipping import Shipping


@dataclass
class Intake:
    """Changed in the event loop; what `admit` hands out runs in the receiving threads and only sets numbers."""

    migration: str
    directory: Path
    containers: tuple[str, ...]
    receiving: bool = False
    bytes_received: int = 0
    bytes_expected: int | None = None
    began_at: datetime | None = None
    """Of a fetch from a store: when it began in this life of the agent."""
    closed: bool = False
    """The migration was given up: a transfer that is under way ends at its next chunk."""
    _attempt: int = 0

    def admit(self, shipping: Shipping | None) -> Admission:
        """Begin, or go on after a connection that broke.

        Raises:
            Refused: none is wanted any more; or a transfer is under way: that one ends, for there is one source only,
                and it would not come again if its connection had not broken.
        """
        if self.closed:
            raise Refused("the migration was given up")
        if shipping is None:
            raise Refused("the migration's key is not here any more: the node was rebooted")
        self._attempt += 1
        if self.receiving:
            raise Refused("an earlier connection has not ended yet", again=True)
        self.receiving = True
        return Admission(self.migration, self.directory, self.containers, shipping, self._progress(self._attempt))

    def complete(self, shipping: Shipping | None) -> Admission:
        """Say that nothing needs to be sent any more.

        Raises:
            Refused: the migration's key is gone.
        """
        if shipping is None:
            raise Refused("the migration has ended here")
        admission = Admission(self.migration, self.directory, self.containers, shipping, self._progress(self._attempt))
        return replace(admission, complete=True)

    def _progress(self, attempt: int) -> Callable[[int, int | None], None]:
        def progress(count: int, expected: int | None) -> None:
            self.bytes_received, self.bytes_expected = count, expected
            if self.closed:
                raise Refused("the migration was given up")
            if attempt != self._attempt:
                raise Refused("the source has connected again", again=True)

        return progress
