"""What other nodes' agents ask about the migrations of this one, in the event loop (docs/protocol.md, section 6).

Each question is answered only to the node that is the other end of its migration.
"""

from __future__ import annotations

from dataclasses import dataclass

from migration_agent.migrations import Migrations
from migration_agent.pages.source import Lending
from migration_agent.peer import Admission, Refused
from migration_agent.ports import PeerState
from migration_agent.source import SourceSide
from migration_agent.target import TargetSide
from migration_agent.transport.frames import Question
from migration_agent.transport.manifest import ManifestEntry

_SETTLE_SECONDS = 10.0


@dataclass(frozen=True)
class PeerQuestions:
    """`PeerBridge` brings them here from their connections' threads. All raise `Refused`."""

    migrations: Migrations

    async def admit(self, peer: str, question: Question) -> Admission:
        """Let the source of a known migration send."""
        return await self._told(question.migration).admit(peer)

    async def ready(self, peer: str, uid: str) -> bool:
        """Let the pod of a known migration come to the gate: its source is about to stand still."""
        return self._told(uid).called(peer)

    async def admitted_done(
        self, uid: str, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool
    ) -> None:
        """Take the end of an admitted sending."""
        target = self.migrations.target(uid)
        if target is not None:
            await target.admitted_done(entries, error, again=again)

    async def settle(self, peer: str, question: Question) -> PeerState:
        """Tell the source what became of a migration; of an unknown one, promise on disk first."""
        uid = question.migration
        if self.migrations.is_damaged(uid):
            raise Refused("the journal of this migration is damaged: nothing can be promised")
        if question.settled and self.migrations.target(uid) is None:
            return PeerState.UNDECIDED  # a source that is settled relies on nothing: no promise is needed
        promised = await self.migrations.promise_unless_known(uid)
        if promised is not None:
            return promised
        target = self.migrations.target(uid)
        if target is None:
            raise Refused("this migration is being forgotten here; ask again", again=True)
        if peer != target.record.request.source_node:
            raise Refused(f"the source of this migration is node {target.record.request.source_node}, not {peer}")
        return await target.settle(promise=question.promise, settled=question.settled, seconds=_SETTLE_SECONDS)

    async def intact(self, peer: str, uid: str) -> bool:
        """Tell the target whether the source could go on."""
        if self.migrations.is_damaged(uid):
            raise Refused("the journal of this migration is damaged: nothing is known")
        return False if self.migrations.source(uid) is None else await self._source_for(peer, uid).intact()

    async def lend(self, peer: str, question: Question) -> Lending:
        """Let the target read memory of the frozen source."""
        return await self._source_for(peer, question.migration).memory.lend(question.container)

    async def memory_moved(self, peer: str, uid: str) -> None:
        """Take note that the target needs no memory of the source any more."""
        sides = (self.migrations.source(uid), self.migrations.target(uid))
        if any(sides) or self.migrations.is_damaged(uid):  # else it has ended and is forgotten
            await self._source_for(peer, uid).memory_moved()

    def _told(self, uid: str) -> TargetSide:
        target = self.migrations.target(uid)
        if target is None:
            raise Refused("this node was not told of this migration")
        return target

    def _source_for(self, peer: str, uid: str) -> SourceSide:
        source = self.migrations.source(uid)
        if source is None:
            raise Refused("this node has no source of that migration")
        if peer != source.record.request.target_node:
            raise Refused(f"the target of this migration is not node {peer}")
        return source
