from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.names import ANNOTATION_MIGRATION
from migration_api.wire import Failure, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.observation import AgentView, Observation
from migration_operator.owners import set_aside
from migration_operator.plan import plan
from migration_operator.step import Action, Step
from support.controller import (
    FACTS,
    NOW,
    SOURCE,
    TARGET,
    UID,
    adopted,
    agent,
    begun,
    migration,
    migration_node,
    of_deployment,
    preflight_facts,
    source_pod,
    target_at,
    target_pod,
)

GOES_FORWARD = {
    Action.QUEUE,
    Action.ADOPT,
    Action.BEGIN,
    Action.CREATE_TARGET,
    Action.RECORD_TARGET,
    Action.PREPARE_TARGET,
    Action.CHECKPOINT,
}


def source_at(state: SourceState, **more: Any) -> SourceReport:
    settled = state in {SourceState.THAWED, SourceState.RELEASED, SourceState.LOST}
    return SourceReport(state=state, settled=settled, **more)


def observation(
    *,
    status: dict[str, Any] | None = None,
    source: SourceReport | AgentView | None = None,
    target: TargetReport | AgentView | None = None,
    spec: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    **fields: Any,
) -> Observation:
    """Return an observation in the middle of a migration: begun, both pods there, agents that know nothing yet."""
    known = begun() if status is None else status
    fields = {
        "source_pod": source_pod(),
        "target_pod": target_pod(),
        "source_agent": source if isinstance(source, AgentView) else agent(SOURCE, source=source),
        "target_agent": target if isinstance(target, AgentView) else agent(TARGET, target=target),
        **fields,
    }
    of = migration(status=known, spec=spec or {}, **adopted(**(metadata or {})))
    return Observation(NOW, of, **fields)


def next_step(**of: Any) -> Step:
    return plan(observation(**of))


# The whole space, coarsely: what is decided, what the pods are, what the agents say.

DECISIONS: tuple[dict[str, Any], ...] = (
    {},
    {"decision": "Abort"},
    {"decision": "Commit"},
    {"decision": "Commit", "target": {"outcome": "Resumed"}},
    {"decision": "Commit", "target": {"outcome": "Returned"}},
)
IDENTITIES: tuple[dict[str, Any], ...] = (
    {},
    {"target_node": None},
    {"target_node": None, "target_uid": None},
)
DELETED: dict[str, Any] = {"metadata": {"deletionTimestamp": "2026-05-04T12:00:00Z"}}
SOURCE_PODS = (None, source_pod(), source_pod(**DELETED), source_pod(status={"phase": "Failed"}))
AWAITS_OWNER = target_pod(
    status={"phase": "Running"},
    metadata={"annotations": {ANNOTATION_MIGRATION: UID, **set_aside(source_pod(metadata=of_deployment()))}},
)
TARGET_PODS = (
    None,
    target_pod(),
    target_pod(node=None),
    target_pod(**DELETED),
    target_pod(status={"phase": "Failed"}),
    AWAITS_OWNER,
)
WISHES: tuple[dict[str, Any], ...] = ({}, {"cancel": True}, {"retain": True})
LATE: dict[str, Any] = {"timings": {"startedAt": NOW - timedelta(days=1)}}


def source_agents() -> Iterator[AgentView]:
    yield agent(SOURCE)
    yield agent(SOURCE, problem="timeout")
    yield agent(SOURCE, problem="timeout", ready=False)
    yield agent(SOURCE, problem="gone", exists=False, agent=None)
    yield from (agent(SOURCE, source=source_at(state)) for state in SourceState)


def target_agents() -> Iterator[AgentView | None]:
    yield None
    yield agent(TARGET)
    yield agent(TARGET, problem="timeout")
    yield agent(TARGET, problem="timeout", ready=False)
    yield agent(TARGET, problem="timeout", ready=False, out_of_service=True)
    yield from (agent(TARGET, target=target_at(state, gate_age_seconds=1.0)) for state in TargetState)


def space(now: datetime = NOW) -> Iterator[Observation]:
    for decided, late, identities, wish in itertools.product(DECISIONS, ({}, LATE), IDENTITIES, WISHES):
        of = migration(status={**begun(**identities, **decided), **late}, spec=wish, **adopted())
        pods = itertools.product(SOURCE_PODS, TARGET_PODS)
        for (here, there), source, target in itertools.product(pods, source_agents(), target_agents()):
            yield Observation(now, of, source_pod=here, target_pod=there, source_agent=source, target_agent=target)


