"""Pods that a controller owns: it never notices, or the migration is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from migration_api.preflight_reasons import PreflightReason as Why
from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations, pod
from support.owners import live, watching, workload
from support.programs import Client, container, pod_of
from support.several import COUNTER
from support.table import Table

pytestmark = pytest.mark.timeout(300, func_only=True)  # not the making of `programs`


def pods_of(migrations: Migrations, name: str) -> list[Manifest]:
    return live(migrations.kubectl.list("pods", migrations.namespace, labels=f"app={name}"))


def ready_pods(migrations: Migrations, name: str, count: int) -> list[Manifest]:
    """Wait until there are exactly so many pods and all are ready."""

    def all_ready() -> list[Manifest] | None:
        pods = pods_of(migrations, name)
        ready = [it for it in pods if condition(it, "Ready").get("status") == "True"]
        return ready if len(ready) == len(pods) == count else None

    return wait_for(f"{count} ready pods of {name}", all_ready, seconds=90)


def name_of(it: Manifest) -> str:
    return it["metadata"]["name"]


def no_longer_pinned(template: Manifest) -> Manifest:
    """A template lets the scheduler choose."""
    return {key: value for key, value in template.items() if key != "nodeName"}


@pytest.fixture
def deployment(migrations: Migrations, nodes: tuple[str, str]) -> Manifest:
    """A Deployment of two counters."""
    template = no_longer_pinned(pod("web", migrations.namespace, ["bash", "-c", COUNTER], nodes[0])["spec"])
    return workload("Deployment", "web", migrations.namespace, template, replicas=2)


@pytest.mark.usefixtures("clean_nodes")
def test_a_pod_of_a_deployment_moves_and_its_replica_set_never_has_too_few(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], deployment: Manifest
) -> None:
    namespace = migrations.namespace
    kubectl.apply(deployment)
    pods = ready_pods(migrations, "web", 2)
    name, other = (name_of(it) for it in pods)
    expected = {name, other}
    with watching(kubectl, namespace, "app=web") as watch:
        for turn in range(2):
            log = Follower(name, namespace)
            wait_for("ten numbers", lambda log=log: len(log.lines) >= 10, seconds=20)
            it = migrations.pod(name)
            assert it is not None
            target = next(node for node in nodes if node != it["spec"]["nodeName"])
            migrations.start(f"move-{turn}", name, target={"nodeName": target})
            moved = migrations.succeeded(f"move-{turn}")["status"]["target"]["podName"]
            expected.add(moved)
            seen = log.numbers()
            wait_for("ten more", lambda moved=moved: len(kubectl.logs(moved, namespace)) >= 10, seconds=20)
            first = int(kubectl.logs(moved, namespace)[0])
            assert first == seen[-1] + 1, "the log has a gap or a repeat"
            assert {name_of(it) for it in ready_pods(migrations, "web", 2)} == {moved, other}
            name = moved
        wait_for("the ReplicaSet's count", lambda: replicas(kubectl, namespace) == (2, 2, 2), seconds=30)
    assert watch.names == expected, "a cold pod was created"
    assert watch.fewest == 2, "the ReplicaSet had too few pods for a moment"
    assert watch.fewest_ready == 2, "a Service would have found too few pods for a moment"
    owner = next(o for o in migrations.pod(name)["metadata"]["ownerReferences"] if o["controller"])  # type: ignore[index]
    assert owner["kind"] == "ReplicaSet"


def replicas(kubectl: Kubectl, namespace: str) -> tuple[int, int, int]:
    """Return how many pods the Deployment's only ReplicaSet has, how many are ready, how many it should have."""
    [it] = kubectl.list("replicasets", namespace, labels="app=web")
    return it["status"]["replicas"], it["status"].get("readyReplicas", 0), it["spec"]["replicas"]


@pytest.mark.usefixtures("clean_nodes")
def test_what_comes_later_is_as_if_nothing_had_happened(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], deployment: Manifest
) -> None:
    """Scale, restart and rollback of a Deployment whose pods have all been moved."""
    namespace = migrations.namespace
    kubectl.apply(deployment)
    moved: set[str] = set()
    for n, it in enumerate(ready_pods(migrations, "web", 2)):
        target = next(node for node in nodes if node != it["spec"]["nodeName"])
        migrations.start(f"move-{n}", name_of(it), target={"nodeName": target})
        moved.add(migrations.succeeded(f"move-{n}")["status"]["target"]["podName"])
    assert {name_of(it) for it in ready_pods(migrations, "web", 2)} == moved
    one = ("deployment/web", "-n", namespace)
    kubectl("scale", *one, "--replicas=3")
    assert moved < {name_of(it) for it in ready_pods(migrations, "web", 3)}
    kubectl("rollout", "restart", *one)
    kubectl("rollout", "status", *one, "--timeout=90s", timeout=100)
    assert not moved & {name_of(it) for it in ready_pods(migrations, "web", 3)}
    kubectl("rollout", "undo", *one)
    kubectl("rollout", "status", *one, "--timeout=90s", timeout=100)
    kubectl("scale", *one, "--replicas=1")
    ready_pods(migrations, "web", 1)


