"""Fetches while Go compiles: what comes over the network need not wait for the processor."""

from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from . import host
from .progress import note


@contextmanager
def of_need(*fetches: Callable[[], object]) -> Generator[None]:
    """Runs them one after the other beside the block, which ends when both have ended."""
    with ThreadPoolExecutor(1) as beside:
        for fetch in fetches:
            beside.submit(attempt, fetch)
        yield


def attempt(fetch: Callable[[], object]) -> None:
    """A failure is only told: who needs the thing fetches it again, and fails if it must."""
    try:
        fetch()
    except host.TestbedError as error:
        note(f"fetching ahead failed: {error}")
