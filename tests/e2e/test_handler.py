"""A node without preparation: its agent registers the runtime handler, or says exactly what to add."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cluster import SYSTEM, Kubectl, Manifest, agents, condition, on_node, wait_for, workers
from support.migration import Migrations
from support.workloads import counter

AGENT = "container-migration-agent"
FORGET = """
cd /etc/containerd
find . -name container-migration.toml -delete
sed -i '/added by the node agent of container-migration/d' config.toml
rm -f /var/lib/container-migration/handler-registration.json
systemd-run --quiet --on-active=2 systemctl restart containerd
"""
"""Makes a node one that was never prepared. Who asks through containerd must have the answer before its restart."""


@pytest.fixture
def registering(kubectl: Kubectl) -> Iterator[None]:
    """Whatever a test does, the agents register the handler again at its end."""
    yield
    allow(kubectl, True)
    wait_for("two nodes that can take part", lambda: len(workers(kubectl)) >= 2, seconds=90)


def allow(kubectl: Kubectl, yes: bool) -> None:
    """Set what the chart's `agent.registerHandler` sets, and wait until all agents have it."""
    kubectl("set", "env", f"daemonset/{AGENT}", "-n", SYSTEM, f"REGISTER_HANDLER={str(yes).lower()}")
    kubectl("rollout", "status", f"daemonset/{AGENT}", "-n", SYSTEM, "--timeout=120s", timeout=130)


def ready(kubectl: Kubectl, node: str, wanted: str) -> str | None:
    """Return the message of the MigrationNode's condition `Ready` when it has that status."""
    it = condition(kubectl.get("migrationnode", node), "Ready")
    return it["message"] if it.get("status") == wanted else None


def started(pod: Manifest | None) -> dict[str, tuple[int, str]]:
    assert pod is not None
    return {c["name"]: (c["restartCount"], c["containerID"]) for c in pod["status"]["containerStatuses"]}


def containerd(kubectl: Kubectl, node: str) -> str:
    return on_node(kubectl, node, "systemctl show --property=MainPID --value containerd").strip()


@pytest.mark.usefixtures("clean_nodes", "registering")
def test_a_node_that_its_agent_prepares(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    source, target = nodes
    before = migrations.run_pod(counter("counter", migrations.namespace, source))
    bystander = migrations.run_pod(counter("bystander", migrations.namespace, target))
    allow(kubectl, False)
    on_node(kubectl, target, FORGET, timeout=120)

    said = wait_for(f"node {target} to say what is missing", lambda: ready(kubectl, target, "False"), seconds=90)
    assert "Add the following to /etc/containerd/config.toml and restart containerd:" in said
    assert ".containerd.runtimes.migratable]" in said
    wait_for("no target there", lambda: target not in workers(kubectl), seconds=30)

    unprepared = containerd(kubectl, target)
    allow(kubectl, True)
    wait_for(f"node {target} to be ready", lambda: ready(kubectl, target, "True"), seconds=120)
    wait_for("a target there", lambda: target in workers(kubectl), seconds=30)
    assert containerd(kubectl, target) != unprepared, "containerd was not restarted"
    assert started(migrations.pod("bystander")) == started(bystander), "the restart has cost a container"
    agent = kubectl.get("pod", agents(kubectl)[target], SYSTEM)
    assert {count for count, _ in started(agent).values()} == {0}

    migrations.start("move", "counter", target={"nodeName": target})
    moved = migrations.succeeded("move")["status"]["target"]["podName"]
    assert kubectl.exec(moved, migrations.namespace, "cat", "/tmp/kept").strip() == "kept"
    assert started(before)["main"][0] == 0
