"""Brings what peers ask in their connections' threads into the event loop, where all decisions are made."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine, Generator
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import contextmanager
from typing import Any, TypeVar

from migration_agent.migrations import Migrations
from migration_agent.pages.source import Lending
from migration_agent.pages.wire import Lost
from migration_agent.peer import Admission, Refused
from migration_agent.peer_client import PeerClient
from migration_agent.peer_questions import PeerQuestions
from migration_agent.ports import PeerState
from migration_agent.transport.frames import Question
from migration_agent.transport.manifest import ManifestEntry

_ANSWER_SECONDS = 14.0

T = TypeVar("T")


class PeerBridge:
    """Implements `peer.PeerHandler` over `PeerQuestions`."""

    def __init__(self, questions: PeerQuestions, loop: asyncio.AbstractEventLoop) -> None:
        self._questions = questions
        self._loop = loop

    def admit(self, peer: str, question: Question) -> Admission:
        return self._run(self._questions.admit(peer, question))

    def admitted_done(
        self, migration: str, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool
    ) -> None:
        self._run(self._questions.admitted_done(migration, entries, error, again=again))

    def settle(self, peer: str, question: Question) -> PeerState:
        return self._run(self._questions.settle(peer, question))

    def intact(self, peer: str, migration: str) -> bool:
        return self._run(self._questions.intact(peer, migration))

    def lend(self, peer: str, question: Question) -> Lending:
        return self._run(self._questions.lend(peer, question))

    def ready(self, peer: str, migration: str) -> bool:
        return self._run(self._questions.ready(peer, migration))

    def memory_moved(self, peer: str, migration: str) -> None:
        self._run(self._questions.memory_moved(peer, migration))

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


class MemoryLender:
    """Implements `relay.Lender`: who has the memory of a container that runs here is in the target side's record."""

    def __init__(self, migrations: Migrations, peers: PeerClient, loop: asyncio.AbstractEventLoop) -> None:
        self._migrations = migrations
        self._peers = peers
        self._loop = loop

    @contextmanager
    def borrow(self, migration: str, container: str) -> Generator[socket.socket]:
        node = self._migrations.lender_of(migration)
        if node is None:
            raise Lost("this node knows of no migration whose memory stays at a source")
        with self._peers.borrow(node, migration, container) as connection:
            yield connection

    def lost(self, migration: str, container: str, reason: str) -> None:
        node = self._migrations.lender_of(migration) or "unknown"
        text = f"the source of container {container} on node {node} has no memory to give any more: {reason}"
        noted = asyncio.run_coroutine_threadsafe(self._migrations.memory_lost(migration, text), self._loop)
        noted.result(_ANSWER_SECONDS)
