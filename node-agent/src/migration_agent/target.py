"""The target side of a migration: the ticket, the gate, the checkpoint, Commit, and the way back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from migration_agent.fetching import Fetching
from migration_agent.filling import Filling
from migration_agent.gate import Gate, Gates, Hook
from migration_agent.gate_messages import GateEvent
from migration_agent.intake import Intake
from migration_agent.journal import Journal, TargetRecord
from migration_agent.peer import Admission, Refused
from migration_agent.ports import ApiUnreachable, Clock, Comer, Peers, PeerState, PodState, Registers
from migration_agent.processes import Processes, ProcessRef
from migration_agent.restores import Restores
from migration_agent.seen import Gone, Seen, Verdict
from migration_agent.side import MESSAGE_LENGTH, Side
from migration_agent.succession import Succession
from migration_agent.target_acts import TargetActs
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_report import target_report
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import Tickets, TicketState
from migration_agent.transport.chunks import Seal
from migration_agent.transport.manifest import ManifestEntry, verify
from migration_agent.transport.store import StoreOf, no_store
from migration_agent.vault import Vault
from migration_api.base import now
from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint, reach
from migration_api.wire import Failure, TargetReport, TargetState

log = logging.getLogger(__name__)

_PENDING_SECONDS = 1.0
_ENDED_SECONDS = 30.0
_SETTLE_EVERY_SECONDS = 0.2
_FILLING_SECONDS = 0.1
_EXPECTING_SECONDS = 0.1


@dataclass(frozen=True)
class TargetTools:
    """What a target side works with."""

    journal: Journal
    vault: Vault
    tickets: Tickets
    registers: Registers
    peers: Peers
    gates: Gates
    clock: Clock
    processes: Processes
    node: str
    """The name of this node."""
    store_of: StoreOf = no_store
    lazily: bool = False
    """Whether this node can fill memory in after the restore."""


class TargetSide(Side):
    """One migration's target side on this node."""

    name = "target"

    def __init__(
        self, record: TargetRecord, tools: TargetTools, *, changed: Callable[[], None], restarted: bool
    ) -> None:
        """Take over a record that is in the journal; `restarted`: it was written in an earlier life of the agent."""
        super().__init__(record.request.migration, changed)
        self.record = record
        self.tools = tools
        self._restarted = restarted
        self.ticket_state = TicketState.NONE
        successor = record.request.successor
        self.succession = Succession(self, successor) if successor is not None else None
        self.take_pod(record.request.pod_uid or record.pod_uid or "")
        directory = tools.journal.layout.images(self.ref.uid)
        self.intake = Intake(self.ref.uid, directory, record.request.containers)
        self.fetching = Fetching(self, tools.store_of)
        self.acts = TargetActs(self)
        self._pagers = Filling(tools.journal.layout, tools.processes, tools.clock.boot_id)
        self._filling = False
        self._promise_asked = False
        self._called = False
        """The source was about to stand still in this life of the agent; later the checkpoint opens the late gate."""
        self.progress_ns: int | None = None
        """When something was held last, or Commit was first known."""
        self._saving = asyncio.Lock()

    @property
    def ended(self) -> bool:
        return self.record.settled

    @property
    def promised(self) -> bool:
        """Whether it stands in the journal that this migration never resumes here."""
        return self.record.state in {TargetState.DESTROYED, TargetState.RETURNED}

    def take_pod(self, pod_uid: str) -> None:
        """Make this the pod whose ticket it is about; empty: it has not come yet."""
        self.pod_uid = pod_uid
        self.restores = Restores(self.tools.gates, self.tools.journal.layout, self.record.request, pod_uid)
        self._pod = PodState.UNKNOWN

    @property
    def interval(self) -> float:
        if self.record.settled:
            return _ENDED_SECONDS
        if self.succession is not None and self.succession.expects:
            return _EXPECTING_SECONDS
        return _FILLING_SECONDS if self._filling else _PENDING_SECONDS

    async def prepare(self) -> None:
        """Throw away what was received in another boot; check what is to be used again.

        What was received in part stays: it is checked when the source sends the rest.
        """
        if not self._restarted or self.record.settled:
            return
        record, journal = self.record, self.tools.journal
        boot = await asyncio.to_thread(self.tools.clock.boot_id)
        if self.succession is not None:
            usable = await self.succession.is_usable()
        else:
            usable = record.entries is not None and record.boot_id == boot
            usable = usable and await asyncio.to_thread(self._verified, record.entries or ())
        if not usable and (record.boot_id != boot or record.entries is not None):
            await asyncio.to_thread(journal.wipe_images, self.ref.uid)
        if record.boot_id != boot:  # no process of that boot lives; its clock means nothing now
            entries = record.entries if usable else None
            await self.save(boot_id=boot, entries=entries, processes=(), committed_at_ns=None)
        elif not usable and record.entries is not None:
            await self.save(entries=None)

    async def round(self) -> None:
        """Look, decide, and take one step."""
        step = await self.next_step()
        if step is not TargetStep.WAIT:
            log.info("migration %s: target %s: %s", self.ref.uid, self.record.state, step)
        await self.acts.take(step)
        self._changed()

    async def next_step(self) -> TargetStep:
        """Look and decide."""
        return next_target_step(await self.observe())

    async def observe(self) -> TargetObservation:
        """Look at register and pod first, at ticket and connections last: those must be the freshest."""
        restores, succession = self.restores, self.succession
        reading = await self._read()
        verdict = self.take(reading)
        matters = verdict is Verdict.COMMIT or succession is not None or restores.lineup().held
        if matters and self.pod_uid and not self.record.settled:
            self._pod = await self._look_at_pod()
        comer = await succession.look(verdict) if succession else Comer.NOBODY
        await self.note_commit(verdict)
        losing = restores.losing()  # before the ticket: who went on after the rename is not lost
        await self._look_at_ticket()
        if self.ticket_state is TicketState.PENDING:
            await restores.admit()
        resuming = self.ticket_state is TicketState.RESUMING
        self._filling = resuming and bool(await asyncio.to_thread(self._pagers.containers, self.pod_uid))
        lineup, waiting = restores.lineup(), restores.waiting()
        held = lineup.held and all(self.tools.processes.alive(hook.init) for hook in restores.hooks())
        now_ns = self.tools.clock.boottime_ns()
        if held:
            self.progress_ns = now_ns
        connected = self.tools.gates.connected(self.pod_uid)
        return TargetObservation(
            state=self.record.state,
            verdict=verdict,
            ticket=self.ticket_state,
            settled=self.record.settled,
            acknowledged=self.record.acknowledged,
            ours=self._ours(self._seen),
            received=self.record.entries is not None,
            fetch=self.fetching.due(),
            gate=waiting is not None,
            late=restores.late_gate() is not None,
            called=self._called,
            restoring=lineup.restoring,
            held=held,
            filling=self._filling,
            borrows=self.record.borrows,
            resume_sent=held and all(hook.resume_sent for hook in restores.hooks()),
            accompanied=restores.accompanied(),
            losing=losing or bool(lineup.out_of_turn),
            clear=not self._stale(waiting),
            dead=not connected and not self.intake.receiving and not self._any_alive(),
            pod=self._pod,
            promise_asked=self._promise_asked,
            waited=succession.waited(verdict, now_ns) if succession else self.waited(verdict, now_ns),
            failed=self.record.failure is not None,
            successor=succession is not None,
            proposed=self.record.proposed,
            bound=self.record.pod_uid is not None,
            comer=comer,
        )

    async def note_commit(self, verdict: Verdict) -> None:
        """Journal when this agent learned of Commit: from then on the budget counts."""
        if verdict is Verdict.COMMIT and self.record.committed_at_ns is None:
            await self.save(committed_at_ns=self.tools.clock.boottime_ns())

    def waited(self, verdict: Verdict, now_ns: int) -> bool:
        """Say whether it is committed, and there was no progress for the length of the freeze budget."""
        since = max(self.progress_ns or 0, self.record.committed_at_ns or 0)
        return verdict is Verdict.COMMIT and now_ns - since > self.record.request.freeze_budget_seconds * 10**9

    def word(self) -> PeerState:
        """Say what the source's agent may rely on; the ticket on disk or the journal stands behind it."""
        if self.record.state is TargetState.RESUMED:
            return PeerState.RESUMED
        if self.ticket_state is TicketState.RESUMING and not self.promised:
            # In an earlier life the node may have been declared out of service: the register is read first.
            known = self.last_verdict not in {Verdict.UNREACHABLE, Verdict.RETURNED}
            return PeerState.RESUMED if known else PeerState.UNDECIDED
        return PeerState.DESTROYED if self.promised else PeerState.UNDECIDED

    async def settle(self, *, promise: bool, settled: bool, seconds: float) -> PeerState:
        """Answer the source's agent; with `promise` give the ticket up when possible, for at most `seconds`."""
        if settled and not self.record.acknowledged:
            await self.save(acknowledged=True)
        if promise and not self._promise_asked and self.word() is PeerState.UNDECIDED:
            log.info("migration %s: the source's agent asks for the promise", self.ref.uid)
            self._promise_asked = True
        self.poke()
        deadline = asyncio.get_running_loop().time() + seconds
        while (left := deadline - asyncio.get_running_loop().time()) > 0:
            if self.rounds and (self.word() is not PeerState.UNDECIDED or not promise):
                break
            await self.looked(left)
            if self.word() is PeerState.UNDECIDED:
                await asyncio.sleep(min(left, _SETTLE_EVERY_SECONDS))
        return self.word()

    async def arrived(self) -> None:
        """Look at once when somebody comes to the gate."""
        if self.ticket_state is TicketState.PENDING and not self.record.settled:
            await self.restores.admit()
        self._changed()
        self.poke()

    async def held(self, hook: Hook) -> None:
        """Journal the processes of the held tree before anything is built on it."""
        await reach(Failpoint.TARGET_HELD)
        await self._remember((hook.gate.link.process, hook.link.process, hook.init))
        hook.journalled = True
        if self.record.held_at is None and self.restores.lineup().held:
            await self.save(held_at=now())
        await hook.counted()
        self.poke()

    async def reported(self, gate: Gate, event: GateEvent) -> None:
        """Note how a restore ended; a failure is the end only before the commit."""
        if event.event == "failed" and self.ticket_state is TicketState.PENDING:
            name = gate.hello.container
            text = f"Node {self.tools.node} could not restore container {name}: {event.message}"[:MESSAGE_LENGTH]
            log.warning("migration %s: %s", self.ref.uid, text)
            undecided = self.last_verdict in {Verdict.UNDECIDED, Verdict.UNREACHABLE} and self.succession is None
            if self.record.failure is not None:
                pass  # a consequence of the first failure, which is what an admin must read
            elif undecided and self.record.committed_at_ns is None:
                await self.save(failure=Failure(reason=Reason.RESTORE_FAILED, message=text), last_error=text)
            else:
                await self.save(last_error=text)
        self.poke()

    async def admit(self, peer: str) -> Admission:
        """Let the source send its checkpoint, or what is missing of it.

        Raises:
            Refused: it is not the source, or nothing is expected any more.
        """
        self._demand_source(peer)
        await self._look_at_ticket()
        shipping = await asyncio.to_thread(self.tools.vault.shipping, self.ref.uid)
        if self.record.entries is not None and not self.record.settled and not self._promise_asked:
            return self.intake.complete(shipping)  # the source's agent was restarted before it wrote that down
        expected = self.ticket_state is TicketState.PENDING and not self._promise_asked
        if not expected or self.record.settled:
            raise Refused(f"the migration is {self.record.state} here: no checkpoint is expected")
        return self.intake.admit(shipping)

    def called(self, peer: str) -> bool:
        """Open the late gate, for the source is about to stand still, and say whether somebody waits to be restored.

        Nobody is waited for who can come only when the source is gone.

        Raises:
            Refused: it is not the source who asks.
        """
        self._demand_source(peer)
        self._called = True
        self.poke()
        return self.succession is not None or self.restores.waiting() is not None

    def _demand_source(self, peer: str) -> None:
        source = self.record.request.source_node
        if peer != source:
            raise Refused(f"the source of this migration is node {source}, not {peer}")

    async def admitted_done(self, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool) -> None:
        """Take the end of the transfer; what is not complete is kept only when the rest may still come."""
        try:
            if entries is None:
                log.warning("migration %s: the checkpoint did not arrive: %s", self.ref.uid, error)
                if not again:
                    await asyncio.to_thread(self.tools.journal.wipe_images, self.ref.uid)
            else:
                await reach(Failpoint.TARGET_RECEIVED)
                secured = await self.succession.secure(entries) if self.succession is not None else None
                await self.save(entries=entries, received_at=now(), secured=secured)
        finally:  # also when it cannot be journalled: the source sends again, or gives up
            self.intake.receiving = False
            self.poke()

    async def memory_lost(self, reason: str) -> None:
        """Note that the source has no memory to give any more: whoever restores is about to kill the container."""
        if self.record.memory_lost is None:
            await self.save(memory_lost=reason[:MESSAGE_LENGTH])

    def report(self) -> TargetReport:
        """Return the target side as it is now."""
        now_ns = self.tools.clock.boottime_ns()
        ticket, filling = self.ticket_state, self._filling
        return target_report(self.record, self.intake, self.restores, ticket, filling=filling, now_ns=now_ns)

    async def stop(self) -> None:
        """Stop looking and fetching; what is held stays held."""
        await super().stop()
        await self.fetching.stop()

    async def save(self, **changes: Any) -> None:
        """Journal changes; they are on disk, and only then known here, when this returns."""
        async with self._saving:  # gate, peers and the loop all write; none may overwrite another's change
            record = self.record.model_copy(update=changes)
            await asyncio.to_thread(self.tools.journal.save, record)
            self.record = record
        self._changed()

    def _ours(self, it: Seen | None) -> bool:
        request = self.record.request
        asked = (self.tools.node, request.pod_uid, request.source_node)
        return it is not None and (it.target_node, it.target_pod_uid, it.source_node) == asked

    def _verified(self, entries: tuple[ManifestEntry, ...]) -> bool:
        """Say whether a checkpoint that was received earlier is still what it was; blocks."""
        shipping = self.tools.vault.shipping(self.ref.uid)
        if shipping is None:
            return False
        seal = Seal(shipping.key_bytes, self.record.request.sealed_for)
        return verify(seal, self.tools.journal.layout.images(self.ref.uid), entries, self.record.chunk_bytes)

    def _any_alive(self) -> bool:
        return any(self.tools.processes.alive(process) for process in self.record.processes)

    def _stale(self, waiting: Gate | None) -> bool:
        """Say whether a process lives of a restore that neither is held nor waits to begin."""
        known = (*self.restores.held_processes(), *([waiting.link.process] if waiting else []))
        return any(self.tools.processes.alive(p) for p in self.record.processes if p not in known)

    async def _look_at_ticket(self) -> None:
        """Read the ticket; a hook's rename is brought to the disk before anything is built on it."""
        before = self.ticket_state
        if self.succession is not None and not self.succession.bound:
            self.ticket_state = self.succession.ticket()
            return
        self.ticket_state = await asyncio.to_thread(self.tools.tickets.state, self.pod_uid)
        if self.ticket_state is TicketState.RESUMING and before is not TicketState.RESUMING:
            await asyncio.to_thread(self.tools.tickets.sync, self.pod_uid)

    async def _remember(self, processes: tuple[ProcessRef, ...]) -> None:
        new = tuple(p for p in processes if p not in self.record.processes)
        if new:
            await self.save(processes=(*self.record.processes, *new))

    async def _read(self) -> Seen | Gone | None:
        try:
            return await self.tools.registers.read(self.ref)
        except ApiUnreachable as error:
            self.say_trouble(error)
            return None

    async def _look_at_pod(self) -> PodState:
        if self._pod is PodState.GONE:
            return PodState.GONE
        try:
            return await self.tools.registers.pod(self.ref.namespace, self.record.request.pod_name, self.pod_uid)
        except ApiUnreachable as error:
            self.say_trouble(error)
            return PodState.UNKNOWN
