"""Pods of StatefulSets: they move under their own name, and their controller never notices."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from support.claims import bind
from support.cluster import SYSTEM, Kubectl, Manifest, agents, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.owners import workload
from support.points import Points
from support.programs import IMAGE
from support.several import COUNTER, Several, container
from support.table import Table
from support.testbed import SHARED

pytestmark = pytest.mark.timeout(300, func_only=True)

NAME = "web-0"
Applied = Callable[..., Manifest]


def stateful_set(namespace: str, *containers: Manifest, **spec: object) -> Manifest:
    template = {"terminationGracePeriodSeconds": 1, "containers": list(containers)}
    return workload("StatefulSet", "web", namespace, template, **{"replicas": 1, "serviceName": "web", **spec})


def headless(namespace: str, port: int) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": namespace},
        "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": port}]},
    }


def counter(name: str = "main") -> Manifest:
    return container(name, "bash", "-c", COUNTER)


def other(nodes: tuple[str, str], it: Manifest) -> str:
    return next(node for node in nodes if node != it["spec"]["nodeName"])


def counting(
    migrations: Migrations, kubectl: Kubectl, *containers: Manifest, **spec: object
) -> tuple[Manifest, Follower]:
    """Run a StatefulSet that counts, and follow its first pod's log."""
    kubectl.apply(stateful_set(migrations.namespace, *(containers or (counter(),)), **spec))
    wait_for("the pod", lambda: migrations.pod(NAME), seconds=60)
    it = migrations.running(NAME)
    log = Follower(NAME, migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    return it, log


def went_on(
    migrations: Migrations, kubectl: Kubectl, before: Manifest, log: Follower, *, created_again: bool = False
) -> Manifest:
    """Demand that the pod counts on from where it was, elsewhere; return it.

    The kubelet counts a container that it had to create twice as restarted, though the first never ran.
    """
    it = migrations.running(NAME)
    assert it["metadata"]["uid"] != before["metadata"]["uid"]
    seen = log.numbers()
    wait_for("ten more", lambda: len(kubectl.logs(NAME, migrations.namespace)) >= 10, seconds=30)
    moved = [int(line) for line in kubectl.logs(NAME, migrations.namespace)]
    assert moved[0] == seen[-1] + 1, "the log has a gap or a repeat"
    assert moved == list(range(moved[0], moved[0] + len(moved)))
    counts = [status["restartCount"] for status in it["status"]["containerStatuses"]]
    assert counts == [int(created_again)] * len(it["spec"]["containers"])
    assert (
        it["metadata"]["labels"]["controller-revision-hash"] == before["metadata"]["labels"]["controller-revision-hash"]
    )
    return it


def stays(migrations: Migrations, before: Manifest, log: Follower) -> None:
    """Demand that the very pod counts on without a gap, and that nothing pins the next one of its name."""
    lines = len(log.lines)
    wait_for("ten more", lambda: len(log.lines) >= lines + 10, seconds=30)
    assert log.numbers() == list(range(1, len(log.lines) + 1))
    after = migrations.pod(NAME)
    assert after is not None
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    starts_afresh(migrations, after)


def starts_afresh(migrations: Migrations, before: Manifest) -> Manifest:
    """Delete the pod and demand that its controller makes an ordinary one."""
    migrations.kubectl("delete", "pod", NAME, "-n", migrations.namespace, "--wait=true", timeout=90)

    def again() -> Manifest | None:
        it = migrations.pod(NAME)
        return it if it and it["metadata"]["uid"] != before["metadata"]["uid"] else None

    wait_for("the next pod", again, seconds=60)
    it = migrations.running(NAME)
    assert "containermigration.io/migration" not in it["metadata"].get("annotations", {})
    assert it["spec"].get("runtimeClassName") is None
    assert "nodeAffinity" not in it["spec"].get("affinity", {})
    return it


@pytest.mark.testbed
@pytest.mark.usefixtures("clean_nodes", "programs")
def test_a_redis_keeps_its_memory_its_name_and_its_ordinal(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], table: Table
) -> None:
    """There and back again, under a headless Service; then a rollout, a scale, as if nothing had happened."""
    namespace = migrations.namespace
    redis = {**container("main", "redis-server", "--save", "", "--protected-mode", "no"), "image": IMAGE}
    redis["readinessProbe"] = {"tcpSocket": {"port": 6379}, "periodSeconds": 1}
    kubectl.apply(headless(namespace, 6379), stateful_set(namespace, redis))
    wait_for("the pod", lambda: migrations.pod(NAME), seconds=60)
    it = first = migrations.running(NAME)

    def cli(*words: str) -> str:
        return kubectl.exec(NAME, namespace, "redis-cli", *words).strip()

    assert cli("set", "kept", "in memory") == "OK"
    run_id = next(line for line in cli("info", "server").splitlines() if line.startswith("run_id"))
    for turn in range(2):
        target = other(nodes, it)
        migrations.start(f"move-{turn}", NAME, target={"nodeName": target})
        done = migrations.succeeded(f"move-{turn}")
        it = migrations.running(NAME)
        assert it["spec"]["nodeName"] == target
        assert done["status"]["target"]["podUID"] == it["metadata"]["uid"]
        assert cli("get", "kept") == "in memory"
        assert run_id in cli("info", "server"), "another process answers"
        for label in ("controller-revision-hash", "apps.kubernetes.io/pod-index", "statefulset.kubernetes.io/pod-name"):
            assert it["metadata"]["labels"][label] == first["metadata"]["labels"][label]
        wait_for(
            "the Service to know it", lambda it=it: it["status"]["podIP"] in endpoints(kubectl, namespace), seconds=30
        )
        table.add("redis of a StatefulSet", "keys in memory, under its own name", done, "the same process answers")
    one = ("statefulset/web", "-n", namespace)
    kubectl("scale", *one, "--replicas=2")
    migrations.running("web-1")
    assert run_id in cli("info", "server"), "scaling restarted it"
    kubectl("rollout", "restart", *one)
    kubectl("rollout", "status", *one, "--timeout=120s", timeout=130)
    it = migrations.running(NAME)
    assert "containermigration.io/migration" not in it["metadata"].get("annotations", {})
    assert run_id not in cli("info", "server")
    kubectl("scale", *one, "--replicas=1")
    migrations.gone("web-1")


