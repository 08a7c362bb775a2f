"""The operator: the real plan, taken at once, late, or never; it remembers nothing but what it is about to do."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from typing import Any

from migration_api.conditions import Reason
from migration_api.names import FINALIZER
from migration_api.wire import Failure, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.observation import AgentView, Observation
from migration_operator.step import Action
from support.checkpoints import RESTORABLE, checkpoint
from support.controller import (
    NOW,
    SOURCE,
    TARGET,
    TARGET_UID,
    WITH_A_DISK,
    agent,
    begun,
    migration,
    node,
    of_stateful_set,
    preflight_facts,
    source_pod,
    target_pod,
)
from support.protocol.api import conclude, decide, delete_source, delete_target
from support.protocol.rules import Rules
from support.protocol.source import forget_source, put_source, source_settled
from support.protocol.target import forget_target, put_target, target_report
from support.protocol.world import Edges, Plan, World

DELETION: dict[str, Any] = {"metadata": {"deletionTimestamp": "2026-05-04T12:00:00Z"}}
CHECKPOINT = checkpoint(ready="True", status=RESTORABLE)
SAME = {"pod": source_pod(metadata=of_stateful_set()), "target": node(TARGET, WITH_A_DISK), "target_name": "redis"}
"""Of a pod of a StatefulSet, whose node was found."""
LONG_AGO = NOW - timedelta(days=1)

View = tuple[str, bool, bool, bool, bool] | None
"""What an agent reports: its side's state (none: it knows nothing), settled, failed, then of the source whether a
clone's goes on and whether it lends its memory, of the target whether it is being filled and its memory was lost. None:
it does not answer."""


def source_view(w: World) -> View:
    if not w.s_up:
        return None
    lends = w.post_copy and not w.s_moved and w.s_state not in {"Thawed", "Released", "Lost"}
    return w.s_state, source_settled(w), w.s_failed, w.s_let_go, lends


def target_view(w: World) -> View:
    return (target_report(w), w.t_settled, w.t_failed, w.filling, w.t_lost) if w.t_up else None


def sight(w: World) -> tuple[Any, ...]:
    """What the operator can see of the world, and no more."""
    the_object = (w.decision, w.outcome, w.adopted, w.begun, w.recorded, w.cancelled, w.deleted)
    told = (w.cause, w.lost_noted, w.finished, w.late, w.o_refused)
    return (
        *the_object,
        *told,
        w.source_pod,
        w.target_pod,
        source_view(w),
        target_view(w),
        w.s_silent,
        w.t_silent,
        w.t_power == "declared",
        w.clone,
        w.retain,
        w.kept,
        w.restore,
        w.stored,
        w.post_copy,
        w.memory_lost_noted,
        w.same,
        w.pod if w.pinned and w.target_pod else 0,
        w.recorded_pod,
        w.t_bound,
    )


@cache
def observe(seen: tuple[Any, ...]) -> Observation:
    """Build the real observation."""
    decision, outcome, adopted, has_begun, recorded, cancelled, deleted, cause, lost_noted, finished = seen[:10]
    late, refused, here, there, source, target, s_silent, t_silent, declared, clone, retain, kept = seen[10:22]
    restore, stored, post_copy, memory_lost, same, pod, recorded_pod, bound = seen[22:]
    status = _status(decision, outcome, has_begun, recorded, cause, lost_noted, finished)
    if memory_lost:
        status["conditions"].append(_condition("MemoryMoved", "False", Reason.MEMORY_LOST))
    if same and has_begun:
        status["source"] = {**status["source"], "revision": "redis-1"}
        outcomes = {"outcome": outcome} if outcome else {}
        uids = {"podUID": _uid(recorded_pod)} if recorded_pod else {}
        status["target"] = {"podName": "redis", "nodeName": TARGET, **uids, **outcomes}
    if restore and has_begun:
        status["source"] = {"checkpointUID": CHECKPOINT.metadata.uid}
    if kept:
        status["checkpoint"] = {"name": "redis-kept"}
    if late:
        status["timings"] = {"startedAt": LONG_AGO}
    the_object = migration(
        status=status,
        spec={
            "cancel": cancelled,
            "leaveSourceRunning": clone,
            "retain": retain,
            **({"strategy": "PostCopy"} if post_copy else {}),
            **({"checkpointName": "kept"} if restore else {}),
        },
        finalizers=(FINALIZER,) if adopted else (),
        deletion_timestamp=NOW if deleted else None,
    )
    from_pod = {"running": source_pod(), "deleting": source_pod(**DELETION), "": None}[here]
    to_pod = {
        "": None,
        "unscheduled": target_pod(node=None),
        "scheduled": target_pod(),
        "deleting": target_pod(**DELETION),
    }[there]
    if same:
        more = DELETION if there == "deleting" else {}
        to_pod = target_pod(uid=_uid(pod), **more) if pod else None
    if not has_begun and restore:
        facts = preflight_facts(pod=source_pod(), checkpoint=CHECKPOINT if stored else None, pod_facts=None)
        return Observation(NOW, the_object, preflight=facts)
    if not has_begun:
        facts = preflight_facts(**(SAME if same and from_pod else {"pod": from_pod}))
        return Observation(NOW, the_object, preflight=facts)
    why = Failure(reason=Reason.CHECKPOINT_FAILED, message="it failed")
    return Observation(
        NOW,
        the_object,
        source_pod=from_pod,
        target_pod=to_pod,
        source_agent=None if restore else _source_agent(source, s_silent, why),
        late=restore,
        checkpoint=CHECKPOINT if restore and stored else None,
        target_agent=_target_agent(target, t_silent, declared, why, bound) if recorded or same else None,
        refusal=why if refused else None,
    )


def _status(  # noqa: PLR0917  # a key
    decision: str, outcome: str, has_begun: bool, recorded: bool, cause: str, lost_noted: bool, finished: str
) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = []
    for type_, status, reason in (
        ("Committed", "False", cause),
        ("SourceReleased", "False", Reason.SOURCE_LOST.value if lost_noted else ""),
        ("Succeeded", "True" if finished == Reason.SUCCEEDED else "False", finished),
    ):
        if reason:
            conditions.append(_condition(type_, status, reason))
    ids = begun() if recorded else begun(target_uid=None, target_node=None)
    if outcome:
        ids["target"]["outcome"] = outcome
    return {**(ids if has_begun else {}), **({"decision": decision} if decision else {}), "conditions": conditions}


def _condition(type_: str, status: str, reason: str) -> dict[str, Any]:
    common = {"observedGeneration": 1, "lastTransitionTime": NOW, "message": "because"}
    return {"type": type_, "status": status, "reason": reason, **common}


def _source_agent(view: View, silent: bool, why: Failure) -> AgentView:
    if view is None:
        return agent(SOURCE, problem="it does not answer", ready=not silent)
    state, settled, failed, let_go, lends = view
    if not state:
        return agent(SOURCE)
    thawed_at = NOW if let_go else None
    report = SourceReport(
        state=SourceState(state),
        settled=settled,
        failure=why if failed else None,
        thawed_at=thawed_at,
        lending=lends,
    )
    return agent(SOURCE, source=report)


def _uid(number: int) -> str:
    """Return the UID of one of the pods of one name."""
    return f"{TARGET_UID[:-1]}{number}"


def _target_agent(view: View, silent: bool, declared: bool, why: Failure, bound: int = 0) -> AgentView:
    if view is None:
        return agent(TARGET, problem="it does not answer", ready=not silent, out_of_service=declared)
    state, settled, failed, filling, lost = view
    if not state:
        return agent(TARGET)
    age = 1.0 if state == TargetState.AT_GATE else None
    return agent(
        TARGET,
        target=TargetReport(
            state=TargetState(state),
            settled=settled,
            gate_age_seconds=age,
            pod_uid=_uid(bound) if bound else None,
            failure=why if failed else None,
            filling=filling,
            memory_lost="it died" if lost else None,
        ),
    )


def operator(w: World, rules: Rules) -> Edges:
    """One or two operators: plan; take what was planned at once or late; or die before it is taken."""
    yield from _one(w, rules, "o_plan", "operator")
    if w.operators > 1:
        yield from _one(w, rules, "o_plan2", "second operator")


def _one(w: World, rules: Rules, slot: str, name: str) -> Edges:
    planned: Plan = getattr(w, slot)
    if planned:
        idle = w._replace(**{slot: ()})
        if w.operator_api and w.exists:
            after = _act(idle, planned, rules)
            yield f"{name}: {planned[0]}", after._replace(**{slot: _rest_of(planned)})
        yield f"{name} dies or fails before {planned[0]}", idle._replace(o_refused=False)
        return
    if not w.operator_api or not w.exists or (w.finished and not w.adopted):
        return
    action, reason = _planned(sight(w), rules)
    if action not in _AT_REST:
        noted = "noted" if w.s_up and w.s_state == "Lost" else ""
        whom = "target" if (w.recorded or w.same) and w.t_up and w.t_state else "source"
        if action == Action.DELETE_TARGET:
            whom = str(w.pod)  # by its UID
        if action == Action.RECORD_TARGET:
            whom = str(w.t_bound)
        seen = w._replace(memory_lost_noted=w.memory_lost_noted or (w.recorded and w.t_up and w.t_lost))
        yield f"{name} plans {action} ({reason})", seen._replace(**{slot: (action, reason, noted, whom)})


_AT_REST = frozenset({Action.WAIT.value, Action.SETTLE.value, Action.REST.value})
_plans: dict[tuple[Any, ...], tuple[str, str]] = {}


def _planned(seen: tuple[Any, ...], rules: Rules) -> tuple[str, str]:
    key = (rules.plan, seen)
    if key not in _plans:
        step = rules.plan(observe(seen))
        _plans[key] = step.action.value, step.reason.value
    return _plans[key]


def _rest_of(planned: Plan) -> Plan:
    """The end is written in two acts."""
    return ("WriteTheEnd", *planned[1:]) if planned[0] == Action.FINISH else ()


def _act(w: World, planned: Plan, rules: Rules) -> World:  # noqa: PLR0911, PLR0912, C901  # one line for each action
    action, reason, noted, whom = planned
    match action:
        case Action.ADOPT:
            return w if w.deleted else w._replace(adopted=True)
        case Action.LET_GO | Action.FINISH:
            return w._replace(adopted=False)
        case "WriteTheEnd":
            return w._replace(finished=w.finished or reason)
        case Action.BEGIN:
            return w._replace(begun=True)
        case Action.CREATE_TARGET:
            return _create_target(w)
        case Action.RECORD_TARGET if w.same:
            return w._replace(recorded_pod=w.recorded_pod or int(whom))
        case Action.RECORD_TARGET:
            return w._replace(recorded=True) if w.target_pod == "scheduled" else w
        case Action.PREPARE_TARGET:
            return put_target(w)
        case Action.CHECKPOINT:
            return put_source(w)
        case Action.PROPOSE_ABORT:
            after = decide(w, "Abort", rules)
            return after._replace(cause=reason) if after is not w and not w.cause else after
        case Action.RETURN:
            return conclude(w, "Returned", rules) if w.t_power == "declared" else w
        case Action.DELETE_TARGET:
            return delete_target(w) if not w.same or whom == str(w.pod) else w
        case Action.KEEP:
            return w._replace(kept=True)
        case Action.DELETE_SOURCE:
            return delete_source(w)
        case Action.FORGET:
            return _forget(w._replace(lost_noted=w.lost_noted or bool(noted)), whom)
        case _:
            raise AssertionError(action)


def _create_target(w: World) -> World:
    """Create the pod; a ticket that an earlier pod of that name left has another pod UID."""
    if w.target_pod or w.t_state:
        return w
    return w._replace(target_pod="unscheduled", ticket="none")


def _forget(w: World, whom: str) -> World:
    """The target's agent first: each forgets what has settled, and refuses else."""
    if whom == "target":
        return forget_target(w) if w.t_up and w.t_state and w.t_settled else w
    return forget_source(w) if w.s_up and w.s_state and source_settled(w) else w
