"""Waiting for a condition; when it does not come, the component that keeps it from coming is named with its log."""

import time
from collections.abc import Callable
from typing import TypeVar

from . import diagnosis, host
from .places import Cluster

READY_SECONDS = 180
"""Ample for a machine that has other things to do; a quiet one needs 10."""

T = TypeVar("T")


def wait_for(cluster: Cluster, what: str, attempt: Callable[[], T | None]) -> T:
    """Tries until the result is true-ish."""
    deadline = time.monotonic() + READY_SECONDS
    while not (result := attempt()):
        if time.monotonic() > deadline:
            raise host.TestbedError(f"Waited {READY_SECONDS} s in vain until {what}.\n{diagnosis.report(cluster)}")
        time.sleep(0.5)
    return result
