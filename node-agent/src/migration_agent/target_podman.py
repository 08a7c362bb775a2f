"""The target side for a Podman container: `target_plan` decides, over other facts (docs/protocol.md, section 11).

Podman holds nothing: what it restores runs. So what may be committed is a checkpoint that is complete and verified
here, and the restore comes after. The ticket is `pending` until the container has been seen to run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from migration_agent.archive.names import NotTransferable
from migration_agent.archive.whole import demand_whole
from migration_agent.journal import TargetRecord
from migration_agent.ports import PodState
from migration_agent.runtime.interface import RuntimeFailure
from migration_agent.runtime.podman import Podman, PodmanContainer
from migration_agent.side import MESSAGE_LENGTH
from migration_agent.target import TargetSide, TargetTools
from migration_agent.target_acts import TargetActs
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_agent.transport.manifest import PODMANS_ARCHIVE
from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint, reach
from migration_api.wire import Failure, TargetReport, TargetState

log = logging.getLogger(__name__)


class PodmanTargetSide(TargetSide):
    """One migration's target side where Podman runs the container."""

    def __init__(
        self,
        record: TargetRecord,
        tools: TargetTools,
        podman: Podman,
        *,
        changed: Callable[[], None],
        restarted: bool,
    ) -> None:
        """See `TargetSide`."""
        super().__init__(record, tools, changed=changed, restarted=restarted)
        self.podman = podman
        self.acts = _PodmanActs(self)
        self._ready = False
        """Podman answers, and ID and name are free: the source may be stopped."""
        self._whole = False
        self.under_way = False

    @property
    def archive(self) -> Path:
        """Where the archive lies when it has arrived: the same on the host."""
        request = self.record.request
        return self.tools.journal.layout.image(self.ref.uid, request.containers[0]) / PODMANS_ARCHIVE

    async def next_step(self) -> TargetStep:
        """Look and decide; while a restore is under way nobody can say what comes of it, and nothing is given up."""
        it = await self.observe()
        return TargetStep.WAIT if it.restoring and it.ticket is TicketState.PENDING else next_target_step(it)

    async def observe(self) -> TargetObservation:
        """Look at the register first, at Podman last: that must be the freshest."""
        record = self.record
        verdict = self.take(await self._read())
        await self.note_commit(verdict)
        await self._look_at_ticket()
        await self._demand_free()
        await self._demand_whole()
        dead = True
        if not record.settled:
            self.under_way = await asyncio.to_thread(self.podman.under_way, self.pod_uid, str(self.archive))
        if record.restore_begun and not record.settled and not self.under_way:
            it = await self.container()
            await self.note_began(it)
            dead = it is None and not await asyncio.to_thread(self.podman.processes, self.pod_uid)
        waited = self.waited(verdict, self.tools.clock.boottime_ns())
        return TargetObservation(
            state=self.record.state,
            verdict=verdict,
            ticket=self.ticket_state,
            settled=self.record.settled,
            acknowledged=self.record.acknowledged,
            ours=self._ours(self._seen),
            received=self.record.entries is not None,
            restoring=self.under_way,
            held=self._whole and not waited,
            dead=dead and not self.under_way and not self.intake.receiving,
            pod=PodState.LIVE,
            promise_asked=self._promise_asked,
            waited=waited,
            failed=self.record.failure is not None,
        )

    def report(self) -> TargetReport:
        """Return the target side as it is now."""
        it = super().report()
        state = TargetState.RESTORING if it.state is TargetState.RECEIVED and self.under_way else it.state
        return it.model_copy(update={"at_late_gate": self._ready, "state": state})

    async def container(self) -> PodmanContainer | None:
        """Return what has the container's ID here."""
        return await asyncio.to_thread(self.podman.look, self.pod_uid)

    async def note_began(self, it: PodmanContainer | None) -> None:
        """The container has run here: whatever becomes of it, it went on at this node."""
        if it is not None and it.began and self.ticket_state is TicketState.PENDING:
            self.ticket_state = await asyncio.to_thread(self.tools.tickets.resume, self.pod_uid)

    async def _demand_free(self) -> None:
        """Find out before the source is touched whether Podman could take the container."""
        if self._ready or self.record.settled or self.record.failure or self.record.restore_begun:
            return
        try:
            found = [
                await asyncio.to_thread(self.podman.look, it) for it in (self.pod_uid, self.record.request.pod_name)
            ]
        except RuntimeFailure as error:  # the way back must not depend on it
            self.say_trouble(error)
            return
        if other := next((it for it in found if it is not None), None):
            text = (
                f"Node {self.tools.node} has a Podman container {other.name} ({other.id}) already; it is left as it is"
            )
            await self._fail(Reason.TARGET_FAILED, text)
        self._ready = other is None

    async def _demand_whole(self) -> None:
        """Look into what has arrived, once in each life of the agent."""
        if self._whole or self.record.entries is None or self.record.settled or self.record.failure:
            self._whole = self._whole and self.record.entries is not None
            return
        try:
            await asyncio.to_thread(demand_whole, self.archive, self.pod_uid, self.record.request.pod_name)
            self._whole = True
        except (NotTransferable, OSError) as error:
            await self._fail(Reason.TRANSFER_FAILED, f"Node {self.tools.node}: {error}")

    async def _fail(self, reason: Reason, text: str) -> None:
        log.warning("migration %s: %s", self.ref.uid, text)
        await self.save(failure=Failure(reason=reason, message=text[:MESSAGE_LENGTH]), last_error=text[:MESSAGE_LENGTH])


