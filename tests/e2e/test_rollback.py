"""Before the commit all can be undone: the source goes on, the target is gone, nothing is left on either node."""

from __future__ import annotations

import re

import pytest

from support.cluster import SYSTEM, Kubectl, Manifest, condition, on_node, wait_for
from support.migration import Migrations, container_id
from support.workloads import ballast, counter

MEBIBYTES = 1024
"""Enough that dump and transfer take seconds, so that a test can act in the middle."""

FROZEN = re.compile(r'"status":\s*"paused"')


def numbers(lines: list[str]) -> list[int]:
    return [int(line) for line in lines if line.isdigit()]


def is_paused(kubectl: Kubectl, node: str, container_id: str) -> bool:
    runc = f"runc --root /run/containerd/runc/k8s.io state {container_id} || true"
    return bool(FROZEN.search(on_node(kubectl, node, runc)))


def start_ballast(kubectl: Kubectl, migrations: Migrations, node: str) -> Manifest:
    pod = migrations.run_pod(ballast("ballast", migrations.namespace, node, MEBIBYTES))
    wait_for("the memory to be filled", lambda: "ready" in kubectl.logs("ballast", migrations.namespace), seconds=60)
    return pod


def goes_on_without_a_gap(kubectl: Kubectl, migrations: Migrations, pod: str) -> None:
    lines = numbers(kubectl.logs(pod, migrations.namespace))
    wait_for("more numbers", lambda: len(numbers(kubectl.logs(pod, migrations.namespace))) > len(lines) + 5, seconds=20)
    seen = numbers(kubectl.logs(pod, migrations.namespace))
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    status = migrations.pod(pod)
    assert status is not None
    assert status["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_given_up_before_the_freeze(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], how: str) -> None:
    source, _ = nodes
    migrations.run_pod(counter("counter", migrations.namespace, source))
    migrations.start("move", "counter", target={"nodeSelector": {"no-node": "has-this"}})
    target = wait_for("the target pod", lambda: _target(migrations), seconds=30)
    if how == "cancel":
        kubectl("patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}')
        done = migrations.finished("move")
        assert condition(done, "Succeeded")["reason"] == "RolledBack"
        assert done["status"]["decision"] == "Abort"
    else:
        kubectl("delete", "cmig", "move", "-n", migrations.namespace, "--timeout=60s", timeout=70)
    migrations.gone(target)
    goes_on_without_a_gap(kubectl, migrations, "counter")


def _target(migrations: Migrations) -> str | None:
    label = "containermigration.io/migration-uid"
    names = migrations.kubectl("get", "pods", "-n", migrations.namespace, "-l", label, "-o", "name")
    return names.stdout.strip().removeprefix("pod/") or None


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("how", ["cancel", "delete"])
def test_given_up_while_the_checkpoint_is_copied(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], how: str
) -> None:
    source, target = nodes
    pod = start_ballast(kubectl, migrations, source)
    migrations.start("move", "ballast", target={"nodeName": target})
    wait_for("the freeze", lambda: is_paused(kubectl, source, container_id(pod)), seconds=60, every=0.05)
    if how == "cancel":
        kubectl("patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}')
        done = migrations.finished("move")
        assert done["status"]["decision"] == "Abort", "the copy was faster than the test; give it more to copy"
        assert condition(done, "Succeeded")["reason"] == "RolledBack"
    else:
        kubectl("delete", "cmig", "move", "-n", migrations.namespace, "--timeout=90s", timeout=100)
    wait_for("no target pod", lambda: _target(migrations) is None, seconds=60)
    goes_on_without_a_gap(kubectl, migrations, "ballast")


@pytest.mark.usefixtures("clean_nodes")
def test_a_source_killed_while_frozen_does_not_start_again(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """The fence: until the decision the kubelet cannot start the source's container: never a second copy."""
    source, target = nodes
    pod = start_ballast(kubectl, migrations, source)
    runc, container = "runc --root /run/containerd/runc/k8s.io", container_id(pod)
    pid = on_node(kubectl, source, f"{runc} state {container} | grep -o '\"pid\": [0-9]*'").split()[-1]
    migrations.start("move", "ballast", target={"nodeName": target})
    wait_for("the freeze", lambda: is_paused(kubectl, source, container), seconds=60, every=0.05)
    on_node(kubectl, source, f"kill -9 {pid}; {runc} resume {container} || true")
    done = migrations.finished("move")

    verdict = condition(done, "Succeeded")
    if verdict["status"] == "True":
        # Everything had been copied: the target may go on, and the source's pod is gone without a cold start.
        migrations.gone("ballast")
        moved = migrations.running(done["status"]["target"]["podName"])
        assert moved["status"]["containerStatuses"][0]["restartCount"] == 0
        return
    assert verdict["reason"] == "SourceLost"
    assert done["status"]["decision"] == "Abort"
    wait_for("no target pod", lambda: _target(migrations) is None, seconds=60)
    restarts = wait_for("the ordinary restart after the end", lambda: _restarts(migrations, "ballast"), seconds=90)
    assert restarts == 1, "the container was started while it was fenced"


def _restarts(migrations: Migrations, pod: str) -> int | None:
    """Return how often the container was started again; None while it does not run again."""
    it = migrations.pod(pod)
    status = (it or {}).get("status", {}).get("containerStatuses", [{}])[0]
    return status.get("restartCount") or None if "running" in status.get("state", {}) else None


@pytest.mark.usefixtures("clean_nodes")
def test_a_new_operator_continues_where_the_old_one_was(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    pod = start_ballast(kubectl, migrations, source)
    migrations.start("move", "ballast", target={"nodeName": target})
    wait_for("the freeze", lambda: is_paused(kubectl, source, container_id(pod)), seconds=60, every=0.05)
    kubectl(
        *("delete", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator"),
        *("--grace-period=0", "--force", "--wait=false"),
    )
    done = migrations.succeeded("move")
    goes_on = done["status"]["target"]["podName"]
    migrations.running(goes_on)
    migrations.gone("ballast")