def endpoints(kubectl: Kubectl, namespace: str) -> set[str]:
    slices = kubectl.list("endpointslices", namespace, labels="kubernetes.io/service-name=web")
    none: list[Manifest] = []
    ends: list[list[Manifest]] = [it.get("endpoints") or none for it in slices]
    return {address for found in ends for end in found for address in end["addresses"]}


@pytest.mark.usefixtures("clean_nodes")
def test_a_node_is_found_when_none_is_named(kubectl: Kubectl, migrations: Migrations) -> None:
    before, log = counting(migrations, kubectl)
    migrations.start("move", NAME)
    migrations.succeeded("move")
    it = went_on(migrations, kubectl, before, log)
    assert it["spec"]["nodeName"] != before["spec"]["nodeName"]
    starts_afresh(migrations, it)


@pytest.mark.usefixtures("clean_nodes")
def test_several_containers_and_one_that_starts_afresh(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    before, log = counting(migrations, kubectl, counter(), counter("second"), counter("afresh"))
    migrations.start("move", NAME, target={"nodeName": other(nodes, before)}, containers=["main", "second"])
    migrations.succeeded("move")
    wait_for("all to run", lambda: migrations.running(NAME), seconds=30)
    went_on(migrations, kubectl, before, log)
    numbers = Several(kubectl, migrations).numbers
    assert numbers(NAME, "second")[0] > 1
    assert numbers(NAME, "afresh")[0] == 1


def stands_at(
    point: str, kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> tuple[Manifest, Follower]:
    """Run a StatefulSet that counts, and move its pod until the target's agent hangs at that point."""
    before, log = counting(migrations, kubectl)
    target = other(nodes, before)
    points.arm(target, point, "hang")
    migrations.start("move", NAME, target={"nodeName": target})
    points.reached(target, point)
    return before, log


def given_up(migrations: Migrations) -> None:
    wait_for("Abort", lambda: (migrations.get("move") or {})["status"].get("decision") == "Abort", seconds=30)


@pytest.mark.usefixtures("clean_nodes")
def test_i2_given_up_before_the_commit_the_source_goes_on_and_nothing_is_pinned(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    before, log = stands_at("target.commit", kubectl, migrations, nodes, points)
    wish = json.dumps({"spec": {"cancel": True}})
    kubectl("patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", wish)
    given_up(migrations)
    points.clear()
    assert condition(migrations.finished("move"), "Succeeded")["reason"] == "RolledBack"
    stays(migrations, before, log)


@pytest.mark.usefixtures("clean_nodes")
def test_a_source_that_is_deleted_before_the_commit_is_lost_as_ever(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    """What is created meanwhile is pinned, and never starts; then an ordinary pod comes."""
    stands_at("target.commit", kubectl, migrations, nodes, points)
    kubectl("delete", "pod", NAME, "-n", migrations.namespace, "--grace-period=0", "--force")
    given_up(migrations)
    points.clear()
    assert condition(migrations.finished("move"), "Succeeded")["reason"] == "SourceLost"
    an_ordinary_pod_comes(migrations)


def an_ordinary_pod_comes(migrations: Migrations) -> None:
    def ordinary() -> bool:
        it = migrations.pod(NAME)
        return it is not None and "containermigration.io/migration" not in it["metadata"].get("annotations", {})

    wait_for("an ordinary pod", ordinary, seconds=60)
    migrations.running(NAME)


AFTER_THE_COMMIT = [
    ("target", "target.bound"),
    ("source", "source.gave-its-name"),
    pytest.param("target", "target.committed", marks=pytest.mark.thorough),
    pytest.param("target", "target.held", marks=pytest.mark.thorough),
    pytest.param("source", "source.release", marks=pytest.mark.thorough),
]


@pytest.mark.parametrize(("side", "point"), AFTER_THE_COMMIT)
@pytest.mark.usefixtures("clean_nodes")
def test_i4_an_agent_is_killed_after_the_commit(  # noqa: PLR0917  # fixtures
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points, side: str, point: str
) -> None:
    before, log = counting(migrations, kubectl)
    target = other(nodes, before)
    node = target if side == "target" else before["spec"]["nodeName"]
    points.arm(node, point, "kill")
    migrations.start("move", NAME, target={"nodeName": target})
    migrations.succeeded("move", seconds=200)
    assert points.was_reached(node, point)
    went_on(migrations, kubectl, before, log, created_again=point == "target.held")
    fresh_agent(kubectl, node)


def fresh_agent(kubectl: Kubectl, node: str) -> None:
    """Let the next test find an agent that its kubelet starts again at once, were it killed."""
    old = agents(kubectl)[node]
    kubectl("delete", "pod", old, "-n", SYSTEM, "--wait=true", timeout=90)

    def ready() -> bool:
        name = agents(kubectl).get(node)
        return name is not None and condition(kubectl.get("pod", name, SYSTEM), "Ready").get("status") == "True"

    wait_for("the next agent", ready, seconds=90)


@pytest.mark.usefixtures("clean_nodes")
def test_i4_the_operator_is_killed_after_the_commit(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    before, log = stands_at("target.committed", kubectl, migrations, nodes, points)
    component = "app.kubernetes.io/component=operator"
    kubectl("delete", "pods", "-n", SYSTEM, "-l", component, "--grace-period=0", "--force")
    points.clear()
    migrations.succeeded("move")
    went_on(migrations, kubectl, before, log)


@pytest.mark.parametrize(
    "point",
    [
        "target.restore",
        pytest.param("target.bind", marks=pytest.mark.thorough),
    ],
)
@pytest.mark.usefixtures("clean_nodes")
def test_i4_a_pod_that_is_deleted_before_it_resumed_is_followed_by_the_next(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points, point: str
) -> None:
    before, log = stands_at(point, kubectl, migrations, nodes, points)
    second = migrations.pod(NAME)
    assert second is not None
    assert second["metadata"]["uid"] != before["metadata"]["uid"]
    kubectl("delete", "pod", NAME, "-n", migrations.namespace, "--grace-period=0", "--force")
    points.clear()
    done = migrations.succeeded("move", seconds=200)
    it = went_on(migrations, kubectl, before, log)
    assert it["metadata"]["uid"] != second["metadata"]["uid"]
    assert done["status"]["target"]["podUID"] == it["metadata"]["uid"]


@pytest.mark.thorough
@pytest.mark.usefixtures("clean_nodes")
def test_i4_a_pod_that_is_deleted_in_the_moment_in_which_it_resumes(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    """The agent has decided to let it go, and the kubelet is about to end it: who is faster is not said here.

    Either it has resumed, and the status says so: then it was a running pod that somebody deleted, and the next one
    starts afresh. Or it has not, and the next one goes on.
    """
    before, log = stands_at("target.resume", kubectl, migrations, nodes, points)
    second = migrations.pod(NAME)
    assert second is not None
    kubectl("delete", "pod", NAME, "-n", migrations.namespace, "--grace-period=0", "--force")
    points.clear()
    done = migrations.succeeded("move", seconds=200)
    if done["status"]["target"]["podUID"] != second["metadata"]["uid"]:
        went_on(migrations, kubectl, before, log)
        return
    an_ordinary_pod_comes(migrations)
    wait_for("numbers", lambda: kubectl.logs(NAME, migrations.namespace)[:2] == ["1", "2"], seconds=30)


@pytest.mark.usefixtures("clean_nodes")
def test_i2_the_object_forced_away_around_the_commit(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    """Nobody can tell any more whether Commit was written; but the source is asked, and has not given its name away."""
    before, log = stands_at("target.commit", kubectl, migrations, nodes, points)
    force_away(kubectl, migrations)
    points.clear()
    stays(migrations, before, log)


@pytest.mark.usefixtures("clean_nodes")
def test_i4_the_object_forced_away_when_the_name_is_given(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    """There is no way back: the pod that was created meanwhile goes on all the same."""
    before, log = stands_at("target.bound", kubectl, migrations, nodes, points)
    force_away(kubectl, migrations)
    points.clear()
    went_on(migrations, kubectl, before, log)


def force_away(kubectl: Kubectl, migrations: Migrations) -> None:
    kubectl("delete", "cmig", "move", "-n", migrations.namespace, "--wait=false")
    clear = json.dumps({"metadata": {"finalizers": None}})
    kubectl("patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", clear, check=False)
    wait_for("the object to be gone", lambda: migrations.get("move") is None, seconds=30)


@pytest.fixture
def volume(kubectl: Kubectl, namespace: str) -> Iterator[Callable[..., None]]:
    """Make the volume of the pod's claim in the folder that the nodes share."""
    volumes: list[str] = []

    def make(mode: str, **source: object) -> None:
        volumes.append(bind(kubectl, "data-web-0", namespace, f"{SHARED}/{namespace}", mode, **source))  # type: ignore[arg-type]

    yield make
    kubectl("delete", "statefulset", "web", "-n", namespace, "--ignore-not-found", timeout=90)
    kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=1", timeout=90)
    kubectl("delete", "persistentvolumeclaims", "--all", "-n", namespace, timeout=90)
    kubectl("delete", "persistentvolume", *volumes, timeout=90)


WRITER = "exec 3>>/data/log; " + COUNTER.replace("echo $i;", "echo $i; echo $i >&3;")


def writing(migrations: Migrations, kubectl: Kubectl, mode: str) -> tuple[Manifest, Follower]:
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    template: Manifest = {
        "metadata": {"name": "data"},
        "spec": {"accessModes": [mode], "storageClassName": "", "resources": {"requests": {"storage": "1Mi"}}},
    }
    writer = container("main", "bash", "-c", WRITER, **mounts)
    return counting(migrations, kubectl, writer, volumeClaimTemplates=[template])


@pytest.mark.testbed
@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("mode", ["ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"])
def test_its_claim_follows(  # noqa: PLR0917  # fixtures
    kubectl: Kubectl,
    migrations: Migrations,
    nodes: tuple[str, str],
    volume: Callable[..., None],
    table: Table,
    mode: str,
) -> None:
    """Those of one node, too, when the other can mount them: the source is gone by then."""
    on_disk(kubectl, nodes, migrations.namespace)
    volume(mode, nodes=nodes if mode != "ReadWriteMany" else ())
    before, log = writing(migrations, kubectl, mode)
    migrations.start("move", NAME, target={"nodeName": other(nodes, before)})
    done = migrations.succeeded("move")
    went_on(migrations, kubectl, before, log)
    written = [int(line) for line in kubectl.exec(NAME, migrations.namespace, "cat", "/data/log").split()]
    assert written == list(range(1, len(written) + 1)), "the file in the volume has a gap or a repeat"
    result = f"{len(written)} lines in one file, none missing or twice"
    table.add(f"pod of a StatefulSet with a {mode} claim", "an open file on its volume", done, result)


def on_disk(kubectl: Kubectl, nodes: tuple[str, str], name: str) -> None:
    """Make the directory that both nodes see."""
    on_node(kubectl, nodes[0], f"mkdir -p {SHARED}/{name}")
