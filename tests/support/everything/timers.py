"""What rings."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import struct
import time

from support.everything.kit import Check, libc, readable


def interval_timer() -> Check:
    rung = [0]

    def ring(number: int, frame: object) -> None:
        del number, frame
        rung[0] += 1

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def check() -> None:
        before = rung[0]
        time.sleep(0.5)
        assert rung[0] > before, "the alarm does not ring any more"

    return check


def timer(*times: int, flags: int = 0) -> int:
    """Return a descriptor of a timer: its period and its first time, each in seconds and nanoseconds."""
    it = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
    assert libc.timerfd_settime(it, flags, struct.pack("4q", *times), None) == 0
    return it


def timer_far_from_its_end() -> Check:
    it = timer(60, 0, 3600, 0)

    def check() -> None:
        now = ctypes.create_string_buffer(32)
        assert libc.timerfd_gettime(it, now) == 0
        interval, _, left, _ = struct.unpack("4q", now.raw)
        assert interval == 60
        assert 3000 < left < 3600

    return check


def timer_that_is_due() -> Check:
    """Nobody has read it: the kernel starts it again only then."""
    it = timer(0, 50_000_000, 0, 1)

    def check() -> None:
        for _ in range(3):
            readable(it)
            os.read(it, 8)
        time.sleep(0.1)

    return check


def timer_that_has_rung() -> Check:
    it = timer(0, 0, 0, 1, flags=1)
    readable(it)
    os.read(it, 8)

    def check() -> None:
        assert not select.select([it], [], [], 0.2)[0], "it rings once more"

    return check
