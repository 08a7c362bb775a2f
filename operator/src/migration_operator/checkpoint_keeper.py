"""One task for each ContainerCheckpoint that needs something, and the loop that deletes those kept for long enough.

As with migrations (see `drivers`): events start tasks, nothing in memory matters, whatever fails is tried again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from migration_api.base import now
from migration_api.checkpoint import ContainerCheckpoint
from migration_api.checkpoint_reasons import CheckpointReason
from migration_api.failpoints import Failpoint, reach
from migration_api.names import CHECKPOINT_FINALIZER
from migration_api.wire import SourceReport
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.checkpoint_plan import (
    CheckpointAction,
    CheckpointObservation,
    Trouble,
    needs_nothing,
    next_checkpoint_action,
    ready_status,
    why_not_taken,
    with_ready,
)
from migration_operator.checkpoint_store import CheckpointStore, Failed
from migration_operator.kube import ConflictError, Kube, KubeError
from migration_operator.mounting import NotMounted, mounts_of, start_mounts, stop_mounts
from migration_operator.mounts import Owner
from migration_operator.retention import surplus
from migration_operator.rules import Rules
from migration_operator.shipping import NoAccess
from migration_operator.taking import begin, look, take

log = logging.getLogger(__name__)

Q = TypeVar("Q")
A = TypeVar("A")

PERIOD_SECONDS = 2.0
_PAUSE_SECONDS = 2.0
_LOOK_SECONDS = 0.3


@dataclass
class CheckpointTask:
    """Brings one checkpoint to where nothing is left to do for now."""

    kube: Kube
    agents: Agents
    rules: Rules
    namespace: str
    name: str
    uid: str
    _trouble: Trouble | None = None
    _refusal: str = ""

    @property
    def _store(self) -> CheckpointStore:
        return CheckpointStore(self.kube, self.agents, self.rules)

    async def run(self) -> None:
        while True:
            try:
                if not await self._turn():
                    return
                self._trouble = None
            except ConflictError:
                pass  # it changed: look again
            except Failed as failed:
                self._trouble = failed.trouble
            except KubeError as error:
                log.warning("%s/%s: %s", self.namespace, self.name, error)
            except Exception:
                log.exception("%s/%s: unexpected, trying again", self.namespace, self.name)
            await asyncio.sleep(_PAUSE_SECONDS if self._trouble else 0.2)

    async def _turn(self) -> bool:
        """Take one step; return whether to go on."""
        checkpoint = await self.kube.checkpoint(self.namespace, self.name)
        if checkpoint is None or checkpoint.metadata.uid != self.uid:
            return False
        o = CheckpointObservation(
            now(), checkpoint, refusal=self._refusal, trouble=self._trouble, removal_seconds=self.rules.removal_seconds
        )
        o = await look(self.kube, self.agents, self.rules, o)
        action = next_checkpoint_action(o)
        if action is CheckpointAction.REST:
            await self._unmount(checkpoint)
            return False
        if self._trouble is not None:
            await self._say(checkpoint, self._trouble)
            checkpoint = await self.kube.checkpoint(self.namespace, self.name) or checkpoint
        await reach(Failpoint(f"operator.checkpoint.{action}"))
        acts: dict[CheckpointAction, Callable[[CheckpointObservation], Awaitable[None]]] = {
            CheckpointAction.ADOPT: self._adopt,
            CheckpointAction.MOUNT: self._mount,
            CheckpointAction.BEGIN: self._begin,
            CheckpointAction.TAKE: self._take,
            CheckpointAction.WAIT: self._wait,
            CheckpointAction.FAIL: self._fail,
            CheckpointAction.FORGET: self._forget,
            CheckpointAction.KEEP: self._keep,
            CheckpointAction.REMOVE: self._remove,
            CheckpointAction.GIVE_UP: self._give_up,
        }
        await acts[action](replace(o, checkpoint=checkpoint))
        return True

    async def _adopt(self, o: CheckpointObservation) -> None:
        finalizers = [*o.checkpoint.metadata.finalizers, CHECKPOINT_FINALIZER]
        await self.kube.set_checkpoint_finalizers(o.checkpoint, finalizers)

    async def _mount(self, o: CheckpointObservation) -> None:
        checkpoint, claim = o.checkpoint, o.checkpoint.spec.transport.claim
        try:
            image = self.rules.transport.mount_image
            await start_mounts(self.kube, Owner.of(checkpoint), claim or "", image, o.to_mount)
        except NotMounted as refusal:
            self._refusal = f"the API server refuses the pod that is to mount the claim {claim}: {refusal}"

    async def _unmount(self, checkpoint: ContainerCheckpoint) -> None:
        """Remove the pods that mount a claim for it, and before them what was taken in vain.

        What cannot be removed now goes when the object is deleted.
        """
        owner = Owner.of(checkpoint)
        if checkpoint.spec.transport.claim is None or not await mounts_of(self.kube, owner):
            return
        if checkpoint.spec.migration is None and ready_status(checkpoint) == "False":
            try:
                await self._store.remove(checkpoint)
            except Failed as failed:
                log.warning("%s/%s: %s", self.namespace, self.name, failed)
        await stop_mounts(self.kube, owner)

    async def _begin(self, o: CheckpointObservation) -> None:
        try:
            status = await begin(self.kube, o)
        except NoAccess as problem:
            raise Failed(CheckpointReason.KEY_SECRET_INVALID, str(problem)) from problem
        await self.kube.patch_checkpoint_status(o.checkpoint, status.dump())

    async def _take(self, o: CheckpointObservation) -> None:
        if o.agent is None:
            raise Failed(CheckpointReason.TAKING, "the agent on its node is not known")
        try:
            await take(self.kube, self.agents, o.checkpoint, o.agent)
        except (AgentRefused, NoAccess) as problem:
            self._refusal = str(problem)
        except AgentUnreachable as problem:
            raise Failed(CheckpointReason.TAKING, f"node {o.agent.node.name}: {problem}") from problem

    async def _wait(self, o: CheckpointObservation) -> None:
        """Say how far it is; the agent's own news are waited for by looking again."""
        if o.source is not None and ready_status(o.checkpoint) == "Unknown" and not o.checkpoint.deleting:
            done, total = o.source.bytes_sent, o.source.bytes_total
            far = f"{o.source.state}, {done} of {total} bytes lie in the store" if total else o.source.state.value
            await self._write(o.checkpoint, "Unknown", CheckpointReason.TAKING, f"node {_node(o)}: {far}")
        await asyncio.sleep(_LOOK_SECONDS)

    async def _fail(self, o: CheckpointObservation) -> None:
        await self._write(o.checkpoint, "False", CheckpointReason.NOT_TAKEN, why_not_taken(o))

    async def _forget(self, o: CheckpointObservation) -> None:
        if o.agent is None or o.agent.node.agent is None:
            return
        try:
            await self.agents.forget(o.agent.node.agent, o.checkpoint.uid)
        except (AgentRefused, AgentUnreachable) as problem:
            raise Failed(CheckpointReason.REMOVING, f"node {o.agent.node.name}: {problem}") from problem

    async def _keep(self, o: CheckpointObservation) -> None:
        checkpoint = o.checkpoint
        report = await self._store.keep(checkpoint)
        at = now()
        if report.problem:
            status = with_ready(checkpoint, "False", CheckpointReason.NOT_COMPLETE, report.problem, at=at)
        else:
            message = f"it lies complete in its store: {report.size_bytes} bytes"
            if checkpoint.status.pod is None:
                message += "; its pod's description is too long to be kept, so it can be exported, and not restored"
            status = with_ready(checkpoint, "True", CheckpointReason.COMPLETE, message, at=at)
            status = status.model_copy(update={"digest": report.digest, "size_bytes": report.size_bytes})
        if o.source is not None:
            status = status.model_copy(update=_times(o.source))
        await self.kube.patch_checkpoint_status(checkpoint, status.dump())

    async def _remove(self, o: CheckpointObservation) -> None:
        await self._store.remove(o.checkpoint)
        await self._let_go(o.checkpoint)

    async def _give_up(self, o: CheckpointObservation) -> None:
        """The event may be refused, in a namespace that is being deleted: then only the log says it."""
        checkpoint, transport = o.checkpoint, o.checkpoint.spec.transport
        place = str(transport.shared_volume or "")
        place = transport.object_store.url if transport.object_store else place
        why = self._trouble.message if self._trouble else "it took too long"
        message = f"container-migration/{checkpoint.uid} in {place} was not removed ({why}); remove it by hand"
        log.warning("%s/%s: %s", self.namespace, self.name, message)
        try:
            await self.kube.event(checkpoint, CheckpointReason.NOT_REMOVED, message, warning=True, at=now())
        except KubeError as error:
            log.warning("the event was not written: %s", error)
        await self._let_go(checkpoint)

    async def _let_go(self, checkpoint: ContainerCheckpoint) -> None:
        kept = [name for name in checkpoint.metadata.finalizers if name != CHECKPOINT_FINALIZER]
        await self.kube.set_checkpoint_finalizers(checkpoint, kept)

    async def _say(self, checkpoint: ContainerCheckpoint, trouble: Trouble) -> None:
        """Write down why it does not go on, once."""
        reason = CheckpointReason.REMOVING if checkpoint.deleting else trouble.reason
        if checkpoint.deleting or ready_status(checkpoint) == "Unknown":
            await self._write(checkpoint, "Unknown", reason, trouble.message)

    async def _write(
        self,
        checkpoint: ContainerCheckpoint,
        status_: Literal["True", "False", "Unknown"],
        reason: CheckpointReason,
        message: str,
    ) -> None:
        status = with_ready(checkpoint, status_, reason, message, at=now())
        if status != checkpoint.status:
            await self.kube.patch_checkpoint_status(checkpoint, status.dump())


