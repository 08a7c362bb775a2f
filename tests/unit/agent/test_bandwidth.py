"""The token bucket: a rate over time, a small burst, debt for what is larger than the bucket."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest

from migration_agent.transport.bandwidth import Bandwidth, throttle

RATE = 1_000_000


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_is_sent_never_exceeds_the_rate() -> None:
    clock = Clock()
    limit = Bandwidth(RATE, clock)
    begun = clock.now
    for _ in range(50):
        clock.now += limit.take(RATE // 4)
    assert clock.now - begun == pytest.approx(12.5)


def test_what_was_not_used_for_long_is_lost() -> None:
    clock = Clock()
    limit = Bandwidth(RATE, clock)
    limit.take(0)
    clock.now += 3600
    assert limit.take(RATE // 4) == 0
    assert limit.take(RATE) == pytest.approx(1.0)


def test_those_who_share_a_limit_wait_behind_each_other() -> None:
    limit = Bandwidth(RATE, Clock())
    assert [limit.take(RATE) for _ in range(3)] == pytest.approx([1.0, 2.0, 3.0])


def test_the_tightest_limit_counts_and_all_are_charged() -> None:
    clock, waited = Clock(), list[float]()

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            waited.append(timeout or 0.0)
            return False

    own, node = Bandwidth(RATE // 2, clock), Bandwidth(RATE, clock)
    throttle((own, node), RATE, Stop())
    throttle((node,), RATE, Stop())
    throttle((), RATE, Stop())
    assert waited == pytest.approx([2.0, 2.0])
