"""The operator's part of the protocol (docs/protocol.md, section 7), as one pure function: observation -> next step.

Nothing here does I/O or remembers anything: whoever calls `plan` again after a crash gets the next step again. Each
rule is a sentence of the protocol and can be read alone; their order is the protocol. Two registers decide; the
operator writes only `Abort` into the first, and no rule below the endings is reached once something is decided.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from migration_api.conditions import ConditionType, Reason
from migration_api.wire import SourceState, TargetState
from migration_operator import preflight
from migration_operator.endings import go_back, go_through, unreachable
from migration_operator.node_checks import mismatches
from migration_operator.observation import Observation, origin_view
from migration_operator.step import Action, Step
from migration_operator.transport_facts import TransportFacts

GATE_MAX_AGE_SECONDS = 30.0
"""The kubelet allows a start 2 minutes: what is frozen at a younger gate has 90 s to be restored."""

PIN_LIMIT = timedelta(seconds=30)
"""A policy is in force a second after its objects were written; what lasts longer does not pass."""

_RESTORING = {TargetState.RECEIVED, TargetState.RESTORING, TargetState.HELD, TargetState.RESUMING}

Rule = Callable[[Observation], Step | None]


def finished_stays_finished(o: Observation) -> Step | None:
    """Whatever happens to pods and nodes later is no business of this migration."""
    if not o.finished:
        return None
    if o.adopted:
        return Step(Action.LET_GO, Reason.DONE, "the migration has ended")
    return Step(Action.REST, Reason.DONE, "the migration has ended")


def abort_when_asked(o: Observation) -> Step | None:
    """A deleted object is an order to go back, and so is `spec.cancel`."""
    if o.migration.metadata.deletion_timestamp is not None:
        return _abort(Reason.ABORT_REQUESTED, "the ContainerMigration was deleted")
    if o.migration.spec.cancel:
        return _abort(Reason.ABORT_REQUESTED, "spec.cancel was set")
    return None


def abort_when_late(o: Observation) -> Step | None:
    started, seconds = _deadline_runs_since(o), o.migration.spec.deadline_seconds
    if started is None or o.now - started <= timedelta(seconds=seconds):
        return None
    trouble = o.target_pod.trouble() if o.target_pod else ""
    at = next((c.message for c in o.migration.status.conditions if c.type == ConditionType.RECONCILING), "")
    return _abort(
        Reason.DEADLINE_EXCEEDED,
        f"not committed within {seconds} s (spec.deadlineSeconds); it was at: {trouble or at or 'the preflight'}",
    )


def _deadline_runs_since(o: Observation) -> datetime | None:
    """Return the time from which the deadline counts; None while it waits for its turn: that is what others do.

    Its turn has come when the place is granted, and this is written down only with the step that follows. Of one that
    waited before the operator was restarted, and has not asked again, the condition says that it waited.
    """
    timings = o.migration.status.timings
    if o.begun or timings.admitted_at is not None:
        return timings.admitted_at or timings.started_at
    if o.place is not None:
        return None
    waits = any(c.reason == Reason.QUEUED for c in o.migration.status.conditions)
    return None if waits else timings.started_at


def abort_when_the_source_is_lost(o: Observation) -> Step | None:
    """Unless the target holds everything already: then the container goes on there; or the source is left running."""
    if not o.begun or o.let_go or o.migration.restores or o.migration.of_podman:
        return None  # of a Podman container only its agent can say what became of it
    name = o.migration.spec.pod_name
    if o.source_pod is None:
        return _abort(Reason.SOURCE_LOST, f"pod {name} disappeared or was replaced before the migration was committed")
    if o.source_pod.deleting:
        return _abort(Reason.SOURCE_LOST, f"pod {name} was deleted by somebody before the migration was committed")
    held = o.target is not None and o.target.state is TargetState.HELD
    if o.source_pod.ended and not held:
        return _abort(Reason.SOURCE_LOST, f"pod {name} ended by itself ({o.source_pod.phase}) before the commit")
    return None


def abort_when_the_checkpoint_is_gone(o: Observation) -> Step | None:
    """What the target node has fetched and verified needs it no more."""
    if not o.begun or not o.migration.restores or (o.target is not None and o.target.received_at is not None):
        return None
    name = o.migration.spec.checkpoint_name
    if o.origin_pod is None or (o.checkpoint is not None and o.checkpoint.deleting):
        message = f"the ContainerCheckpoint {name} was deleted before all of it was fetched"
        return _abort(Reason.TRANSFER_FAILED, message)
    return None


def abort_when_an_agent_cannot(o: Observation) -> Step | None:
    """A side that cannot go on says why; a side that ended before the decision will not take part any more."""
    if o.refusal:
        return _abort(o.refusal.reason, o.refusal.message)
    for side in (o.source, o.target):
        if side is not None and side.failure is not None:
            return _abort(side.failure.reason, side.failure.message)
    if o.source is not None and o.source.settled:
        lost = o.source.state is SourceState.LOST
        reason = Reason.SOURCE_LOST if lost else Reason.CHECKPOINT_FAILED
        return _abort(reason, f"the source's agent reports {o.source.state} before anything was decided")
    if o.target is not None and o.target.settled:
        message = f"the target's agent reports {o.target.state} before anything was decided"
        return _abort(Reason.TARGET_FAILED, message)
    return None


def abort_when_the_target_pod_fails(o: Observation) -> Step | None:
    """What the kubelet retries (images, volumes) is waited for until the deadline; what has ended is not."""
    status, pod = o.migration.status, o.target_pod
    if pod is None:
        if status.target.pod_uid is not None and not o.migration.of_podman:
            message = f"the target pod {status.target.pod_name} was deleted by somebody before the commit"
            return _abort(Reason.TARGET_FAILED, message)
        return None
    if pod.deleting:
        return _abort(Reason.TARGET_FAILED, f"the target pod {pod.name} is being deleted by somebody")
    if pod.ended:
        trouble = pod.trouble() or f"it is {pod.phase}"
        return _abort(Reason.TARGET_FAILED, f"the target pod {pod.name} cannot start on {pod.node_name}: {trouble}")
    origin = o.source_agent.node if o.source_agent else origin_view(o.checkpoint) if o.checkpoint else None
    if origin and o.target_agent and o.source is None and o.target is None:
        unlike = mismatches(origin, o.target_agent.node)
        if unlike:
            return _abort(Reason.TARGET_FAILED, " ".join(problem.message for problem in unlike))
    return None


def abort_when_a_mount_is_gone(o: Observation) -> Step | None:
    """Without it the node's agent cannot reach the claim. Once all was fetched and verified, nobody needs it."""
    if not o.begun or o.claim is None or (o.target is not None and o.target.received_at is not None):
        return None
    recorded = o.migration.status
    for node in filter(None, (recorded.source.node_name, recorded.target.node_name)):
        mount = o.mount_on(node)
        if mount is None or mount.gone:
            why = f" ({mount.failure or mount.waits_for or 'it is being deleted'})" if mount else ""
            message = f"the pod that mounts the claim {o.claim} on node {node} is gone, not by this migration{why}"
            return _abort(Reason.TRANSFER_FAILED, message)
    return None


