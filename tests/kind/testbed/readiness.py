"""Whether a cluster really answers: counted Ready nodes, DNS on each node, and pods that reach each other."""

import json
from itertools import permutations
from typing import Any

from . import dns, engine, host
from .nodes import get, kubectl, nodes
from .places import Cluster
from .progress import note, step
from .waiting import wait_for

DNS_SERVICE = "10.96.0.10"
PROBE, PROBE_PORT = "testbed-probe", 1053

REACH = """
pid=$(grep -ls "$1" /proc/[0-9]*/cgroup | head -1 | cut -d/ -f3)
exec timeout 2 nsenter --target "$pid" --net -- bash -c ": < /dev/tcp/$2/$3"
"""
"""Run in a node, opens a connection from a pod's network: what it needs is in every node image, but in no pod."""


def wait_until_it_answers(cluster: Cluster) -> None:
    """`kind create` exits with 0 also when workers never join."""
    with step(f"waiting for {len(cluster.nodes)} Ready nodes"):
        wait_for(cluster, "all nodes are Ready", lambda: all_ready(cluster))
    apply_probe(cluster)
    with step("waiting for DNS on each node"):
        for node in cluster.nodes:
            wait_for(cluster, f"DNS answers {node}", lambda node=node: dns_answers(cluster, node))
    with step("waiting until a pod on each node reaches the others"):
        wait_for(cluster, "a pod on each node reaches the others", lambda: pods_reach_each_other(cluster))
    remove_probe(cluster)
    note(f"cluster {cluster.name} is up: {len(cluster.nodes)} nodes Ready, DNS answers, pods reach each other")


def all_ready(cluster: Cluster) -> bool:
    return [node.ready for node in nodes(cluster)] == [True] * len(cluster.nodes)


def dns_answers(cluster: Cluster, node: str) -> bool:
    """A query for the API server's Service, sent from the node's own network."""
    pid = engine.docker(cluster, "inspect", "--format", "{{.State.Pid}}", node).strip()
    query = ["python3", dns.__file__, DNS_SERVICE, "kubernetes.default.svc.cluster.local"]
    return host.succeeds(["nsenter", f"--net=/proc/{pid}/ns/net", "--", *query])


def apply_probe(cluster: Cluster) -> None:
    """A listening pod on each node: CoreDNS, because every node image has it."""
    [image] = {
        container["image"]
        for deployment in get(cluster, "deployments", "--namespace=kube-system", "--selector=k8s-app=kube-dns")
        for container in deployment["spec"]["template"]["spec"]["containers"]
    }
    kubectl(cluster, "apply", "--server-side", "--filename=-", stdin=json.dumps(probe(image)))


def probe(image: str) -> dict[str, Any]:
    container = {
        "name": "listener",
        "image": image,
        "imagePullPolicy": "Never",
        "args": ["-dns.port", str(PROBE_PORT)],
        "readinessProbe": {"tcpSocket": {"port": PROBE_PORT}, "periodSeconds": 1},
    }
    pod = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "tolerations": [{"operator": "Exists"}],
        "containers": [container],
    }
    labels = {"app": PROBE}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": PROBE, "namespace": "kube-system"},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


def remove_probe(cluster: Cluster) -> None:
    kubectl(cluster, "-n", "kube-system", "delete", "daemonset", PROBE, "--ignore-not-found", "--wait=false")


def pods_reach_each_other(cluster: Cluster) -> bool:
    pods = get(cluster, "pods", "--namespace=kube-system", f"--selector=app={PROBE}")
    listening = [pod for pod in pods if pod["status"].get("podIP") and "deletionTimestamp" not in pod["metadata"]]
    if {pod["spec"]["nodeName"] for pod in listening} != set(cluster.nodes):
        return False
    return all(reaches(cluster, one, other) for one, other in permutations(listening, 2))


def reaches(cluster: Cluster, one: dict[str, Any], other: dict[str, Any]) -> bool:
    """The kubelet writes a pod's UID into its cgroups' names, with underscores where systemd manages them."""
    uid = one["metadata"]["uid"].replace("-", "[-_]")
    script = ("bash", "-c", REACH, "reach", uid, other["status"]["podIP"], str(PROBE_PORT))
    connect = engine.command(cluster, "exec", one["spec"]["nodeName"], *script)
    return host.succeeds(connect, env=engine.environment(cluster))
