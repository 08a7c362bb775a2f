"""What is being done, and how long it took: on stderr, so that a command's own output stays clean."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

STARTED = time.monotonic()


def note(message: str) -> None:
    """One line, stamped with the seconds since the command began."""
    print(f"[{time.monotonic() - STARTED:6.1f}s] {message}", file=sys.stderr, flush=True)


@contextmanager
def step(what: str, usually: str = "") -> Generator[None]:
    """Announces a step before it starts (with its usual duration when it is long) and its own duration at the end."""
    note(f"{what}{f' (usually {usually})' if usually else ''} ...")
    began = time.monotonic()
    yield
    note(f"{what}: done in {time.monotonic() - began:.1f} s")
