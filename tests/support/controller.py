"""Migrations, pods, nodes and reports as the operator's tests need them: in order unless a test says otherwise."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from migration_api.conditions import Condition
from migration_api.migration import ContainerMigration, Metadata, MigrationSpec, MigrationStatus
from migration_api.names import ANNOTATION_MIGRATION, FINALIZER, LABEL_POD_NAME, LABEL_REVISION
from migration_api.node import MigrationNode, MigrationNodeStatus, NodeFacts
from migration_api.wire import ContainerFacts, MigrationReport, PodFacts, SourceReport, TargetReport, TargetState
from migration_operator.observation import AgentView, NodeView, PreflightFacts
from migration_operator.pods import Pod

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
UID = "5f0c7c1e-0000-4000-8000-000000000001"
SOURCE_UID = "5f0c7c1e-0000-4000-8000-00000000000a"
TARGET_UID = "5f0c7c1e-0000-4000-8000-00000000000b"
SOURCE, TARGET = "node-a", "node-b"
MEBIBYTE = 1024 * 1024

FACTS = NodeFacts(
    kernel_version="6.12.0",
    architecture="x86_64",
    cpu_flags=("avx", "avx2", "sse"),
    kernel_features=("timens", "userns"),
    post_copy=True,
    criu_version="4.2",
    run_bytes_free=8192 * MEBIBYTE,
)

WITH_A_DISK = FACTS.model_copy(update={"disk_bytes_free": 8192 * MEBIBYTE})
"""Of a node whose disk checkpoints may use."""


def migration(
    *, uid: str = UID, name: str = "move", status: dict[str, Any] | None = None, **metadata: Any
) -> ContainerMigration:
    """Return a migration of the pod `redis`; `spec` among the keywords adds to its specification."""
    wish: dict[str, Any] = metadata.pop("spec", {})
    spec = wish if {"checkpointName", "podman"} & wish.keys() else {"podName": "redis", **wish}
    fields: dict[str, Any] = {
        "name": name,
        "namespace": "shop",
        "uid": uid,
        "generation": 1,
        "resource_version": "7",
        "creation_timestamp": NOW - timedelta(seconds=10),
        **metadata,
    }
    return ContainerMigration(
        metadata=Metadata(**fields),
        spec=MigrationSpec.model_validate(spec),
        status=MigrationStatus.model_validate(status or {}),
    )


def begun(*, target_uid: str | None = TARGET_UID, target_node: str | None = TARGET, **status: Any) -> dict[str, Any]:
    """Return a status whose identities are written."""
    target = {"podName": "redis-moved", "podUID": target_uid, "nodeName": target_node}
    more = status.pop("target", {})
    return {
        "source": {"nodeName": SOURCE, "podUID": SOURCE_UID},
        "target": {key: value for key, value in {**target, **more}.items() if value is not None},
        "timings": {"startedAt": NOW - timedelta(seconds=9)},
        **status,
    }


def adopted(**metadata: Any) -> dict[str, Any]:
    return {"finalizers": (FINALIZER,), **metadata}


def manifest(name: str = "redis", uid: str = SOURCE_UID, node: str | None = SOURCE, **changes: Any) -> dict[str, Any]:
    """Return the JSON of a running pod with one container; `metadata`, `spec` and `status` among the keywords add."""
    container = {"name": "main", "image": "docker.io/library/redis:7", "imagePullPolicy": "IfNotPresent"}
    state: dict[str, Any] = {"name": "main", "state": {"running": {}}, "imageID": "sha256:" + 64 * "0"}
    placed = {"nodeName": node} if node else {}
    return {
        "metadata": {"name": name, "namespace": "shop", "uid": uid, **changes.get("metadata", {})},
        "spec": {**placed, "containers": [container], **changes.get("spec", {})},
        "status": {"phase": "Running", "containerStatuses": [state], **changes.get("status", {})},
    }


def source_pod(**changes: Any) -> Pod:
    return Pod(manifest(**changes))


def target_pod(uid: str = TARGET_UID, node: str | None = TARGET, **changes: Any) -> Pod:
    metadata = {"annotations": {ANNOTATION_MIGRATION: UID}, **changes.pop("metadata", {})}
    status: dict[str, Any] = {"phase": "Pending", "containerStatuses": [], **changes.pop("status", {})}
    return Pod(manifest("redis-moved", uid, node, metadata=metadata, status=status, **changes))


def of_deployment(uid: str = "5f0c7c1e-0000-4000-8000-0000000000ff") -> dict[str, Any]:
    """Return the metadata of a pod that the ReplicaSet of a Deployment owns."""
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4", "uid": uid, "controller": True}
    labels = {"app": "web", "pod-template-hash": "6d4"}
    return {"labels": labels, "ownerReferences": [{**owner, "blockOwnerDeletion": True}]}


def of_stateful_set(name: str = "redis") -> dict[str, Any]:
    """Return the metadata of a pod that a StatefulSet owns."""
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "redis", "uid": "5f0c-s", "controller": True}
    labels = {LABEL_POD_NAME: name, LABEL_REVISION: "redis-1"}
    return {"labels": labels, "ownerReferences": [{**owner, "blockOwnerDeletion": True}]}


def is_ready(*, ready: bool = True, phase: str = "Running") -> dict[str, Any]:
    """Return a pod's status."""
    return {"phase": phase, "conditions": [{"type": "Ready", "status": str(ready)}]}


