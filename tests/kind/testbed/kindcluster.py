"""The kind cluster itself: created, given a pod network, and waited for until it really answers."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from . import dns, engine, gobuild, host, machine, nodeimage
from .places import Cluster
from .progress import note, step

POD_SUBNET = "10.244.0.0/16"
SERVICE_SUBNET = "10.96.0.0/16"
DNS_SERVICE = "10.96.0.10"
READY_SECONDS = 120
HOST_TOOLS = ("kind", "kubectl", "helm")

T = TypeVar("T")

KIND_CONFIG = """\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  ipFamily: ipv4
  disableDefaultCNI: true
  podSubnet: {pod_subnet}
  serviceSubnet: {service_subnet}
nodes:
- role: control-plane
- role: worker
- role: worker
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  failCgroupV1: false
  cgroupDriver: {cgroup_driver}
containerdConfigPatches:
- |
  [plugins."io.containerd.grpc.v1.cri"]
    restrict_oom_score_adj = {restrict_oom_score_adj}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = {systemd_cgroup}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.migratable]
    runtime_type = "io.containerd.runc.v2"
    base_runtime_spec = "/etc/containerd/cri-base.json"
    pod_annotations = ["containermigration.io/*"]
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.migratable.options]
      BinaryName = "/opt/container-migration/bin/runc-migratable"
      SystemdCgroup = {systemd_cgroup}
