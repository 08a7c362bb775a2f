"""What runs, and how it differs from a normal cluster."""

from . import engine, kindcluster, machine
from .places import Cluster


def report(cluster: Cluster) -> str:
    lines = [f"cluster {cluster.name}: {summary(cluster)}"]
    if kindcluster.is_whole(cluster):
        lines += [node_line(node) for node in kindcluster.nodes(cluster)]
        lines.append(f"runtime in the nodes: {runtime(cluster)}")
        lines.append(f"docker: {engine.docker(cluster, 'version', '--format', '{{.Server.Version}}').strip()}")
    lines.append("work-arounds in force:")
    lines += [f"  - {text}" for text in machine.inspect().workarounds()] or ["  none"]
    return "\n".join(lines)


def summary(cluster: Cluster) -> str:
    if kindcluster.is_whole(cluster):
        return f"up; KUBECONFIG={cluster.kubeconfig}, network namespace {cluster.netns}"
    if cluster.run.exists():
        return "a fragment: `cluster up` makes it whole, `cluster down` removes it"
    return "down"


def node_line(node: kindcluster.Node) -> str:
    ready = "Ready" if node.ready else "NOT READY"
    return f"  {node.name:24} {ready:10} {node.ip:14} pods {node.pod_cidr:16} {node.versions}"


def runtime(cluster: Cluster) -> str:
    """Asked in one node: all have the same image."""
    first_line = "runc --version | head -1; uname -r"
    return ", kernel ".join(engine.docker(cluster, "exec", cluster.nodes[1], "sh", "-c", first_line).splitlines())
