"""The rules after a decision: back, the source goes on; or through, the container goes on at the target.

A rule that ends the source stands behind `Resumed`; a rule that cleans the target stands behind `Abort` or `Returned`.
"""

from __future__ import annotations

from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.names import OUT_OF_SERVICE
from migration_api.wire import SourceReport, SourceState, TargetReport
from migration_operator.claim_endings import clear_and_unmount, left_in_the_claim, unmount
from migration_operator.observation import AgentView, Observation
from migration_operator.owners import awaits_owner
from migration_operator.step import STEPS, Action, Step


def go_back(o: Observation) -> Step | None:
    """After Abort or Returned the source goes on, the target is removed, and only then is anything forgotten."""
    if o.decision is not Decision.ABORT and o.outcome is not Outcome.RETURNED:
        return None
    if not o.begun:
        return unmount(o, Reason.ROLLING_BACK) or _gave_up(o)
    back = _clear_the_target(o) or _thaw_the_source(o) or _forget(o, Reason.ROLLING_BACK)
    return back or clear_and_unmount(o, Reason.ROLLING_BACK) or _gave_up(o)


def _clear_the_target(o: Observation) -> Step | None:
    """Nothing can resume any more: the register says so. The agent destroys the ticket, then the pod goes."""
    pod, agent = o.target_pod, o.target_agent
    settled = _settled(agent, o.target)
    if not settled and agent is not None and agent.reached:
        return Step(Action.SETTLE, Reason.ROLLING_BACK, f"the agent on {agent.node.name} is giving the target up")
    if pod is not None and not pod.deleting:
        return Step(Action.DELETE_TARGET, Reason.ROLLING_BACK, f"deleting the target pod {pod.name}")
    if agent is not None and agent.node.silent(o.now):
        return None  # its agent reads the register when the node is back, before anything else
    if not settled:
        return unreachable(agent, "it destroys the target's ticket when it is back")
    if pod is not None:
        return Step(Action.WAIT, Reason.ROLLING_BACK, f"waiting for the target pod {pod.name} to be gone")
    return None


def _thaw_the_source(o: Observation) -> Step | None:
    agent = o.source_agent
    if _settled(agent, o.source) or agent is None:
        return None
    if agent.reached:
        return Step(Action.SETTLE, Reason.ROLLING_BACK, f"the agent on {agent.node.name} lets the source go on")
    if o.let_go:
        return None  # it goes on already
    return unreachable(agent, "it lets the source go on when it is back", stalled=agent.node.silent(o.now))


def _gave_up(o: Observation) -> Step:
    """Everything is as before, or the source was lost, or nothing was touched at all."""
    why, message = cause(o)
    if why is Reason.PREFLIGHT_FAILED:
        return Step(Action.FINISH, why, message)
    message += left_in_the_claim(o)
    if o.same_name and o.outcome is Outcome.RETURNED and (o.source_pod is None or o.source_pod.deleting):
        return Step(Action.FINISH, Reason.TARGET_LOST, f"pod {o.migration.spec.pod_name} starts afresh; {message}")
    if o.begun and not o.let_go and not o.migration.restores and _source_is_lost(o):
        lost = f"the source died during the migration, not by it; {message}"
        return Step(Action.FINISH, Reason.SOURCE_LOST, message if why is Reason.SOURCE_LOST else lost)
    if o.migration.restores:
        return Step(Action.FINISH, Reason.NOT_RESTORED, f"{o.migration.subject} is as it was; {message}")
    text = f"{o.migration.subject} runs on as if nothing had happened; {message}"
    return Step(Action.FINISH, Reason.ROLLED_BACK, text)


def _source_is_lost(o: Observation) -> bool:
    """A dead source is remembered in the conditions: its agent has forgotten it by the time of the last step."""
    reported = o.source is not None and o.source.state is SourceState.LOST
    remembered = any(c.reason == Reason.SOURCE_LOST for c in o.migration.status.conditions)
    no_pod = not o.migration.of_podman and (o.source_pod is None or o.source_pod.ended)
    return reported or remembered or no_pod


def cause(o: Observation) -> tuple[Reason, str]:
    """Return why a migration was given up: what was written with Abort, or what an agent wrote."""
    status = o.migration.status
    if o.outcome is Outcome.RETURNED:
        return Reason.TARGET_RETURNED, status.target.message or "the target gave the container back after the commit"
    for condition in status.conditions:
        if condition.status == "False" and condition.type in STEPS and condition.reason != Reason.NOT_REACHED:
            return _reason(condition.reason), condition.message
    if status.source.reason:
        return _reason(status.source.reason), status.source.message or "the source's agent gave no details"
    return Reason.ROLLED_BACK, "the migration was given up"


def _reason(text: str) -> Reason:
    """Return the constant; what a newer agent wrote is no reason to stop."""
    return Reason(text) if text in list(Reason) else Reason.ROLLED_BACK