def _abort(reason: Reason, message: str) -> Step:
    return Step(Action.PROPOSE_ABORT, reason, message)


def wait_for_the_turn(o: Observation) -> Step | None:
    """Nothing is touched meanwhile, and nothing looked at: whoever waited is looked at anew when the turn comes."""
    if o.begun or o.place is None or o.place.granted:
        return None
    message = f"nothing stands against it; number {o.place.position} of those that wait: {o.place.why}"
    return Step(Action.WAIT, Reason.QUEUED, message)


def look_before_anything_is_touched(o: Observation) -> Step | None:
    """Everything that stands against it is said at once."""
    if o.begun:
        return None
    facts = o.preflight
    if facts is None:
        return Step(Action.WAIT, Reason.IN_PROGRESS, "looking at the pod and the nodes")
    found = preflight.problems(o.migration, facts, o.now)
    if found:
        return _abort(Reason.PREFLIGHT_FAILED, " ".join(p.message for p in found))
    if facts.agent_problem:
        where = facts.source.name if facts.source else "the source"
        message = f"the agent on node {where} does not answer ({facts.agent_problem}); nothing was touched yet"
        return Step(Action.WAIT, Reason.AGENT_UNREACHABLE, message)
    return _mount_the_claim(facts.transport) if facts.transport else None


