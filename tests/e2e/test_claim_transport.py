"""A checkpoint on its way through a claim, which small pods mount for the agents; nothing of all that stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from migration_agent.transport.store import HOME
from migration_api.names import LABEL_MOUNT
from migration_api.preflight_reasons import PreflightReason as Why
from migration_operator.mounts import CANDIDATES, Owner, mount_pod
from support.claims import bind
from support.cluster import SYSTEM, Kubectl, Manifest, condition, wait_for
from support.follower import Follower
from support.kept import Kept
from support.migration import WORKLOAD, Migrations
from support.stores import Folder, watching
from support.workloads import Redis, ballast, counter

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

CLAIM = "checkpoints"
SLOW = 4 * 1024 * 1024
TRANSPORT: dict[str, Any] = {"type": "SharedVolume", "sharedVolume": {"claim": CLAIM}}


@dataclass(frozen=True)
class Stage:
    """Where a case is played."""

    kubectl: Kubectl
    migrations: Migrations
    nodes: tuple[str, str]
    folder: Folder
    claim: Callable[..., None]


@pytest.fixture
def claim(kubectl: Kubectl, namespace: str, folder: Folder) -> Iterator[Callable[..., None]]:
    """Return a function that binds the claim to a directory of the nodes: unless told otherwise, to one they share."""
    volumes: list[str] = []

    def make(path: str = folder.on_nodes, mode: str = "ReadWriteMany", **more: str) -> None:
        volumes.append(bind(kubectl, CLAIM, namespace, path, mode, **more))

    yield make
    kubectl("delete", "cmig", "--all", "-n", namespace, "--wait=true", timeout=120)
    kubectl("delete", "persistentvolumeclaims", "--all", "-n", namespace, "--wait=true", timeout=90)
    for volume in volumes:
        kubectl("delete", "persistentvolume", volume, timeout=90)


@pytest.fixture
def stage(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], folder: Folder, claim: Callable[..., None]
) -> Stage:
    return Stage(kubectl, migrations, nodes, folder, claim)


def mounts(kubectl: Kubectl, namespace: str) -> list[Manifest]:
    found = kubectl("get", "pods", "-n", namespace, "-l", f"{LABEL_MOUNT}=true", "-o", "json").stdout
    return json.loads(found)["items"]


def none_left(kubectl: Kubectl, namespace: str, folder: Folder) -> None:
    wait_for("the pods that mount the claim to be gone", lambda: not mounts(kubectl, namespace), seconds=40)
    assert not folder.content(), "something was left in the claim"


def under_way(folder: Folder) -> bool:
    """Say whether chunks of a migration lie there."""
    return any("probe" not in name for name in folder.content())


@pytest.mark.usefixtures("clean_nodes")
def test_redis_moves_through_a_claim(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], folder: Folder, claim: Callable[..., None]
) -> None:
    source, target = nodes
    claim()
    redis = Redis(kubectl, migrations.namespace)
    redis.start(source, client_node=target)
    keys = redis.fill("redis", mebibytes=16)
    redis.write()
    wait_for("acknowledged writes", lambda: redis.acknowledged() > 100, seconds=30)
    transport = {**TRANSPORT, "bytesPerSecond": SLOW}
    with watching(folder.content) as seen:
        migrations.start("move", "redis", target={"nodeName": target}, transport=transport, freezeBudgetSeconds=55)
        wait_for("chunks in the claim", lambda: under_way(folder), seconds=60)
        found = mounts(kubectl, migrations.namespace)
        done = migrations.succeeded("move")
    none_left(kubectl, migrations.namespace, folder)
    moved, uid = done["status"]["target"]["podName"], done["metadata"]["uid"]
    result = redis.stop_and_check()
    assert (result["lost"], result["wrong"]) == (0, 0)
    assert int(redis.cli(moved, "EVAL", "return #redis.call('KEYS', 'key:*')", "0")) == keys
    assert done["status"]["transport"] == transport
    assert len([name for name in seen if f"{HOME}/{uid}/" in name]) > 3, "it did not travel through the claim"
    assert {pod["spec"]["nodeName"] for pod in found} == {source, target}
    assert {owner["uid"] for pod in found for owner in pod["metadata"]["ownerReferences"]} == {uid}


def test_without_a_target_the_scheduler_picks_a_node_that_has_it_mounted(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], folder: Folder, claim: Callable[..., None]
) -> None:
    claim()
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    migrations.start("move", "counter", transport=TRANSPORT)
    found = wait_for("pods that mount it", lambda: mounts(kubectl, migrations.namespace), seconds=40)
    assert len(found) <= CANDIDATES + 1
    assert migrations.succeeded("move")["status"]["target"]["nodeName"] != nodes[0]
    none_left(kubectl, migrations.namespace, folder)


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("accident", ["cancelled", "unmounted", "without an operator"])
def test_after_an_accident_nothing_is_left_either(stage: Stage, accident: str) -> None:
    kubectl, migrations, nodes, folder = stage.kubectl, stage.migrations, stage.nodes, stage.folder
    stage.claim()
    migrations.run_pod(ballast("ballast", migrations.namespace, nodes[0], 48))
    log = Follower("ballast", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=40)
    transport = {**TRANSPORT, "bytesPerSecond": SLOW}
    migrations.start("move", "ballast", target={"nodeName": nodes[1]}, transport=transport, freezeBudgetSeconds=55)
    wait_for("chunks in the claim", lambda: under_way(folder), seconds=60)
    match accident:
        case "cancelled":
            kubectl(
                "patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}'
            )
            done, words = migrations.finished("move"), "spec.cancel was set"
        case "unmounted":
            [pod] = [it for it in mounts(kubectl, migrations.namespace) if it["spec"]["nodeName"] == nodes[1]]
            kubectl("delete", "pod", pod["metadata"]["name"], "-n", migrations.namespace, "--wait=false")
            done, words = migrations.finished("move"), f"mounts the claim {CLAIM} on node {nodes[1]} is gone"
        case _:
            kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--wait=false")
            migrations.succeeded("move", seconds=180)
            none_left(kubectl, migrations.namespace, folder)
            return
    verdict = condition(done, "Succeeded")
    assert (verdict["status"], verdict["reason"]) == ("False", "RolledBack"), verdict["message"]
    assert words in verdict["message"]
    none_left(kubectl, migrations.namespace, folder)
    log.goes_on()


@pytest.mark.parametrize(
    ("reason", "words", "how"),
    [
        (Why.CLAIM_NOT_FOUND, f"there is no claim {CLAIM}", None),
        (Why.CLAIM_NOT_SHARED, f"the claim {CLAIM} has ReadWriteOnce, not ReadWriteMany", {"mode": "ReadWriteOnce"}),
        (Why.STORE_NOT_SHARED, "it sees another volume", {"path": "/tmp/not-shared"}),
        (Why.CLAIM_NOT_MOUNTED, "is not a directory", {"path": "/tmp/nowhere", "type_": "Directory"}),
    ],
    ids=lambda it: str(it) if isinstance(it, Why) else "",
)
def test_a_claim_that_is_refused(stage: Stage, reason: Why, words: str, how: dict[str, str] | None) -> None:
    kubectl, migrations, nodes, folder = stage.kubectl, stage.migrations, stage.nodes, stage.folder
    if how is not None:
        stage.claim(
            **{key: f"{value}-{migrations.namespace}" if key == "path" else value for key, value in how.items()}
        )
    before = migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    migrations.start("move", "counter", target={"nodeName": nodes[1]}, transport=TRANSPORT)
    verdict = condition(migrations.finished("move", seconds=120), "PreflightPassed")
    assert (verdict["status"], verdict["reason"]) == ("False", "PreflightFailed")
    assert f"{reason}: " in verdict["message"], verdict["message"]
    assert words in verdict["message"]
    assert reason.remedy in verdict["message"]
    none_left(kubectl, migrations.namespace, folder)
    after = migrations.running("counter")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert after["status"]["containerStatuses"] == before["status"]["containerStatuses"]


def unmounted(kubectl: Kubectl, namespace: str) -> None:
    wait_for("the pods that mount the claim to be gone", lambda: not mounts(kubectl, namespace), seconds=40)


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("how", ["kept by a migration", "taken of a running pod"])
def test_a_checkpoint_stays_in_a_claim_and_is_restored_until_it_is_deleted(
    stage: Stage, kept: Kept, folder: Folder, how: str
) -> None:
    kubectl, migrations, namespace = stage.kubectl, stage.migrations, stage.migrations.namespace
    source, target = stage.nodes
    stage.claim()
    migrations.run_pod(counter("counter", namespace, source))
    if how == "kept by a migration":
        it = kept.by_migration("move", "counter", target, transport=TRANSPORT)
    else:
        spec = {"podName": "counter", "transport": TRANSPORT}
        common = {"apiVersion": "containermigration.io/v1alpha1", "kind": "ContainerCheckpoint"}
        kubectl.apply({**common, "metadata": {"name": "now", "namespace": namespace}, "spec": spec})
        it = kept.ready("now")
    name = it["metadata"]["name"]
    unmounted(kubectl, namespace)
    assert f"{HOME}/{it['status']['uid']}/manifest" in folder.content()
    kept.restore("again", name, target={"nodeName": target})
    migrations.running(kept.restored("again"))
    unmounted(kubectl, namespace)
    assert f"{HOME}/{it['status']['uid']}/manifest" in folder.content(), "it is there for the next restore"
    kept.delete(name)
    none_left(kubectl, namespace, folder)


def test_a_checkpoint_that_is_not_taken_leaves_nothing_in_a_claim(stage: Stage, kept: Kept) -> None:
    """Its deadline ends it in the middle of the copy."""
    kubectl, migrations, namespace = stage.kubectl, stage.migrations, stage.migrations.namespace
    stage.claim()
    migrations.run_pod(ballast("ballast", namespace, stage.nodes[0], 48))
    slow = {**TRANSPORT, "bytesPerSecond": 1024 * 1024}
    spec = {"podName": "ballast", "transport": slow, "deadlineSeconds": 10, "freezeBudgetSeconds": 120}
    common = {"apiVersion": "containermigration.io/v1alpha1", "kind": "ContainerCheckpoint"}
    kubectl.apply({**common, "metadata": {"name": "now", "namespace": namespace}, "spec": spec})

    def refused() -> bool:
        return condition(kept.get("now"), "Ready").get("status") == "False"

    wait_for("the deadline", refused, seconds=60)
    assert "spec.deadlineSeconds" in condition(kept.get("now"), "Ready")["message"]
    none_left(kubectl, namespace, stage.folder)


def test_the_pods_that_mount_it_are_admitted_where_the_rules_are_strict(
    kubectl: Kubectl, namespace: str, nodes: tuple[str, str]
) -> None:
    kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    owner = Owner("ContainerMigration", namespace, "move", "5f0c7c1e-0000-4000-8000-0000000000ff")
    manifest = mount_pod(owner, CLAIM, nodes[0], WORKLOAD)
    kubectl("apply", "--dry-run=server", "-f", "-", stdin=json.dumps(manifest))
