"""A ContainerMigration from a checkpoint: no source, the operator alone gives it up, and the pod is the one of then."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from migration_api.conditions import Reason
from migration_api.migration import ContainerMigration
from migration_api.names import ANNOTATION_MIGRATION, ANNOTATION_OWNER, LABEL_CLONE, LABEL_MIGRATION
from migration_api.preflight_reasons import PreflightReason as R
from migration_api.wire import TargetState
from migration_operator.observation import Observation, PreflightFacts, origin_view, stored_pod
from migration_operator.plan import plan
from migration_operator.preflight import problems
from migration_operator.queueing import claim_of, seat_for
from migration_operator.status import report
from migration_operator.step import Action
from migration_operator.target_pod import name_for, target_pod
from support.checkpoints import RESTORABLE, checkpoint
from support.controller import (
    FACTS,
    NOW,
    TARGET,
    UID,
    adopted,
    agent,
    begun,
    manifest,
    migration,
    node,
    preflight_facts,
    target_at,
)
from support.controller import target_pod as pod_for

KEPT = checkpoint(ready="True", status=RESTORABLE)
SPEC = {"checkpointName": "redis-kept"}


def restore(status: dict[str, Any] | None = None, **more: Any) -> ContainerMigration:
    return migration(spec={**SPEC, **more}, status=status, **adopted())


def begun_restore(**status: Any) -> ContainerMigration:
    return restore({**begun(**status), "source": {"checkpointUID": KEPT.metadata.uid}})


def facts(**changes: Any) -> PreflightFacts:
    of: dict[str, Any] = {"pod": stored_pod(KEPT), "source": origin_view(KEPT), "checkpoint": KEPT, "pod_facts": None}
    return preflight_facts(**{**of, **changes})


@pytest.mark.parametrize(
    ("changes", "reason", "says"),
    [
        ({"checkpoint": None}, R.CHECKPOINT_NOT_FOUND, "no ContainerCheckpoint redis-kept"),
        ({"checkpoint": checkpoint()}, R.CHECKPOINT_NOT_READY, "is not Ready"),
        ({"checkpoint": checkpoint(ready="False", status=RESTORABLE)}, R.CHECKPOINT_NOT_READY, "is not Ready"),
        (
            {"checkpoint": checkpoint(ready="True", status=RESTORABLE, deletion_timestamp=NOW)},
            R.CHECKPOINT_NOT_READY,
            "is being deleted",
        ),
        ({"pod": None}, R.CHECKPOINT_NOT_READY, "what its pod was like"),
        ({"key_trouble": "there is no Secret k"}, R.CHECKPOINT_KEY_UNUSABLE, "there is no Secret k"),
        ({"name_holder": pod_for()}, R.TARGET_NAME_TAKEN, "redis-moved"),
        ({"candidates": ()}, R.NO_SUITABLE_NODE, "no node can take checkpoint redis-kept"),
        ({"candidates": (node(TARGET, FACTS.model_copy(update={"cpu_flags": ()})),)}, R.NO_SUITABLE_NODE, "CPU"),
    ],
)
def test_what_stands_against_it(changes: dict[str, Any], reason: R, says: str) -> None:
    found = problems(restore(), facts(**changes), NOW)
    assert [p.reason for p in found] == [reason]
    assert says in found[0].message


def test_a_named_node_must_be_there_fit_and_have_room() -> None:
    def found(**target: Any) -> list[R]:
        return [p.reason for p in problems(restore(target={"nodeName": TARGET}), facts(**target), NOW)]

    assert found(target=node(TARGET)) == []
    assert found(target=None) == [R.TARGET_NODE_NOT_FOUND]
    assert found(target=node(TARGET, FACTS.model_copy(update={"criu_version": "4.1"}))) == [R.CRIU_MISMATCH]
    full = FACTS.model_copy(update={"run_bytes_free": 1, "disk_bytes_free": 1})
    assert found(target=node(TARGET, full)) == [R.NO_ROOM]


def test_it_claims_its_target_only_and_may_go_to_the_node_it_came_from() -> None:
    claim = claim_of(restore(), facts(), NOW)
    assert (claim.source, claim.targets) == ("", {"node-a", "node-b"})
    assert seat_for(claim).nodes == frozenset()


def test_the_pod_is_the_one_of_then_under_a_name_of_its_own() -> None:
    pod = stored_pod(KEPT)
    assert pod is not None
    of = restore()
    name = name_for(of, pod.name, pod.migration)
    made = target_pod(pod, of, name, excluded=(), moved=("main",), late=True)
    assert name.startswith("redis-")
    assert made["metadata"]["namespace"] == "shop"
    assert made["metadata"]["labels"][LABEL_MIGRATION] == UID
    assert made["metadata"]["annotations"][ANNOTATION_MIGRATION] == UID
    assert ANNOTATION_OWNER not in made["metadata"]["annotations"]
    assert made["spec"]["initContainers"][0]["name"].startswith("migration-late-gate-")
    assert "nodeName" not in made["spec"]
    assert made["spec"]["affinity"] == {"nodeAffinity": {}}, "an empty term would match no node"
    assert made["metadata"]["labels"] == {LABEL_MIGRATION: UID, LABEL_CLONE: "true"}


def test_a_description_says_nothing_of_the_namespace() -> None:
    other = manifest(metadata={"namespace": "kube-system"})
    of = checkpoint(status={"pod": json.dumps(other)})
    pod = stored_pod(of)
    assert pod is not None
    assert pod.namespace == "shop"
    assert stored_pod(checkpoint(status={"pod": "{"})) is None


def observed(of: ContainerMigration | None = None, **changes: Any) -> Observation:
    fields: dict[str, Any] = {"checkpoint": KEPT, "late": True, "target_pod": pod_for(), **changes}
    return Observation(NOW, of or begun_restore(), **fields)


@pytest.mark.parametrize(
    ("o", "action", "reason"),
    [
        (Observation(NOW, restore(), preflight=facts()), Action.BEGIN, Reason.IN_PROGRESS),
        (Observation(NOW, restore(), preflight=facts(checkpoint=None)), Action.PROPOSE_ABORT, Reason.PREFLIGHT_FAILED),
        (
            observed(begun_restore(target_uid=None, target_node=None), target_pod=None),
            Action.CREATE_TARGET,
            Reason.PREPARING_TARGET,
        ),
        (observed(target_agent=agent(TARGET)), Action.PREPARE_TARGET, Reason.PREPARING_TARGET),
        (
            observed(target_agent=agent(TARGET, target=target_at(TargetState.AT_GATE, at_late_gate=True))),
            Action.WAIT,
            Reason.PREPARING_TARGET,
        ),
        (
            observed(target_agent=agent(TARGET, target=target_at(TargetState.RECEIVING))),
            Action.WAIT,
            Reason.TRANSFERRING,
        ),
        (observed(target_agent=agent(TARGET, target=target_at(TargetState.HELD))), Action.WAIT, Reason.RESTORING),
        (observed(checkpoint=None), Action.PROPOSE_ABORT, Reason.TRANSFER_FAILED),
        (
            observed(
                checkpoint=None,
                target_agent=agent(TARGET, target=target_at(TargetState.HELD, received_at=NOW)),
            ),
            Action.WAIT,
            Reason.RESTORING,
        ),
        (
            observed(begun_restore(decision="Abort"), target_agent=agent(TARGET), target_pod=None),
            Action.FINISH,
            Reason.NOT_RESTORED,
        ),
        (
            observed(begun_restore(decision="Commit", target={"outcome": "Resumed"}), target_agent=agent(TARGET)),
            Action.FINISH,
            Reason.SUCCEEDED,
        ),
        (
            observed(
                begun_restore(decision="Commit", target={"outcome": "Returned"}),
                target_agent=agent(TARGET),
                target_pod=None,
            ),
            Action.FINISH,
            Reason.NOT_RESTORED,
        ),
    ],
)
def test_the_next_step(o: Observation, action: Action, reason: Reason) -> None:
    step = plan(o)
    assert (step.action, step.reason) == (action, reason)


def test_the_status_knows_that_there_is_no_source() -> None:
    began = NOW - timedelta(seconds=4)
    target = target_at(TargetState.RECEIVING, bytes_received=400, bytes_total=1000, began_at=began)
    o = observed(target_agent=agent(TARGET, target=target))
    progress = report(o, plan(o)).progress
    assert (progress.bytes_total, progress.bytes_done, progress.bytes_per_second) == (1000, 400, 100)
    assert progress.seconds_left == 6
    ended = observed(begun_restore(decision="Commit", target={"outcome": "Resumed"}), target_agent=agent(TARGET))
    status = report(ended, plan(ended))
    conditions = {c.type: c for c in status.conditions}
    assert conditions["Succeeded"].status == "True"
    assert "There is no source: checkpoint redis-kept is used" in conditions["Checkpointed"].message
    assert conditions["SourceReleased"].message == "There was no source."
    assert status.timings.freeze_seconds is None