YEARS = timedelta(days=3650)


@pytest.mark.parametrize("jump", [timedelta(), YEARS, -YEARS], ids=["the clock is right", "far ahead", "far behind"])
def test_over_the_whole_space_a_decision_rules_out_what_contradicts_it(jump: timedelta) -> None:
    """Also when the operator's clock has jumped: it decides only who waits no longer, never who runs."""
    seen: set[Action] = set()
    for o in space(NOW + jump):
        step = plan(o)
        seen.add(step.action)
        where = (step, o)
        assert step.message, where
        if o.decision is not None:
            assert step.action is not Action.PROPOSE_ABORT, where
            assert step.action not in GOES_FORWARD, where
        else:
            assert step.action not in {Action.FORGET, Action.FINISH, Action.SETTLE, Action.DELETE_TARGET}, where
        if o.outcome is not Outcome.RESUMED:
            assert step.action not in {Action.KEEP, Action.HAND_OVER, Action.DELETE_SOURCE}, where
            assert step.reason is not Reason.SUCCEEDED, where
        if o.migration.spec.retain:
            assert step.action not in {Action.DELETE_SOURCE, Action.FORGET} or o.outcome is not Outcome.RESUMED, where
        given_up = o.target_agent is not None and o.target_agent.node.out_of_service and not o.outcome
        if o.decision is Decision.COMMIT and o.outcome is not Outcome.RETURNED and not given_up:
            assert step.action is not Action.DELETE_TARGET, where
        if o.decision is Decision.COMMIT and o.outcome is None and not given_up:
            assert step.action is Action.WAIT, where
        if step.action is Action.RETURN:
            assert given_up, where
            assert o.decision is Decision.COMMIT, where
            assert o.target_pod is None or o.target_pod.deleting, where
        if step.action is Action.CHECKPOINT:
            assert o.target is not None, where
        assert plan(o) == step, "the plan must not remember"
    elsewhere = {Action.REST, Action.LET_GO, Action.QUEUE, Action.ADOPT, Action.BEGIN}
    elsewhere |= {Action.MOUNT, Action.CLEAR, Action.UNMOUNT}  # of a claim: test_claim.py
    if not jump:
        assert seen == set(Action) - elsewhere, "the space must be wide enough to mean something"


def test_the_way_through_step_by_step() -> None:
    untouched: dict[str, Any] = {"status": {}, "source_pod": None, "target_pod": None, "source": None, "target": None}
    fresh = {**untouched, "source_agent": None, "target_agent": None, "preflight": preflight_facts()}
    assert plan(Observation(NOW, migration(), preflight=preflight_facts(), place=None)).action is Action.QUEUE
    assert plan(Observation(NOW, migration(), preflight=preflight_facts())).action is Action.ADOPT
    assert next_step(**fresh).action is Action.BEGIN
    no_ids = begun(target_uid=None, target_node=None)
    assert next_step(status=no_ids, target_pod=None, target_agent=None).action is Action.CREATE_TARGET
    unscheduled = target_pod(node=None)
    assert next_step(status=no_ids, target_pod=unscheduled, target_agent=None).action is Action.RECORD_TARGET
    no_node = begun(target_node=None)
    waiting = next_step(status=no_node, target_pod=unscheduled, target_agent=None)
    assert waiting.action is Action.WAIT
    assert next_step(status=no_node, target_agent=None).action is Action.RECORD_TARGET
    assert next_step().action is Action.PREPARE_TARGET
    assert next_step(target=target_at(TargetState.PREPARED)).action is Action.WAIT
    at_gate = target_at(TargetState.AT_GATE, gate_age_seconds=29.9)
    assert next_step(target=at_gate).action is Action.CHECKPOINT
    frozen = source_at(SourceState.FROZEN)
    assert next_step(target=at_gate, source=frozen).reason is Reason.CHECKPOINTING
    sent = source_at(SourceState.SENT)
    assert next_step(target=target_at(TargetState.RECEIVING), source=sent).reason is Reason.TRANSFERRING
    assert next_step(target=target_at(TargetState.HELD), source=sent).reason is Reason.RESTORING
    commit = begun(decision="Commit")
    assert next_step(status=commit, target=target_at(TargetState.HELD), source=sent).reason is Reason.COMMITTED
    resumed, ran = begun(decision="Commit", target={"outcome": "Resumed"}), target_at(TargetState.RESUMED)
    assert next_step(status=resumed, target=ran, source=sent).action is Action.SETTLE
    released = source_at(SourceState.RELEASED)
    assert next_step(status=resumed, target=ran, source=released).action is Action.DELETE_SOURCE
    gone: dict[str, Any] = {"status": resumed, "source_pod": None}
    assert next_step(**gone, target=ran, source=released).action is Action.FORGET
    assert next_step(**gone, target=ran).action is Action.FORGET
    held_back = next_step(**gone, target=target_at(TargetState.RESUMING), source=released)
    assert held_back.action is Action.SETTLE, "the target first"
    filling = target_at(TargetState.RESUMING).model_copy(update={"filling": True})
    assert next_step(**gone, target=filling, source=released).reason is Reason.FILLING_MEMORY
    end = next_step(**gone)
    assert (end.action, end.reason) == (Action.FINISH, Reason.SUCCEEDED)
    assert "pod redis-moved on node node-b" in end.message


