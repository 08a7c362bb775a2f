"""What both sides of a migration have in common: a level-triggered loop that looks, decides one step, and takes it."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress

from migration_agent.freeze import FreezeFailure
from migration_agent.ports import ApiUnreachable, PeerUnreachable
from migration_agent.runtime.interface import RuntimeFailure
from migration_agent.seen import Gone, Seen, Verdict, remembered, verdict
from migration_agent.ticket import TicketConflict
from migration_api.wire import MigrationRef

log = logging.getLogger(__name__)

EXPECTED = (ApiUnreachable, PeerUnreachable, RuntimeFailure, FreezeFailure, TicketConflict, OSError)
"""What may go wrong at any time; the step is tried again."""

MESSAGE_LENGTH = 30_000
"""Of what is journalled and reported for an admin."""


class Side(ABC):
    """One side of one migration on this node.

    Every step is idempotent: after a failure, or in the next life of the agent, the loop looks again and goes on.
    """

    name: str

    def __init__(self, ref: MigrationRef, changed: Callable[[], None]) -> None:
        self.ref = ref
        self.forgotten = False
        self.rounds = 0
        """Complete looks at the world; a settle request waits for the next one."""
        self._changed = changed
        self._wake = asyncio.Event()
        self.last_verdict = Verdict.UNREACHABLE
        self._seen: Seen | None = None
        """The last reading of the object that succeeded."""
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._said = ""
        self._updated = asyncio.Condition()

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether no register can change any more what this side does."""

    @property
    @abstractmethod
    def interval(self) -> float:
        """Seconds until the next look when nothing wakes the loop."""

    @abstractmethod
    async def round(self) -> None:
        """Look, decide, and take one step."""

    async def prepare(self) -> None:  # noqa: B027  # most sides need none
        """Do what must come before everything else in a new life of the agent; tried again until it works."""

    def start(self) -> None:
        self._task = asyncio.create_task(self.run(), name=f"{self.name}-{self.ref.uid}")

    async def stop(self) -> None:
        """Stop looking. Whatever is frozen or held stays so; the journal knows."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def poke(self) -> None:
        """Look again now."""
        self._wake.set()

    async def looked(self, seconds: float) -> None:
        """Look again now and wait until that is done, but not longer than `seconds`."""
        target = self.rounds + 2  # the round that is under way may have looked already
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._updated:
                while self.rounds < target and not self.forgotten:
                    self.poke()
                    await self._updated.wait()

    async def run(self) -> None:
        """Go on until the migration is forgotten."""
        prepared = False
        while not self.forgotten:
            self._wake.clear()
            self._trouble = ""
            try:
                if not prepared:
                    await self.prepare()
                    prepared = True
                await self.round()
            except EXPECTED as error:
                self.say_trouble(error)
            except Exception:
                log.exception("migration %s: the %s side's step failed; it is tried again", self.ref.uid, self.name)
            self._said = self._trouble
            self.rounds += 1
            async with self._updated:
                self._updated.notify_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(self.interval):
                    await self._wake.wait()

    def take(self, reading: Seen | Gone | None) -> Verdict:
        """Note a reading of the object and return what is known now."""
        now = verdict(reading)
        if isinstance(reading, Seen):
            self._seen = reading
        before = self.last_verdict
        self.last_verdict = now if self.ended else remembered(before, now)
        if self.last_verdict is not before:
            log.info("migration %s: %s side reads: %s", self.ref.uid, self.name, self.last_verdict)
            self._changed()
        return self.last_verdict

    def say_trouble(self, error: Exception) -> None:
        """Log a failure when it is another than that of the round before: a loop must not fill the log."""
        self._trouble = f"{type(error).__name__}: {error}"
        if self._trouble != self._said:
            log.warning("migration %s: %s side: %s; tried again", self.ref.uid, self.name, self._trouble)
        self._said = self._trouble
