"""A migration that leaves its source running: what the operator refuses, creates, does and says."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from migration_api.conditions import Reason
from migration_api.migration import ContainerMigration, MigrationStatus
from migration_api.names import ANNOTATION_OWNER, LABEL_CLONE, LABEL_MIGRATION
from migration_api.preflight_reasons import PreflightReason
from migration_api.wire import Connections, Failure, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.estimates import DUMP_BYTES_PER_SECOND, FREEZE_BASE_SECONDS
from migration_operator.observation import AgentView, Observation
from migration_operator.owners import awaits_owner
from migration_operator.plan import plan
from migration_operator.pods import Pod
from migration_operator.preflight import problems
from migration_operator.status import report
from migration_operator.step import Action, Step
from migration_operator.target_pod import target_pod as made
from support.controller import (
    FACTS,
    MEBIBYTE,
    NOW,
    SOURCE,
    TARGET,
    UID,
    adopted,
    agent,
    begun,
    is_ready,
    migration,
    node,
    of_deployment,
    pod_facts,
    preflight_facts,
    source_pod,
    target_pod,
)

DELETED: dict[str, Any] = {"metadata": {"deletionTimestamp": "2026-05-04T12:00:00Z"}}
WENT_ON = NOW + timedelta(milliseconds=400)
RESUMED: dict[str, Any] = {"decision": "Commit", "target": {"outcome": "Resumed"}}


def clone(**of: Any) -> ContainerMigration:
    return migration(spec={"leaveSourceRunning": True, **of.pop("spec", {})}, **of)


def source_at(state: SourceState, *, let_go: bool = True, **more: Any) -> SourceReport:
    thawed_at = WENT_ON if let_go else None
    times: dict[str, Any] = {"frozen_at": NOW, "dumped_at": NOW, "thawed_at": thawed_at}
    return SourceReport(state=state, settled=state is SourceState.THAWED, **{**times, **more})


def target_at(state: TargetState, **more: Any) -> TargetReport:
    return TargetReport(state=state, settled=state in {TargetState.RESUMED, TargetState.DESTROYED}, **more)


def observation(
    status: dict[str, Any],
    source: SourceReport | AgentView | None,
    target: TargetReport | AgentView | None,
    **fields: Any,
) -> Observation:
    of = clone(status=begun(**status), **adopted())
    views: dict[str, Any] = {
        "source_agent": source if isinstance(source, AgentView) else agent(SOURCE, source=source),
        "target_agent": target if isinstance(target, AgentView) else agent(TARGET, target=target),
    }
    views = {"source_pod": source_pod(), "target_pod": target_pod(), **views, **fields}
    return Observation(NOW, of, **views)


# --- what is refused


def found(spec: dict[str, Any], modes: tuple[str, ...], **more: Any) -> list[str]:
    pod = source_pod(spec={"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}], **spec})
    facts = preflight_facts(pod=pod, claims={"data": frozenset(modes)}, **more)
    return [p.reason for p in problems(clone(), facts, NOW)]


def mounting(**mount: Any) -> list[dict[str, Any]]:
    return [{"name": "main", "volumeMounts": [{"name": "data", "mountPath": "/data", **mount}]}]


@pytest.mark.parametrize(
    ("spec", "modes", "refused"),
    [
        ({"containers": mounting()}, ("ReadWriteMany",), True),
        ({"containers": mounting(readOnly=False)}, ("ReadOnlyMany", "ReadWriteMany"), True),
        ({"containers": mounting(readOnly=True)}, ("ReadWriteMany",), False),
        ({"containers": mounting()}, ("ReadOnlyMany",), False),
        ({"containers": [{"name": "main"}]}, ("ReadWriteMany",), False),
        ({"initContainers": mounting(), "containers": [{"name": "main"}]}, ("ReadWriteMany",), True),
        (
            {"containers": [{"name": "main", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]},
            ("ReadWriteMany",),
            True,
        ),
    ],
)
def test_what_both_would_write_is_refused(spec: dict[str, Any], modes: tuple[str, ...], *, refused: bool) -> None:
    assert found(spec, modes) == ([PreflightReason.SHARED_WRITERS] if refused else [])


def test_a_claim_that_is_mounted_read_only_by_the_pod_is_no_shared_writer() -> None:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": True}}
    pod = source_pod(spec={"volumes": [volume], "containers": mounting()})
    assert not pod.writes_to("data")


def test_the_same_claim_moves_when_the_source_does_not_stay() -> None:
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}
    pod = source_pod(spec={"volumes": [volume], "containers": mounting()})
    facts = preflight_facts(pod=pod, claims={"data": frozenset({"ReadWriteMany"})})
    assert problems(migration(), facts, NOW) == ()


@pytest.mark.parametrize(
    ("kind", "refused"), [("StatefulSet", False), ("Job", False), ("ReplicaSet", False), ("Node", True)]
)
def test_a_clone_replaces_nobody_s_pod(kind: str, *, refused: bool) -> None:
    owner = {"kind": kind, "name": "it", "controller": True}
    facts = preflight_facts(pod=source_pod(metadata={"ownerReferences": [owner]}))
    assert [p.reason for p in problems(clone(), facts, NOW)] == ([PreflightReason.POD_OWNED] if refused else [])


@pytest.mark.parametrize(("more", "refused"), [(0, False), (1, True)])
def test_only_the_dump_counts_for_its_freeze(more: int, *, refused: bool) -> None:
    roomy = FACTS.model_copy(update={"run_bytes_free": 1 << 40})
    most = int((30 - FREEZE_BASE_SECONDS) * DUMP_BYTES_PER_SECOND) // MEBIBYTE
    facts = preflight_facts(
        source=node(SOURCE, roomy), candidates=(node(TARGET, roomy),), pod_facts=pod_facts(most + more)
    )
    reasons = [p.reason for p in problems(clone(), facts, NOW)]
    assert reasons == ([PreflightReason.FREEZE_TOO_LONG] if refused else [])


# --- what is created


def test_nobody_finds_a_clone_by_its_source_s_labels() -> None:
    source = source_pod(metadata={**of_deployment(), "annotations": {"team": "shop", ANNOTATION_OWNER: "{}"}})
    pod = Pod(made(source, clone(), "redis-clone", excluded=[SOURCE]))
    assert pod.metadata["labels"] == {LABEL_CLONE: "true", LABEL_MIGRATION: UID}
    assert "ownerReferences" not in pod.metadata
    assert ANNOTATION_OWNER not in pod.metadata["annotations"]
    assert pod.metadata["annotations"]["team"] == "shop"
    assert not awaits_owner(pod)


def test_a_clone_is_otherwise_the_pod_that_a_move_would_make() -> None:
    source = source_pod(metadata=of_deployment())
    moved = made(source, migration(), "redis-moved", excluded=[SOURCE])
    assert made(source, clone(), "redis-moved", excluded=[SOURCE])["spec"] == moved["spec"]


# --- what is done


def test_the_way_through() -> None:
    sent = source_at(SourceState.SENT)
    resumed = target_at(TargetState.RESUMED)
    step = plan(observation(RESUMED, sent, resumed))
    assert (step.action, step.reason) == (Action.SETTLE, Reason.LEFT_RUNNING)
    step = plan(observation(RESUMED, source_at(SourceState.THAWED), resumed))
    assert step.action is Action.FORGET
    step = plan(observation(RESUMED, None, None))
    assert (step.action, step.reason) == (Action.FINISH, Reason.SUCCEEDED)
    assert step.message == "a clone runs on in pod redis-moved on node node-b; the source goes on where it was"


def test_i2_the_source_is_neither_deleted_nor_replaced_whatever_there_is() -> None:
    ready = target_pod(status=is_ready())
    for source in (None, source_at(SourceState.SENT), source_at(SourceState.THAWED)):
        for pod in (source_pod(), source_pod(metadata=of_deployment()), source_pod(**DELETED), None):
            for there in (ready, target_pod(), None):
                it = observation(RESUMED, source, target_at(TargetState.RESUMED), source_pod=pod, target_pod=there)
                assert plan(it).action not in {Action.DELETE_SOURCE, Action.HAND_OVER, Action.PROPOSE_ABORT}


@pytest.mark.parametrize("pod", [None, source_pod(**DELETED), source_pod(status={"phase": "Failed"})])
def test_what_becomes_of_the_source_counts_until_it_is_let_go(pod: Pod | None) -> None:
    before = observation({}, source_at(SourceState.DUMPED, let_go=False), None, source_pod=pod)
    assert plan(before).reason is Reason.SOURCE_LOST
    after = observation({}, source_at(SourceState.DUMPED), target_at(TargetState.RECEIVING), source_pod=pod)
    assert (plan(after).action, plan(after).reason) == (Action.WAIT, Reason.TRANSFERRING)
    known = {"timings": {"startedAt": NOW, "thawedAt": NOW}}
    away = observation(known, agent(SOURCE, problem="away"), target_at(TargetState.RECEIVING), source_pod=pod)
    assert (plan(away).action, plan(away).reason) == (Action.WAIT, Reason.AGENT_UNREACHABLE)


def test_a_source_node_that_dies_after_the_thaw_keeps_nobody_waiting() -> None:
    dead = agent(SOURCE, problem="away", ready=False)
    known = {"timings": {"startedAt": NOW, "thawedAt": NOW}}
    step = plan(observation({**RESUMED, **known}, dead, None))
    assert step.reason is Reason.SUCCEEDED
    step = plan(observation({"decision": "Abort", **known}, dead, None, target_pod=None))
    assert (step.action, step.reason) == (Action.FINISH, Reason.ROLLED_BACK)


def test_a_clone_that_fails_leaves_its_source_where_it_is() -> None:
    failure = Failure(reason=Reason.TRANSFER_FAILED, message="the volume is full")
    step = plan(observation({}, source_at(SourceState.SENT, failure=failure), target_at(TargetState.RECEIVING)))
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.TRANSFER_FAILED)
    step = plan(observation({"decision": "Abort"}, None, None, target_pod=None))
    assert (step.action, step.reason) == (Action.FINISH, Reason.ROLLED_BACK)
    assert step.message.startswith("pod redis runs on as if nothing had happened")


def test_a_target_that_is_lost_after_the_commit_freezes_nobody() -> None:
    dead = agent(TARGET, problem="away", ready=False)
    step = plan(observation({"decision": "Commit"}, source_at(SourceState.SENT), dead))
    assert step.reason is Reason.TARGET_LOST_AFTER_COMMIT
    assert "the source goes on" in step.message
    assert "frozen" not in step.message


# --- what is said


def said(o: Observation, step: Step) -> MigrationStatus:
    return report(o, step)


def test_its_freeze_ends_at_the_thaw() -> None:
    of = observation({}, source_at(SourceState.DUMPED), target_at(TargetState.RECEIVING))
    timings = said(of, Step(Action.WAIT, Reason.TRANSFERRING, "m")).timings
    assert (timings.thawed_at, timings.freeze_seconds, timings.resumed_at) == (WENT_ON, "0.400", None)
    later = NOW + timedelta(seconds=9)
    done = observation(RESUMED, source_at(SourceState.SENT), target_at(TargetState.RESUMED, resumed_at=later))
    timings = said(done, Step(Action.SETTLE, Reason.LEFT_RUNNING, "m")).timings
    assert (timings.thawed_at, timings.freeze_seconds, timings.resumed_at) == (WENT_ON, "0.400", later)


def test_it_is_kept_when_the_agent_forgets() -> None:
    first = observation({}, source_at(SourceState.DUMPED), target_at(TargetState.RECEIVING))
    status = said(first, Step(Action.WAIT, Reason.TRANSFERRING, "m"))
    again = replace(observation({}, None, None), migration=first.migration.model_copy(update={"status": status}))
    assert again.let_go
    assert said(again, Step(Action.WAIT, Reason.TRANSFERRING, "m")).timings.freeze_seconds == "0.400"


@pytest.mark.parametrize(
    ("connections", "message"),
    [
        (Connections(), "The source goes on."),
        (Connections(within=2), "The source goes on."),
        (
            Connections(outside=3),
            "The source goes on. 3 TCP connections with others stay with it; the clone's are closed.",
        ),
    ],
)
def test_the_conditions_say_what_stays_with_the_source(connections: Connections, message: str) -> None:
    source = source_at(SourceState.SENT, connections=connections)
    done = observation(RESUMED, source, target_at(TargetState.RESUMED, received_at=NOW, held_at=NOW))
    status = said(done, Step(Action.FINISH, Reason.SUCCEEDED, "m"))
    conditions = {c.type: c for c in status.conditions}
    assert conditions["Checkpointed"].message == message
    released = conditions["SourceReleased"]
    assert (released.status, released.reason) == ("True", Reason.LEFT_RUNNING)
    assert released.message == "Pod redis goes on since its checkpoint was complete; nothing of it was ended."
