"""A checkpoint's way through a claim: what stands against it, the pods that mount it, and when they come and go."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from migration_api.base import format_time
from migration_api.conditions import Reason
from migration_api.migration import Outcome
from migration_api.names import LABEL_MOUNT
from migration_api.preflight_reasons import PreflightReason as Why
from migration_api.shipping import ProbeReport
from migration_api.transport import SharedVolume, Transport, TransportType
from migration_api.wire import Failure, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.mounts import (
    CANDIDATES,
    MOUNT_SECONDS,
    Owner,
    is_mount_of,
    mount_name,
    mount_pod,
    mounts_claim,
    node_of_mount,
    point_of,
    to_try,
)
from migration_operator.observation import Observation
from migration_operator.owners import objection
from migration_operator.plan import plan
from migration_operator.pods import Pod
from migration_operator.step import Action, Step
from migration_operator.transport_checks import transport_problems
from migration_operator.transport_facts import ClaimFacts, MountPoint, StoreAnswer, TransportFacts, TransportRules
from support.controller import (
    NOW,
    SOURCE,
    TARGET,
    UID,
    adopted,
    agent,
    begun,
    migration,
    preflight_facts,
    source_pod,
    target_at,
    target_pod,
)

CLAIM = Transport(type=TransportType.SHARED_VOLUME, shared_volume=SharedVolume(claim="checkpoints"))
SHARED = ClaimFacts(modes=frozenset({"ReadWriteMany"}))
OWNER = Owner.of(migration())
HERE, THERE = (MountPoint(node, f"uid-of-{node}", ready=True) for node in (SOURCE, TARGET))
GONE = replace(THERE, ready=False, gone=True)
STARTING = replace(THERE, ready=False, waits_for="FailedMount: the server is away")
LATE = replace(STARTING, failure="the pod migration-mount-x is not ready after 60 s (FailedMount: no)")


def facts(*mounts: MountPoint, **more: Any) -> TransportFacts:
    fields: dict[str, Any] = {"claim": SHARED, "mounts": mounts, **more}
    return TransportFacts(CLAIM, TransportRules(), **fields)


def found(it: TransportFacts) -> list[Why]:
    return [problem.reason for problem in transport_problems(it)]


# --- what stands against it


@pytest.mark.parametrize(
    ("claim", "reason", "what"),
    [
        (None, Why.CLAIM_NOT_FOUND, "there is no claim checkpoints"),
        (replace(SHARED, deleting=True), Why.CLAIM_NOT_FOUND, "the claim checkpoints is being deleted"),
        (ClaimFacts(frozenset({"ReadWriteOncePod"})), Why.CLAIM_NOT_SHARED, "has ReadWriteOncePod, not ReadWriteMany"),
        (ClaimFacts(frozenset()), Why.CLAIM_NOT_SHARED, "has no access mode"),
        (replace(SHARED, block=True), Why.CLAIM_NOT_SHARED, "is a block device"),
    ],
)
def test_i8_a_claim_that_two_nodes_cannot_use_has_its_reason(claim: ClaimFacts | None, reason: Why, what: str) -> None:
    [problem] = transport_problems(facts(claim=claim))
    assert problem.reason is reason
    assert what in problem.message
    assert problem.message.endswith(f"{reason.remedy}.")


def test_a_pod_that_does_not_get_ready_is_a_finding_with_its_own_reason() -> None:
    failed = replace(HERE, ready=False, failure="the pod m is not ready after 60 s (FailedMount: access denied)")
    [problem] = transport_problems(facts(failed, THERE))
    assert problem.reason is Why.CLAIM_NOT_MOUNTED
    assert "node-a: the pod m is not ready after 60 s (FailedMount: access denied)" in problem.message
    assert found(facts(HERE, LATE)) == [Why.CLAIM_NOT_MOUNTED]


def test_when_the_scheduler_picks_one_node_that_has_it_mounted_is_enough() -> None:
    other = replace(LATE, node="node-c")
    fine: dict[str, Any] = {
        "source": StoreAnswer(SOURCE, ProbeReport()),
        "targets": (StoreAnswer(TARGET, ProbeReport()),),
    }
    assert found(facts(HERE, THERE, other, **fine)) == []
    assert found(facts(HERE, LATE, other)) == [Why.CLAIM_NOT_MOUNTED] * 2
    assert found(facts(HERE, STARTING, other)) == [], "one may still come"


def test_a_claim_is_in_the_namespace_of_whoever_uses_it_and_needs_no_list() -> None:
    assert found(facts(HERE, THERE)) == []


# --- the pods


def as_pod(node: str = TARGET, **status: Any) -> Pod:
    manifest = mount_pod(OWNER, "checkpoints", node, "agent:1")
    manifest["metadata"] |= {"uid": "m1", "creationTimestamp": format_time(NOW - timedelta(seconds=5))}
    manifest["spec"]["nodeName"] = node
    ready = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    return Pod({**manifest, "status": {**ready, **status}})


def test_the_pod_may_do_nothing_and_takes_nothing() -> None:
    manifest = mount_pod(OWNER, "checkpoints", TARGET, "agent:1")
    spec = manifest["spec"]
    [container] = spec["containers"]
    assert (spec["securityContext"]["runAsNonRoot"], spec["automountServiceAccountToken"]) == (True, False)
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert {"requests", "limits"} <= set(container["resources"])
    assert (container["image"], container["imagePullPolicy"]) == ("agent:1", "IfNotPresent")
    assert not {"hostNetwork", "hostPID", "hostIPC", "nodeName"} & set(spec)
    assert manifest["metadata"]["labels"][LABEL_MOUNT] == "true"


def test_its_name_says_for_whom_and_where() -> None:
    other = Owner.of(migration(uid="5f0c7c1e-0000-4000-8000-0000000000ee"))
    names = {mount_name(owner, node) for owner in (OWNER, other) for node in (SOURCE, TARGET, "n" * 253)}
    assert len(names) == 6
    assert all(len(name) <= 63 for name in names)
    assert mount_name(OWNER, SOURCE) == mount_name(OWNER, SOURCE)


def test_only_what_was_started_for_this_owner_counts() -> None:
    pod = as_pod()
    assert is_mount_of(pod, OWNER)
    assert node_of_mount(pod) == TARGET
    assert mounts_claim(pod, "checkpoints")
    assert not mounts_claim(pod, "another")
    metadata = pod.metadata
    changes: list[dict[str, Any]] = [{"name": "mine"}, {"ownerReferences": []}, {"labels": {}}, {"annotations": {}}]
    for change in changes:
        assert not is_mount_of(Pod({**pod.manifest, "metadata": {**metadata, **change}}), OWNER), change


def test_it_is_never_moved() -> None:
    assert "mounts a claim" in objection(as_pod())
    assert "mounts a claim" in objection(as_pod(), clone=True)


def test_how_far_it_is() -> None:
    at = point_of(as_pod(), TARGET, "checkpoints", "", NOW)
    assert (at.node, at.pod_uid, at.ready, at.gone, at.failure) == (TARGET, "m1", True, False, "")
    assert not point_of(as_pod(), TARGET, "another", "", NOW).ready
    pending: dict[str, Any] = {
        "phase": "Pending",
        "conditions": [{"type": "PodScheduled", "status": "False", "message": "no room"}],
    }
    waiting = point_of(as_pod(**pending), TARGET, "checkpoints", "", NOW)
    assert waiting.pending
    assert "no room" in waiting.waits_for
    late = point_of(as_pod(**pending), TARGET, "checkpoints", "FailedMount: no", NOW + timedelta(seconds=MOUNT_SECONDS))
    assert "not ready after 60 s" in late.failure
    assert "no room; FailedMount: no" in late.failure
    ended = point_of(as_pod(phase="Failed", reason="Evicted", message="memory"), TARGET, "checkpoints", "", NOW)
    assert ended.gone
    assert "Evicted: memory" in ended.failure


def test_only_a_few_nodes_are_tried_and_those_that_have_it_first() -> None:
    names = [f"node-{i}" for i in range(9)]
    assert to_try(names, ()) == tuple(names[:CANDIDATES])
    assert to_try(names, ["node-8", "elsewhere"])[0] == "node-8"


# --- the steps


def before(*mounts: MountPoint, **more: Any) -> Step:
    it = migration(spec={"transport": CLAIM.dump()})
    return plan(Observation(NOW, it, preflight=preflight_facts(transport=facts(*mounts)), **more))


def test_it_is_mounted_before_anything_is_touched() -> None:
    assert before(HERE, MountPoint(TARGET)).action is Action.MOUNT
    waiting = before(HERE, STARTING)
    assert waiting.action is Action.WAIT
    assert "node-b (FailedMount: the server is away)" in waiting.message
    assert before(HERE, GONE).action is Action.WAIT, "another one comes when that is gone"
    assert before(HERE, THERE).action is Action.ADOPT
    assert before(HERE, LATE).action is Action.PROPOSE_ABORT


def test_nothing_is_mounted_when_something_else_stands_against_it() -> None:
    it = migration(spec={"transport": CLAIM.dump(), "containers": ["other"]})
    step = plan(Observation(NOW, it, preflight=preflight_facts(transport=facts(MountPoint(SOURCE)))))
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.PREFLIGHT_FAILED)


def test_a_pod_that_the_api_server_refuses_is_said() -> None:
    refusal = Failure(reason=Reason.PREFLIGHT_FAILED, message="ClaimNotMounted: a quota is used up")
    step = before(HERE, MountPoint(TARGET), refusal=refusal)
    assert (step.action, step.message) == (Action.PROPOSE_ABORT, refusal.message)


def under_way(**changes: Any) -> Observation:
    """A migration that is being copied through the claim."""
    decided = changes.pop("decided", {})
    of = migration(
        status=begun(transport=CLAIM.dump(), **decided),
        spec={"transport": CLAIM.dump(), **changes.pop("spec", {})},
        **adopted(),
    )
    fields: dict[str, Any] = {
        "source_pod": source_pod(),
        "target_pod": target_pod(),
        "source_agent": agent(SOURCE, source=SourceReport(state=SourceState.DUMPED)),
        "target_agent": agent(TARGET, target=target_at(TargetState.RECEIVING)),
        "mounts": (HERE, THERE),
    }
    return Observation(NOW, of, **{**fields, **changes})


@pytest.mark.parametrize(
    ("mounts", "node"), [((HERE, GONE), TARGET), ((HERE,), TARGET), ((THERE,), SOURCE), ((), SOURCE)]
)
def test_a_pod_that_somebody_deletes_in_the_middle_is_the_end(mounts: tuple[MountPoint, ...], node: str) -> None:
    step = plan(under_way(mounts=mounts))
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.TRANSFER_FAILED)
    assert f"mounts the claim checkpoints on node {node} is gone" in step.message


def test_what_is_fetched_and_verified_needs_no_claim_any_more() -> None:
    target = agent(TARGET, target=target_at(TargetState.HELD, received_at=NOW))
    assert plan(under_way(mounts=(), target_agent=target)).action is Action.WAIT
    restarting = replace(THERE, ready=False)
    assert plan(under_way(mounts=(HERE, restarting))).action is Action.WAIT, "its container comes back"


ABORTED: dict[str, Any] = {"decision": "Abort"}
RESUMED: dict[str, Any] = {"decision": "Commit", "target": {"outcome": "Resumed"}}
BOTH_FORGOT: dict[str, Any] = {"source_agent": agent(SOURCE), "target_agent": agent(TARGET), "target_pod": None}


def ended(decided: dict[str, Any], **changes: Any) -> Observation:
    pods = {"source_pod": None, "target_pod": target_pod()} if decided is RESUMED else {}
    return under_way(decided=decided, **{**BOTH_FORGOT, **pods, **changes})


@pytest.mark.parametrize("decided", [ABORTED, RESUMED])
def test_at_every_end_the_claim_is_cleared_then_the_pods_go_then_it_has_ended(decided: dict[str, Any]) -> None:
    assert plan(ended(decided)).action is Action.CLEAR
    assert plan(ended(decided, cleared="")).action is Action.UNMOUNT
    leaving = tuple(replace(it, gone=True, ready=False) for it in (HERE, THERE))
    done = plan(ended(decided, cleared="", mounts=leaving))
    assert done.action is Action.FINISH
    assert "by hand" not in done.message
    assert plan(ended(decided, cleared="", mounts=())).action is Action.FINISH


@pytest.mark.parametrize("decided", [ABORTED, RESUMED])
def test_an_operator_that_was_started_again_finds_the_pods_or_starts_one_to_be_sure(decided: dict[str, Any]) -> None:
    assert plan(ended(decided, mounts=())).action is Action.MOUNT
    away = agent(SOURCE, problem="x", exists=False)
    assert plan(ended(decided, mounts=(STARTING,), source_agent=away)).action is Action.WAIT


def test_what_cannot_be_removed_is_said() -> None:
    away = agent(SOURCE, problem="x", exists=False)
    assert plan(ended(ABORTED, mounts=(LATE,), source_agent=away)).action is Action.CLEAR, "the act says why"
    step = plan(ended(ABORTED, mounts=(), cleared="the claim was deleted"))
    assert step.action is Action.FINISH
    assert f"container-migration/{UID} in the claim checkpoints could not be removed (the claim was deleted)" in (
        step.message
    )


def test_what_is_kept_is_not_cleared() -> None:
    kept = {**RESUMED, "checkpoint": {"name": "redis-kept"}}
    assert plan(ended(kept, spec={"retain": True}, source_pod=None, target_pod=target_pod())).action is Action.UNMOUNT
    assert plan(ended(ABORTED, spec={"retain": True})).action is Action.CLEAR


def test_given_up_before_it_has_begun_the_pods_go_and_nothing_is_cleared() -> None:
    of = migration(status={"decision": "Abort"}, spec={"transport": CLAIM.dump()})
    assert plan(Observation(NOW, of, mounts=(HERE, THERE))).action is Action.UNMOUNT
    assert plan(Observation(NOW, of)).action is Action.FINISH


def space() -> Iterator[Observation]:
    """Everything that agents, pods and mounts can be, at every decision."""
    sources = [agent(SOURCE), agent(SOURCE, problem="x"), agent(SOURCE, problem="x", ready=False)]
    sources += [
        agent(SOURCE, source=SourceReport(state=s, settled=s in {SourceState.THAWED, SourceState.RELEASED}))
        for s in (SourceState.DUMPED, SourceState.THAWED, SourceState.RELEASED)
    ]
    targets = [agent(TARGET), agent(TARGET, problem="x"), agent(TARGET, problem="x", ready=False)]
    targets += [agent(TARGET, target=target_at(s)) for s in (TargetState.RECEIVING, TargetState.RESUMED)]
    mounts = [(), (HERE, THERE), (HERE, GONE), (HERE, LATE), (STARTING,), (GONE,)]
    ends: list[dict[str, Any]] = [
        {"decided": {}},
        {"decided": ABORTED},
        {"decided": ABORTED, "target_pod": None},
        {"decided": {"decision": "Commit"}},
        {"decided": RESUMED, "source_pod": None},
    ]
    for end, source, target, there, cleared in itertools.product(ends, sources, targets, mounts, (None, "", "no")):
        yield under_way(**end, source_agent=source, target_agent=target, mounts=there, cleared=cleared)


def test_the_pods_stay_until_no_agent_has_anything_of_it() -> None:
    """Whoever writes or reads has a report, or cannot be asked; only who is taken for dead is not waited for."""

    def busy(view: Any, side: SourceReport | TargetReport | None) -> bool:
        return (side is not None and not side.settled) or (not view.reached and not view.node.silent(NOW))

    seen: set[Action] = set()
    for o in space():
        step = plan(o)
        seen.add(step.action)
        if step.action in {Action.CLEAR, Action.UNMOUNT}:
            assert o.decision is not None, (step, o)
            assert o.outcome is Outcome.RESUMED or o.decision.value == "Abort", (step, o)
            assert not busy(o.source_agent, o.source), (step, o)
            resumed = o.outcome is Outcome.RESUMED  # what the target keeps then is its word, and no use of the claim
            assert resumed or not busy(o.target_agent, o.target), (step, o)
        if step.action is Action.FINISH:
            assert all(mount.gone for mount in o.mounts), (step, o)
    assert {Action.CLEAR, Action.UNMOUNT, Action.MOUNT, Action.FINISH} <= seen
