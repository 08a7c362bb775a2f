"""Brings what peers ask in their connections' threads into the event loop, where all decisions are made."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from migration_agent.migrations import Migrations
from migration_agent.peer import Admission, Refused
from migration_agent.ports import PeerState
from migration_agent.transport.frames import Question
from migration_agent.transport.manifest import ManifestEntry

_ANSWER_SECONDS = 14.0

T = TypeVar("T")


class PeerBridge:
    """Implements `peer.PeerHandler` over `Migrations`."""

    def __init__(self, migrations: Migrations, loop: asyncio.AbstractEventLoop) -> None:
        self._migrations = migrations
        self._loop = loop

    def admit(self, peer: str, question: Question) -> Admission:
        return self._run(self._migrations.admit(peer, question))

    def admitted_done(
        self, migration: str, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool
    ) -> None:
        self._run(self._migrations.admitted_done(migration, entries, error, again=again))

    def settle(self, peer: str, question: Question) -> PeerState:
        return self._run(self._migrations.settle_with(peer, question))

    def intact(self, peer: str, migration: str) -> bool:
        return self._run(self._migrations.intact(peer, migration))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Wait for the loop's answer; a loop that is ending answers nothing, and the peer asks again."""
        if self._loop.is_closed():
            coroutine.close()
            raise Refused("the agent is stopping", again=True)
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result(_ANSWER_SECONDS)
        except (FutureTimeout, CancelledError):
            future.cancel()
            raise Refused("the agent is busy; ask again", again=True) from None