@pytest.mark.usefixtures("clean_nodes")
def test_an_abort_leaves_the_deployment_alone(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], deployment: Manifest
) -> None:
    namespace = migrations.namespace
    kubectl.apply(deployment)
    before = {name_of(it) for it in ready_pods(migrations, "web", 2)}
    [name, *_] = before
    with watching(kubectl, namespace, "app=web") as watch:
        migrations.start("move", name, target={"nodeSelector": {"no-node": "has-this"}})
        wait_for("the target pod", lambda: len(watch.names) == 3, seconds=30)
        kubectl("patch", "cmig", "move", "-n", namespace, "--type=merge", "-p", json.dumps({"spec": {"cancel": True}}))
        assert condition(migrations.finished("move"), "Succeeded")["reason"] == "RolledBack"
        assert {name_of(it) for it in ready_pods(migrations, "web", 2)} == before
    assert watch.fewest == 2


@pytest.mark.testbed
@pytest.mark.usefixtures("clean_nodes", "programs")
def test_a_deployment_under_traffic(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], table: Table
) -> None:
    """Two redis, of which one moves while a client adds to both through their Service: nothing acknowledged is lost."""
    namespace = migrations.namespace
    redis = container("main", "redis-server", "--save", "", "--protected-mode", "no")
    redis["readinessProbe"] = {"tcpSocket": {"port": 6379}, "periodSeconds": 1}
    template = no_longer_pinned(pod_of("redis", namespace, nodes[0], redis)["spec"])
    ports: Manifest = {"selector": {"app": "redis"}, "ports": [{"port": 6379}]}
    kubectl.apply(
        workload("Deployment", "redis", namespace, template, replicas=2),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "redis", "namespace": namespace},
            "spec": ports,
        },
    )
    it, other = ready_pods(migrations, "redis", 2)
    target = next(node for node in nodes if node != it["spec"]["nodeName"])
    client = Client(kubectl, migrations)
    client.start(target, "timeout 2 redis-cli -e -h redis rpush numbers NUMBER")
    client.goes_on(20)
    with watching(kubectl, namespace, "app=redis") as watch:
        migrations.start("move", name_of(it), target={"nodeName": target})
        done = migrations.succeeded("move")
        moved = done["status"]["target"]["podName"]
        ready_pods(migrations, "redis", 2)
        client.goes_on(50)
    told = client.stop()
    answers = [
        kubectl.exec(name, namespace, "redis-cli", "lrange", "numbers", "0", "-1").split()
        for name in (moved, name_of(other))
    ]
    assert all(answers), "both must have been written to"
    held = {int(number) for answer in answers for number in answer}
    assert set(told.numbers) <= held, "an acknowledged write is lost"
    assert watch.names == {name_of(it), name_of(other), moved}, "a cold pod was created"
    assert watch.fewest == 2
    result = (
        f"{len(told.numbers)} acknowledged writes, none lost; its ReplicaSet never had too few, no other pod was made"
    )
    table.add("Deployment under traffic", "one of two redis behind a Service", done, result)


SLEEP = ["sleep", "infinity"]
OWNERS: dict[str, tuple[dict[str, object], str]] = {
    "DaemonSet": ({}, "which runs its own pod on every node"),
    "Job": ({}, "which would take the end of the source pod for a failure of its work"),
    "ReplicaSet": ({"replicas": 1}, "which no Deployment owns: it would take the target pod for one too many"),
}


@pytest.mark.parametrize("kind", OWNERS)
def test_pods_of_others_are_refused(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], table: Table, kind: str
) -> None:
    spec, words = OWNERS[kind]
    template = no_longer_pinned(pod("it", migrations.namespace, SLEEP, nodes[0])["spec"])
    if kind == "Job":
        template["restartPolicy"] = "Never"
    kubectl.apply(workload(kind, "it", migrations.namespace, template, **spec))
    try:
        it = wait_for("a pod", lambda: next(iter(pods_of(migrations, "it")), None), seconds=30)
        before = migrations.running(name_of(it))
        refused_with(migrations, name_of(it), words)
        after = migrations.pod(name_of(it))
        assert after is not None
        assert after["metadata"]["uid"] == before["metadata"]["uid"]
        assert after["spec"] == before["spec"]
        table.refused(f"pod of a {kind}", f"{Why.POD_OWNED}: it belongs to a {kind}, {words}")
    finally:
        kubectl("delete", kind.lower(), "it", "-n", migrations.namespace, "--wait=true", timeout=90)


def refused_with(migrations: Migrations, name: str, words: str) -> None:
    migrations.start("move", name)
    verdict = condition(migrations.finished("move", seconds=30), "Succeeded")
    assert verdict["reason"] == "PreflightFailed"
    assert f"{Why.POD_OWNED}: " in verdict["message"]
    assert words in verdict["message"]
    assert Why.POD_OWNED.remedy in verdict["message"]


MANIFESTS = "/etc/kubernetes/manifests"


@pytest.fixture
def static_pod(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> Iterator[str]:
    """A pod that the kubelet starts from a file, as kubeadm's control plane."""
    it = pod("static", migrations.namespace, SLEEP, nodes[0])
    it["spec"].pop("nodeName")
    file = f"{MANIFESTS}/e2e-{migrations.namespace}.yaml"
    on_node(kubectl, nodes[0], f"mkdir -p {MANIFESTS}; echo '{json.dumps(it)}' > {file}")
    yield f"static-{nodes[0]}"
    on_node(kubectl, nodes[0], f"rm {file}")
    migrations.gone(f"static-{nodes[0]}")


def test_a_static_pod_is_refused(migrations: Migrations, static_pod: str) -> None:
    migrations.running(static_pod)
    refused_with(migrations, static_pod, "which the kubelet starts from a file")