def _mount_the_claim(transport: TransportFacts) -> Step | None:
    """The nodes try it when it is mounted on all of them."""
    claim = transport.transport.claim
    if missing := [mount.node for mount in transport.mounts if mount.missing]:
        message = f"mounting the claim {claim} on {', '.join(missing)}"
        return Step(Action.MOUNT, Reason.IN_PROGRESS, message)
    if pending := [mount for mount in transport.mounts if mount.pending]:
        where = ", ".join(f"{it.node}{f' ({it.waits_for})' if it.waits_for else ''}" for it in pending)
        more = f"; {transport.untried} more nodes are not tried" if transport.untried else ""
        message = f"waiting for the claim {claim} to be mounted on {where}{more}"
        return Step(Action.WAIT, Reason.IN_PROGRESS, message)
    return None


def begin_when_its_turn_has_come(o: Observation) -> Step | None:
    """What is about to be done is written down."""
    if o.begun:
        return None
    if o.place is None:
        return Step(Action.QUEUE, Reason.IN_PROGRESS, "nothing stands against it")
    if not o.adopted:
        return Step(Action.ADOPT, Reason.IN_PROGRESS, "nothing stands against it")
    return Step(Action.BEGIN, Reason.IN_PROGRESS, "nothing stands against it; writing down what is moved")


def prepare_the_target_first(o: Observation) -> Step | None:
    """A target that cannot start costs the source nothing.

    One of the source's name is created by their controller, a container by Podman, when there is what to restore.
    """
    return None if o.same_name else _prepare_the_target(o)


def _prepare_the_target(o: Observation) -> Step | None:
    recorded, pod = o.migration.status.target, o.target_pod
    if pod is None:
        return None if o.migration.of_podman else _create_the_target(o)
    if recorded.pod_uid is None or (recorded.node_name is None and pod.node_name is not None):
        return Step(Action.RECORD_TARGET, Reason.PREPARING_TARGET, f"the target pod {pod.name} was created")
    if recorded.node_name is None:
        trouble = pod.trouble() or "no news from the scheduler"
        return _preparing(f"the target pod {pod.name} waits to be scheduled: {trouble}")
    return None


def _create_the_target(o: Observation) -> Step:
    name = o.migration.status.target.pod_name
    if o.target_name_taken:
        return _abort(Reason.TARGET_FAILED, f"another pod took the name {name} of the target pod")
    if o.late is None:
        return unreachable(o.source_agent, "it must say how much there is to copy; nothing was touched yet")
    return Step(Action.CREATE_TARGET, Reason.PREPARING_TARGET, f"creating the target pod {name}")


def tell_the_target(o: Observation) -> Step | None:
    """The ticket must lie there when the interposer asks."""
    agent = o.target_agent
    if agent is None:
        return _preparing("looking for the target node's agent")
    if not agent.reached:
        return unreachable(agent, "the migration waits for it until the deadline")
    if o.target is None:
        what = "container" if o.migration.of_podman else "pod"
        message = f"telling the agent on {agent.node.name} which {what} to expect"
        return Step(Action.PREPARE_TARGET, Reason.PREPARING_TARGET, message)
    return None


