"""A target side's pod that comes only when the source has given it its name (docs/protocol.md, section 12)."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from migration_agent.ports import ApiUnreachable, Comer, NamedPod
from migration_agent.secured import is_secured, secure
from migration_agent.seen import Verdict
from migration_agent.ticket import TicketState, ticket_for
from migration_agent.transport.manifest import ManifestEntry
from migration_api.failpoints import Failpoint, reach

if TYPE_CHECKING:
    from migration_agent.target import TargetSide
    from migration_api.wire import Successor

log = logging.getLogger(__name__)


class Succession:
    """Who comes under the name, and which of them has the ticket. Before that the journal is the ticket."""

    def __init__(self, side: TargetSide, successor: Successor) -> None:
        self._side = side
        self._successor = successor
        self._destroyed = False
        self._found: NamedPod | None = None
        self._gone_since_ns: int | None = None

    @property
    def bound(self) -> bool:
        return self._side.record.pod_uid is not None

    @property
    def expects(self) -> bool:
        """Whether it waits for a pod now, so that a look is worth it at any moment."""
        return not self.bound and self._side.last_verdict is Verdict.COMMIT and not self._side.record.settled

    def ticket(self) -> TicketState:
        """Return what stands for the ticket while no pod has it."""
        destroyed = self._destroyed or self._side.promised
        return TicketState.DESTROYED if destroyed else TicketState.PENDING

    def destroy(self) -> TicketState:
        """Never give it to anybody; it is journalled as a promise before anybody relies on it."""
        self._destroyed = True
        return TicketState.DESTROYED

    async def look(self, verdict: Verdict) -> Comer:
        """Look who has the name now, when it matters."""
        side = self._side
        if self.bound or side.record.settled or verdict not in {Verdict.COMMIT, Verdict.GONE}:
            return Comer.NOBODY
        try:
            found = await side.tools.registers.named_pod(side.ref.namespace, side.record.request.pod_name)
        except ApiUnreachable as error:
            side.say_trouble(error)
            return Comer.NOBODY
        comer = self._who(found)
        self._found = found if comer is Comer.HERE else None
        if comer is Comer.ANOTHER and found is not None and side.record.last_error is None:
            await side.save(
                last_error=f"Another pod (UID {found.uid}, revision {found.revision}) got the name "
                f"{side.record.request.pod_name} before this migration's: what the checkpoint holds is out of date."
            )
        return comer

    def _who(self, found: NamedPod | None) -> Comer:
        """Only what the API server itself says counts; what is being deleted will make room for the next one."""
        if found is None or not found.live or found.uid == self._successor.source_pod_uid:
            return Comer.NOBODY
        ours = found.migration == self._side.ref.uid and found.revision == self._successor.revision
        if not ours:
            return Comer.ANOTHER
        return Comer.HERE if found.node == self._side.tools.node else Comer.NOBODY

    def waited(self, verdict: Verdict, now_ns: int) -> bool:
        """Say whether nobody came for a freeze budget's time since the object is gone."""
        if verdict is not Verdict.GONE:
            self._gone_since_ns = None
            return False
        self._gone_since_ns = self._gone_since_ns or now_ns
        return now_ns - self._gone_since_ns > self._side.record.request.freeze_budget_seconds * 10**9

    async def bind(self) -> None:
        """Give the ticket to the pod that has come. The journal first: no ticket is ever without a record."""
        side, found = self._side, self._found
        if found is None:
            return
        await side.save(pod_uid=found.uid)
        side.take_pod(found.uid)
        await reach(Failpoint.TARGET_BOUND)
        await asyncio.to_thread(side.tools.tickets.create, found.uid, ticket_for(side.record.request))
        log.info("migration %s: pod %s has the ticket", side.ref.uid, found.uid)
        side.poke()

    async def unbind(self) -> None:
        """The pod is gone, its ticket destroyed, and nothing of it lives: the next one may come."""
        side = self._side
        log.info("migration %s: pod %s went before it resumed; its successor is waited for", side.ref.uid, side.pod_uid)
        await side.save(pod_uid=None, processes=())
        side.take_pod("")
        self._destroyed = False
        side.poke()

    async def secure(self, entries: tuple[ManifestEntry, ...]) -> str:
        """Bring the checkpoint to the disk; raises as `secured.secure`."""
        side = self._side
        return await asyncio.to_thread(secure, side.tools.journal.layout.images(side.ref.uid), entries)

    async def is_usable(self) -> bool:
        """Say whether a checkpoint that was brought to the disk is still there; otherwise note that it is lost."""
        side, record = self._side, self._side.record
        if record.entries is None:
            return False
        directory = side.tools.journal.layout.images(side.ref.uid)
        usable = await asyncio.to_thread(is_secured, directory, record.entries, record.secured)
        if not usable:
            await side.save(last_error=f"The checkpoint on the disk of node {side.tools.node} is damaged.")
        return usable
