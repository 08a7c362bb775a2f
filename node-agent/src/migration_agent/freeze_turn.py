"""One freeze after another on a node: two at once share processors and network, and both stand still for longer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

PATIENCE_SECONDS = 6.0
"""The gate at the target gets old meanwhile; so who has waited for so long goes in beside the other."""

_LOOK_SECONDS = 0.2


class FreezeTurn:
    """One per agent. No invariant depends on it: it is about load."""

    def __init__(self, patience: float = PATIENCE_SECONDS) -> None:
        self._patience = patience
        self._taken = asyncio.Lock()

    @asynccontextmanager
    async def mine(self, go_on: Callable[[], None]) -> AsyncGenerator[None]:
        """Wait for the turn, and have it while the context is open.

        Args:
            go_on: called again and again while waiting; what it raises ends the wait.
        """
        loop = asyncio.get_running_loop()
        until, mine = loop.time() + self._patience, False
        while not mine and loop.time() < until:
            go_on()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(_LOOK_SECONDS, until - loop.time())):
                    mine = await self._taken.acquire()
        try:
            yield
        finally:
            if mine:
                self._taken.release()