def ready(status: str = "True", message: str = "") -> Condition:
    return Condition.model_validate(
        {
            "type": "Ready",
            "status": status,
            "observedGeneration": 1,
            "lastTransitionTime": NOW,
            "reason": "Checked",
            "message": message,
        }
    )


def migration_node(name: str, facts: NodeFacts = FACTS, **status: Any) -> MigrationNode:
    fields: dict[str, Any] = {
        "endpoint": "https://127.0.0.1:9",
        "certificate": "PEM",
        "facts": facts,
        "heartbeat_time": NOW - timedelta(seconds=5),
        "conditions": (ready(),),
        **status,
    }
    return MigrationNode(metadata=Metadata(name=name), status=MigrationNodeStatus(**fields))


def node(name: str, facts: NodeFacts = FACTS, **changes: Any) -> NodeView:
    fields: dict[str, Any] = {"exists": True, "ready": True, "schedulable": True, "agent": migration_node(name, facts)}
    return NodeView(name, **{**fields, **changes})


def agent(
    name: str, *, source: SourceReport | None = None, target: TargetReport | None = None, problem: str = "", **of: Any
) -> AgentView:
    """Return an agent that answered, with what it says, or that did not when there is a problem."""
    known = (source or target) and not problem
    report = MigrationReport(uid=UID, revision=1, source=source, target=target) if known else None
    return AgentView(node(name, **of), problem=problem, report=report)


def target_at(state: TargetState, **more: Any) -> TargetReport:
    settled = state in {TargetState.RESUMED, TargetState.RETURNED, TargetState.DESTROYED}
    return TargetReport(state=state, settled=settled, **more)


def pod_facts(mebibytes: int = 64, migration: str | None = None) -> PodFacts:
    container = ContainerFacts(name="main", container_id="c1", memory_bytes=mebibytes * MEBIBYTE, runtime="runc")
    return PodFacts(pod_uid=SOURCE_UID, containers=(container,), migration=migration)


def preflight_facts(**changes: Any) -> PreflightFacts:
    fields: dict[str, Any] = {
        "pod": source_pod(),
        "source": node(SOURCE),
        "candidates": (node(SOURCE), node(TARGET)),
        "target_name": "redis-moved",
        "pod_facts": pod_facts(),
    }
    return PreflightFacts(**{**fields, **changes})