class _PodmanActs(TargetActs):
    """The acts that are others where Podman restores."""

    def __init__(self, side: PodmanTargetSide) -> None:
        super().__init__(side)
        self._podman_side = side

    async def _resume(self) -> None:
        """Restore; what an earlier attempt left goes first. A failure is tried again until the budget is used up."""
        side = self._podman_side
        try:
            await self._begin()
            await reach(Failpoint.TARGET_PODMAN_RESTORES)
            await asyncio.to_thread(side.podman.restore_from, side.archive)
        except RuntimeFailure as error:
            text = f"Node {side.tools.node}: Podman could not restore the container: {error}"[:MESSAGE_LENGTH]
            log.warning("migration %s: %s", side.ref.uid, text)
            await side.save(last_error=text)
            return
        await reach(Failpoint.TARGET_PODMAN_RESTORED)
        await side.note_began(await side.container())
        side.poke()

    async def _begin(self) -> None:
        """Make sure that nothing has the ID; before the first attempt what has it is somebody else's."""
        side = self._podman_side
        it = await side.container()
        if it is not None and not side.record.restore_begun:
            raise RuntimeFailure(f"there is a container {side.pod_uid} already, which is left as it is")
        if side.record.restore_begun:
            await asyncio.to_thread(self._remove)
        else:
            await side.save(restore_begun=True)

    def _remove(self) -> None:
        """Remove the container, and whatever runs of it that Podman does not know."""
        side = self._podman_side
        side.podman.remove(side.pod_uid)
        for pid in side.podman.processes(side.pod_uid):
            if process := side.tools.processes.ref(pid):
                side.tools.processes.kill(process)

    async def _clear(self) -> None:
        side = self._podman_side
        side.intake.closed = True
        await self._give_up()

    async def _give_up(self) -> None:
        """Remove what a restore has made; while a command still works, what it will have made is not there yet."""
        side = self._podman_side
        if side.record.restore_begun and not side.under_way:
            await asyncio.to_thread(self._remove)

    async def _end(self, state: TargetState) -> None:
        """The journal has the word now: nothing else asks for the ticket, and the container may come again."""
        side = self._podman_side
        await super()._end(state)
        await asyncio.to_thread(side.tools.tickets.remove, side.pod_uid)

    async def _forget(self) -> None:
        self._podman_side.forgotten = True

    def _last_error(self) -> str:
        return self._podman_side.record.last_error or "The node was rebooted."
