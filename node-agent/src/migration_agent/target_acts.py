"""The acts of a target side: each takes one step that `target_plan` has decided."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from migration_agent.restores import is_lazy, restore_options
from migration_agent.seen import Verdict
from migration_agent.side import MESSAGE_LENGTH
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import ticket_for
from migration_api.base import now
from migration_api.failpoints import Failpoint, reach
from migration_api.migration import Decision, Outcome
from migration_api.wire import TargetState

if TYPE_CHECKING:
    from migration_agent.target import TargetSide

log = logging.getLogger(__name__)

_KILL_AFTER_SECONDS = 5.0


class TargetActs:
    """What one target side does; when, is decided elsewhere."""

    def __init__(self, side: TargetSide) -> None:
        self._side = side
        self._clearing_since: float | None = None

    async def take(self, step: TargetStep) -> None:
        """Take a step; each is idempotent."""
        side = self._side
        acts: dict[TargetStep, Callable[[], Awaitable[None]]] = {
            TargetStep.MAKE_TICKET: self._make_ticket,
            TargetStep.BIND: self._bind,
            TargetStep.UNBIND: self._unbind,
            TargetStep.FETCH: side.fetching.begin,
            TargetStep.OPEN: self._open_late_gate,
            TargetStep.RESTORE: self._restore,
            TargetStep.REFUSE: self._refuse_gate,
            TargetStep.LOSE: self._lose,
            TargetStep.COMMIT: self._commit,
            TargetStep.RESUME: self._resume,
            TargetStep.DESTROY: self._destroy,
            TargetStep.RETURN_IF_INTACT: lambda: self._return(anyway=False),
            TargetStep.RETURN_ANYWAY: lambda: self._return(anyway=True),
            TargetStep.CLEAR: self._clear,
            TargetStep.PROMISE: self._promise,
            TargetStep.WRITE_RESUMED: self._write_resumed,
            TargetStep.WRITE_RETURNED: self._write_returned,
            TargetStep.MEMORY_MOVED: self._memory_moved,
            TargetStep.END_RESUMED: lambda: self._end(TargetState.RESUMED),
            TargetStep.END_RETURNED: lambda: self._end(TargetState.RETURNED),
            TargetStep.GIVE_UP: self._give_up,
            TargetStep.END_DESTROYED: lambda: self._end(TargetState.DESTROYED),
            TargetStep.FORGET: self._forget,
        }
        if step is not TargetStep.WAIT:
            await reach(Failpoint(f"target.{step}"))
            await acts[step]()

    async def _make_ticket(self) -> None:
        side = self._side
        await asyncio.to_thread(side.tools.tickets.create, side.pod_uid, ticket_for(side.record.request))
        side.poke()

    async def _bind(self) -> None:
        if self._side.succession is not None:
            await self._side.succession.bind()

    async def _unbind(self) -> None:
        if self._side.succession is not None:
            await self._side.succession.unbind()
            self._clearing_since = None

    async def _open_late_gate(self) -> None:
        side = self._side
        waiting = side.restores.late_gate()
        if waiting is not None:
            await waiting.go()

    async def _restore(self) -> None:
        """Let the next one restore; it is journalled first, and of the earlier ones only those that are held live."""
        side = self._side
        gate = side.restores.waiting()
        if gate is None:
            return
        held = side.restores.held_processes()
        await side.save(processes=(*(p for p in side.record.processes if p in held), gate.link.process))
        await reach(Failpoint.TARGET_RESTORING)
        options = restore_options(side.record, gate.hello.container, lazily=side.tools.lazily)
        await side.restores.restore(gate, options)

    async def _refuse_gate(self) -> None:
        side = self._side
        failure = side.record.failure
        await side.restores.refuse(failure.message if failure else f"migration {side.ref.uid} was given up")

    async def _lose(self) -> None:
        side = self._side
        await side.restores.lose("another container of the pod was lost; all are restored again")

    async def _commit(self) -> None:
        """Propose Commit over the open connection and, when it stands, let the hook go on at once."""
        side = self._side
        if side.succession is not None and not side.record.proposed:
            await side.save(proposed=True)
        side.take(await side.tools.registers.propose(side.ref, Decision.COMMIT))
        if side.last_verdict is Verdict.COMMIT:
            await reach(Failpoint.TARGET_COMMITTED)
            await self._resume()
        side.poke()

    async def _resume(self) -> None:
        side = self._side
        if await side.restores.resume():
            side.progress_ns = side.tools.clock.boottime_ns()

    async def _destroy(self) -> None:
        side = self._side
        ticket = ticket_for(side.record.request)
        if side.succession is not None and not side.succession.bound:
            side.ticket_state = side.succession.destroy()
        else:
            side.ticket_state = await asyncio.to_thread(side.tools.tickets.destroy, side.pod_uid, ticket)
        log.info(
            "migration %s: the ticket of pod %s is %s now",
            side.ref.uid,
            side.pod_uid or side.record.request.pod_name,
            side.ticket_state,
        )
        side.poke()

    async def _return(self, *, anyway: bool) -> None:
        """Give the container back when the source could go on, or when it can never run here.

        Raises:
            PeerUnreachable: the source's agent does not answer: nothing is destroyed.
        """
        side = self._side
        source = side.record.request.source_node
        if source is None:  # what lies in the store is as it was, and nobody is frozen
            await self._destroy()
            return
        intact = await asyncio.to_thread(side.tools.peers.intact, source, side.ref.uid)
        if not intact and not anyway:
            log.warning("migration %s: the source is not intact: the restore is tried again", side.ref.uid)
            side.progress_ns = side.tools.clock.boottime_ns()  # for another budget; then the source is asked again
            return
        if not intact:
            text = f"Node {side.tools.node} cannot go on and the source on node {source} is dead. {self._last_error()}"
            await side.save(last_error=text[:MESSAGE_LENGTH])
        await self._destroy()

    def _last_error(self) -> str:
        side = self._side
        return side.record.last_error or "The target pod is gone, or the node was rebooted."

    async def _clear(self) -> None:
        """Kill what is held, refuse who waits; who does not die by itself is killed."""
        side = self._side
        side.intake.closed = True
        await side.restores.lose("the migration was given up")
        await side.restores.refuse(f"migration {side.ref.uid} was given up; this pod will not start")
        moment = asyncio.get_running_loop().time()
        self._clearing_since = self._clearing_since or moment
        if moment - self._clearing_since > _KILL_AFTER_SECONDS:
            for process in reversed(side.record.processes):  # the tree first
                side.tools.processes.kill(process)
        if moment - self._clearing_since > 2 * _KILL_AFTER_SECONDS:
            for process in side.record.processes:
                side.tools.processes.kill_tracer(process)

    async def _write_resumed(self) -> None:
        side = self._side
        if side.record.resumed_at is None:
            await side.save(state=TargetState.RESUMING, resumed_at=now())
        outcome = await side.tools.registers.write_outcome(side.ref, Outcome.RESUMED)
        await reach(Failpoint.TARGET_RESUMED)
        side.take(outcome)
        side.poke()

    async def _memory_moved(self) -> None:
        """Let the source's processes end.

        Raises:
            PeerUnreachable: the source's agent does not answer; until it has heard it the source stays as it is.
        """
        side = self._side
        source = side.record.request.source_node
        await self._note_filled()
        if source is not None:
            await asyncio.to_thread(side.tools.peers.memory_moved, source, side.ref.uid)
        await side.save(moved=True)
        side.poke()

    async def _note_filled(self) -> None:
        """Note when all memory was in place, once."""
        record = self._side.record
        if record.filled_at is None and record.memory_lost is None:
            await self._side.save(filled_at=now())

    async def _promise(self) -> None:
        """Journal that it will never resume: from now on the source may rely on it."""
        side = self._side
        await asyncio.to_thread(side.tools.journal.wipe_images, side.ref.uid)
        await asyncio.to_thread(side.tools.vault.wipe, side.ref.uid)
        await side.save(state=TargetState.DESTROYED, entries=None)
        side.poke()

    async def _write_returned(self) -> None:
        side = self._side
        whole = "the source goes on" if side.record.request.source_node else "the stored checkpoint is as it was"
        text = side.record.last_error or f"Node {side.tools.node} could not go on; {whole}."
        side.take(await side.tools.registers.write_outcome(side.ref, Outcome.RETURNED, text))
        side.poke()

    async def _give_up(self) -> None:
        """End what went on here: the source goes on, because an admin declared this node out of service."""
        side = self._side
        await self._delete_pod()
        for process in reversed(side.record.processes):
            side.tools.processes.kill(process)

    async def _end(self, state: TargetState) -> None:
        side = self._side
        if state is TargetState.RESUMED and self._lazily:
            await self._note_filled()
        await asyncio.to_thread(side.tools.journal.wipe_images, side.ref.uid)
        await asyncio.to_thread(side.tools.vault.wipe, side.ref.uid, well=state is TargetState.RESUMED)
        await reach(Failpoint.TARGET_WIPED)
        resumed_at = side.record.resumed_at or (now() if state is TargetState.RESUMED else None)
        await side.save(state=state, settled=True, resumed_at=resumed_at)

    async def _forget(self) -> None:
        """Forget; a pod that never starts goes first, for with the object gone nobody else knows of it."""
        side = self._side
        if side.record.state is not TargetState.RESUMED:
            await self._delete_pod()
        side.forgotten = True

    async def _delete_pod(self) -> None:
        side = self._side
        if side.pod_uid:
            await side.tools.registers.delete_pod(side.ref.namespace, side.record.request.pod_name, side.pod_uid)

    @property
    def _lazily(self) -> bool:
        """Whether memory was filled in after the restore of any container."""
        side = self._side
        lazily = side.tools.lazily
        return any(is_lazy(side.record, name, lazily=lazily) for name in side.record.request.containers)
