"""One function for each action. Each can be repeated at any time: what it does is keyed by a UID or written once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint, reach
from migration_api.migration import Decision, MigrationStatus, Outcome
from migration_api.names import FINALIZER
from migration_api.node import MigrationNode
from migration_api.preflight_reasons import PreflightReason as Why
from migration_api.shipping import Shipping
from migration_api.wire import Failure, MigrationRef
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.asked import Incomplete, containers_of
from migration_operator.events import events
from migration_operator.keeping import keep
from migration_operator.kube import Kube, KubeError
from migration_operator.mounting import NotCleared, NotMounted, clear_for, mount_for, stop_mounts
from migration_operator.mounts import Owner
from migration_operator.node_checks import Problem, mismatches
from migration_operator.observation import AgentView, NodeView, Observation, origin_view
from migration_operator.owners import devalue, hand_over
from migration_operator.pods import Json
from migration_operator.queueing import Queue, claim_of
from migration_operator.requests import source_request, target_request
from migration_operator.shipping import NoAccess, shipping, stored_shipping
from migration_operator.step import Action, Step
from migration_operator.target_pod import target_pod
from migration_operator.transport_facts import TransportRules
from migration_operator.transport_observe import without_the_store

log = logging.getLogger(__name__)

_NOT_FOUND = 404
_POD_REFUSED = (403, 422)


class Refused(Exception):
    """The API server or an agent will not do it, however often it is asked; the plan decides what that means."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)


@dataclass(frozen=True)
class Turn:
    """One step about to be taken.

    Attributes:
        rules: how checkpoints may travel in this cluster.
        queue: which migrations run, and which wait.
        status: the status as it should be while the step is taken.
        report: the merge patch from the status as it is; empty when nothing is to be written.
    """

    kube: Kube
    agents: Agents
    rules: TransportRules
    queue: Queue
    o: Observation
    step: Step
    status: MigrationStatus
    report: Json

    @property
    def ref(self) -> MigrationRef:
        metadata = self.o.migration.metadata
        return MigrationRef(namespace=metadata.namespace, name=metadata.name, uid=metadata.uid)


async def act(turn: Turn) -> None:
    """Take the step.

    Raises:
        ConflictError: something changed since it was observed.
        KubeError: the API server could not be asked.
        AgentUnreachable: an agent could not be asked.
        Refused: it will never be done.
        NotCleared: something was left in a claim.
    """
    await reach(Failpoint(f"operator.{turn.step.action}"))
    await _ACTIONS[turn.step.action](turn)


async def _write(turn: Turn, more: Json | None = None, *, guarded: bool = True) -> bool:
    """Write the report, and with it what else belongs into the same moment; then tell it as events.

    Returns:
        Whether the object is still there.
    """
    body, there = {**turn.report, **(more or {})}, True
    if not body:
        return there
    try:
        await turn.kube.patch_status(turn.o.migration, body, guarded=guarded)
    except KubeError as error:
        if error.status != _NOT_FOUND:
            raise
        there = False
    for event in events(turn.o.migration.status, turn.status):
        try:
            await turn.kube.event(turn.o.migration, event.reason, event.message, warning=event.warning, at=turn.o.now)
        except KubeError as error:
            log.warning("the event %s was not written: %s", event.reason, error)
    return there


async def _wait(turn: Turn) -> None:
    await _write(turn)


async def _rest(_turn: Turn) -> None:
    """Nothing is left to do."""


async def _queue(turn: Turn) -> None:
    """The first one counts what ran before this operator did."""
    if turn.o.preflight is None:
        raise Incomplete("nothing is known of the nodes to wait for")
    if not turn.queue.known:
        turn.queue.resume(await turn.kube.all_migrations())
    turn.queue.ask(claim_of(turn.o.migration, turn.o.preflight, turn.o.now))


async def _adopt(turn: Turn) -> None:
    """Before the first thing is touched, so that a deletion finds somebody who cleans up."""
    metadata = turn.o.migration.metadata
    await turn.kube.set_finalizers(turn.o.migration, [*metadata.finalizers, FINALIZER])


async def _let_go(turn: Turn) -> None:
    kept = [name for name in turn.o.migration.metadata.finalizers if name != FINALIZER]
    try:
        await turn.kube.set_finalizers(turn.o.migration, kept)
    except KubeError as error:
        if error.status != _NOT_FOUND:
            raise


