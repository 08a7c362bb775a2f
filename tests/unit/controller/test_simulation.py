"""Every order in which operator, agents, kubelet and admin can act, with the operator dying after every step.

The world is small and the agents are modelled simply; the plan and the status are the real ones. From every state that
can be reached the invariants must hold, and with no further accidents the migration must end.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from migration_api.conditions import Reason
from migration_api.migration import ContainerMigration
from migration_api.names import FINALIZER
from migration_api.wire import Failure, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.observation import Observation
from migration_operator.plan import plan
from migration_operator.step import Action, Step
from support.controller import NOW, SOURCE, TARGET, agent, begun, migration, preflight_facts, source_pod, target_pod

S, T = SourceState, TargetState
SETTLED = {S.THAWED, S.RELEASED, S.LOST, T.RESUMED, T.RETURNED, T.DESTROYED}
DELETION: dict[str, Any] = {"metadata": {"deletionTimestamp": "2026-05-04T12:00:00Z"}}


@dataclass(frozen=True)
class World:
    """Everything there is, as small as it can be."""

    # The object
    decision: str | None = None
    outcome: str | None = None
    adopted: bool = False
    begun: bool = False
    recorded: bool = False
    cancelled: bool = False
    deleted: bool = False
    cause: Reason | None = None
    lost_noted: bool = False
    finished: Reason | None = None
    # The source: its pod, what its agent's journal says, whether it can run
    source_pod: str = "running"
    source: SourceState | None = None
    source_failed: bool = False
    source_alive: bool = True
    # The target
    target_pod: str = "none"
    target: TargetState | None = None
    target_runs: bool = False
    target_failed: bool = False
    # The operator: the step it has planned and not taken, with the world it saw; and what may still go wrong
    planned: tuple[Step, World] | None = None
    accidents: int = 1

    @property
    def source_runs(self) -> bool:
        return self.source_pod != "gone" and self.source_alive and self.source in {None, S.ACCEPTED, S.THAWED}


def status_of(w: World) -> dict[str, Any]:
    conditions: list[dict[str, Any]] = []
    for type_, status, reason in (
        ("Committed", "False", w.cause),
        ("SourceReleased", "False", Reason.SOURCE_LOST if w.lost_noted else None),
        ("Succeeded", "True" if w.finished is Reason.SUCCEEDED else "False", w.finished),
    ):
        if reason is not None:
            common = {"observedGeneration": 1, "lastTransitionTime": NOW, "message": "because"}
            conditions.append({"type": type_, "status": status, "reason": reason, **common})
    ids = begun(target_uid=None, target_node=None) if not w.recorded else begun()
    decided: dict[str, Any] = {"decision": w.decision} if w.decision else {}
    if w.outcome:
        ids["target"]["outcome"] = w.outcome
    return {**(ids if w.begun else {}), **decided, "conditions": conditions}


@cache
def observe(w: World) -> Observation:
    """Return what the operator would see: no more than the real one can."""
    of: ContainerMigration = migration(
        status=status_of(w),
        spec={"cancel": w.cancelled},
        finalizers=(FINALIZER,) if w.adopted else (),
        deletion_timestamp=NOW if w.deleted else None,
    )
    here = {"running": source_pod(), "deleting": source_pod(**DELETION), "gone": None}[w.source_pod]
    there = {
        "none": None,
        "unscheduled": target_pod(node=None),
        "scheduled": target_pod(),
        "deleting": target_pod(**DELETION),
    }[w.target_pod]
    if not w.begun:
        return Observation(NOW, of, preflight=preflight_facts(pod=here))
    failed = Failure(reason=Reason.CHECKPOINT_FAILED, message="it failed")
    source, target = None, None
    if w.source:
        why = failed if w.source_failed else None
        source = SourceReport(state=w.source, settled=w.source in SETTLED, failure=why)
    if w.target:
        why, age = failed if w.target_failed else None, 1.0 if w.target is T.AT_GATE else None
        target = TargetReport(state=w.target, settled=w.target in SETTLED, gate_age_seconds=age, failure=why)
    return Observation(
        NOW,
        of,
        source_pod=here,
        target_pod=there,
        source_agent=agent(SOURCE, source=source),
        target_agent=agent(TARGET, target=target) if w.recorded else None,
    )


# --- the operator


def acted(w: World, step: Step, saw: World) -> World:
    """Take a step that was planned when the world was as `saw`, in the world as it is."""
    return EFFECTS[step.action](w, step, saw)


def record(w: World, _: Step, saw: World) -> World:
    return replace(w, recorded=True) if saw.target_pod == "scheduled" else w


def prepare(w: World, _: Step, __: World) -> World:
    """An agent reads the register before it acts."""
    return replace(w, target=T.PREPARED) if w.target is None and w.decision is None else w


def checkpoint(w: World, _: Step, __: World) -> World:
    asked = w.source is None and w.decision is None and not w.deleted and not w.cancelled
    return replace(w, source=S.ACCEPTED) if asked else w


def delete_source(w: World, _: Step, __: World) -> World:
    assert w.outcome == "Resumed", "the source is deleted only on Resumed"
    return replace(w, source_pod="deleting") if w.source_pod == "running" else w


def forget(w: World, _: Step, saw: World) -> World:
    lost = w.lost_noted or saw.source is S.LOST
    source, target = (None if side in SETTLED else side for side in (w.source, w.target))
    return replace(w, lost_noted=lost, source=source, target=target)


Effect = Callable[[World, Step, World], World]
EFFECTS: dict[Action, Effect] = {
    Action.ADOPT: lambda w, _, __: w if w.deleted else replace(w, adopted=True),
    Action.LET_GO: lambda w, _, __: replace(w, adopted=False),
    Action.BEGIN: lambda w, _, __: replace(w, begun=True),
    Action.CREATE_TARGET: lambda w, _, __: replace(w, target_pod="unscheduled") if w.target_pod == "none" else w,
    Action.RECORD_TARGET: record,
    Action.PREPARE_TARGET: prepare,
    Action.CHECKPOINT: checkpoint,
    Action.PROPOSE_ABORT: lambda w, step, _: w if w.decision else replace(w, decision="Abort", cause=step.reason),
    Action.DELETE_TARGET: lambda w, _, __: w if w.target_pod == "none" else replace(w, target_pod="deleting"),
    Action.DELETE_SOURCE: delete_source,
    Action.FORGET: forget,
    Action.FINISH: lambda w, step, _: replace(w, adopted=False, finished=step.reason),
}


def operator(w: World) -> Iterator[World]:
    """Plan; take what was planned, at once or late; die before it is taken; or die when it is taken half."""
    if w.planned is None:
        step = plan(observe(w))
        if step.action in {Action.WAIT, Action.SETTLE, Action.REST}:
            return
        yield replace(w, planned=(step, replace(w, planned=None)))
        return
    step, saw = w.planned
    idle = replace(w, planned=None)
    yield acted(idle, step, saw)
    yield idle
    if step.action is Action.FINISH:
        yield replace(idle, adopted=False)  # the finalizer went, the status did not come


# --- the agents, the kubelet, the scheduler


def agents(w: World) -> Iterator[World]:
    back = w.decision == "Abort" or w.outcome == "Returned"
    yield from source_agent(w, back)
    yield from target_agent(w, back)
    if w.target_pod == "unscheduled":
        yield replace(w, target_pod="scheduled")
    if w.target_pod == "deleting":
        yield replace(w, target_pod="none", target_runs=False)
    if w.source_pod == "deleting":
        yield replace(w, source_pod="gone")


def source_agent(w: World, back: bool) -> Iterator[World]:
    if w.source in {None, *SETTLED}:
        return
    if back:
        yield replace(w, source=S.THAWED if w.source_alive else S.LOST)
    elif w.outcome == "Resumed":
        yield replace(w, source=S.RELEASED, source_alive=False)
    elif w.decision is None and not w.source_failed:
        if w.source is S.ACCEPTED:
            yield replace(w, source=S.FROZEN)
        elif w.source is S.FROZEN and w.target is T.AT_GATE:
            yield replace(w, source=S.SENT, target=T.RECEIVED)


def target_agent(w: World, back: bool) -> Iterator[World]:
    if w.target in {None, *SETTLED}:
        return
    if w.decision == "Abort":
        yield replace(w, target=T.DESTROYED)
    elif w.decision == "Commit":
        if w.target_pod == "scheduled":
            yield replace(w, target=T.RESUMED, outcome="Resumed", target_runs=True)
        else:
            yield replace(w, target=T.RETURNED, outcome="Returned")
    elif w.target is T.PREPARED and w.target_pod == "scheduled":
        yield replace(w, target=T.AT_GATE)
    elif w.target is T.RECEIVED and w.target_pod == "scheduled" and not w.target_failed:
        yield replace(w, target=T.HELD)
    elif w.target is T.HELD and w.target_pod == "scheduled" and w.source is S.SENT:
        yield replace(w, decision="Commit")


def accidents(w: World) -> Iterator[World]:
    """What nobody planned: at most so many in one history."""
    if not w.accidents or w.finished:
        return
    w = replace(w, accidents=w.accidents - 1)
    yield replace(w, cancelled=True)
    yield replace(w, deleted=True)
    if w.target_pod in {"unscheduled", "scheduled"}:
        yield replace(w, target_pod="deleting")
    if w.source_pod == "running":
        yield replace(w, source_pod="deleting", source_alive=False)
    if w.source in {S.ACCEPTED, S.FROZEN, S.SENT}:
        yield replace(w, source_failed=True)
    if w.source in {S.FROZEN, S.SENT}:
        yield replace(w, source_alive=False)
    if w.target in {T.PREPARED, T.AT_GATE, T.RECEIVED, T.HELD}:
        yield replace(w, target_failed=True)
    if w.source in {S.ACCEPTED, S.FROZEN, S.SENT} and w.decision is None:
        yield replace(w, decision="Abort")  # by the source's agent: its budget is used up


# --- what must hold


def check(before: World, after: World) -> None:
    assert not (after.source_runs and after.target_runs), "I1: two copies can run"
    assert before.decision in {None, after.decision}, "the first register is written once"
    assert before.outcome in {None, after.outcome}, "the second register is written once"
    if after.finished:
        check_the_end(after)


def check_the_end(w: World) -> None:
    if w.finished is Reason.SUCCEEDED:
        assert w.outcome == "Resumed"
        assert w.source_pod == "gone", "the source pod is left behind"
    else:
        assert w.decision == "Abort" or w.outcome == "Returned"
        assert w.target_pod == "none", "the target pod is left behind"
        if w.finished is Reason.ROLLED_BACK and w.source_pod == "running":
            assert w.source_runs, "said to run on, and does not"
    assert w.source is None, "the source's agent still keeps something"
    assert w.target is None, "the target's agent still keeps something"
    assert not w.adopted


def ends(w: World) -> bool:
    """Return whether the migration ends when nothing more goes wrong; whoever can act does, in turns."""
    for _ in range(60):
        if w.finished or (w.deleted and not w.adopted):
            return True
        before = w
        for somebody in (operator, operator, agents):
            w = next(somebody(w), w)
        if w == before:
            return False
    return False


def explore(start: World) -> dict[World, World | None]:
    """Return every state that can be reached, with a state before it."""
    seen: dict[World, World | None] = {start: None}
    queue = deque([start])
    while queue:
        w = queue.popleft()
        if w.finished or (w.deleted and not w.adopted):
            continue
        for after in (*operator(w), *agents(w), *accidents(w)):
            check(w, after)
            if after not in seen:
                seen[after] = w
                queue.append(after)
    return seen


def test_whatever_happens_it_ends_and_never_runs_twice() -> None:
    seen = explore(World(accidents=3))
    finals = {w.finished for w in seen if w.finished}
    assert finals == {Reason.SUCCEEDED, Reason.ROLLED_BACK, Reason.SOURCE_LOST, Reason.PREFLIGHT_FAILED}
    assert len(seen) > 5000, "the world must be rich enough to mean something"
    for w in seen:
        if w.planned is None:
            assert ends(w), w


def test_a_deleted_migration_is_not_let_go_before_everything_is_clean() -> None:
    """Also when the operator died in between: the finalizer is there until then."""
    for w in explore(World(accidents=3)):
        if w.deleted and w.begun and not w.adopted and w.planned is None:
            assert w.source is None
            assert w.target is None
            assert (w.target_pod == "none") or w.outcome == "Resumed"