def go_through(o: Observation) -> Step | None:
    """After Commit the target's agent resumes or returns; the source is released only after Resumed."""
    if o.decision is not Decision.COMMIT:
        return None
    if o.outcome is not Outcome.RESUMED:
        return _await_the_outcome(o)
    steps = (_settle_the_source, _record_the_successor, _keep, _hand_over, _delete_the_source, _delete_another)
    if o.clone:
        steps = (_leave_the_source, _keep)
    step = next((step for rule in steps if (step := rule(o)) is not None), None)
    step = step or _forget(o, Reason.RELEASING_SOURCE)
    return step or clear_and_unmount(o, Reason.RELEASING_SOURCE) or _succeeded(o)


def _await_the_outcome(o: Observation) -> Step:
    agent = o.target_agent
    if agent is None or agent.reached:
        message = f"committed; the container goes on on {agent.node.name if agent else 'the target node'}"
        return Step(Action.WAIT, Reason.COMMITTED, _succession(o) if o.same_name else message)
    if not agent.node.silent(o.now):
        return unreachable(agent, f"{_meanwhile(o)}; the agent has to say whether the container runs there")
    if agent.node.out_of_service:
        return _give_the_target_node_up(o, agent)
    return Step(
        Action.WAIT,
        Reason.TARGET_LOST_AFTER_COMMIT,
        f"node {agent.node.name} stopped answering after the commit ({agent.problem}); {_meanwhile(o)}, because the "
        "container may run there; bring the node or its agent back, or, when the machine is certainly off and stays "
        f"off: kubectl taint node {agent.node.name} {OUT_OF_SERVICE}=nodeshutdown:NoExecute",
        stalled=True,
    )


def _meanwhile(o: Observation) -> str:
    if o.migration.restores:
        return "nothing else is done"
    if o.same_name and o.source_pod is None:
        return "the source is gone, and its checkpoint is on that node's disk"
    return "the source goes on" if o.clone else "the source stays frozen"


def _succession(o: Observation) -> str:
    """Say how far the name has come."""
    name, node = o.migration.spec.pod_name, o.migration.status.target.node_name
    if o.source_pod is not None:
        agent = o.source_agent
        away = f", which does not answer ({agent.problem})" if agent is not None and not agent.reached else ""
        return f"committed; the agent on {o.source_pod.node_name}{away} ends the source pod, so that its name is free"
    if o.target_pod is None:
        return f"committed; the checkpoint is on the disk of {node}; the StatefulSet has to create pod {name} again"
    trouble = o.target_pod.trouble() or (o.target.trouble if o.target else "")
    return f"committed; the new pod {name} is restored on {node}" + (f"; tried again: {trouble}" if trouble else "")


def _record_the_successor(o: Observation) -> Step | None:
    """Its UID is known for good only now."""
    recorded, target = o.migration.status.target, o.target
    if not o.same_name or recorded.pod_uid is not None or target is None or target.pod_uid is None:
        return None
    message = f"writing down which pod {recorded.pod_name} has resumed"
    return Step(Action.RECORD_TARGET, Reason.RELEASING_SOURCE, message)


def _delete_another(o: Observation) -> Step | None:
    """One that was created, still pinned, after the one that resumed had been deleted: it would never start."""
    pod, uid = o.target_pod, o.migration.status.target.pod_uid
    if not o.same_name or pod is None or uid is None or pod.uid == uid:
        return None
    message = f"pod {pod.name} was created again after it had resumed; it is created once more, to start afresh"
    action = Action.WAIT if pod.deleting else Action.DELETE_TARGET
    return Step(action, Reason.RELEASING_SOURCE, message)


def _give_the_target_node_up(o: Observation, agent: AgentView) -> Step:
    """The pod first: a kubelet that comes back starts nothing of a pod that is being deleted."""
    if o.target_pod is not None and not o.target_pod.deleting:
        message = f"deleting the target pod {o.target_pod.name} on node {agent.node.name}, which is out of service"
        return Step(Action.DELETE_TARGET, Reason.TARGET_LOST_AFTER_COMMIT, message)
    whole = "the checkpoint is" if o.migration.restores else "the source goes on"
    if o.same_name:
        whole += ", unless it had given its name away,"
    return Step(
        Action.RETURN,
        Reason.TARGET_RETURNED,
        f"Node {agent.node.name} was declared out of service after the commit: {whole} as it was then; what the "
        "container did on that node is lost and may be done again.",
    )


def _settle_the_source(o: Observation) -> Step | None:
    agent = o.source_agent
    if not _settled(agent, o.source) and agent is not None:
        if o.source is not None and o.source.lending:
            came = f"{o.source.memory_sent >> 20} of about {o.source.memory_bytes >> 20} MiB of its memory"
            message = f"the container runs; {came} have come from node {agent.node.name}, which it needs until then"
            return Step(Action.WAIT, Reason.MOVING_MEMORY, message)
        if agent.reached:
            message = f"the agent on {agent.node.name} kills what is frozen there"
            return Step(Action.SETTLE, Reason.RELEASING_SOURCE, message)
        hint = "the container runs on the target node; the frozen source pod is deleted when the agent is back"
        if o.post_copy and o.migration.status.timings.filled_at is None:
            hint = "the container runs on the target node, but whoever needs memory that has not come yet waits for it"
        return unreachable(agent, hint, stalled=agent.node.silent(o.now))
    return None


