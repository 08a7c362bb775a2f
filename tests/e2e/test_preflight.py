"""What cannot be moved is refused with a reason and a way out, and nothing is touched.

One table of every reason that a kind cluster can be made to give; the others (unlike nodes, no room) are unit tests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from migration_api.preflight_reasons import PreflightReason as Why
from support.cluster import Kubectl, Manifest, condition, wait_for
from support.migration import WORKLOAD, Migrations, migration, pod

SLEEP = ["sleep", "infinity"]
Spec = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """Where a case is played: the pod `it` runs on `source`."""

    kubectl: Kubectl
    migrations: Migrations
    source: str
    target: str


@dataclass(frozen=True)
class Case:
    """One way to be refused.

    Attributes:
        reason: the constant that must be found.
        words: what the message must name.
        spec: added to the pod's specification.
        container: added to its container.
        ask: added to the ContainerMigration's specification.
        prepare: what else is done before it is created.
    """

    reason: Why
    words: str
    spec: Spec = field(default_factory=dict[str, Any])
    container: Spec = field(default_factory=dict[str, Any])
    ask: Spec = field(default_factory=dict[str, Any])
    prepare: Callable[[Stage], object] = lambda _: None


def other_container(name: str, **fields: Any) -> Spec:
    return {"name": name, "image": WORKLOAD, "imagePullPolicy": "Never", "command": SLEEP, **fields}


def attach_an_ephemeral_container(stage: Stage) -> None:
    body = f'{{"spec":{{"ephemeralContainers":[{{"name":"debug","image":"{WORKLOAD}","command":["true"]}}]}}}}'
    it = ("pod", "it", "-n", stage.migrations.namespace)
    stage.kubectl("patch", *it, "--subresource=ephemeralcontainers", "--type=strategic", "-p", body)


def start_another_migration(stage: Stage) -> None:
    stage.migrations.start("earlier", "it", target={"nodeSelector": {"no-node": "has-this"}})

    def begun() -> bool:
        return bool((stage.migrations.get("earlier") or {}).get("status", {}).get("source", {}).get("podUID"))

    wait_for("the earlier migration to begin", begun, seconds=30)


POST_START = {"postStart": {"exec": {"command": ["true"]}}}
NET_ADMIN = {"capabilities": {"add": ["NET_ADMIN"]}}
PROBE = {"exec": {"command": ["true"]}, "periodSeconds": 60}
LIVENESS = {"tcpSocket": {"port": 6379}, "initialDelaySeconds": 2, "periodSeconds": 1, "failureThreshold": 3}
CONNECTED = """
import os, socket, time
kept = socket.create_connection((os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ["KUBERNETES_SERVICE_PORT"])))
open("/tmp/connected", "w")
time.sleep(1e6)
"""
CONNECTED_NOW = {"exec": {"command": ["test", "-e", "/tmp/connected"]}, "periodSeconds": 1}
HOSTS = {"name": "hosts", "configMap": {"name": "kube-root-ca.crt"}}
CASES = [
    Case(Why.POD_NOT_FOUND, "nobody", ask={"podName": "nobody"}),
    Case(Why.POD_REPLACED, "0000-000000000000", ask={"podUID": "00000000-0000-0000-0000-000000000000"}),
    Case(Why.CONTAINER_NOT_FOUND, "nobody", ask={"containers": ["nobody"]}),
    Case(
        Why.POST_START_HOOK,
        "leaves out main",
        spec={"containers": [other_container("main", lifecycle=POST_START), other_container("second")]},
        ask={"containers": ["second"]},
    ),
    Case(
        Why.PRIVILEGED_INIT_CONTAINER,
        "mesh has the capability NET_ADMIN",
        spec={"initContainers": [other_container("mesh", command=["true"], securityContext=NET_ADMIN)]},
    ),
    Case(
        Why.SIDECAR_WITH_PROBES,
        "proxy has a livenessProbe",
        spec={"initContainers": [other_container("proxy", restartPolicy="Always", livenessProbe=PROBE)]},
    ),
    Case(Why.EPHEMERAL_CONTAINERS, "debug", prepare=attach_an_ephemeral_container),
    Case(Why.HOST_NAMESPACE, "hostNetwork", spec={"hostNetwork": True}),
    Case(Why.HOST_NAMESPACE, "hostPID", spec={"hostPID": True}),
    Case(Why.HOST_NAMESPACE, "hostIPC", spec={"hostIPC": True}),
    Case(Why.SHARED_PID_NAMESPACE, "shareProcessNamespace", spec={"shareProcessNamespace": True}),
    Case(
        Why.VOLUME_CANNOT_MOVE,
        "scratch (hostPath)",
        spec={"volumes": [{"name": "scratch", "hostPath": {"path": "/tmp"}}]},
    ),
    Case(
        Why.HOSTS_FILE_MOUNTED,
        "/etc/hosts",
        spec={"volumes": [HOSTS]},
        container={"volumeMounts": [{"name": "hosts", "mountPath": "/etc/hosts", "subPath": "ca.crt"}]},
    ),
    Case(Why.RUNTIME_CLASS, "e2e-other", spec={"runtimeClassName": "e2e-other"}),
    Case(
        Why.CONNECTIONS_OPEN,
        "has 1 TCP connections with others",
        container={"command": ["python3", "-c", CONNECTED], "readinessProbe": CONNECTED_NOW},
        ask={"tcpConnections": "Refuse"},
    ),
    Case(Why.ALREADY_MIGRATING, "earlier", prepare=start_another_migration),
    Case(Why.TARGET_IS_SOURCE, "SOURCE", ask={"target": {"nodeName": "SOURCE"}}),
    Case(Why.TARGET_NODE_NOT_FOUND, "no-such-node", ask={"target": {"nodeName": "no-such-node"}}),
    Case(Why.TARGET_NAME_TAKEN, "pod it", ask={"target": {"podName": "it"}}),
    Case(Why.NODE_NOT_READY, "is cordoned", prepare=lambda stage: stage.kubectl("cordon", stage.target)),
    Case(Why.NODE_NOT_CAPABLE, "no MigrationNode", ask={"target": {"nodeName": "CONTROL-PLANE"}}),
    Case(
        Why.NO_SUITABLE_NODE,
        "is cordoned",
        ask={"target": {}},
        prepare=lambda stage: stage.kubectl("cordon", stage.target),
    ),
    Case(Why.FREEZE_TOO_LONG, "spec.freezeBudgetSeconds is 1 s", ask={"freezeBudgetSeconds": 1}),
    Case(
        Why.FREEZE_TOO_LONG,
        "the liveness probe of container main",
        container={"command": ["redis-server"], "livenessProbe": LIVENESS},
    ),
]
UNIT_TESTED = {
    Why.CPU_MISMATCH,
    Why.KERNEL_MISMATCH,
    Why.CRIU_MISMATCH,
    Why.NO_ROOM,
    Why.POST_COPY_NOT_POSSIBLE,
    Why.PRE_COPY_NOT_POSSIBLE,
    Why.CHECKPOINT_NOT_FOUND,
    Why.CHECKPOINT_NOT_READY,
    Why.TARGET_NODE_UNFIT,
    Why.PODMAN_UNUSABLE,
    Why.PODMAN_CONNECTIONS,
}
ELSEWHERE = {Why.POD_NOT_RUNNING, Why.POD_OWNED}
TRANSPORT = {
    Why.PATH_NOT_ALLOWED,
    Why.ENDPOINT_NOT_ALLOWED,
    Why.STORE_SECRET_NOT_FOUND,
    Why.STORE_SECRET_INVALID,
    Why.STORE_UNUSABLE,
    Why.STORE_NOT_SHARED,
}
"""In test_transport_preflight.py."""
CLAIMS = {Why.CLAIM_NOT_FOUND, Why.CLAIM_NOT_SHARED, Why.CLAIM_NOT_MOUNTED}
"""In test_claim_transport.py."""
COPIES = {Why.SHARED_WRITERS, Why.CHECKPOINT_KEY_UNUSABLE}
"""In test_clone.py and test_checkpoints.py."""
PODMANS = {
    Why.PODMAN_NAMESPACE,
    Why.PODMAN_CONTAINER_NOT_FOUND,
    Why.PODMAN_CONTAINER_NOT_RUNNING,
    Why.PODMAN_VOLUMES,
    Why.PODMAN_BIND_MISSING,
    Why.PODMAN_DEPENDENCIES,
    Why.PODMAN_STARTED_AGAIN,
    Why.PODMAN_REMOVED,
    Why.PODMAN_NO_CGROUP,
    Why.PODMAN_IMAGE_MISSING,
    Why.PODMAN_NAME_TAKEN,
}
"""In test_podman.py."""


def test_the_table_has_every_reason() -> None:
    others = UNIT_TESTED | ELSEWHERE | TRANSPORT | CLAIMS | COPIES | PODMANS
    assert {case.reason for case in CASES} | others == set(Why)


@pytest.fixture(scope="module")
def stage_settings(kubectl: Kubectl) -> Iterator[None]:
    """Another RuntimeClass; its handler is containerd's own."""
    kubectl.apply(
        {
            "apiVersion": "node.k8s.io/v1",
            "kind": "RuntimeClass",
            "metadata": {"name": "e2e-other"},
            "handler": "runc",
        }
    )
    yield
    kubectl("delete", "runtimeclass", "e2e-other")


