from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from migration_api.migration import ContainerMigration
from migration_api.names import ANNOTATION_MIGRATION, ANNOTATION_OWNER
from migration_api.wire import SourceReport, SourceState
from migration_operator import preflight
from migration_operator.observation import Observation
from migration_operator.owners import COST_ANNOTATION, HASH_LABEL, awaits_owner, devalue, hand_over, set_aside
from migration_operator.plan import plan
from migration_operator.pods import Pod, mapping
from migration_operator.step import Action
from migration_operator.target_pod import target_pod as make
from support.controller import (
    NOW,
    SOURCE,
    TARGET,
    UID,
    adopted,
    agent,
    begun,
    is_ready,
    manifest,
    migration,
    of_deployment,
    preflight_facts,
    source_pod,
    target_pod,
)

OWNER = {
    "apiVersion": "apps/v1",
    "kind": "ReplicaSet",
    "name": "web-6d4",
    "uid": "5f0c7c1e-0000-4000-8000-0000000000ff",
    "controller": True,
}


def made(source: Pod, of: ContainerMigration | None = None) -> Pod:
    """Return the target pod as the API server has it just after its creation."""
    return Pod(make(source, of or migration(), "web-moved", excluded={SOURCE}))


def patched(pod: Pod, patch: dict[str, Any]) -> Pod:
    metadata = dict(pod.metadata)
    for key, value in patch["metadata"].items():
        metadata[key] = {**mapping(metadata.get(key)), **value} if isinstance(value, dict) else value
    return Pod({**pod.manifest, "metadata": metadata})


def test_a_pod_of_a_deployment_can_be_moved() -> None:
    facts = preflight_facts(pod=source_pod(metadata=of_deployment()))
    assert preflight.problems(migration(), facts, NOW) == ()


def test_the_replica_set_does_not_know_the_target_before_it_is_handed_over() -> None:
    source = source_pod(metadata=of_deployment())
    target = made(source)
    labels = mapping(target.metadata["labels"])
    assert HASH_LABEL not in labels
    assert labels["app"] == "web", "a Service finds it from the start"
    assert "ownerReferences" not in target.metadata
    assert awaits_owner(target)
    theirs = patched(target, hand_over(target))
    assert mapping(theirs.metadata["labels"])[HASH_LABEL] == "6d4"
    assert theirs.metadata["ownerReferences"] == [OWNER]
    assert not awaits_owner(theirs)


def test_a_target_that_was_handed_over_moves_again() -> None:
    first = made(source_pod(metadata=of_deployment()))
    theirs = patched(first, hand_over(first))
    other_uid = "6f0c7c1e-0000-4000-8000-000000000001"
    second = made(Pod({**manifest(), "metadata": theirs.metadata}), migration(uid=other_uid))
    assert HASH_LABEL not in mapping(second.metadata["labels"])
    assert hand_over(second) == hand_over(first)


def test_a_pod_without_a_controller_gets_none() -> None:
    """Also when its annotation says so: somebody has taken it from its ReplicaSet since."""
    stale = {"annotations": set_aside(source_pod(metadata=of_deployment()))}
    for source in (source_pod(), source_pod(metadata=stale)):
        target = made(source)
        assert not awaits_owner(target)
        assert ANNOTATION_OWNER not in mapping(target.metadata["annotations"])


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"hash":"6d4"}', '{"hash":"6d4","owner":{}}', '{"owner":1}'])
def test_an_annotation_that_somebody_broke_hands_nothing_over(text: str) -> None:
    assert hand_over(target_pod(metadata={"annotations": {ANNOTATION_OWNER: text}})) == {}


def surplus(*pods: Pod) -> Pod:
    """Return the pod that a ReplicaSet deletes when it has one too many: `ActivePodsWithRanks.Less` of Kubernetes."""
    phases = ("Pending", "Unknown", "Running")

    def rank(pod: Pod) -> tuple[bool, int, bool, int]:
        cost = int(mapping(pod.metadata.get("annotations")).get(COST_ANNOTATION, "0"))
        return pod.node_name is not None, phases.index(pod.phase), pod.ready, cost

    ranks = [rank(pod) for pod in pods]
    assert ranks.count(min(ranks)) == 1, "it depends on their ages"
    return pods[ranks.index(min(ranks))]


def owned(status: dict[str, Any]) -> Pod:
    aside = set_aside(source_pod(metadata=of_deployment()))
    return target_pod(status=status, metadata={"annotations": {ANNOTATION_MIGRATION: UID, **aside}})


def released(source: Pod | None, target: Pod, settled: SourceState = SourceState.RELEASED) -> Observation:
    of = migration(status=begun(decision="Commit", target={"outcome": "Resumed"}), **adopted())
    report = SourceReport(state=settled, settled=settled is SourceState.RELEASED)
    here, there = agent(SOURCE, source=report), agent(TARGET)
    return Observation(NOW, of, source_pod=source, target_pod=target, source_agent=here, target_agent=there)


STATES = [is_ready(ready=ready, phase=phase) for ready, phase in ((True, "Running"), (False, "Running"))]
PENDING = is_ready(ready=False, phase="Pending")


