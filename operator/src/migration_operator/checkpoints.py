"""What a ContainerCheckpoint says of the pod that it was taken from. Pure."""

from __future__ import annotations

import json
from datetime import datetime

from migration_api.checkpoint import (
    POD_BYTES,
    CheckpointImage,
    CheckpointSource,
    CheckpointSpec,
    CheckpointStatus,
    MigrationReference,
)
from migration_api.migration import ContainerMigration
from migration_api.names import ANNOTATION_OWNER, API_VERSION, CHECKPOINT_FINALIZER
from migration_api.node import NodeFacts
from migration_api.transport import Transport
from migration_operator.generated import suffix
from migration_operator.owners import HASH_LABEL, controller_of, is_of_deployment
from migration_operator.pods import Json, Pod, mapping
from migration_operator.target_pod import pinned_image

_NAME_LENGTH = 200
_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"


def checkpoint_name(migration: ContainerMigration) -> str:
    """Return the name of the ContainerCheckpoint of a migration; two operators find the same."""
    name = migration.spec.pod_name or ""
    ours = suffix(migration.metadata.uid)
    return f"{name.removesuffix(f'-{ours}')[:_NAME_LENGTH].rstrip('-.')}-{ours}"


def kept_manifest(migration: ContainerMigration, transport: Transport) -> Json:
    """Return the ContainerCheckpoint of a migration that keeps its own. It holds back its deletion from the first."""
    metadata = migration.metadata
    reference = MigrationReference(name=metadata.name, uid=metadata.uid)
    spec = CheckpointSpec(migration=reference, transport=transport)
    return {
        "apiVersion": API_VERSION,
        "kind": "ContainerCheckpoint",
        "metadata": {
            "name": checkpoint_name(migration),
            "namespace": metadata.namespace,
            "finalizers": [CHECKPOINT_FINALIZER],
        },
        "spec": spec.dump(),
    }


def described(  # one for each part
    pod: Pod,
    *,
    uid: str,
    key_secret: str,
    containers: tuple[str, ...],
    node_name: str | None,
    facts: NodeFacts | None,
    taken_at: datetime | None,
) -> CheckpointStatus:
    """Return what stands in the status before anybody has looked at the store.

    Args:
        pod: the source, as the API server knew it.
        uid: under which the checkpoint lies in the store.
        key_secret: the name of the Secret with its key.
        containers: those whose state it holds.
        node_name: the node that the pod ran on.
        facts: what that node is like.
        taken_at: when the memory was copied.
    """
    text = json.dumps(kept_pod(pod), sort_keys=True, separators=(",", ":"))
    return CheckpointStatus(
        phase="Looking",
        message="the operator has it looked at in its store",
        uid=uid,
        key_secret=key_secret,
        created_at=taken_at,
        series=series_of(pod),
        source=CheckpointSource(pod_name=pod.name, podUID=pod.uid, node_name=node_name, containers=containers),
        images=_images(pod),
        node=facts,
        pod=text if len(text) <= POD_BYTES else None,
    )


def series_of(pod: Pod) -> str:
    """Return what a pod has in common with those that came before it: its Deployment's name, or its first name."""
    owner = controller_of(pod)
    if owner is not None and is_of_deployment(pod):
        hash_ = str(mapping(pod.metadata.get("labels"))[HASH_LABEL])
        return str(owner.get("name")).removesuffix(f"-{hash_}")
    return pod.name.removesuffix(f"-{suffix(pod.migration)}") if pod.migration else pod.name


def kept_pod(pod: Pod) -> Json:
    """Return of a pod what another one can be made from, and nothing that ties it to an owner."""
    labels = {k: v for k, v in mapping(pod.metadata.get("labels")).items() if k != HASH_LABEL}
    left_out = {_LAST_APPLIED, ANNOTATION_OWNER}
    annotations = {k: v for k, v in mapping(pod.metadata.get("annotations")).items() if k not in left_out}
    statuses = [{key: s[key] for key in ("name", "imageID") if key in s} for s in pod.container_statuses]
    return {
        "metadata": {"name": pod.name, "labels": labels, "annotations": annotations},
        "spec": pod.spec,
        "status": {"containerStatuses": statuses},
    }


def _images(pod: Pod) -> tuple[CheckpointImage, ...]:
    ids = {str(s.get("name")): str(s.get("imageID", "")) for s in pod.container_statuses}
    containers = [*pod.init_containers, *pod.lasting]
    return tuple(
        CheckpointImage(
            container=str(c.get("name")),
            image=pinned_image(
                str(c.get("image", "")), ids.get(str(c.get("name")), ""), str(c.get("imagePullPolicy", ""))
            ),
            imageID=ids.get(str(c.get("name")), ""),
        )
        for c in containers
    )
