"""The token bucket: a rate over time, a small burst, debt for what is larger than the bucket."""

from __future__ import annotations

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

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return False

    own, node = Bandwidth(RATE // 2, clock), Bandwidth(RATE, clock)
    throttle((own, node), RATE, wait)
    assert sum(waited) == pytest.approx(2.0)
    throttle((node,), RATE, wait)
    assert sum(waited) == pytest.approx(4.0)
    throttle((), RATE, wait)
    assert sum(waited) == pytest.approx(4.0)


def test_who_is_given_up_waits_no_longer() -> None:
    waited = list[float]()

    def wait(seconds: float) -> bool:
        waited.append(seconds)
        return len(waited) == 2

    throttle((Bandwidth(1, Clock()),), 3600, wait)
    assert len(waited) == 2