def test_the_way_back_step_by_step() -> None:
    abort = begun(decision="Abort")
    held, frozen = target_at(TargetState.HELD), source_at(SourceState.FROZEN)
    assert next_step(status=abort, target=held, source=frozen).action is Action.SETTLE
    destroyed = target_at(TargetState.DESTROYED)
    assert next_step(status=abort, target=destroyed, source=frozen).action is Action.DELETE_TARGET
    deleting = target_pod(**DELETED)
    assert next_step(status=abort, target=destroyed, source=frozen, target_pod=deleting).action is Action.WAIT
    assert next_step(status=abort, target=destroyed, source=frozen, target_pod=None).action is Action.SETTLE
    thawed = source_at(SourceState.THAWED)
    assert next_step(status=abort, target=destroyed, source=thawed, target_pod=None).action is Action.FORGET
    end = next_step(status=abort, target_pod=None)
    assert (end.action, end.reason) == (Action.FINISH, Reason.ROLLED_BACK)


def test_the_freeze_starts_at_the_late_gate_whatever_its_age() -> None:
    assert next_step(target=target_at(TargetState.AT_GATE, at_late_gate=True)).action is Action.CHECKPOINT
    assert next_step(target=target_at(TargetState.PREPARED)).action is Action.WAIT


def test_the_target_pod_is_created_only_when_it_is_known_how_much_there_is_to_copy() -> None:
    """It cannot get a late gate afterwards."""
    status = begun(target_uid=None, target_node=None)
    step = next_step(status=status, target_pod=None, target_agent=None, late=None)
    assert (step.action, step.reason) == (Action.WAIT, Reason.AGENT_UNREACHABLE)
    for late in (False, True):
        step = next_step(status=status, target_pod=None, target_agent=None, late=late)
        assert step.action is Action.CREATE_TARGET


def test_a_gate_that_is_too_old_is_not_used() -> None:
    """What is frozen then might be killed by the kubelet before it is restored."""
    step = next_step(target=target_at(TargetState.AT_GATE, gate_age_seconds=30.0))
    assert step.action is Action.WAIT
    assert "next attempt" in step.message


