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
    """A cluster's own network namespace gets routes as well: a test that runs in it reaches pods and Services.

    This machine's network gets none, where the nodes are in an engine that was found on it: other clusters use the
    same addresses.
    """
    with step("connecting the nodes' pod networks"):
        found = wait_for(cluster, "all nodes have a pod CIDR", lambda: with_pod_cidrs(cluster))
        for node in found:
            write = ("sh", "-c", "cat > /etc/cni/net.d/10-testbed.conflist")
            engine.in_node(cluster, node.name, *write, stdin=cni_config(node))
            routes = [f"ip route replace {other.pod_cidr} via {other.ip}" for other in found if other != node]
            forward = "sysctl -qw net.ipv4.ip_forward=1"  # the plugin sets it with a node's first pod only
            engine.in_node(cluster, node.name, "sh", "-ec", "\n".join([forward, *routes]))
        if cluster.plan.is_private:
            control_plane = next(node for node in found if node.name == cluster.nodes[0])
            for subnet, node in [*((node.pod_cidr, node) for node in found), (SERVICE_SUBNET, control_plane)]:
                host.run(engine.inside(cluster, "ip", "route", "replace", subnet, "via", node.ip))


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
