"""Memory that stays in a frozen source: who may read it, and for how long it is what was dumped."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from migration_agent.checkpoint import memory
from migration_agent.pages.source import Lending
from migration_agent.peer import Refused
from migration_agent.ports import Progress
from migration_agent.runtime.interface import Container
from migration_api.wire import LAZY_FROM_BYTES, SourceState

if TYPE_CHECKING:
    from migration_agent.source import SourceSide

_STANDING = frozenset({SourceState.DUMPED, SourceState.SENT})


class SourceMemory:
    """One source side's (docs/protocol.md, section 10)."""

    def __init__(self, side: SourceSide) -> None:
        self._side = side
        self.sent = Progress()
        """What the target has fetched in this life of the agent."""

    @property
    def staying(self) -> int:
        """Return how much stays in the processes after the decision, in bytes, about."""
        if not self._side.record.request.post_copy:
            return 0
        return sum(it.memory_bytes for it in self._side.record.containers if self.stays(it))

    def stays(self, container: Container) -> bool:
        """Say whether a container's memory is left in its processes when it is dumped."""
        request = self._side.record.request
        large = container.memory_bytes >= LAZY_FROM_BYTES
        left = request.post_copy or request.pre_copy
        return left and large and container.name in request.containers

    async def lend(self, container: str) -> Lending:
        """Let the target's agent read a container's memory.

        Raises:
            Refused: there is none that stays, or it is not what was dumped any more.
        """
        side = self._side
        why = self.standing() if side.record.lends else "no memory stays here for that migration"
        if why:
            raise Refused(why)
        directory = side.tools.journal.layout.image(side.ref.uid, container)
        processes = await asyncio.to_thread(memory.noted, directory)
        return Lending(processes, side.tools.freezer.processes, self.standing, self.sent.count)

    def standing(self) -> str:
        """Return why the memory is not what was dumped, empty when it is; may be called in any thread."""
        record, node = self._side.record, self._side.tools.node
        if record.ran:
            return f"somebody let the frozen source on node {node} run"
        standing = record.state in _STANDING
        return "" if standing else f"the source on node {node} does not stand still: it is {record.state}"
