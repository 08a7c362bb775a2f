"""The source side of a migration: freezes, dumps, sends, and then waits for the word that lets it go on or end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from migration_agent.freeze_turn import FreezeTurn
from migration_agent.journal import Journal, SourceRecord
from migration_agent.ports import ApiUnreachable, Clock, FreezerLike, Peers, PeerState, Registers
from migration_agent.runtime.interface import ContainerStatus
from migration_agent.seen import Gone, Seen, Verdict
from migration_agent.side import MESSAGE_LENGTH, Side
from migration_agent.source_copy import CopyFailed, GivenUp, SourceCopy
from migration_agent.source_memory import SourceMemory
from migration_agent.source_plan import SourceObservation, SourceStep, abort_reason, next_source_step
from migration_agent.vault import Vault
from migration_api.base import now
from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint, reach
from migration_api.migration import Decision
from migration_api.wire import Failure, RunBy, SourceReport, SourceState

log = logging.getLogger(__name__)

_FAST_SECONDS = 0.2
_FAST_ROUNDS = 50
_FROZEN_SECONDS = 1.0
_ENDED_SECONDS = 30.0
_PAUSED_AFTER = frozenset({SourceState.DUMPED, SourceState.SENT})
_BEGUN = frozenset({SourceState.FENCED, SourceState.FROZEN, SourceState.DUMPED, SourceState.SENT})


@dataclass(frozen=True)
class SourceTools:
    """What a source side works with."""

    journal: Journal
    vault: Vault
    registers: Registers
    peers: Peers
    clock: Clock
    freezer: FreezerLike
    node: str
    """The name of this node."""
    turn: FreezeTurn
    """Who may freeze now: the same for all sources of this node."""


class SourceSide(Side):
    """One migration's source side on this node."""

    name = "source"

    def __init__(
        self, record: SourceRecord, tools: SourceTools, *, changed: Callable[[], None], restarted: bool
    ) -> None:
        """Take over a record that is in the journal; `restarted`: it was written in an earlier life of the agent."""
        super().__init__(record.request.migration, changed)
        self.record = record
        self.tools = tools
        self._restarted = restarted
        self._interrupted = restarted and record.state in _BEGUN
        self._peer: PeerState | None = PeerState.RESUMED if record.word else None
        self._alive = True
        self._fast_rounds = 0
        self._copy = SourceCopy(self)
        self.copying: asyncio.Task[None] | None = None
        self.memory = SourceMemory(self)
        self._bytes_reported = 0

    @property
    def ended(self) -> bool:
        return self.record.ended

    @property
    def interval(self) -> float:
        if self.record.settled:
            return _ENDED_SECONDS
        if self.record.state is SourceState.SENT and self._fast_rounds < _FAST_ROUNDS:
            self._fast_rounds += 1
            return _FAST_SECONDS
        return _FROZEN_SECONDS

    async def prepare(self) -> None:
        """Raise the fence again before anything else, and count a reboot as the death of the containers."""
        if self._restarted and self.record.state in _BEGUN:
            boot = await asyncio.to_thread(self.tools.clock.boot_id)
            if boot != self.record.boot_id:
                log.warning("migration %s: the node was rebooted in the middle of the migration", self.ref.uid)
                # The budget starts anew: when all was sent, the target has the only copy and should get its chance.
                await self.save(boot_id=boot, frozen_at_ns=self.tools.clock.boottime_ns())
            if not self._going_on:
                await asyncio.to_thread(self.tools.freezer.fence_again)

    @property
    def _going_on(self) -> bool:
        """Whether the containers go on, or are about to, whatever becomes of their copy."""
        return self.record.apart and self.record.state in _PAUSED_AFTER

    async def round(self) -> None:
        """Look, decide, and take one step."""
        observation = await self.observe()
        step = next_source_step(observation)
        if step is not SourceStep.WAIT:
            log.info("migration %s: source %s: %s", self.ref.uid, self.record.state, step)
        await self._act(step, observation)
        done = self._copy.progress.done + self.memory.sent.done
        if done != self._bytes_reported:
            self._bytes_reported = done
            self._changed()

    async def observe(self) -> SourceObservation:
        """Look at register, containers and budget."""
        reading = await self._read()
        verdict = self.take(reading)
        running = False
        if self.record.containers and not self.record.ended and not self.record.let_go:
            statuses = await asyncio.to_thread(self.tools.freezer.look, self.record.containers)
            self._alive = ContainerStatus.STOPPED not in statuses
            running = self.record.state in _PAUSED_AFTER and ContainerStatus.RUNNING in statuses
        return SourceObservation(
            state=self.record.state,
            verdict=verdict,
            peer=self._peer,
            wanted=self.wanted(self._seen) if self._seen else True,
            alive=self._alive,
            running=running,
            working=self.copying is not None and not self.copying.done(),
            interrupted=self._interrupted,
            expired=self._budget_left() <= 0,
            failed=self.record.failure is not None,
            owes_abort=self.record.owes_abort,
            apart=self.record.apart,
            taking=self.record.request.taking,
            let_go=self.record.let_go,
            lends=self.record.lends,
            same_name=self.record.request.same_name,
            releasing=self.record.word,
        )

    def wanted(self, it: Seen) -> bool:
        """Say whether the object asks for exactly this: node, pod and target as requested, not given up."""
        request = self.record.request
        asked = (self.tools.node, request.pod_uid, request.target_node)
        return not it.given_up and (it.source_node, it.source_pod_uid, it.target_node) == asked

    async def save(self, **changes: Any) -> None:
        """Journal changes; they are on disk, and only then known here, when this returns."""
        record = self.record.model_copy(update=changes)
        await asyncio.to_thread(self.tools.journal.save, record)
        self.record = record
        self._changed()

    async def intact(self) -> bool:
        """Say whether the containers are frozen, alive and fenced, and could go on with nothing lost.

        Those that go on by themselves lose nothing when their copy is given up.
        """
        record = self.record
        if record.apart:
            return True
        if record.state not in _PAUSED_AFTER:
            return False
        if record.request.same_name and (record.word or self.last_verdict is not Verdict.GONE):
            return False  # a Commit that was read ends it; with the object seen to be gone none will be read any more
        frozen = await asyncio.to_thread(self.tools.freezer.frozen, record.containers)
        fenced = await asyncio.to_thread(self.tools.freezer.fenced)
        return frozen and fenced and self.record.state in _PAUSED_AFTER

    async def memory_moved(self) -> None:
        """The target needs nothing of the frozen processes any more."""
        if not self.record.moved:
            await self.save(moved=True)
        self.poke()

    def report(self) -> SourceReport:
        """Return the source side as it is now."""
        record = self.record
        return SourceReport(
            state=record.state,
            settled=record.settled,
            fenced=record.state in _BEGUN and not record.let_go,
            frozen=not record.let_go
            and (record.state in _PAUSED_AFTER or (record.state is SourceState.FROZEN and self._copy.paused)),
            alive=self._alive,
            lending=record.lends and not record.ended,
            memory_bytes=self.memory.staying,
            memory_sent=self.memory.sent.done,
            freeze_budget_left_seconds=self._budget_left() if record.frozen_at_ns and not self._free else None,
            connections=record.connections,
            files=record.files,
            bytes_total=record.bytes_total or self._copy.progress.expected or None,
            bytes_sent=self._copy.progress.done,
            chunks_sent=self._copy.progress.chunks_sent,
            chunks_resumed=self._copy.progress.chunks_resumed,
            frozen_at=record.frozen_at,
            dumped_at=record.dumped_at,
            sent_at=record.sent_at,
            thawed_at=record.thawed_at,
            failure=record.failure,
        )

    async def stop(self) -> None:
        """Stop looking and copying; what is frozen stays frozen."""
        await super().stop()
        await self._stop_copy()

    async def let_go(self) -> None:
        """Let the containers go on, the checkpoint being complete; whoever was killed in between does it again."""
        await asyncio.to_thread(self.tools.freezer.thaw, self.record.containers)
        await reach(Failpoint.SOURCE_WENT_ON)
        await self.save(thawed_at=now())

    @property
    def _free(self) -> bool:
        return self.record.ended or self.record.let_go

    def _budget_left(self) -> float:
        """Return seconds of the freeze budget; all of it before the freeze, and when it is over."""
        budget = float(self.record.request.freeze_budget_seconds)
        began = self.record.frozen_at_ns
        if began is None or self.record.let_go:
            return budget
        return budget - (self.tools.clock.boottime_ns() - began) / 1e9

    async def _read(self) -> Seen | Gone | None:
        try:
            return await self.tools.registers.read(self.ref)
        except ApiUnreachable as error:
            self.say_trouble(error)
            return None

    async def _act(self, step: SourceStep, it: SourceObservation) -> None:
        acts: dict[SourceStep, Callable[[SourceObservation], Awaitable[None]]] = {
            SourceStep.COPY: lambda _: self._begin(self._copy.run),
            SourceStep.SEND: lambda _: self._begin(self._copy.send),
            SourceStep.ABORT: self._abort,
            SourceStep.PAY_ABORT: self._abort,
            SourceStep.THAW: self._thaw,
            SourceStep.WITHDRAW: self._withdraw,
            SourceStep.LOSE: self._lose,
            SourceStep.RELEASE: self._release,
            SourceStep.REFREEZE: self._refreeze,
            SourceStep.LET_GO: lambda _: self.let_go(),
            SourceStep.LEAVE: self._leave,
            SourceStep.ASK_PROMISE: self._ask_promise,
            SourceStep.CLEAR_ABORT: self._clear_abort,
            SourceStep.ACKNOWLEDGE: self._acknowledge,
        }
        if step is not SourceStep.WAIT:
            await reach(Failpoint(f"source.{step}"))
            await acts[step](it)

    async def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        self.copying = asyncio.create_task(self._run_copy(work), name=f"copy-{self.ref.uid}")

    async def _run_copy(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except GivenUp:
            log.info("migration %s: the copy was given up", self.ref.uid)
        except CopyFailed as error:
            log.warning("migration %s: the copy failed: %s", self.ref.uid, error)
            await self.save(failure=Failure(reason=error.reason, message=str(error)[:MESSAGE_LENGTH]))
        except ApiUnreachable as error:
            self.say_trouble(error)  # nothing was touched yet: the next round begins anew
        except Exception as error:
            log.exception("migration %s: the copy failed", self.ref.uid)
            text = f"The agent on node {self.tools.node} failed: {type(error).__name__}: {error}"
            await self.save(failure=Failure(reason=Reason.CHECKPOINT_FAILED, message=text[:MESSAGE_LENGTH]))
        finally:
            self.poke()

    async def _stop_copy(self) -> None:
        """Give the copy up and wait until no thread of it works any more."""
        self._copy.give_up()
        if self.copying is not None:
            await asyncio.wait([self.copying])

    async def _abort(self, it: SourceObservation) -> None:
        failure = self.record.failure or self._failure(abort_reason(it) or Reason.ABORT_REQUESTED)
        if self.record.failure is None and not self.record.ended:
            await self.save(failure=failure)
        after = await self.tools.registers.propose(self.ref, Decision.ABORT, failure)
        self.take(after)
        self.poke()

    def _failure(self, reason: Reason) -> Failure:
        budget = self.record.request.freeze_budget_seconds
        text = {
            Reason.SOURCE_LOST: "The source container died while it was frozen, not by this migration.",
            Reason.AGENT_RESTARTED: "The agent was restarted in the middle of the dump. Try again.",
            Reason.FREEZE_BUDGET_EXCEEDED: f"The container stood still for {budget} s without a decision; it goes on "
            "here. If the workload tolerates more, raise spec.freezeBudgetSeconds, and failureThreshold of its network "
            "liveness probes.",
        }.get(reason, "The migration was cancelled, deleted, or is not about this pod any more.")
        trouble = self._copy.progress.trouble
        text += f" The transfer's last trouble: {trouble}" if trouble else ""
        return Failure(reason=reason, message=f"Node {self.tools.node}: {text}"[:MESSAGE_LENGTH])

    async def _thaw(self, it: SourceObservation) -> None:
        """Let the containers go on; a promise is journalled first, so that no later life forgets to write Abort."""
        by_promise = it.verdict not in {Verdict.ABORT, Verdict.RETURNED}
        await self._stop_copy()
        if by_promise and not self.record.promised and not it.apart:
            await self.save(promised=True)
            await reach(Failpoint.SOURCE_PROMISED)
        await asyncio.to_thread(self.tools.freezer.thaw, self.record.containers)
        await reach(Failpoint.SOURCE_THAWED)
        thawed_at = self.record.thawed_at or now()
        owes = by_promise and it.verdict is not Verdict.GONE and not it.taking
        why = self.record.failure or (self._failure(abort_reason(it) or Reason.ABORT_REQUESTED) if it.taking else None)
        await self._end(SourceState.THAWED, thawed_at=thawed_at, owes_abort=owes, failure=why)

    async def _leave(self, it: SourceObservation) -> None:
        await self._stop_copy()
        taken = it.taking and it.state is SourceState.SENT and it.wanted and it.verdict is not Verdict.GONE
        await self._end(SourceState.THAWED, well=taken or it.verdict is Verdict.RESUMED)

    async def _withdraw(self, _: SourceObservation) -> None:
        await self._end(SourceState.THAWED)

    async def _lose(self, it: SourceObservation) -> None:
        by_promise = it.verdict not in {Verdict.ABORT, Verdict.RETURNED}
        await self._stop_copy()
        await asyncio.to_thread(self.tools.freezer.thaw, self.record.containers)  # the living and the dead: see `thaw`
        failure = self.record.failure or self._failure(Reason.SOURCE_LOST)
        owes = by_promise and it.verdict is not Verdict.GONE and not it.taking
        await self._end(SourceState.LOST, failure=failure, owes_abort=owes)

    async def _release(self, it: SourceObservation) -> None:
        """Kill every task while frozen; the fence stays and goes with the pod, which goes now if it gives its name."""
        request = self.record.request
        final = it.verdict is Verdict.GONE or request.same_name
        await self._stop_copy()
        if final and not self.record.word:
            await self.save(word=True)
        await asyncio.to_thread(self.tools.freezer.release, self.record.containers)
        await reach(Failpoint.SOURCE_RELEASED)
        if request.same_name:
            await self.tools.registers.delete_pod(self.ref.namespace, request.pod_name, request.pod_uid, at_once=True)
            await reach(Failpoint.SOURCE_GAVE_ITS_NAME)
        await self._end(SourceState.RELEASED, well=True, keep=request.same_name)

    async def _end(self, state: SourceState, *, well: bool = False, keep: bool = False, **changes: Any) -> None:
        """End; `well`: what is to stay in the store stays there; `keep`: the images stay until it is forgotten."""
        if not keep:
            await asyncio.to_thread(self.tools.journal.wipe_images, self.ref.uid)
        await asyncio.to_thread(self.tools.vault.wipe, self.ref.uid, well=well)
        await reach(Failpoint.SOURCE_WIPED)
        await self.save(state=state, **changes)
        if state is not SourceState.RELEASED:
            await asyncio.to_thread(self.tools.journal.release_claim, self.record.request.pod_uid, self.ref.uid)
        self._fast_rounds = 0
        self.poke()

    async def _refreeze(self, _: SourceObservation) -> None:
        await asyncio.to_thread(self.tools.freezer.pause, self.record.containers)
        text = "Somebody set the frozen container running after it was checkpointed, so the checkpoint is out of date."
        why = Failure(reason=Reason.CHECKPOINT_FAILED, message=f"Node {self.tools.node}: {text}")
        await self.save(ran=True, failure=self.record.failure or why)
        self.poke()

    async def _ask_promise(self, _: SourceObservation) -> None:
        node, uid = self.record.request.target_node or "", self.ref.uid
        self._peer = await asyncio.to_thread(self.tools.peers.settle, node, uid, promise=True)
        log.info("migration %s: node %s says: %s", uid, node, self._peer)
        if self._peer is not PeerState.UNDECIDED:
            self.poke()

    async def _clear_abort(self, _: SourceObservation) -> None:
        await self.save(owes_abort=False)

    async def _acknowledge(self, _: SourceObservation) -> None:
        """Tell the target that the end is known here, so that it may forget; then forget.

        A released pod goes first: the operator does not know it any more, whatever it had done until the object went.
        """
        request, uid = self.record.request, self.ref.uid
        if self.record.state is SourceState.RELEASED and request.run_by is RunBy.KUBELET:
            await self.tools.registers.delete_pod(self.ref.namespace, request.pod_name, request.pod_uid)
        node = request.target_node
        if node is not None:
            await asyncio.to_thread(self.tools.peers.settle, node, uid, promise=False, settled=True)
        self.forgotten = True
        self._changed()
