"""What runs, and how it differs from a normal cluster."""

from . import debian, engine, kindcluster, limits, machine
from .extras import S3_UNIT, endpoint, works
from .nodes import Node, nodes
from .places import Cluster

VERSIONS = {
    "runc": "runc --version | head -1 | cut -d' ' -f3",
    "kernel": "uname -r",
    "cgroups": "[ -f /sys/fs/cgroup/cgroup.controllers ] && echo v2 || echo v1",
    "Debian": "cat /etc/debian_version",
    "CRIU": "criu --version 2>/dev/null | head -1 | cut -d' ' -f2",
    "podman": "podman --version 2>/dev/null | cut -d' ' -f3",
}
"""What to ask in a node; nothing is printed for what is not there."""


def report(cluster: Cluster) -> str:
    lines = [f"cluster {cluster.name}: {summary(cluster)}"]
    if kindcluster.is_whole(cluster):
        version = engine.docker(cluster, "version", "--format", "{{.Client.Version}}").strip()
        lines += [node_line(node) for node in nodes(cluster)]
        lines.append(f"in the nodes: {in_the_nodes(cluster)}")
        lines.append(f"engine: {cluster.plan.engine} {version}; node image: {cluster.plan.image}")
        if cluster.plan.is_private:
            lines.append(f"  Debian's {components(cluster)}; for the nodes {runtime(cluster)}")
        lines.append(f"  because {cluster.plan.why}")
        lines.append(f"shared folder: {kindcluster.SHARED} in every node is {cluster.shared} here")
        running = works(cluster, cluster.nodes[0], "systemctl", "--quiet", "is-active", S3_UNIT)
        lines.append(f"S3 server: {endpoint(cluster) if running else 'not started; `cluster s3` starts it'}")
    lines.append("work-arounds in force:")
    lines += [f"  - {text}" for text in [*machine.inspect().workarounds(), *limits.in_force()]] or ["  none"]
    return "\n".join(lines)


def components(cluster: Cluster) -> str:
    form = "{{range .Server.Components}}{{.Name}} {{.Version}}, {{end}}"
    return engine.docker(cluster, "version", "--format", form).strip().removesuffix(",")


def runtime(cluster: Cluster) -> str:
    """What nodes from packages have from a newer release than their own."""
    record = ("sh", "-c", f"cat /kind/{debian.RECORD} || echo unknown packages")
    return ", ".join(engine.in_node(cluster, cluster.workers[0], *record).splitlines())


def summary(cluster: Cluster) -> str:
    if kindcluster.is_whole(cluster):
        namespace = f", network namespace {cluster.netns}" if cluster.plan.is_private else ""
        return f"up; KUBECONFIG={cluster.kubeconfig}{namespace}"
    if cluster.run.exists() or cluster.state.exists():
        return "a fragment: `cluster up` makes it whole, `cluster down` removes it"
    return "down"


def node_line(node: Node) -> str:
    ready = "Ready" if node.ready else "NOT READY"
    return f"  {node.name:24} {ready:10} {node.ip:14} pods {node.pod_cidr:16} {node.versions}"


def in_the_nodes(cluster: Cluster) -> str:
    """Asked in one node: all have the same image."""
    script = "\n".join(f'echo "{what} $({ask})"' for what, ask in VERSIONS.items())
    lines = engine.in_node(cluster, cluster.workers[0], "sh", "-c", script).splitlines()
    return ", ".join(line for line in lines if not line.endswith(" "))