@contextmanager
def schedulable(kubectl: Kubectl, nodes: tuple[str, str]) -> Generator[None]:
    """Leave the nodes as they were, whatever a case does to them."""
    try:
        yield
    finally:
        kubectl("uncordon", *nodes)


def refused(migrations: Migrations, name: str) -> dict[str, str]:
    """Wait for the refusal, make sure that nothing was touched, and return each reason with its sentence."""
    done = migrations.finished(name, seconds=30)
    verdict = condition(done, "PreflightPassed")
    assert condition(done, "Succeeded")["reason"] == "PreflightFailed"
    assert (verdict["status"], verdict["reason"]) == ("False", "PreflightFailed")
    assert done["status"]["decision"] == "Abort"
    assert "source" not in done["status"]
    assert "target" not in done["status"]
    assert "finalizers" not in done["metadata"]
    label = f"containermigration.io/migration-uid={done['metadata']['uid']}"
    assert migrations.kubectl.list("pods", migrations.namespace, labels=label) == []
    message: str = verdict["message"]
    found = {str(reason): message.split(f"{reason}: ", 1)[1] for reason in Why if f"{reason}: " in message}
    assert found, f"no documented reason in: {message}"
    return found


def same(pod: Manifest | None) -> tuple[object, ...]:
    """Return what a migration that touched the pod would have changed."""
    assert pod is not None
    statuses = pod["status"].get("containerStatuses", [])
    return pod["metadata"]["uid"], pod["spec"], [(s["containerID"], s["restartCount"]) for s in statuses]


