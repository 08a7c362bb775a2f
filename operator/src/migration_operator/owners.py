"""Pods that a controller owns: those of Deployments and of StatefulSets move. Pure.

A StatefulSet knows its pods by their names, and makes the one that is missing: so its pod moves by being created again,
where the migration says (docs/protocol.md, section 12). A ReplicaSet gets the target for the source:

Of pods that it has too many of, a ReplicaSet deletes first those that are not assigned, then Pending, then not Ready,
then those of the lowest deletion cost. So the target must not be its own while it waits at the gate: it has all the
source's labels, for Services, but the one by which the ReplicaSet knows its pods. It is handed over when it runs and
the source, whose container is dead by then, is not Ready: then the source is the one too many, whatever else happens,
and the ReplicaSet never has too few.
"""

from __future__ import annotations

import json

from migration_api.names import ANNOTATION_OWNER, LABEL_POD_NAME, LABEL_REVISION
from migration_operator.pods import Json, Pod, mapping, mappings

SET_BY_OTHERS = ("nodeName", "priority", "preemptionPolicy", "overhead", "ephemeralContainers", "schedulingGates")
"""Of a pod's specification: written by scheduler and admission, which refuse or repeat them for a new pod."""

HASH_LABEL = "pod-template-hash"
"""By it the ReplicaSets of a Deployment tell their pods apart; it is in their selectors."""

COST_ANNOTATION = "controller.kubernetes.io/pod-deletion-cost"
LOWEST_COST = "-2147483648"


def controller_of(pod: Pod) -> Json | None:
    """Return the owner reference of the pod's controller."""
    return next((it for it in mappings(pod.metadata.get("ownerReferences")) if it.get("controller")), None)


def is_of_deployment(pod: Pod) -> bool:
    owner = controller_of(pod)
    return owner is not None and owner.get("kind") == "ReplicaSet" and HASH_LABEL in mapping(pod.metadata.get("labels"))


def revision_of(pod: Pod) -> str | None:
    """Return the revision of a pod that its StatefulSet would create again under its name; None of any other."""
    owner, labels = controller_of(pod), mapping(pod.metadata.get("labels"))
    ours = owner is not None and owner.get("kind") == "StatefulSet" and labels.get(LABEL_POD_NAME) == pod.name
    return str(labels.get(LABEL_REVISION) or "") or None if ours else None


def likeness(pod: Pod, name: str) -> Json:
    """Return a pod of another name that admission takes for the one that the StatefulSet would create."""
    owners = mappings(pod.metadata.get("ownerReferences"))
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": pod.namespace,
            "labels": pod.metadata.get("labels"),
            # Without blockOwnerDeletion: some clusters allow that only to those who may change the StatefulSet.
            "ownerReferences": [{k: v for k, v in it.items() if k != "blockOwnerDeletion"} for it in owners],
        },
        "spec": {key: value for key, value in pod.spec.items() if key not in SET_BY_OTHERS},
    }


def set_aside(pod: Pod) -> dict[str, str]:
    """Return the annotation that keeps what a source pod's ReplicaSet knows it by, until the target is handed over."""
    owner = controller_of(pod)
    if owner is None or not is_of_deployment(pod):
        return {}
    # Without blockOwnerDeletion: some clusters allow that only to those who may change the ReplicaSet.
    reference = {key: owner.get(key) for key in ("apiVersion", "kind", "name", "uid", "controller")}
    kept = {"hash": mapping(pod.metadata.get("labels"))[HASH_LABEL], "owner": reference}
    return {ANNOTATION_OWNER: json.dumps(kept, sort_keys=True, separators=(",", ":"))}


def awaits_owner(pod: Pod) -> bool:
    """Return whether a target pod is still to be handed over."""
    return bool(hand_over(pod)) and HASH_LABEL not in mapping(pod.metadata.get("labels"))


def hand_over(pod: Pod) -> Json:
    """Return the patch by which a target pod becomes its ReplicaSet's; empty when there is none to get it."""
    try:
        kept = mapping(json.loads(str(mapping(pod.metadata.get("annotations")).get(ANNOTATION_OWNER, ""))))
    except ValueError:
        return {}
    if not kept.get("hash") or not mapping(kept.get("owner")).get("uid"):
        return {}
    return {"metadata": {"labels": {HASH_LABEL: kept["hash"]}, "ownerReferences": [kept["owner"]]}}


def devalue() -> Json:
    """Return the patch by which a source pod is the first that its ReplicaSet deletes."""
    return {"metadata": {"annotations": {COST_ANNOTATION: LOWEST_COST}}}


_WHY = {
    "ReplicaSet": "which no Deployment owns: it would take the target pod for one too many",
    "StatefulSet": "but has not the labels by which that knows it",
    "DaemonSet": "which runs its own pod on every node",
    "Job": "which would take the end of the source pod for a failure of its work",
    "Node": "as a static pod, which the kubelet starts from a file on that node",
    "ContainerMigration": "and mounts a claim for it on that very node",
    "ContainerCheckpoint": "and mounts a claim for it on that very node",
}
_TIED = {"Node", "ContainerMigration", "ContainerCheckpoint"}
"""No clone of theirs would make sense either."""


def objection(pod: Pod, *, clone: bool = False, name: str | None = None) -> str:
    """Return why a pod cannot be moved because of its controller; empty when it can.

    A clone replaces nobody and belongs to nobody; but what the kubelet starts from a file it knows by another UID.

    Args:
        pod: the source pod.
        clone: whether it stays.
        name: of the target pod; None: whatever its owner needs.
    """
    owner = controller_of(pod)
    if owner is None or is_of_deployment(pod):
        return ""
    kind = str(owner.get("kind"))
    if clone and kind not in _TIED:
        return ""
    why = _WHY.get(kind, "which would start a replacement")
    if revision_of(pod):
        if name in (None, pod.name):
            return ""
        why = f"which knows its pods by their names, so {name} (spec.target.podName) could not be its own"
    return f"pod {pod.name} belongs to the {kind} {owner.get('name')}, {why}"
