"""The cluster's nodes, as its API tells them."""

import json
from dataclasses import dataclass
from typing import Any, cast

from . import engine, host
from .places import Cluster


@dataclass(frozen=True)
class Node:
    name: str
    ip: str
    pod_cidr: str
    ready: bool
    why_not_ready: str
    versions: str


def environment(cluster: Cluster) -> dict[str, str]:
    """The variables with which kubectl, helm, docker, kind and the end-to-end tests find this cluster."""
    return {
        **engine.environment(cluster),
        "KUBECONFIG": str(cluster.kubeconfig),
        "TESTBED_NETNS": str(cluster.netns) if cluster.plan.is_private else "",
        "TESTBED_CLUSTER": cluster.name,
    }


def kubectl(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    return host.run(engine.inside(cluster, "kubectl", *arguments), env=environment(cluster), stdin=stdin)


def get(cluster: Cluster, *arguments: str) -> list[dict[str, Any]]:
    """The objects that `kubectl get ARGUMENTS` finds."""
    listed = cast("dict[str, Any]", json.loads(kubectl(cluster, "get", *arguments, "-o", "json")))
    return listed["items"]


def nodes(cluster: Cluster) -> list[Node]:
    return [parse(item) for item in get(cluster, "nodes")]


def parse(item: dict[str, Any]) -> Node:
    status: dict[str, Any] = item["status"]
    info: dict[str, str] = status["nodeInfo"]
    addresses = {address["type"]: address["address"] for address in status["addresses"]}
    conditions: list[dict[str, str]] = status.get("conditions", [])
    ready = next((condition for condition in conditions if condition["type"] == "Ready"), dict[str, str]())
    return Node(
        name=item["metadata"]["name"],
        ip=addresses["InternalIP"],
        pod_cidr=item["spec"].get("podCIDR", ""),
        ready=ready.get("status") == "True",
        why_not_ready=ready.get("message", "no kubelet has reported"),
        versions=f"kubelet {info['kubeletVersion']}, {info['containerRuntimeVersion'].replace('://', ' ')}",
    )