def _keep(o: Observation) -> Step | None:
    """While the source pod is there to be described, and before the agents forget and the migration's key may go."""
    kept = o.migration.status.checkpoint
    if not o.migration.spec.retain or kept.name is not None or kept.message is not None:
        return None
    return Step(Action.KEEP, Reason.RELEASING_SOURCE, "making the ContainerCheckpoint of what stays in the store")


def _leave_the_source(o: Observation) -> Step | None:
    """Nothing of a clone's source is ended: its agent only removes what it kept of the checkpoint."""
    agent = o.source_agent
    if agent is not None and agent.reached and not _settled(agent, o.source):
        message = f"the clone runs; the agent on {agent.node.name} removes what it kept of its checkpoint"
        return Step(Action.SETTLE, Reason.LEFT_RUNNING, message)
    return None


def _hand_over(o: Observation) -> Step | None:
    """A pod of a Deployment is replaced only by one that its ReplicaSet will keep; see `owners`.

    The source's container is dead: whatever readiness the API server still shows, its kubelet is about to correct.
    """
    source, target = o.source_pod, o.target_pod
    if target is None or target.deleting or target.ended or not awaits_owner(target):
        return None
    if target.phase != "Running":
        return Step(Action.WAIT, Reason.RELEASING_SOURCE, f"waiting for the kubelet to report that {target.name} runs")
    if source is not None and source.ready and not source.deleting:
        message = f"waiting for the kubelet to report that the source pod {source.name} has ended"
        return Step(Action.WAIT, Reason.RELEASING_SOURCE, message)
    message = f"the ReplicaSet of the source pod gets {target.name} in its place"
    return Step(Action.HAND_OVER, Reason.RELEASING_SOURCE, message)


def _delete_the_source(o: Observation) -> Step | None:
    pod = o.source_pod
    if pod is None:
        return None
    if pod.deleting:
        return Step(Action.WAIT, Reason.RELEASING_SOURCE, f"waiting for the source pod {pod.name} to be gone")
    return Step(Action.DELETE_SOURCE, Reason.RELEASING_SOURCE, f"deleting the source pod {pod.name}")


def _succeeded(o: Observation) -> Step:
    if o.memory_lost:
        message = f"the container started afresh in pod {o.migration.status.target.pod_name}: {o.memory_lost}"
        return Step(Action.FINISH, Reason.MEMORY_LOST, message + left_in_the_claim(o))
    message = f"the container runs on in {o.migration.destination}"
    if o.clone:
        message = f"a clone runs on in {o.migration.destination}; the source goes on where it was"
    kept = o.migration.status.checkpoint
    if kept.name is not None:
        message += f"; its checkpoint is kept: ContainerCheckpoint {kept.name}"
    elif kept.message is not None:
        message += f"; its checkpoint was not kept: {kept.message}"
    return Step(Action.FINISH, Reason.SUCCEEDED, message + left_in_the_claim(o))


def _settled(agent: AgentView | None, side: SourceReport | TargetReport | None) -> bool:
    """Return whether nothing of this migration acts on that node any more; a node that is gone runs nothing."""
    if agent is None or not agent.node.exists:
        return True
    return agent.reached and (side is None or side.settled)


def unreachable(agent: AgentView | None, hint: str, *, stalled: bool = False) -> Step:
    """Return the step of waiting for an agent that does not answer."""
    where, problem = (agent.node.name, agent.problem) if agent else ("an unknown node", "")
    message = f"the agent on node {where} does not answer ({problem}); {hint}"
    return Step(Action.WAIT, Reason.AGENT_UNREACHABLE, message, stalled=stalled)


def _forget(o: Observation, reason: Reason) -> Step | None:
    """Images are secrets and journals hold pods: both go now. A dead agent sweeps by itself when it is back.

    The target's first: it keeps its word `resumed` until the source's agent has heard it. When it is dead then, and
    something was committed, the source's keeps its own record, and tells it when the object is gone.
    """
    for agent, side in ((o.target_agent, o.target), (o.source_agent, o.source)):
        if agent is None or not agent.node.exists:
            continue
        if not agent.reached and not agent.node.silent(o.now):
            return unreachable(agent, "it still has to remove what it kept of the migration")
        if not agent.reached and agent is o.target_agent and o.outcome is not None:
            return None
        if side is not None and not side.settled:
            if isinstance(side, TargetReport) and side.filling:
                message = f"the container runs on node {agent.node.name}; the rest of its memory is being filled in"
                return Step(Action.SETTLE, Reason.FILLING_MEMORY, message)
            return Step(Action.SETTLE, reason, f"the agent on node {agent.node.name} is about to settle")
        if side is not None:
            return Step(Action.FORGET, reason, "the agents remove what they kept of the migration")
    return None
