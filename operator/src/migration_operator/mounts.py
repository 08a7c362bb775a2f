"""Pods that do nothing but mount a claim on a node, for its agent: what they are like, and how far they are. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration
from migration_api.names import (
    ANNOTATION_MOUNT_NODE,
    API_VERSION,
    LABEL_MIGRATION,
    LABEL_MOUNT,
    MOUNT_CONTAINER,
    MOUNT_PATH,
)
from migration_operator.generated import suffix
from migration_operator.placement import NODE_NAME, REQUIRED
from migration_operator.pods import Json, Pod, mapping, mappings
from migration_operator.transport_facts import MountPoint

MOUNT_SECONDS = 60.0
"""How long such a pod is waited for: image and program are on the node, only the mount may take its time."""

CANDIDATES = 4
"""On how many nodes that may become the target the claim is mounted, when the scheduler is to pick."""

_VOLUME = "claim"
_NOBODY = 65532


@dataclass(frozen=True)
class Owner:
    """What such pods are started for, and go with."""

    kind: str
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, it: ContainerMigration | ContainerCheckpoint) -> Owner:
        metadata = it.metadata
        return cls(type(it).__name__, metadata.namespace, metadata.name, metadata.uid)


def mount_name(owner: Owner, node: str) -> str:
    """Return the name of the owner's pod on that node; two operators find the same."""
    return f"migration-mount-{suffix(owner.uid)}-{hashlib.sha256(node.encode()).hexdigest()[:8]}"


def mount_pod(owner: Owner, claim: str, node: str, image: str) -> Json:
    """Return the manifest. It is admitted where the PodSecurity level `restricted` is enforced, and uses little.

    The scheduler places it, so that a claim that waits for its first user is bound; any taint is tolerated: the
    source's node may be cordoned, and the agent is there, too.
    """
    here = {"key": NODE_NAME, "operator": "In", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchFields": [here]}]}
    reference = {"apiVersion": API_VERSION, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": mount_name(owner, node),
            "namespace": owner.namespace,
            "labels": {LABEL_MIGRATION: owner.uid, LABEL_MOUNT: "true"},
            "annotations": {ANNOTATION_MOUNT_NODE: node},
            # As its controller: nobody moves a pod of a controller that would not know the new one.
            "ownerReferences": [{**reference, "controller": True}],
        },
        "spec": {
            "affinity": {"nodeAffinity": {REQUIRED: required}},
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _NOBODY,
                "runAsGroup": _NOBODY,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [
                {
                    "name": MOUNT_CONTAINER,
                    "image": image,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["sleep", "infinity"],
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        "capabilities": {"drop": ["ALL"]},
                    },
                    "resources": {
                        "requests": {"cpu": "1m", "memory": "8Mi"},
                        "limits": {"cpu": "100m", "memory": "32Mi"},
                    },
                    "volumeMounts": [{"name": _VOLUME, "mountPath": MOUNT_PATH}],
                }
            ],
            "volumes": [{"name": _VOLUME, "persistentVolumeClaim": {"claimName": claim}}],
        },
    }


def is_mount_of(pod: Pod, owner: Owner) -> bool:
    """Return whether that pod was started for this owner: labels alone say little, owner and name must be right."""
    labels = mapping(pod.metadata.get("labels"))
    owners = mappings(pod.metadata.get("ownerReferences"))
    return (
        labels.get(LABEL_MOUNT) == "true"
        and any(it.get("uid") == owner.uid and it.get("controller") for it in owners)
        and pod.name == mount_name(owner, node_of_mount(pod))
    )


def mounts_claim(pod: Pod, claim: str) -> bool:
    """Return whether what the agent would use in that pod is this claim."""
    ours = [c for c in mappings(pod.spec.get("containers")) if c.get("name") == MOUNT_CONTAINER]
    at = [m for c in ours for m in mappings(c.get("volumeMounts")) if m.get("mountPath") == MOUNT_PATH]
    whole = [m for m in at if not m.get("subPath") and not m.get("subPathExpr")]
    return any(pod.claims.get(str(mount.get("name"))) == claim for mount in whole)


def node_of_mount(pod: Pod) -> str:
    """Return the node that the pod is for, also before it is scheduled."""
    return str(mapping(pod.metadata.get("annotations")).get(ANNOTATION_MOUNT_NODE, ""))


def point_of(pod: Pod, node: str, claim: str, said: str, now: datetime) -> MountPoint:
    """Return how far a pod is; `said`: what events say of it."""
    trouble = "; ".join(part for part in (pod.trouble(), said) if part)
    created = pod.metadata.get("creationTimestamp")
    late = bool(created) and now - datetime.fromisoformat(str(created)) > timedelta(seconds=MOUNT_SECONDS)
    gone, ready = pod.deleting or pod.ended, pod.ready and pod.node_name == node and mounts_claim(pod, claim)
    failure = ""
    if pod.ended:
        failure = f"the pod {pod.name}, which mounts the claim {claim} there, has ended ({trouble or pod.phase})"
    elif late and (pod.deleting or not ready):
        what = "is still being deleted" if pod.deleting else f"is not ready after {MOUNT_SECONDS:.0f} s"
        failure = f"the pod {pod.name}, which mounts the claim {claim} there, {what} ({trouble or 'no details'})"
    return MountPoint(node, pod.uid, ready=ready and not gone, gone=gone, failure=failure, waits_for=trouble)


def to_try(names: Iterable[str], mounted: Iterable[str]) -> tuple[str, ...]:
    """Return on which of the nodes that may become the target it is tried: first where it is mounted already."""
    have = set(mounted)
    return tuple(sorted(names, key=lambda name: (name not in have, name))[:CANDIDATES])
