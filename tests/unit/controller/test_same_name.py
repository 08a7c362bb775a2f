"""Pods of StatefulSets, which move under their own name: preflight, node, pin, and the operator's steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from migration_api.conditions import ConditionType, Reason
from migration_api.migration import Outcome
from migration_api.names import ANNOTATION_MIGRATION, LABEL_REVISION
from migration_api.preflight_reasons import PreflightReason as R
from migration_api.wire import SourceReport, SourceState, TargetState
from migration_operator.observation import Observation, PreflightFacts
from migration_operator.owners import likeness, revision_of
from migration_operator.placement import selects, without_the_pin
from migration_operator.plan import plan
from migration_operator.preflight import problems
from migration_operator.status import report
from migration_operator.step import Action
from migration_operator.successors import with_a_node
from support.controller import (
    NOW,
    SOURCE,
    TARGET,
    TARGET_UID,
    UID,
    WITH_A_DISK,
    adopted,
    agent,
    begun,
    migration,
    node,
    of_stateful_set,
    pod_facts,
    preflight_facts,
    source_pod,
    target_at,
    target_pod,
)


def facts(pod: dict[str, Any] | None = None, **changes: Any) -> PreflightFacts:
    """Return what is found of a pod of a StatefulSet, which one of two other nodes can take."""
    others = (node(SOURCE), node("node-c", WITH_A_DISK), node(TARGET, WITH_A_DISK))
    found = source_pod(metadata=of_stateful_set(), **(pod or {}))
    return preflight_facts(**{"pod": found, "candidates": others, "target_name": "redis", **changes})


def found(it: PreflightFacts, **spec: Any) -> list[tuple[R, str]]:
    wish = migration(spec=spec)
    return [(p.reason, p.message) for p in problems(wish, with_a_node(wish, it, NOW), NOW)]


def test_the_first_node_that_fits_is_taken() -> None:
    chosen = with_a_node(migration(), facts(), NOW).target
    assert chosen is not None
    assert chosen.name == TARGET, "by its name"
    assert found(facts()) == []
    tainted = node(TARGET, WITH_A_DISK, taints=({"key": "gpu", "effect": "NoSchedule"},))
    chosen = with_a_node(migration(), facts(candidates=(tainted, node("node-c", WITH_A_DISK))), NOW).target
    assert chosen is not None
    assert chosen.name == "node-c"


def test_a_pod_that_gets_a_name_of_its_own_is_left_to_the_scheduler() -> None:
    assert with_a_node(migration(), preflight_facts(), NOW).target is None


UNFIT: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("selector", {"spec": {"nodeSelector": {"disk": "fast"}}}, {}, "has not the labels disk=fast"),
    ("taint", {}, {"taints": ({"key": "gpu", "effect": "NoExecute"},)}, "does not tolerate the taint gpu"),
    (
        "affinity",
        {
            "spec": {
                "affinity": {
                    "nodeAffinity": {
                        "requiredDuringSchedulingIgnoredDuringExecution": {
                            "nodeSelectorTerms": [{"matchExpressions": [{"key": "zone", "operator": "Exists"}]}]
                        }
                    }
                }
            }
        },
        {},
        "does not match the pod's node affinity",
    ),
]


@pytest.mark.parametrize(("what", "pod", "of", "words"), UNFIT, ids=[it[0] for it in UNFIT])
def test_a_node_that_the_pod_could_not_be_scheduled_to(
    what: str, pod: dict[str, Any], of: dict[str, Any], words: str
) -> None:
    assert what
    it = facts(pod, target=node(TARGET, WITH_A_DISK, **of), candidates=())
    [(reason, message)] = found(it, target={"nodeName": TARGET})
    assert reason is R.TARGET_NODE_UNFIT
    assert words in message
    everywhere = (node(SOURCE), node(TARGET, WITH_A_DISK, **of))
    assert R.NO_SUITABLE_NODE in {r for r, _ in found(facts(pod, candidates=everywhere))}


def test_what_only_the_scheduler_can_tell_needs_a_named_node() -> None:
    apart = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "zone"}]}}
    pod = {"spec": {"affinity": apart}}
    [(reason, message)] = found(facts(pod))
    assert reason is R.NO_SUITABLE_NODE
    assert "podAntiAffinity" in message
    named = facts(pod, target=node(TARGET, WITH_A_DISK), candidates=())
    assert found(named, target={"nodeName": TARGET}) == []


CLAIM = {"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data-redis"}}]}}
ELSEWHERE = {"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name"}]}]}}}
VOLUMES: list[tuple[str, dict[str, Any], R | None]] = [
    ("csi", {"spec": {"csi": {}}}, None),
    ("hostPath", {"spec": {"hostPath": {"path": "/data"}}}, R.VOLUME_CANNOT_MOVE),
    ("local", {"spec": {"local": {"path": "/data"}, **ELSEWHERE}}, R.TARGET_NODE_UNFIT),
]


@pytest.mark.parametrize(("kind", "volume", "reason"), VOLUMES, ids=[it[0] for it in VOLUMES])
def test_a_claim_of_one_node_follows_when_the_other_can_mount_it(
    kind: str, volume: dict[str, Any], reason: R | None
) -> None:
    assert kind
    modes = {"data-redis": frozenset({"ReadWriteOnce"})}
    it = facts(CLAIM, target=node(TARGET, WITH_A_DISK), candidates=(), claims=modes, volumes={"data-redis": volume})
    assert [r for r, _ in found(it, target={"nodeName": TARGET})] == ([reason] if reason else [])
    bare = preflight_facts(pod=source_pod(**CLAIM), claims=modes)
    assert [p.reason for p in problems(migration(), bare, NOW)] == [R.VOLUME_CANNOT_MOVE]


def test_what_else_is_refused() -> None:
    assert [r for r, _ in found(facts(target_name="other"), target={"podName": "other"})] == [R.POD_OWNED]
    hook: dict[str, Any] = {"lifecycle": {"postStart": {}}, "name": "main", "image": "redis"}
    assert [r for r, _ in found(facts({"spec": {"containers": [hook]}}))] == [R.POST_START_HOOK]
    assert [r for r, _ in found(facts(), strategy="PostCopy")] == [R.POST_COPY_NOT_POSSIBLE]
    no_disk = facts(candidates=(node(SOURCE), node(TARGET)))
    assert [r for r, _ in found(no_disk)] == [R.NO_ROOM]


def test_the_revision_of_pods_of_stateful_sets_alone() -> None:
    assert revision_of(source_pod(metadata=of_stateful_set())) == "redis-1"
    assert revision_of(source_pod(metadata=of_stateful_set("another"))) is None
    assert revision_of(source_pod()) is None


def test_a_likeness_is_what_its_controller_would_create() -> None:
    it = likeness(source_pod(metadata=of_stateful_set()), "redis-abc")
    assert it["metadata"]["name"] == "redis-abc"
    assert it["metadata"]["labels"][LABEL_REVISION] == "redis-1"
    assert "blockOwnerDeletion" not in it["metadata"]["ownerReferences"][0]
    assert "nodeName" not in it["spec"]


def test_the_pin_of_a_move_does_not_bind_the_next() -> None:
    field = {"key": "metadata.name", "operator": "In", "values": ["node-b"]}
    required = {"nodeSelectorTerms": [{"matchFields": [field]}]}
    pinned = {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}
    assert without_the_pin(pinned) == {"affinity": {"nodeAffinity": {}}}
    moved = {"metadata": {**of_stateful_set(), "annotations": {ANNOTATION_MIGRATION: "earlier"}}, "spec": pinned}
    chosen = with_a_node(migration(), replace(facts(), pod=source_pod(**moved)), NOW).target
    assert chosen is not None
    assert selects(required, "node-b", {})
    assert not selects(required, "node-c", {})


# --- the steps


def status(**changes: Any) -> dict[str, Any]:
    it = begun(target_uid=None, target={"podName": "redis"})
    target = {**it["target"], **changes.pop("target", {})}
    return {**it, "source": {**it["source"], "revision": "redis-1"}, "target": target, **changes}


def seen(*, of: dict[str, Any] | None = None, **changes: Any) -> Observation:
    fields: dict[str, Any] = {
        "source_pod": source_pod(metadata=of_stateful_set()),
        "source_agent": agent(SOURCE),
        "target_agent": agent(TARGET),
        **changes,
    }
    return Observation(NOW, migration(status=of or status(), **adopted()), **fields)


PREPARED = agent(TARGET, target=target_at(TargetState.PREPARED))
FROZEN = agent(SOURCE, source=SourceReport(state=SourceState.SENT))
RELEASED = agent(SOURCE, source=SourceReport(state=SourceState.RELEASED, settled=True))
COMMITTED = status(decision="Commit")


def test_no_target_pod_is_created() -> None:
    assert plan(seen()).action is Action.PREPARE_TARGET
    assert plan(seen(target_agent=PREPARED)).action is Action.CHECKPOINT


def test_the_source_is_not_touched_before_the_pin_is_in_force() -> None:
    o = seen(target_agent=PREPARED, unpinned="there is no policy")
    step = plan(o)
    assert (step.action, step.reason) == (Action.WAIT, Reason.PREPARING_TARGET)
    assert "there is no policy" in step.message
    step = plan(replace(o, now=NOW + timedelta(seconds=31)))
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.TARGET_FAILED)


def test_after_the_commit_it_says_how_far_the_name_has_come() -> None:
    words = [
        (seen(of=COMMITTED, source_agent=FROZEN, target_agent=PREPARED), "ends the source pod"),
        (seen(of=COMMITTED, source_agent=RELEASED, source_pod=None, target_agent=PREPARED), "has to create pod redis"),
        (
            seen(of=COMMITTED, source_pod=None, target_pod=target_pod(), target_agent=PREPARED),
            "the new pod redis is restored",
        ),
    ]
    for o, text in words:
        step = plan(o)
        assert (step.action, step.reason) == (Action.WAIT, Reason.COMMITTED)
        assert text in step.message
    passed = {c.type: c.status for c in report(words[0][0], plan(words[0][0])).conditions}
    assert passed[ConditionType.COMMITTED] == "True"
    assert passed[ConditionType.RESTORED] != "True", "nothing is restored before the source is gone"


def test_the_pod_that_has_resumed_is_written_down_then() -> None:
    resumed = status(decision="Commit", target={"outcome": "Resumed"})
    there = agent(TARGET, target=target_at(TargetState.RESUMED, pod_uid=TARGET_UID))
    o = seen(of=resumed, source_pod=None, source_agent=RELEASED, target_pod=target_pod(), target_agent=there)
    assert plan(o).action is Action.RECORD_TARGET
    recorded = status(decision="Commit", target={"outcome": "Resumed", "podUID": TARGET_UID})
    o = replace(o, migration=migration(status=recorded, **adopted()))
    assert plan(o).action is Action.FORGET
    another = replace(o, target_pod=target_pod(uid=f"{TARGET_UID[:-1]}9"))
    assert plan(another).action is Action.DELETE_TARGET, "it is marked and would never start"


@pytest.mark.parametrize("gone", [True, False])
def test_returned_is_the_loss_of_the_only_copy_unless_the_source_is_there(gone: bool) -> None:
    returned = status(decision="Commit", target={"outcome": Outcome.RETURNED, "message": "the disk is damaged"})
    source = None if gone else source_pod(metadata=of_stateful_set())
    o = seen(of=returned, source_pod=source)
    step = plan(o)
    assert step.action is Action.FINISH
    assert step.reason is (Reason.TARGET_LOST if gone else Reason.ROLLED_BACK)
    assert "the disk is damaged" in step.message


def test_a_clone_of_such_a_pod_has_a_name_of_its_own() -> None:
    it = preflight_facts(pod=source_pod(metadata=of_stateful_set()), pod_facts=pod_facts())
    assert it.revision is None
    assert problems(migration(spec={"leaveSourceRunning": True}), it, NOW) == ()
    assert UID