async def _begin(turn: Turn) -> None:
    facts = turn.o.preflight
    container = facts.podman.container if facts and facts.podman else None
    if container is not None:
        await _begin_podman(turn, container.id)
        return
    if facts is None or facts.pod is None:
        raise Incomplete("there is no pod to begin with")
    source = {"nodeName": facts.pod.node_name, "podUID": facts.pod.uid}
    target = {"podName": facts.target_name}
    if facts.revision is not None:  # with it the target pod is pinned: see `templates/policy-same-name.yaml`
        if facts.target is None:
            raise Incomplete("no node was found for the target pod")
        source["revision"] = facts.revision
        target["nodeName"] = facts.target.name
    transport = turn.rules.transport(turn.o.migration)
    if facts.checkpoint is not None:
        source = {"checkpointUID": facts.checkpoint.metadata.uid}
        transport = facts.checkpoint.spec.transport
    await _write(turn, {"source": source, "target": target, "transport": transport.dump()})


async def _begin_podman(turn: Turn, container_id: str) -> None:
    """Nothing is made at the target before there is what to restore: all of it is known now."""
    spec = turn.o.migration.spec
    source = {"nodeName": spec.podman.node_name if spec.podman else None, "podUID": container_id}
    target = {"nodeName": spec.target.node_name, "podUID": container_id}
    transport = turn.rules.transport(turn.o.migration)
    await _write(turn, {"source": source, "target": target, "transport": transport.dump()})


async def _create_target(turn: Turn) -> None:
    await _write(turn)
    o, origin = turn.o, turn.o.origin_pod
    source = o.source_agent.node if o.source_agent else origin_view(o.checkpoint) if o.checkpoint else None
    if origin is None or source is None:
        raise Incomplete("there is no pod to make a target pod from")
    excluded = set[str]() if o.checkpoint else {source.name}
    if o.migration.spec.target.node_name is None:
        others = [NodeView(n.metadata.name, agent=n) for n in await turn.kube.migration_nodes()]
        excluded |= {other.name for other in others if mismatches(source, other)}
        fit = [other for other in others if other.name not in excluded]
        with _reported():
            transport = turn.rules.transport(o.migration)
            excluded |= await without_the_store(turn.kube, turn.agents, transport, o, fit)
    name = o.migration.status.target.pod_name or ""
    try:
        await turn.kube.create_pod(
            target_pod(
                origin,
                o.migration,
                name,
                excluded=excluded,
                avoided=turn.queue.full(),
                moved=containers_of(o),
                late=bool(o.late),
            )
        )
    except KubeError as error:
        if error.status not in _POD_REFUSED:
            raise
        message = f"the API server refuses the target pod {name}: {error}"
        raise Refused(Failure(reason=Reason.TARGET_FAILED, message=message)) from error


async def _shipping(turn: Turn, agent: MigrationNode) -> Shipping:
    mounted = turn.o.mount_on(agent.metadata.name)
    mount = mounted.pod_uid if mounted else None
    with _reported():
        if turn.o.checkpoint is not None:
            return await stored_shipping(turn.kube, turn.o.checkpoint, mount)
        return await shipping(turn.kube, turn.o.migration, turn.rules.transport(turn.o.migration), mount)


@contextmanager
def _reported() -> Generator[None, None, None]:
    try:
        yield
    except NoAccess as error:
        raise Refused(Failure(reason=Reason.TRANSFER_FAILED, message=str(error))) from error


async def _mount(turn: Turn) -> None:
    """Where nothing was touched yet, a refusal is one more thing that stands against it."""
    await _write(turn)
    try:
        await mount_for(turn.kube, turn.rules.mount_image, turn.o)
    except NotMounted as problem:
        if turn.o.begun:
            raise NotCleared(str(problem), passing=False) from problem
        message = Problem(
            Why.CLAIM_NOT_MOUNTED, f"the API server refuses the pod that is to mount it: {problem}"
        ).message
        raise Refused(Failure(reason=Reason.PREFLIGHT_FAILED, message=message)) from problem


async def _clear(turn: Turn) -> None:
    await _write(turn)
    await clear_for(turn.agents, turn.o)


async def _unmount(turn: Turn) -> None:
    await _write(turn)
    await stop_mounts(turn.kube, Owner.of(turn.o.migration))


async def _record_target(turn: Turn) -> None:
    pod, target = turn.o.target_pod, turn.o.target
    if turn.o.same_name and target is not None:  # the one that has resumed, whoever has the name by now
        await _write(turn, {"target": {"podUID": target.pod_uid}})
        return
    if pod is None:
        raise Incomplete("there is no target pod to record")
    node = {"nodeName": pod.node_name} if pod.node_name else {}
    if not await _write(turn, {"target": {"podUID": pod.uid, **node}}) and not turn.o.migration.status.target.pod_uid:
        # No agent was told of it: it would stand at the gate for ever.
        await turn.kube.delete_pod(pod)


async def _prepare_target(turn: Turn) -> None:
    await _write(turn)
    agent = _published(turn.o.target_agent)
    request = await target_request(turn.agents, turn.o, turn.ref, await _shipping(turn, agent))
    await _put(turn.agents.put_target(agent, request), Reason.TARGET_FAILED, agent)


