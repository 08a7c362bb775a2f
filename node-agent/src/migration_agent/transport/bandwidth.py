"""How fast a checkpoint may leave this node: a token bucket per migration, and one for all of the node."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

_SLICE_SECONDS = 0.5
_BURST_SECONDS = 0.25
"""What was not used for so long may be used at once; more would make the limit a mean over minutes."""


@dataclass
class Bandwidth:
    """A token bucket that is filled with `bytes_per_second`; shared by the threads that it limits.

    Whoever takes more than there is goes into debt and waits until it is paid: a chunk may be larger than the bucket,
    and those who come later wait behind it.
    """

    bytes_per_second: int
    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _level: float = field(default=0.0, init=False)
    _filled_at: float | None = field(default=None, init=False)

    def take(self, count: int) -> float:
        """Take `count` bytes and return how many seconds the caller has to wait before it sends them."""
        with self._lock:
            moment = self.clock()
            if self._filled_at is not None:
                self._level += (moment - self._filled_at) * self.bytes_per_second
            self._filled_at = moment
            self._level = min(self._level, self.bytes_per_second * _BURST_SECONDS) - count
            return max(0.0, -self._level / self.bytes_per_second)


def throttle(limits: Iterable[Bandwidth], count: int, wait: Callable[[float], bool]) -> None:
    """Return when `count` bytes may be sent under all limits.

    Args:
        limits: those that count.
        count: what is to be sent, in bytes.
        wait: waits for so many seconds, and returns True when the sending was given up; then this returns at once.
    """
    left = max((limit.take(count) for limit in limits), default=0.0)
    while left > 0 and not wait(min(left, _SLICE_SECONDS)):
        left -= _SLICE_SECONDS
