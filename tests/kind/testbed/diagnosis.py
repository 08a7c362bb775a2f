"""Which component of a cluster is not well, with the last lines of its log."""

from collections.abc import Iterator
from typing import Any

from . import daemon, engine, host
from .nodes import get, kubectl, nodes
from .places import Cluster

LINES = 12
UNITS = ("containerd", "kubelet")
LATEST_LOGS = f"""
for name in etcd kube-apiserver; do
    file=$(ls -t /var/log/pods/kube-system_$name-*/*/*.log 2>/dev/null | head -1)
    if [ -n "$file" ]; then echo "$name:"; tail -n {LINES} "$file"; fi
done
"""


def report(cluster: Cluster) -> str:
    """Whatever can be found out about a cluster that is ill: asking must not fail."""
    found = list(illnesses(cluster))
    return "\n".join(f"{what}\n{log}".rstrip() for what, log in found) or "All components look well."


def illnesses(cluster: Cluster) -> Iterator[tuple[str, str]]:
    if not engine.is_running(cluster):
        log = daemon.log(cluster)
        end = host.tail(log.read_text(errors="replace"), LINES) if log.exists() else ""
        yield f"The container engine does not answer; the end of {log}:", end
        return
    running = engine.docker(cluster, "ps", "--format", "{{.Names}}").split()
    for node in cluster.nodes:
        if node in running:
            yield from ill_units(cluster, node)
        else:
            yield f"Node {node} does not run; the end of its log:", output(cluster, "logs", f"--tail={LINES}", node)
    try:
        yield from ill_nodes(cluster)
        yield from ill_pods(cluster)
    except host.CommandError as error:
        yield f"The API server does not answer: {error.output.strip().splitlines()[-1]}", ""
        yield "The control plane's logs end with:", output(cluster, "exec", cluster.nodes[0], "sh", "-c", LATEST_LOGS)


def output(cluster: Cluster, *arguments: str) -> str:
    try:
        return host.tail(engine.docker(cluster, *arguments), 4 * LINES)
    except host.CommandError as error:
        return str(error)


def ill_units(cluster: Cluster, node: str) -> Iterator[tuple[str, str]]:
    for unit in UNITS:
        active = engine.command(cluster, "exec", node, "systemctl", "--quiet", "is-active", unit)
        if not host.succeeds(active, env=engine.environment(cluster)):
            journal = ("journalctl", "--no-pager", "--output=cat", f"--lines={LINES}", f"--unit={unit}")
            yield f"{unit} does not run in node {node}; its log ends with:", output(cluster, "exec", node, *journal)


def ill_nodes(cluster: Cluster) -> Iterator[tuple[str, str]]:
    found = {node.name: node for node in nodes(cluster)}
    for name in cluster.nodes:
        if name not in found:
            yield f"Node {name} has not joined the cluster.", ""
        elif not found[name].ready:
            yield f"Node {name} is not Ready: {found[name].why_not_ready}", ""


def ill_pods(cluster: Cluster) -> Iterator[tuple[str, str]]:
    for pod in get(cluster, "pods", "--namespace=kube-system"):
        name, status = pod["metadata"]["name"], pod["status"]
        if not is_ready(status):
            try:
                log = host.tail(kubectl(cluster, "logs", "--namespace=kube-system", name, f"--tail={LINES}"))
            except host.CommandError as error:
                log = host.tail(error.output, LINES)
            yield f"Pod {name} is {status['phase']}, not ready{reasons(status)}; its log ends with:", log


def is_ready(status: dict[str, Any]) -> bool:
    return any(item["type"] == "Ready" and item["status"] == "True" for item in status.get("conditions", ()))


def reasons(status: dict[str, Any]) -> str:
    waiting = [item["state"].get("waiting", {}) for item in status.get("containerStatuses", ())]
    told = [f"{item['reason']} {item.get('message', '')}".strip() for item in waiting if "reason" in item]
    unscheduled = [item["message"] for item in status.get("conditions", ()) if item.get("reason") == "Unschedulable"]
    return "".join(f", {text}" for text in told + unscheduled)