def test_when_it_is_handed_over_the_source_is_the_one_too_many() -> None:
    """Whatever the readiness of the target does meanwhile."""
    handed_over = 0
    for at_source, at_target in itertools.product(STATES, (*STATES, PENDING)):
        source, target = source_pod(status=at_source, metadata=of_deployment()), owned(at_target)
        step = plan(released(source, target))
        assert step.action in {Action.HAND_OVER, Action.WAIT}
        if step.action is Action.HAND_OVER:
            handed_over += 1
            for later in STATES:
                theirs = patched(owned(later), hand_over(target))
                assert surplus(patched(source, devalue()), theirs).uid == source.uid
    assert handed_over == 2, "when the source is not ready and the target runs"


def test_the_source_is_deleted_only_when_the_target_is_handed_over() -> None:
    dead = source_pod(status=is_ready(ready=False), metadata=of_deployment())
    target = owned(is_ready())
    assert plan(released(dead, target, SourceState.FROZEN)).action is Action.SETTLE
    assert plan(released(dead, target)).action is Action.HAND_OVER
    assert plan(released(dead, patched(target, hand_over(target)))).action is Action.DELETE_SOURCE


def test_a_source_that_somebody_else_deleted_does_not_keep_the_target_from_its_owner() -> None:
    """Scaled down meanwhile, for example: then the ReplicaSet deletes the target, as it should."""
    deleting = source_pod(status=is_ready(), metadata={**of_deployment(), "deletionTimestamp": "2026-05-04T12:00:00Z"})
    for source in (None, deleting):
        assert plan(released(source, owned(is_ready()))).action is Action.HAND_OVER


def test_a_target_that_is_gone_again_is_replaced_by_its_owner() -> None:
    dead = source_pod(status=is_ready(ready=False), metadata=of_deployment())
    assert plan(released(dead, owned({"phase": "Failed"}))).action is Action.DELETE_SOURCE


class Scene(NamedTuple):
    """A Deployment of one pod after Resumed, the source's container dead, as small as it can be."""

    source: str = "ready"
    """What its kubelet said last: `ready`, `unready`; or `deleting`, `gone`."""
    target: str = "pending"
    """`pending`, `unready`, `ready`."""
    cheap: bool = False
    theirs: bool = False
    planned: tuple[Action, ...] = ()

    @property
    def pods(self) -> tuple[Pod | None, Pod]:
        ready, deleting = self.source == "ready", {"deletionTimestamp": "2026-05-04T12:00:00Z"}
        source = source_pod(
            status=is_ready(ready=ready),
            metadata={**of_deployment(), **(deleting if self.source == "deleting" else {})},
        )
        phase = "Pending" if self.target == "pending" else "Running"
        target = owned(is_ready(ready=self.target == "ready", phase=phase))
        return (
            None if self.source == "gone" else patched(source, devalue()) if self.cheap else source,
            patched(target, hand_over(target)) if self.theirs else target,
        )


def operator(s: Scene) -> Iterator[Scene]:
    """Plan; take what was planned at once, late, by halves or never."""
    if not s.planned:
        step = plan(released(*s.pods))
        if step.action in {Action.HAND_OVER, Action.DELETE_SOURCE}:
            yield s._replace(planned=(step.action,))
        return
    idle = s._replace(planned=())
    yield idle
    if s.planned[0] is Action.HAND_OVER:
        yield idle._replace(cheap=True)
        yield idle._replace(cheap=True, theirs=True)
    elif s.source in {"ready", "unready"}:
        yield idle._replace(source="deleting")


def kubelets(s: Scene) -> Iterator[Scene]:
    """The source's finds out, or deletes; the target's starts, and its readiness comes and goes."""
    if after := {"ready": "unready", "deleting": "gone"}.get(s.source):
        yield s._replace(source=after)
    yield s._replace(target={"pending": "unready", "unready": "ready", "ready": "unready"}[s.target])


def replica_set(s: Scene) -> Iterator[Scene]:
    source, target = s.pods
    pods = [it for it in (source, target if s.theirs else None) if it is not None and not it.deleting]
    assert pods, f"it has no pod and creates a cold one: {s}"
    if len(pods) > 1:
        assert source is not None
        assert surplus(*pods).uid == source.uid, f"it deletes the target: {s}"
        yield s._replace(source="deleting")


def test_in_every_order_the_replica_set_neither_creates_a_pod_nor_deletes_the_target() -> None:
    seen, left = {Scene()}, [Scene()]
    while left:
        scene = left.pop()
        after = {*operator(scene), *kubelets(scene), *replica_set(scene)} - seen
        seen |= after
        left += after
    assert Scene(source="gone", target="ready", cheap=True, theirs=True) in seen
    assert len(seen) > 20, "the scene must be rich enough to mean something"


def test_in_other_orders_it_would() -> None:
    with pytest.raises(AssertionError, match="it deletes the target"):
        list(replica_set(Scene("ready", "unready", theirs=True)))
    with pytest.raises(AssertionError, match="it deletes the target"):
        list(replica_set(Scene("unready", "pending", cheap=True, theirs=True)))
    with pytest.raises(AssertionError, match="creates a cold one"):
        list(replica_set(Scene("deleting", "ready")))
