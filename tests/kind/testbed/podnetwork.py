"""What kindnetd would do, which no package registry has: a CNI configuration per node, and routes between them."""

import json

from . import engine, host
from .nodes import Node, nodes
from .places import Cluster
from .progress import step
from .waiting import wait_for

POD_SUBNET = "10.244.0.0/16"
SERVICE_SUBNET = "10.96.0.0/16"


def connect(cluster: Cluster) -> None:
    """The cluster's network namespace gets routes as well: a test that runs in it reaches pods and Services."""
    with step("connecting the nodes' pod networks"):
        found = wait_for(cluster, "all nodes have a pod CIDR", lambda: with_pod_cidrs(cluster))
        for node in found:
            write = ("sh", "-c", "cat > /etc/cni/net.d/10-testbed.conflist")
            engine.in_node(cluster, node.name, *write, stdin=cni_config(node))
            routes = [f"ip route replace {other.pod_cidr} via {other.ip}" for other in found if other != node]
            forward = "sysctl -qw net.ipv4.ip_forward=1"  # the plugin sets it with a node's first pod only
            engine.in_node(cluster, node.name, "sh", "-ec", "\n".join([forward, *routes]))
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