@pytest.mark.parametrize(
    ("of", "reason", "words"),
    [
        ({"spec": {"cancel": True}}, Reason.ABORT_REQUESTED, "spec.cancel"),
        ({"metadata": {"deletion_timestamp": NOW}}, Reason.ABORT_REQUESTED, "was deleted"),
        ({"status": begun(**LATE)}, Reason.DEADLINE_EXCEEDED, "600 s"),
        ({"source_pod": None}, Reason.SOURCE_LOST, "redis disappeared"),
        ({"source_pod": source_pod(**DELETED)}, Reason.SOURCE_LOST, "deleted by somebody"),
        ({"source_pod": source_pod(status={"phase": "Failed"})}, Reason.SOURCE_LOST, "ended by itself"),
        ({"target_pod": None}, Reason.TARGET_FAILED, "was deleted"),
        ({"target_pod": target_pod(**DELETED)}, Reason.TARGET_FAILED, "being deleted"),
        (
            {"target_pod": target_pod(status={"phase": "Failed", "reason": "OutOfcpu", "message": "too little"})},
            Reason.TARGET_FAILED,
            "OutOfcpu: too little",
        ),
        (
            {"refusal": Failure(reason=Reason.CHECKPOINT_FAILED, message="another migration holds it")},
            Reason.CHECKPOINT_FAILED,
            "another migration holds it",
        ),
        (
            {"target": target_at(TargetState.DESTROYED)},
            Reason.TARGET_FAILED,
            "Destroyed before anything was decided",
        ),
        ({"source": source_at(SourceState.LOST)}, Reason.SOURCE_LOST, "Lost"),
        ({"source": source_at(SourceState.THAWED)}, Reason.CHECKPOINT_FAILED, "Thawed"),
        (
            {
                "source": SourceReport(
                    state=SourceState.FROZEN, failure=Failure(reason=Reason.CHECKPOINT_FAILED, message="X1")
                )
            },
            Reason.CHECKPOINT_FAILED,
            "X1",
        ),
        (
            {
                "target": TargetReport(
                    state=TargetState.RESTORING, failure=Failure(reason=Reason.RESTORE_FAILED, message="X2")
                )
            },
            Reason.RESTORE_FAILED,
            "X2",
        ),
    ],
)
def test_what_makes_the_operator_give_up(of: dict[str, Any], reason: Reason, words: str) -> None:
    step = next_step(**of)
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, reason)
    assert words in step.message


def test_a_target_of_another_kind_is_given_up_before_the_freeze_only() -> None:
    weak = FACTS.model_copy(update={"cpu_flags": ()})
    unlike = AgentView(agent(TARGET, agent=migration_node(TARGET, weak)).node)
    assert next_step(target=unlike).reason is Reason.TARGET_FAILED
    assert next_step(target=unlike, source=source_at(SourceState.FROZEN)).action is Action.PREPARE_TARGET


def test_a_source_that_died_while_the_target_is_held_goes_on_there() -> None:
    dead = source_pod(status={"phase": "Failed"})
    step = next_step(source_pod=dead, target=target_at(TargetState.HELD), source=source_at(SourceState.SENT))
    assert step.action is Action.WAIT


def test_a_name_that_another_pod_took_meanwhile() -> None:
    status = begun(target_uid=None, target_node=None)
    step = next_step(status=status, target_pod=None, target_agent=None, target_name_taken=True)
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.TARGET_FAILED)


def test_preflight_says_everything_and_touches_nothing() -> None:
    pod = source_pod(spec={"hostNetwork": True, "volumes": [{"name": "scratch", "nfs": {}}]})
    step = plan(Observation(NOW, migration(), preflight=preflight_facts(pod=pod)))
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.PREFLIGHT_FAILED)
    assert "hostNetwork" in step.message
    assert "scratch" in step.message


def test_a_migration_that_touched_nothing_ends_at_once() -> None:
    asked = Observation(NOW, migration(spec={"cancel": True}), preflight=preflight_facts())
    assert plan(asked).action is Action.PROPOSE_ABORT
    end = plan(Observation(NOW, migration(status={"decision": "Abort"})))
    assert (end.action, end.reason) == (Action.FINISH, Reason.ROLLED_BACK)


def test_an_agent_that_is_away_is_waited_for() -> None:
    away = agent(TARGET, problem="no answer within 8 s")
    step = next_step(target=away)
    assert (step.action, step.reason, step.stalled) == (Action.WAIT, Reason.AGENT_UNREACHABLE, False)
    assert "node-b does not answer (no answer within 8 s)" in step.message
    facts = preflight_facts(pod_facts=None, agent_problem="no answer within 8 s")
    assert plan(Observation(NOW, migration(), preflight=facts)).reason is Reason.AGENT_UNREACHABLE


def test_a_target_node_that_dies_after_the_commit_is_said_and_waited_for() -> None:
    commit, sent = begun(decision="Commit"), source_at(SourceState.SENT)
    away, dead = agent(TARGET, problem="timeout"), agent(TARGET, problem="timeout", ready=False)
    assert next_step(status=commit, source=sent, target=away).reason is Reason.AGENT_UNREACHABLE
    step = next_step(status=commit, source=sent, target=dead)
    assert (step.action, step.reason, step.stalled) == (Action.WAIT, Reason.TARGET_LOST_AFTER_COMMIT, True)