async def _checkpoint(turn: Turn) -> None:
    await _write(turn)
    agent = _published(turn.o.source_agent)
    request = await source_request(turn.agents, turn.o, turn.ref, await _shipping(turn, agent))
    await _put(turn.agents.put_source(agent, request), Reason.CHECKPOINT_FAILED, agent)


async def _put(request: Awaitable[None], reason: Reason, agent: MigrationNode) -> None:
    try:
        await request
    except AgentRefused as error:
        message = f"the agent on node {agent.metadata.name} refuses: {error}"
        raise Refused(Failure(reason=reason, message=message)) from error


def _published(agent: AgentView | None) -> MigrationNode:
    if agent is None or agent.node.agent is None:
        raise Incomplete("there is no agent to tell")
    return agent.node.agent


async def _propose_abort(turn: Turn) -> None:
    """The API server refuses it when Commit is written already; then the next observation says so."""
    await _write(turn, {"decision": Decision.ABORT.value}, guarded=False)


async def _return(turn: Turn) -> None:
    """The API server refuses it when the outcome is written already, or when the node has no such taint any more."""
    outcome = {"outcome": Outcome.RETURNED.value, "message": turn.step.message}
    await _write(turn, {"target": outcome}, guarded=False)


async def _settle(turn: Turn) -> None:
    await _write(turn)
    await asyncio.gather(*(_ask(turn, turn.agents.settle, agent) for agent in _sides(turn.o, settled=False)))


async def _forget(turn: Turn) -> None:
    """The target's agent first, and the source's only when that has forgotten: see `endings`."""
    await _write(turn)
    for agent in reversed(_sides(turn.o, settled=True)):
        if not await _ask(turn, turn.agents.forget, agent):
            return
        await reach(Failpoint.OPERATOR_ONE_FORGOT)


def _sides(o: Observation, *, settled: bool) -> list[MigrationNode]:
    """Return the agents that answered and whose side has settled, or has not; the source's first."""
    sides = ((o.source_agent, o.source), (o.target_agent, o.target))
    return [_published(a) for a, side in sides if a and a.reached and side and side.settled is settled]


async def _ask(
    turn: Turn, ask: Callable[[MigrationNode, str], Coroutine[Any, Any, None]], agent: MigrationNode
) -> bool:
    """Ask one agent; what it answers is seen by the next look."""
    try:
        await ask(agent, turn.ref.uid)
    except (AgentRefused, AgentUnreachable) as problem:
        log.warning("migration %s: the agent on node %s: %s", turn.ref.uid, agent.metadata.name, problem)
        return False
    return True


async def _delete_target(turn: Turn) -> None:
    await _write(turn)
    if turn.o.target_pod is not None:
        await turn.kube.delete_pod(turn.o.target_pod)


async def _keep(turn: Turn) -> None:
    kept = await keep(turn.kube, turn.rules, turn.o)
    await _write(turn, {"checkpoint": kept.dump()})


async def _hand_over(turn: Turn) -> None:
    """The source first: the ReplicaSet reads both changes in the order in which they are made."""
    await _write(turn)
    source, target = turn.o.source_pod, turn.o.target_pod
    if target is None:
        raise Incomplete("there is no target pod to hand over")
    if source is not None:
        await turn.kube.patch_pod(source, devalue())
    await turn.kube.patch_pod(target, hand_over(target))


async def _delete_source(turn: Turn) -> None:
    await _write(turn)
    if turn.o.source_pod is not None:
        await turn.kube.delete_pod(turn.o.source_pod)


async def _finish(turn: Turn) -> None:
    """The finalizer goes first: whoever sees the end in the status sees an object that nobody holds."""
    if turn.o.adopted:
        await _let_go(turn)
        await reach(Failpoint.OPERATOR_LET_GO_OF_THE_END)
    await _write(turn, guarded=False)


_ACTIONS: dict[Action, Callable[[Turn], Awaitable[None]]] = {
    Action.REST: _rest,
    Action.WAIT: _wait,
    Action.LET_GO: _let_go,
    Action.QUEUE: _queue,
    Action.MOUNT: _mount,
    Action.ADOPT: _adopt,
    Action.BEGIN: _begin,
    Action.CREATE_TARGET: _create_target,
    Action.RECORD_TARGET: _record_target,
    Action.PREPARE_TARGET: _prepare_target,
    Action.CHECKPOINT: _checkpoint,
    Action.PROPOSE_ABORT: _propose_abort,
    Action.RETURN: _return,
    Action.SETTLE: _settle,
    Action.DELETE_TARGET: _delete_target,
    Action.KEEP: _keep,
    Action.HAND_OVER: _hand_over,
    Action.DELETE_SOURCE: _delete_source,
    Action.FORGET: _forget,
    Action.CLEAR: _clear,
    Action.UNMOUNT: _unmount,
    Action.FINISH: _finish,
}
