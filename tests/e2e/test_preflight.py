"""What cannot be moved yet is refused with a reason, and nothing is touched."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.cluster import Kubectl, Manifest, condition, wait_for
from support.migration import WORKLOAD, Migrations, pod
from support.workloads import COUNTER, counter

SLEEP = ["sleep", "infinity"]


def refused(migrations: Migrations, name: str) -> str:
    """Wait for the refusal and return its message."""
    done = migrations.finished(name, seconds=30)
    assert condition(done, "Succeeded")["reason"] == "PreflightFailed"
    assert condition(done, "PreflightPassed")["status"] == "False"
    assert "decision" not in done["status"] or done["status"]["decision"] == "Abort"
    pods = migrations.kubectl.list("pods", "-n", migrations.namespace, "-l", "containermigration.io/migration-uid")
    assert pods == []
    return condition(done, "PreflightPassed")["message"]


def with_volume(manifest: Manifest) -> Manifest:
    manifest["spec"]["volumes"] = [{"name": "scratch", "hostPath": {"path": "/tmp"}}]
    manifest["spec"]["containers"][0]["volumeMounts"] = [{"name": "scratch", "mountPath": "/scratch"}]
    return manifest


def with_init_container(manifest: Manifest) -> Manifest:
    init = {"name": "before", "image": WORKLOAD, "imagePullPolicy": "Never", "command": ["true"]}
    manifest["spec"]["initContainers"] = [init]
    return manifest


def with_host_network(manifest: Manifest) -> Manifest:
    manifest["spec"]["hostNetwork"] = True
    return manifest


def with_host_pid(manifest: Manifest) -> Manifest:
    manifest["spec"]["hostPID"] = True
    return manifest


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (with_volume, ["scratch"]),
        (with_init_container, ["init"]),
        (with_host_network, ["hostNetwork"]),
        (with_host_pid, ["hostPID"]),
    ],
    ids=["hostPath", "init-container", "hostNetwork", "hostPID"],
)
def test_a_pod_that_cannot_move_yet(
    migrations: Migrations, nodes: tuple[str, str], change: Callable[[Manifest], Manifest], words: list[str]
) -> None:
    source, target = nodes
    migrations.run_pod(change(pod("it", migrations.namespace, SLEEP, source)))
    migrations.start("move", "it", target={"nodeName": target})
    message = refused(migrations, "move")
    for word in words:
        assert word in message


def test_a_pod_with_an_owner(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    template = counter("owned", migrations.namespace, nodes[0])
    kubectl.apply(
        {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {"name": "owned", "namespace": migrations.namespace},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": {"app": "owned"}},
                "template": {"metadata": {"labels": {"app": "owned"}}, "spec": template["spec"]},
            },
        }
    )
    names = ("get", "pods", "-n", migrations.namespace, "-o", "name")
    name = wait_for("the pod", lambda: kubectl(*names).stdout.strip().removeprefix("pod/"), seconds=30)
    migrations.running(name)
    migrations.start("move", name, target={"nodeName": nodes[1]})
    assert "ReplicaSet" in refused(migrations, "move")
    assert migrations.pod(name) is not None


def test_everything_that_is_wrong_is_said_at_once(migrations: Migrations, nodes: tuple[str, str]) -> None:
    migrations.run_pod(with_volume(with_init_container(pod("it", migrations.namespace, SLEEP, nodes[0]))))
    migrations.start("move", "it", target={"nodeName": nodes[0]})
    message = refused(migrations, "move")
    assert "scratch" in message
    assert "before" in message
    assert nodes[0] in message


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"podName": "nobody"}, "nobody"),
        ({"podName": "counter", "target": {"nodeName": "no-such-node"}}, "no-such-node"),
        ({"podName": "counter", "podUID": "00000000-0000-0000-0000-000000000000"}, "UID"),
        ({"podName": "counter", "containers": ["nobody"]}, "nobody"),
        ({"podName": "counter", "target": {"podName": "counter"}}, "counter"),
    ],
    ids=["unknown-pod", "unknown-node", "another-incarnation", "unknown-container", "name-taken"],
)
def test_a_request_that_names_what_is_not_there(
    migrations: Migrations, nodes: tuple[str, str], spec: dict[str, object], word: str
) -> None:
    migrations.run_pod(pod("counter", migrations.namespace, ["bash", "-c", COUNTER], nodes[0]))
    migrations.start("move", str(spec["podName"]), **{k: v for k, v in spec.items() if k != "podName"})
    assert word in refused(migrations, "move")