def _node(o: CheckpointObservation) -> str:
    return o.agent.node.name if o.agent else "?"


def _times(source: SourceReport) -> dict[str, object]:
    """Return what the agent knows of when it was taken, and for how long the pod stood still."""
    frozen, thawed = source.frozen_at, source.thawed_at
    stood = {"freeze_seconds": f"{max(0.0, (thawed - frozen).total_seconds()):.3f}"} if frozen and thawed else {}
    return {"created_at": source.dumped_at, **stood}


def _was_let_go(checkpoint: ContainerCheckpoint) -> bool:
    """Return whether something is stored that nobody would remove with its object."""
    held = CHECKPOINT_FINALIZER in checkpoint.metadata.finalizers
    return ready_status(checkpoint) == "True" and not held and not checkpoint.deleting


@dataclass
class CheckpointKeeper:
    """All ContainerCheckpoints of the cluster, as events tell of them."""

    kube: Kube
    agents: Agents
    rules: Rules
    turned_at: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    """When the loop looked last, by its clock."""
    _known: dict[str, ContainerCheckpoint] = field(default_factory=dict[str, ContainerCheckpoint])
    _running: dict[str, asyncio.Task[None]] = field(default_factory=dict[str, "asyncio.Task[None]"])

    def notice(self, checkpoint: ContainerCheckpoint, *, gone: bool) -> None:
        """Take the object as it is now."""
        metadata = checkpoint.metadata
        if gone:
            self._known.pop(metadata.uid, None)
            return
        new = metadata.uid not in self._known
        self._known[metadata.uid] = checkpoint
        # An earlier operator may have died before the agent forgot the taking: it is looked at once.
        taken = new and checkpoint.spec.migration is None and checkpoint.status.uid is not None
        # Or before it has removed the pods that mounted a claim.
        taken = taken or (new and checkpoint.spec.transport.claim is not None)
        if metadata.uid in self._running:
            return
        if taken or not needs_nothing(checkpoint):
            work = CheckpointTask(self.kube, self.agents, self.rules, metadata.namespace, metadata.name, metadata.uid)
            self._start(metadata.uid, work.run())
        elif new and _was_let_go(checkpoint):
            self._start(metadata.uid, self._hold(checkpoint))

    def _start(self, uid: str, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work, name=f"keeper of checkpoint {uid}")
        self._running[uid] = task
        task.add_done_callback(lambda _: self._ended(uid))

    def _ended(self, uid: str) -> None:
        """Look at it once more: it may have changed while the task ended."""
        self._running.pop(uid, None)

    async def run(self) -> None:
        """Delete what has been kept for long enough, for ever; look again at what has no task."""
        while True:
            self.turned_at = asyncio.get_running_loop().time()
            for checkpoint in list(self._known.values()):
                self.notice(checkpoint, gone=False)
            for checkpoint, why in surplus(self._known.values(), self.rules.retention, now()):
                await self._delete(checkpoint, why)
            await asyncio.sleep(PERIOD_SECONDS)

    async def stop(self) -> None:
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _hold(self, checkpoint: ContainerCheckpoint) -> None:
        """Put our finalizer on again, which an uninstallation has taken off."""
        try:
            finalizers = [*checkpoint.metadata.finalizers, CHECKPOINT_FINALIZER]
            await self.kube.set_checkpoint_finalizers(checkpoint, finalizers)
        except KubeError as error:
            log.warning("%s/%s: %s", checkpoint.metadata.namespace, checkpoint.metadata.name, error)

    async def _delete(self, checkpoint: ContainerCheckpoint, why: str) -> None:
        name = f"{checkpoint.metadata.namespace}/{checkpoint.metadata.name}"
        if _was_let_go(checkpoint):
            await self._hold(checkpoint)  # and is deleted when the change has been seen
            return
        try:
            await self.kube.delete_checkpoint(checkpoint)
        except KubeError as error:
            log.warning("%s was to be deleted (%s) but was not: %s", name, why, error)
        else:
            self._known.pop(checkpoint.metadata.uid, None)
            log.info("%s was deleted: %s", name, why)
