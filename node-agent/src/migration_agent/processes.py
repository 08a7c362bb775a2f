"""Names processes so that a pid used again is never mistaken for the old one, and ends them."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from migration_api.base import Model


class ProcessRef(Model):
    """One process for ever, within one boot."""

    pid: int
    start: int
    """Field 22 of /proc/PID/stat."""


def has_exited(pid: int) -> bool:
    """Say whether a process runs no more, though its parent may not have collected it yet."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(pidfd)


@dataclass(frozen=True)
class Processes:
    """Looks at processes of this boot; the three functions are what a test replaces."""

    start: Callable[[int], int | None]
    """When a process started, in clock ticks since boot; None when there is none."""
    exited: Callable[[int], bool] = has_exited
    tracer: Callable[[int], int | None] = lambda _: None
    """Who traces a process; None when nobody does."""

    def ref(self, pid: int) -> ProcessRef | None:
        """Return the name of a process that lives now."""
        start = self.start(pid)
        return None if start is None else ProcessRef(pid=pid, start=start)

    def alive(self, process: ProcessRef) -> bool:
        """Say whether exactly this process still runs; a zombie does not."""
        return self.start(process.pid) == process.start and not self.exited(process.pid)

    def kill_tracer(self, process: ProcessRef) -> None:
        """Kill who traces a process that was killed long ago and does not die: `killTracer` in tree.go says why."""
        tracer = self.tracer(process.pid) if self.alive(process) else None
        ref = self.ref(tracer) if tracer else None
        if ref is not None and self.tracer(process.pid) == tracer and self.alive(process):
            self.kill(ref)

    def kill(self, process: ProcessRef) -> None:
        """Send SIGKILL to exactly this process; nothing when it is gone."""
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(process.pid)
            try:
                if self.alive(process):  # looked at after the pidfd was taken: it cannot be another one now
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)
