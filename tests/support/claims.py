"""Claims bound to a directory of the nodes: of one node alone, or the folder that all nodes of the test bed share."""

from __future__ import annotations

from collections.abc import Sequence

from support.cluster import Kubectl, Manifest, wait_for


def bind(
    kubectl: Kubectl,
    name: str,
    namespace: str,
    path: str,
    mode: str,
    *,
    type_: str = "DirectoryOrCreate",
    nodes: Sequence[str] = (),
) -> str:
    """Make a volume and its claim in the namespace, both of that access mode; return the volume's name.

    The volume stays when the namespace goes: delete it. `type_`: what the kubelet demands of the path. `nodes`: those
    that can mount it, for a volume of type local; none: all, for one of type hostPath.
    """
    volume = f"{namespace}-{name}"
    common: Manifest = {"accessModes": [mode], "storageClassName": ""}
    where: Manifest = {"hostPath": {"path": path, "type": type_}}
    if nodes:
        named = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
        required = {"nodeSelectorTerms": [{"matchExpressions": [named]}]}
        where = {"local": {"path": path}, "nodeAffinity": {"required": required}}
    kubectl.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                **common,
                "capacity": {"storage": "1Mi"},
                **where,
                "claimRef": {"name": name, "namespace": namespace},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**common, "resources": {"requests": {"storage": "1Mi"}}, "volumeName": volume},
        },
    )

    def bound() -> bool:
        it = kubectl.get("persistentvolumeclaim", name, namespace)
        return (it or {}).get("status", {}).get("phase") == "Bound"

    wait_for(f"the claim {name} to be bound", bound, seconds=30)
    return volume