@pytest.mark.usefixtures("stage_settings")
@pytest.mark.parametrize("case", CASES, ids=[f"{case.reason}-{case.words.split()[0]}" for case in CASES])
def test_a_request_that_is_refused(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], case: Case
) -> None:
    stage = Stage(kubectl, migrations, *nodes)
    manifest = pod("it", migrations.namespace, SLEEP, stage.source, **case.spec)
    manifest["spec"]["containers"][0].update(case.container)
    control_plane = kubectl.list("nodes", labels="node-role.kubernetes.io/control-plane")[0]["metadata"]["name"]
    names = {"SOURCE": stage.source, "CONTROL-PLANE": control_plane}
    ask: Spec = {"podName": "it", "target": {"nodeName": stage.target}, **case.ask}
    if ask["target"].get("nodeName") in names:
        ask["target"] = {"nodeName": names[ask["target"]["nodeName"]]}
    before = migrations.run_pod(manifest)
    with schedulable(kubectl, nodes):
        case.prepare(stage)
        before = same(migrations.pod("it"))
        migrations.start("move", ask.pop("podName"), **ask)
        found = refused(migrations, "move")
        assert case.reason in found
        assert names.get(case.words, case.words) in found[case.reason]
        assert case.reason.remedy in found[case.reason]
        assert same(migrations.pod("it")) == before


def test_a_pod_that_does_not_run(migrations: Migrations, nodes: tuple[str, str]) -> None:
    migrations.kubectl.apply(pod("it", migrations.namespace, ["false"], nodes[0], restartPolicy="Never"))
    wait_for("its end", lambda: (migrations.pod("it") or {}).get("status", {}).get("phase") == "Failed", seconds=30)
    migrations.start("move", "it", target={"nodeName": nodes[1]})
    assert "pod it is Failed" in refused(migrations, "move")[Why.POD_NOT_RUNNING]


def test_a_pod_with_an_owner(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    template = pod("owned", migrations.namespace, SLEEP, nodes[0])
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
    before = same(migrations.running(name))
    migrations.start("move", name, target={"nodeName": nodes[1]})
    assert "ReplicaSet owned" in refused(migrations, "move")[Why.POD_OWNED]
    assert same(migrations.pod(name)) == before


def test_everything_that_is_wrong_is_said_at_once(migrations: Migrations, nodes: tuple[str, str]) -> None:
    volumes = [{"name": "scratch", "hostPath": {"path": "/tmp"}}]
    it = pod("it", migrations.namespace, SLEEP, nodes[0], hostNetwork=True, hostPID=True, volumes=volumes)
    migrations.run_pod(it)
    migrations.start("move", "it", target={"nodeName": nodes[0]}, freezeBudgetSeconds=1)
    found = refused(migrations, "move")
    assert set(found) == {Why.HOST_NAMESPACE, Why.VOLUME_CANNOT_MOVE, Why.TARGET_IS_SOURCE, Why.FREEZE_TOO_LONG}


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ({"podName": "other-namespace/it"}, "podName"),
        ({"podName": ""}, "podName"),
        ({"podName": "It"}, "podName"),
        ({"podName": "it", "freezeBudgetSeconds": "10s"}, "freezeBudgetSeconds"),
        ({"podName": "it", "freezeBudgetSeconds": 0}, "freezeBudgetSeconds"),
        ({"podName": "it", "deadlineSeconds": 1}, "deadlineSeconds"),
        ({"podName": "it", "ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished"),
        ({"podName": "it", "containers": []}, "containers"),
        ({"podName": "it", "containers": ["main", "main"]}, "containers"),
        ({"podName": "it", "strategy": "Teleport"}, "strategy"),
        ({"podName": "it", "target": {"nodeName": "a b"}}, "nodeName"),
        ({"podName": "it", "nodeName": "node-b"}, "nodeName"),
    ],
)
def test_the_api_server_refuses_what_can_never_be_right(
    migrations: Migrations, spec: dict[str, Any], word: str
) -> None:
    manifest = migration("move", migrations.namespace, "it")
    manifest["spec"] = spec
    with pytest.raises(AssertionError, match=word):
        migrations.kubectl.apply(manifest)
    assert migrations.get("move") is None