def test_a_target_node_out_of_service_gives_the_container_back() -> None:
    """The pod first: a kubelet that comes back starts nothing of a pod that is being deleted."""
    commit, sent = begun(decision="Commit"), source_at(SourceState.SENT)
    off = agent(TARGET, problem="timeout", ready=False, out_of_service=True)
    assert next_step(status=commit, source=sent, target=off).action is Action.DELETE_TARGET
    step = next_step(status=commit, source=sent, target=off, target_pod=target_pod(**DELETED))
    assert (step.action, step.reason, step.stalled) == (Action.RETURN, Reason.TARGET_RETURNED, False)
    assert "is lost and may be done again" in step.message
    answers = agent(TARGET, target=target_at(TargetState.RESUMING), out_of_service=True)
    assert next_step(status=commit, source=sent, target=answers).action is Action.WAIT, "it is not off"
    alive = agent(TARGET, problem="timeout", out_of_service=True)
    assert next_step(status=commit, source=sent, target=alive).action is Action.WAIT, "it reports"
    resumed = begun(decision="Commit", target={"outcome": "Resumed"})
    assert next_step(status=resumed, source=sent, target=off).action is not Action.RETURN


def test_a_source_thaws_and_keeps_its_record_for_a_target_out_of_service() -> None:
    """Else nobody tells the target, when it is back and the object is gone, how it ended."""
    returned = begun(decision="Commit", target={"outcome": "Returned", "message": "declared"})
    off = agent(TARGET, problem="timeout", ready=False, out_of_service=True)
    frozen, thawed = source_at(SourceState.SENT), source_at(SourceState.THAWED)
    assert next_step(status=returned, source=frozen, target=off, target_pod=None).action is Action.SETTLE
    end = next_step(status=returned, source=thawed, target=off, target_pod=None)
    assert (end.action, end.reason) == (Action.FINISH, Reason.ROLLED_BACK)


def test_a_dead_target_does_not_keep_the_source_from_going_on() -> None:
    abort, dead = begun(decision="Abort"), agent(TARGET, problem="timeout", ready=False)
    frozen, thawed = source_at(SourceState.FROZEN), source_at(SourceState.THAWED)
    assert next_step(status=abort, target=dead, source=frozen).action is Action.DELETE_TARGET
    deleting = target_pod(**DELETED)
    assert next_step(status=abort, target=dead, source=frozen, target_pod=deleting).action is Action.SETTLE
    assert next_step(status=abort, target=dead, source=thawed, target_pod=deleting).action is Action.FORGET
    assert next_step(status=abort, target=dead, target_pod=deleting).action is Action.FINISH


def test_a_source_that_a_dead_target_owes_its_word_keeps_its_record() -> None:
    """Else nobody tells the target, when it is back and the object is gone, that its word was heard."""
    resumed = begun(decision="Commit", target={"outcome": "Resumed"})
    dead, released = agent(TARGET, problem="timeout", ready=False), source_at(SourceState.RELEASED)
    end = next_step(status=resumed, target=dead, source=released, source_pod=None)
    assert (end.action, end.reason) == (Action.FINISH, Reason.SUCCEEDED)


def test_a_source_node_that_is_gone_is_lost() -> None:
    abort, gone = begun(decision="Abort"), agent(SOURCE, problem="gone", exists=False, agent=None)
    step = next_step(status=abort, source=gone, target_pod=None, source_pod=None)
    assert (step.action, step.reason) == (Action.FINISH, Reason.SOURCE_LOST)


def test_what_was_returned_says_so() -> None:
    status = begun(decision="Commit", target={"outcome": "Returned", "message": "CRIU failed"})
    end = next_step(status=status, target_pod=None)
    assert (end.action, end.reason) == (Action.FINISH, Reason.ROLLED_BACK)
    assert "CRIU failed" in end.message


def test_finished_stays_finished() -> None:
    condition = {
        "type": "Succeeded",
        "status": "True",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
        "reason": "Succeeded",
        "message": "",
    }
    status = begun(decision="Commit", conditions=[condition])
    assert plan(Observation(NOW, migration(status=status, **adopted()))).action is Action.LET_GO
    assert plan(Observation(NOW, migration(status=status))).action is Action.REST