def restore_without_a_source(o: Observation) -> Step | None:
    """Nothing stands still meanwhile: the target's agent fetches, and lets the containers start when all is there."""
    if not o.migration.restores or o.target is None:
        return None
    if o.target.state in _RESTORING:
        return Step(Action.WAIT, Reason.RESTORING, "the target node restores the container and holds it before it runs")
    if o.target.state is TargetState.RECEIVING:
        return Step(Action.WAIT, Reason.TRANSFERRING, "the target node fetches the checkpoint from its store")
    trouble = o.target_pod.trouble() if o.target_pod else ""
    pod = o.migration.status.target.pod_name
    return _preparing(f"the target pod {pod} is starting: {trouble or 'image, volumes and network are prepared'}")


def be_sure_of_the_pin(o: Observation) -> Step | None:
    """Whoever gets the source's name must come to the target node, and to the gate, or its memory is lost."""
    if not o.unpinned:
        return None
    timings = o.migration.status.timings
    message = (
        f"the pod that the StatefulSet creates under the name {o.migration.spec.pod_name} would not be pinned to node "
        f"{o.migration.status.target.node_name} by the API server: {o.unpinned}"
    )
    started = timings.admitted_at or timings.started_at
    if started is not None and o.now - started > PIN_LIMIT:
        return _abort(Reason.TARGET_FAILED, message)
    return _preparing(message)


def reach_the_gate(o: Observation) -> Step | None:
    """The freeze starts only at a gate that leaves time enough to restore, or at the late gate, which has no limit."""
    if o.source is not None or o.let_go or o.target is None or o.target.at_late_gate or o.same_name:
        return None
    pod, age = o.migration.status.target.pod_name, o.target.gate_age_seconds
    if o.migration.of_podman:
        return _preparing(f"waiting for {o.migration.destination} to be ready for the container")
    if age is None:
        trouble = o.target_pod.trouble() if o.target_pod else ""
        return _preparing(f"the target pod {pod} is starting: {trouble or 'image, volumes and network are prepared'}")
    if age >= GATE_MAX_AGE_SECONDS:
        return _preparing(f"the start of {pod} leaves too little time by now; waiting for the kubelet's next attempt")
    return None


def _preparing(message: str) -> Step:
    return Step(Action.WAIT, Reason.PREPARING_TARGET, message)


def move(o: Observation) -> Step | None:
    """From here the agents go on by themselves: the target's agent commits when everything is held."""
    agent = o.source_agent
    if agent is None or not agent.reached:
        hint = "the source goes on there" if o.let_go else "it enforces the freeze budget by itself"
        return unreachable(agent, hint)
    if o.source is None:
        return Step(Action.CHECKPOINT, Reason.CHECKPOINTING, f"telling the agent on {agent.node.name} to checkpoint")
    return None


def wait_for_the_decision(o: Observation) -> Step:
    if o.target is not None and o.target.state in _RESTORING and not o.same_name:
        return Step(Action.WAIT, Reason.RESTORING, "the target node restores the container and holds it before it runs")
    if o.source is not None and o.source.state in {SourceState.DUMPED, SourceState.SENT}:
        return Step(Action.WAIT, Reason.TRANSFERRING, "the checkpoint is on its way to the target node")
    return Step(Action.WAIT, Reason.CHECKPOINTING, "the source is being frozen and copied")


# The order is the protocol: a decision, once made, rules out everything below it.
RULES: tuple[Rule, ...] = (
    finished_stays_finished,
    go_back,
    go_through,
    abort_when_asked,
    abort_when_late,
    abort_when_the_source_is_lost,
    abort_when_the_checkpoint_is_gone,
    abort_when_an_agent_cannot,
    abort_when_a_mount_is_gone,
    abort_when_the_target_pod_fails,
    wait_for_the_turn,
    look_before_anything_is_touched,
    begin_when_its_turn_has_come,
    prepare_the_target_first,
    tell_the_target,
    restore_without_a_source,
    be_sure_of_the_pin,
    reach_the_gate,
    move,
    wait_for_the_decision,
)


def plan(o: Observation) -> Step:
    """Return the next step. Total: the last rule always answers."""
    return next(step for rule in RULES if (step := rule(o)) is not None)
