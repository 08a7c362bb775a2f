"""One driver per unfinished migration: observe, plan, act, again. It may die at any time: nothing in memory matters.

Not a `kopf.daemon`: kopf starts no daemon for an object that is being deleted and, finding none after a restart of the
operator, removes its finalizer at once: a migration in mid-copy would vanish before anything was cleaned up. So the
drivers are started from events, for objects that are being deleted too, and the finalizer is the plan's own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from migration_api.migration import ContainerMigration
from migration_api.wire import Failure, MigrationRef
from migration_operator.act import Refused, Turn, act
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.kube import ConflictError, Kube, KubeError
from migration_operator.metrics import Metrics
from migration_operator.mounting import NotCleared
from migration_operator.observation import AgentView, Observation
from migration_operator.observe import observe
from migration_operator.plan import plan
from migration_operator.pods import Json
from migration_operator.queueing import Queue, seat_of
from migration_operator.rules import Rules
from migration_operator.status import patch, report
from migration_operator.step import Action, Step

log = logging.getLogger(__name__)

RESYNC_SECONDS = 3.0
"""The longest that a driver rests: not everything that it depends on is watched."""

BREATH_SECONDS = 0.2
"""The shortest time between two looks, whatever wakes the driver."""

PROGRESS_SECONDS = 1.0
"""A patch with nothing but the progress is written no more often."""

_PAUSES = (BREATH_SECONDS, BREATH_SECONDS, 1.0, 2.0, 4.0, 8.0, 15.0)
"""After no failure, one, two, … in a row."""

_AT_REST = {Action.WAIT, Action.SETTLE}


@dataclass(frozen=True)
class Parts:
    """What all drivers share."""

    kube: Kube
    agents: Agents
    metrics: Metrics
    rules: Rules
    queue: Queue


class Driver:
    """Drives one migration until nothing is left to do, or the object is gone."""

    def __init__(self, parts: Parts, ref: MigrationRef) -> None:
        self.ref = ref
        self.turned_at = _clock()
        """When it looked last, by the loop's clock: how the liveness probe knows that it lives."""
        self._parts = parts
        self._wake = asyncio.Event()
        self._refusal: Failure | None = None
        self._cleared: str | None = None
        self._clearing_since: float | None = None
        self._last_step: Step | None = None
        self._progress_at = 0.0

    def wake(self) -> None:
        """Look again soon: something changed."""
        self._wake.set()

    async def run(self) -> None:
        """Drive until the end. Whatever goes wrong is logged and tried again."""
        failures = 0
        while True:
            self.turned_at = _clock()
            self._wake.clear()
            try:
                going = await self._turn()
                failures = 0
            except ConflictError as conflict:
                log.info("%s: somebody was faster, looking again: %s", self._name, conflict)
                going, failures = True, failures + 1
            except (KubeError, AgentUnreachable, AgentRefused) as problem:
                log.warning("%s: %s", self._name, problem)
                going, failures = True, failures + 1
            except Exception:
                log.exception("%s: unexpected, trying again", self._name)
                going, failures = True, failures + 1
            if not going:
                return
            await asyncio.sleep(_PAUSES[min(failures, len(_PAUSES) - 1)])

    async def _turn(self) -> bool:
        """Take one step and rest when there is nothing to do; return whether to go on."""
        parts = self._parts
        place = parts.queue.place(self.ref.uid)
        o = await observe(
            parts.kube,
            parts.agents,
            self.ref,
            refusal=self._refusal,
            rules=parts.rules,
            place=place,
            cleared=self._cleared,
        )
        if o is None:
            log.info("%s: the object is gone", self._name)
            return False
        if o.begun and not o.finished:
            parts.queue.sit(self.ref.uid, seat_of(o))
        step = plan(o)
        self._log(step)
        status = report(o, step)
        if step.action is Action.REST:
            return False
        changes = self._without_haste(patch(o.migration.status, status))
        try:
            await act(Turn(parts.kube, parts.agents, parts.rules.transport, parts.queue, o, step, status, changes))
        except Refused as refused:
            self._refusal = refused.failure
            return True
        except NotCleared as problem:
            self._note(problem)
            await self._rest(o)
            return True
        if step.action is Action.CLEAR:
            self._cleared = ""
        if step.action is Action.FINISH:
            parts.metrics.ended(status)
            return False
        if step.action in _AT_REST:
            await self._rest(o)
        return True

    def _note(self, problem: NotCleared) -> None:
        """A claim that is away is tried again for a while, and then left as it is; nobody stands still meanwhile."""
        self._clearing_since = self._clearing_since or _clock()
        log.warning("%s: the claim is not cleared: %s", self._name, problem)
        if not problem.passing or _clock() - self._clearing_since > self._parts.rules.removal_seconds:
            self._cleared = str(problem)

    def _without_haste(self, changes: Json) -> Json:
        """Return what is to be written now: nothing, when only the progress has changed and was written just now."""
        if changes.keys() == {"progress"}:
            if _clock() - self._progress_at < PROGRESS_SECONDS:
                return {}
            self._progress_at = _clock()
        return changes

    async def _rest(self, o: Observation) -> None:
        """Wait until something changes: an event, or news from an agent; not longer than a resync."""
        waiting: list[Coroutine[Any, Any, Any]] = [self._wake.wait()]
        waiting += [self._news(agent) for agent in (o.source_agent, o.target_agent) if agent and agent.report]
        tasks = [asyncio.create_task(w) for w in waiting]
        try:
            await asyncio.wait(tasks, timeout=RESYNC_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _news(self, agent: AgentView) -> None:
        """Return when the agent's report has changed; an agent that does not answer has no news."""
        if agent.node.agent is None or agent.report is None:
            return
        with suppress(AgentUnreachable, AgentRefused):
            await self._parts.agents.report(
                agent.node.agent, self.ref.uid, after=agent.report.revision, wait=RESYNC_SECONDS
            )
            return
        await asyncio.sleep(RESYNC_SECONDS)

    @property
    def _name(self) -> str:
        return f"{self.ref.namespace}/{self.ref.name}"

    def _log(self, step: Step) -> None:
        if step != self._last_step:
            log.info("%s: %s: %s: %s", self._name, step.action, step.reason, step.message)
            self._last_step = step


class Drivers:
    """The drivers of all unfinished migrations; one for each UID."""

    def __init__(self, kube: Kube, agents: Agents, metrics: Metrics, rules: Rules) -> None:
        self._parts = Parts(kube, agents, metrics, rules, Queue(rules.limits, self.wake))
        self._running: dict[str, tuple[Driver, asyncio.Task[None]]] = {}

    def notice(self, migration: ContainerMigration, *, idle: bool) -> None:
        """Wake the migration's driver; start one when there is none and the migration is not idle."""
        metadata = migration.metadata
        if metadata.uid in self._running:
            self.wake(metadata.uid)
        elif not idle:
            ref = MigrationRef(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid)
            driver = Driver(self._parts, ref)
            task = asyncio.create_task(driver.run(), name=f"driver of {metadata.namespace}/{metadata.name}")
            self._running[metadata.uid] = (driver, task)
            task.add_done_callback(lambda _: self._ended(metadata.uid))

    def _ended(self, uid: str) -> None:
        self._running.pop(uid, None)
        self._parts.queue.leave(uid)

    def wake(self, uid: str) -> None:
        """Let the driver of that migration look again; nothing when there is none."""
        if uid in self._running:
            self._running[uid][0].wake()

    def oldest_turn(self) -> float:
        """Return how many seconds ago the laziest driver looked; 0 without any."""
        return max((_clock() - driver.turned_at for driver, _ in self._running.values()), default=0.0)

    async def stop(self) -> None:
        """End all drivers between any two instructions: the next operator continues from what it observes."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _clock() -> float:
    return asyncio.get_running_loop().time()