"""
"""Plugin names are those of configuration version 2, in which kind writes the file that this is merged into."""


@dataclass(frozen=True)
class Node:
    name: str
    ip: str
    pod_cidr: str
    ready: bool
    versions: str


def kubectl(cluster: Cluster, *arguments: str) -> str:
    return host.run(engine.inside(cluster, "kubectl", *arguments), env=environment(cluster))


def environment(cluster: Cluster) -> dict[str, str]:
    """The variables with which kubectl, helm, docker and kind find this cluster."""
    return {
        **engine.environment(cluster),
        "KUBECONFIG": str(cluster.kubeconfig),
        "TESTBED_NETNS": str(cluster.netns),
    }


def up(cluster: Cluster) -> None:
    """Brings the cluster up from any state: none, fragment, stopped, or running."""
    gobuild.warn_when_cold()
    for module in gobuild.MODULES:
        gobuild.build(module)
    whole = is_whole(cluster)
    if not whole:
        clear_fragments(cluster)
        engine.start(cluster)
    engine.link_tools(cluster, *(gobuild.tool(name) for name in HOST_TOOLS))
    if not whole:
        nodeimage.ensure(cluster)
        create(cluster)
    connect(cluster)
    wait_until_it_answers(cluster)


def is_whole(cluster: Cluster) -> bool:
    """Created to the end, and the containers of all nodes still run."""
    if not cluster.created.exists() or not engine.is_running(cluster):
        return False
    running = engine.docker(cluster, "ps", "--format", "{{.Names}}").split()
    return set(cluster.nodes) <= set(running)


def clear_fragments(cluster: Cluster) -> None:
    if cluster.run.exists() or cluster.state.exists():
        with step("removing what an earlier, unfinished cluster left"):
            engine.stop(cluster)


def create(cluster: Cluster) -> None:
    here = machine.inspect()
    config = KIND_CONFIG.format(
        pod_subnet=POD_SUBNET,
        service_subnet=SERVICE_SUBNET,
        restrict_oom_score_adj=str(not here.sys_resource).lower(),
        cgroup_driver="systemd" if here.cgroup_v2 else "cgroupfs",
        systemd_cgroup=str(here.cgroup_v2).lower(),
    )
    command = ["kind", "create", "cluster", "-q", "--name", cluster.name, "--image", nodeimage.IMAGE, "--retain"]
    with step("kind create cluster", "30 s"):
        host.run(engine.inside(cluster, *command, "--config", "-"), env=environment(cluster), stdin=config)
    cluster.created.touch()


def nodes(cluster: Cluster) -> list[Node]:
    listed = cast("dict[str, Any]", json.loads(kubectl(cluster, "get", "nodes", "-o", "json")))
    return [parse_node(item) for item in listed["items"]]


def parse_node(item: dict[str, Any]) -> Node:
    status: dict[str, Any] = item["status"]
    info: dict[str, str] = status["nodeInfo"]
    addresses = {address["type"]: address["address"] for address in status["addresses"]}
    conditions = {condition["type"]: condition["status"] for condition in status["conditions"]}
    return Node(
        name=item["metadata"]["name"],
        ip=addresses["InternalIP"],
        pod_cidr=item["spec"].get("podCIDR", ""),
        ready=conditions.get("Ready") == "True",
        versions=f"kubelet {info['kubeletVersion']}, {info['containerRuntimeVersion'].replace('://', ' ')}",
    )


def connect(cluster: Cluster) -> None:
    """What kindnetd would do: a CNI configuration per node, and routes to the other nodes' pods.

    The network namespace itself gets routes as well: a test that runs in it reaches pods and Services.
    """
    with step("connecting the nodes' pod networks"):
        found = wait_for("all nodes have a pod CIDR", lambda: with_pod_cidrs(cluster))
        for node in found:
            write = ["exec", "-i", node.name, "sh", "-c", "cat > /etc/cni/net.d/10-testbed.conflist"]
            engine.docker(cluster, *write, stdin=cni_config(node))
            routes = [f"ip route replace {other.pod_cidr} via {other.ip}" for other in found if other != node]
            forward = "sysctl -qw net.ipv4.ip_forward=1"  # the plugin sets it with a node's first pod only
            engine.docker(cluster, "exec", node.name, "sh", "-ec", "\n".join([forward, *routes]))
            host.run(engine.inside(cluster, "ip", "route", "replace", node.pod_cidr, "via", node.ip))
        control_plane = next(node for node in found if node.name == cluster.nodes[0])
        host.run(engine.inside(cluster, "ip", "route", "replace", SERVICE_SUBNET, "via", control_plane.ip))


def with_pod_cidrs(cluster: Cluster) -> list[Node] | None:
    found = nodes(cluster)
    return found if len(found) == len(cluster.nodes) and all(node.pod_cidr for node in found) else None


def cni_config(node: Node) -> str:
    addresses = {"ranges": [[{"subnet": node.pod_cidr}]], "routes": [{"dst": "0.0.0.0/0"}]}
    ipam = {"type": "host-local", "dataDir": "/run/cni-ipam-state", **addresses}
    plugins = [
        {"type": "ptp", "ipMasq": False, "mtu": 1500, "ipam": ipam},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    return json.dumps({"cniVersion": "0.4.0", "name": "testbed", "plugins": plugins})


def wait_until_it_answers(cluster: Cluster) -> None:
    """Counts Ready nodes and asks DNS: `kind create` exits with 0 also when workers never join."""
    with step(f"waiting for {len(cluster.nodes)} Ready nodes"):
        wait_for("all nodes are Ready", lambda: all_ready(cluster))
    with step("waiting for DNS"):
        kubectl(cluster, "-n", "kube-system", "rollout", "status", "deploy/coredns", f"--timeout={READY_SECONDS}s")
        for node in cluster.nodes:
            wait_for(f"DNS answers {node}", lambda node=node: dns_answers(cluster, node))
    note(f"cluster {cluster.name} is up: {len(cluster.nodes)} nodes Ready, DNS answers on each")


def all_ready(cluster: Cluster) -> bool:
    return [node.ready for node in nodes(cluster)] == [True] * len(cluster.nodes)


def dns_answers(cluster: Cluster, node: str) -> bool:
    """A query for the API server's Service, sent from the node's own network."""
    pid = engine.docker(cluster, "inspect", "--format", "{{.State.Pid}}", node).strip()
    query = ["python3", dns.__file__, DNS_SERVICE, "kubernetes.default.svc.cluster.local"]
    return host.succeeds(["nsenter", f"--net=/proc/{pid}/ns/net", "--", *query])


def wait_for(what: str, attempt: Callable[[], T | None]) -> T:
    """Tries until the result is true-ish."""
    deadline = time.monotonic() + READY_SECONDS
    while not (result := attempt()):
        if time.monotonic() > deadline:
            raise host.TestbedError(f"Waited {READY_SECONDS} s in vain until {what}: see `cluster status`.")
        time.sleep(0.5)
    return result
