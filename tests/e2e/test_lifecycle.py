"""Upgrade, rescue and uninstallation while a migration is under way; afterwards everything is as it was."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_api.conditions import Reason
from support.cluster import SYSTEM, Kubectl, Manifest, able, agents, condition, on_node, wait_for
from support.migration import WORKLOAD, Migrations, pod
from support.workloads import ballast, counter

ROOT = Path(__file__).parents[2]
RELEASE = "container-migration"
MEBIBYTES = 1024
"""Enough that dump and transfer take seconds, so that a test can act in the middle."""


def helm(*args: str, timeout: float = 300) -> str:
    done = subprocess.run(
        ("helm", *args, "--namespace", SYSTEM), cwd=ROOT, capture_output=True, text=True, check=False, timeout=timeout
    )
    assert done.returncode == 0, f"helm {' '.join(args)}: {done.stderr}"
    return done.stdout


def upgrade(*sets: str) -> None:
    """Upgrade the release as it is, or install it with what the tests use."""
    options = [word for value in sets for word in ("--set", value)]
    helm("upgrade", RELEASE, ".", "--reuse-values", "--server-side=true", "--wait", "--timeout=3m", *options)


def doc_blocks(kind: str) -> list[str]:
    """Return the commands of docs/rescue.md, from the blocks of that kind."""
    text = (ROOT / "docs" / "rescue.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def numbers(kubectl: Kubectl, name: str, namespace: str) -> list[int]:
    return [int(line) for line in kubectl.logs(name, namespace) if line.isdigit()]


def goes_on_without_a_gap(kubectl: Kubectl, migrations: Migrations, name: str) -> None:
    before = len(numbers(kubectl, name, migrations.namespace))
    wait_for("more", lambda: len(numbers(kubectl, name, migrations.namespace)) > before + 5, seconds=30)
    seen = numbers(kubectl, name, migrations.namespace)
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    it = migrations.pod(name)
    assert it is not None
    assert it["status"]["containerStatuses"][0]["restartCount"] == 0


def goes_on_somewhere(kubectl: Kubectl, migrations: Migrations) -> Manifest:
    """Wait for the end, and return the status: the container runs on at the target, or at the source with no gap.

    An agent that was restarted goes on with a dump that was complete, and gives up one that was not.
    """
    status = migrations.finished("move")["status"]
    if status["decision"] == "Commit":
        moved = migrations.succeeded("move")["status"]["target"]["podName"]
        assert migrations.running(moved)["status"]["containerStatuses"][0]["restartCount"] == 0
    else:
        assert condition(migrations.get("move"), "Succeeded")["reason"] == Reason.ROLLED_BACK
        goes_on_without_a_gap(kubectl, migrations, "ballast")
    return status


def start_ballast(kubectl: Kubectl, migrations: Migrations, node: str) -> None:
    migrations.run_pod(ballast("ballast", migrations.namespace, node, MEBIBYTES))
    wait_for("the memory to be filled", lambda: "ready" in kubectl.logs("ballast", migrations.namespace), seconds=60)


def frozen(migrations: Migrations) -> Manifest | None:
    """Return the migration while its source stands still and nothing is decided."""
    it = migrations.get("move")
    status = (it or {}).get("status", {})
    return it if status.get("timings", {}).get("frozenAt") and "decision" not in status else None


@pytest.mark.usefixtures("clean_nodes")
def test_nothing_is_lost_when_the_sources_agent_is_restarted_in_mid_copy(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """What a roll-out of the DaemonSet does, one node after another."""
    source, target = nodes
    start_ballast(kubectl, migrations, source)
    migrations.start("move", "ballast", target={"nodeName": target})
    wait_for("the freeze", lambda: frozen(migrations), seconds=60, every=0.05)
    kubectl("delete", "pod", agents(kubectl)[source], "-n", SYSTEM, "--grace-period=1", "--wait=false")
    if goes_on_somewhere(kubectl, migrations)["decision"] == "Abort":
        reasons = {c["reason"] for c in migrations.finished("move")["status"]["conditions"]}
        assert reasons & {Reason.AGENT_RESTARTED, Reason.FREEZE_BUDGET_EXCEEDED}
    able(kubectl)


@pytest.mark.usefixtures("clean_nodes")
def test_an_upgrade_with_a_migration_in_flight(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    start_ballast(kubectl, migrations, source)
    migrations.start("move", "ballast", target={"nodeName": target})
    wait_for("the freeze", lambda: frozen(migrations), seconds=60, every=0.05)
    upgrade("logLevel=debug")
    try:
        goes_on_somewhere(kubectl, migrations)
    finally:
        upgrade("logLevel=info")
        able(kubectl)


@pytest.fixture
def node_shell(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> Iterator[str]:
    """A pod that can do on the source's node what an admin can do there, without any agent."""
    name = "shell"
    manifest = pod(name, migrations.namespace, ["sleep", "infinity"], nodes[0], hostPID=True)
    manifest["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    migrations.run_pod(manifest)
    yield name
    kubectl("delete", "pod", name, "-n", migrations.namespace, "--wait=false")


@pytest.fixture
def agents_come_back(kubectl: Kubectl) -> Iterator[None]:
    """Whatever the test did to the release, afterwards it is installed as before."""
    values = helm("get", "values", RELEASE, "--output", "yaml")
    yield
    subprocess.run(
        ("helm", "upgrade", "--install", RELEASE, ".", "-n", SYSTEM, "--server-side=true", "--wait", "-f", "-"),
        cwd=ROOT,
        input=values,
        text=True,
        check=True,
        timeout=300,
        stdout=subprocess.DEVNULL,
    )
    able(kubectl)


@pytest.mark.usefixtures("agents_come_back")
def test_the_commands_of_the_rescue_page(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], node_shell: str
) -> None:
    source, target = nodes
    start_ballast(kubectl, migrations, source)
    migrations.start("move", "ballast", target={"nodeName": target})
    seen = wait_for("the freeze", lambda: frozen(migrations), seconds=60, every=0.05)
    kubectl("delete", "daemonset", "container-migration-agent", "-n", SYSTEM, "--cascade=background")
    component = "app.kubernetes.io/component=agent"
    kubectl("delete", "pods", "-n", SYSTEM, "-l", component, "--grace-period=0", "--force", "--wait=false")
    wait_for("no agent", lambda: not kubectl.list("pods", SYSTEM, labels=component), seconds=60)

    def as_admin(block: str) -> str:
        environment = {**os.environ, "NAMESPACE": migrations.namespace, "MIGRATION": "move"}
        done = subprocess.run(
            ("bash", "-euc", block), env=environment, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        return done.stdout

    def on_source(block: str) -> str:
        uid = f"POD_UID={seen['status']['source']['podUID']}; MIGRATION_UID={seen['metadata']['uid']}"
        shell = ("nsenter", "-t", "1", "-a", "--", "sh", "-c", f"{uid}\n{block}")
        return kubectl.exec(node_shell, migrations.namespace, *shell, timeout=60)

    look, abort, end = doc_blocks("sh")
    assert as_admin(look).split()[-2:] == [source, seen["status"]["source"]["podUID"]]
    as_admin(abort)
    before = numbers(kubectl, "ballast", migrations.namespace)
    [thaw], [wipe] = doc_blocks("node"), doc_blocks("node-wipe")
    assert "127.0.0.1" in on_source(thaw), "the kubelet's hosts file is not back"
    goes_on_without_a_gap(kubectl, migrations, "ballast")
    assert numbers(kubectl, "ballast", migrations.namespace)[: len(before)] == before
    as_admin(end)
    on_source(wipe)
    assert migrations.get("move") is None
    connect = "import os, socket; socket.create_connection((os.environ['KUBERNETES_SERVICE_HOST'], 443), 10)"
    kubectl.exec("ballast", migrations.namespace, "python3", "-c", connect)


@pytest.mark.usefixtures("agents_come_back")
def test_uninstall_and_install_again(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    source, target = nodes
    migrations.run_pod(counter("mover", migrations.namespace, source))
    migrations.start("moved", "mover", target={"nodeName": target})
    moved = migrations.succeeded("moved")["status"]["target"]["podName"]
    migrations.run_pod(counter("stayer", migrations.namespace, source))
    migrations.start("undecided", "stayer", target={"nodeSelector": {"no-node": "has-this"}})
    wait_for("its target", lambda: "target" in (migrations.get("undecided") or {}).get("status", {}), seconds=60)
    shell = pod("shell", migrations.namespace, ["sleep", "infinity"], target, hostPID=True)
    shell["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    migrations.run_pod(shell)
    values = helm("get", "values", RELEASE, "--output", "yaml")
    assert WORKLOAD.split("/", 1)[0] in values, "the images that the tests use come back with these values"

    helm("uninstall", RELEASE, "--wait", "--timeout=4m")

    undone = migrations.get("undecided")
    assert condition(undone, "Succeeded")["reason"] == Reason.ROLLED_BACK
    assert condition(undone, "Committed")["status"] == "False"
    assert [m for m in kubectl.list("cmig") if m["metadata"].get("finalizers")] == []
    assert kubectl.get("runtimeclass", "migratable") is not None
    assert kubectl.get("crd", "containermigrations.containermigration.io") is not None
    wait_for("the end of its pods", lambda: not kubectl.list("pods", SYSTEM), seconds=60)
    goes_on_without_a_gap(kubectl, migrations, "stayer")

    # A moved pod outlives what moved it: its container crashes, and is started again, cold, by what stayed on the node.
    container = (migrations.pod(moved) or {})["status"]["containerStatuses"][0]["containerID"].split("//")[1]
    crash = f"runc --root /run/containerd/runc/k8s.io kill {container} KILL"
    kubectl.exec("shell", migrations.namespace, "nsenter", "-t", "1", "-a", "--", "sh", "-c", crash)
    wait_for("its restart", lambda: restarts(migrations, moved) == 1, seconds=60)

    # Nothing of it keeps objects from being deleted.
    kubectl("delete", "cmig", "--all", "-n", migrations.namespace, "--timeout=20s")


def restarts(migrations: Migrations, name: str) -> int:
    status = (migrations.pod(name) or {}).get("status", {}).get("containerStatuses", [{}])[0]
    return status.get("restartCount", 0) if "running" in status.get("state", {}) else 0


@pytest.mark.usefixtures("clean_nodes")
def test_a_migration_after_the_installation_came_back(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """Runs after the two above: what they left behind must not be in the way."""
    source, target = nodes
    assert on_node(kubectl, target, "ls /opt/container-migration/bin/runc-migratable").strip()
    migrations.run_pod(counter("counter", migrations.namespace, source))
    migrations.start("move", "counter", target={"nodeName": target})
    migrations.succeeded("move")
