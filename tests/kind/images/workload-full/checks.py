"""Checks that a program makes of itself ten times a second; between them it prints 1, 2, 3, …"""

from __future__ import annotations

import time
from collections.abc import Callable

Check = Callable[[int], None]
checks: list[Check] = []


def check(function: Check) -> Check:
    """Register a check; it gets the number of its call, from 1, and raises when something is not as it was."""
    checks.append(function)
    return function


def run() -> None:
    """Check for ever; the program ends with the first check that fails."""
    n = 0
    while True:
        n += 1
        for function in checks:
            function(n)
        print(n, flush=True)
        deadline = time.monotonic() + 0.1
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(left)
