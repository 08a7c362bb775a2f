"""The meeting point of a dump and its hook: what must happen while CRIU holds the tasks in `post-dump`.

The thread that runs `runc checkpoint` says what is to be done; the gate server's thread, called by the hook, does it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum

log = logging.getLogger(__name__)


class Answer(StrEnum):
    """What the hook is told (docs/protocol.md, section 4)."""

    DONE = "done"
    FAIL = "fail"


@dataclass
class Expectation:
    """One dump's work: it runs at most once."""

    work: Callable[[], None]
    lock: threading.Lock = field(default_factory=threading.Lock)
    arrived: bool = False
    closed: bool = False
    failure: Exception | None = None
    """Why the work failed, for the thread that dumps; the hook only learns that it did."""

    def run(self) -> Answer:
        """Do the work, unless it was done before or the dump is over."""
        with self.lock:
            if self.closed:
                return Answer.FAIL
            if not self.arrived:
                self.arrived = True
                try:
                    self.work()
                except Exception as error:  # noqa: BLE001  # whatever it is, the dump must fail and say it
                    self.failure = error
            return Answer.FAIL if self.failure else Answer.DONE


@dataclass
class PostDumpBroker:
    """Brings hooks to the dumps that expect them; thread-safe."""

    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _expected: dict[tuple[str, str], Expectation] = field(default_factory=dict[tuple[str, str], Expectation])

    @contextmanager
    def expect(self, migration: str, container: str, work: Callable[[], None]) -> Generator[Expectation]:
        """While the context is open the hook of this container's dump runs `work`, once.

        Leaving the context waits for work that is running, and takes no hook any more.

        Raises:
            RuntimeError: the same container is being dumped for the same migration already.
        """
        key = (migration, container)
        expectation = Expectation(work)
        with self._lock:
            if key in self._expected:
                raise RuntimeError(f"container {container} is already being dumped for migration {migration}")
            self._expected[key] = expectation
        try:
            yield expectation
        finally:
            with self._lock:
                del self._expected[key]
            with expectation.lock:
                expectation.closed = True

    def arrived(self, migration: str, container: str) -> Answer:
        """Run the work of the dump whose hook arrived and return the answer for it; `fail` for a hook nobody expects.

        Blocks as long as the work takes; called in a thread.
        """
        with self._lock:
            expectation = self._expected.get((migration, container))
        if expectation is None:
            log.warning("a post-dump hook for container %r of migration %r is not expected", container, migration)
            return Answer.FAIL
        return expectation.run()
