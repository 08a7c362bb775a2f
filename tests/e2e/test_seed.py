"""The behaviours of Podman's `container checkpoint --export` and `restore --import` that still hold, for pods."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_api.conditions import Reason
from migration_api.preflight_reasons import PreflightReason as Why
from support.archives import checkpointctl, tool
from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.kept import Kept
from support.migration import WORKLOAD, Migrations, pod
from support.several import COUNTER, Several, container, counters, follow, no_gap, pod_of
from support.stores import Folder
from support.workloads import Redis, counter

pytestmark = pytest.mark.usefixtures("clean_nodes")


def move(migrations: Migrations, name: str, node: str, **spec: object) -> str:
    """Move a pod to the node; return the moved pod's name."""
    migrations.start("move", name, target={"nodeName": node}, **spec)
    moved = migrations.succeeded("move")["status"]["target"]["podName"]
    migrations.running(moved)
    return moved


def refusal(migrations: Migrations) -> str:
    verdict = condition(migrations.finished("move"), "PreflightPassed")
    assert verdict["reason"] == "PreflightFailed"
    return verdict["message"]


MARKER = "a-marker-that-checkpointctl-must-find"


@pytest.mark.testbed
def test_s1_a_migrations_checkpoint_is_exported_as_an_archive(
    kept: Kept, nodes: tuple[str, str], folder: Folder, tmp_path: Path
) -> None:
    """The real checkpointctl reads it."""
    kubectl, migrations = kept.kubectl, kept.migrations
    redis = Redis(kubectl, migrations.namespace)
    redis.start(nodes[0], client_node=nodes[1])
    redis.fill("redis", mebibytes=16)
    redis.cli("redis", "SET", "marker", MARKER)
    status = kept.by_migration("move", "redis", nodes[1], transport=folder.transport)["status"]
    secret = kubectl.get("secret", status["keySecret"], migrations.namespace)
    assert secret is not None
    words = ("--volume", folder.on_nodes, "--uid", status["uid"], "--key-file", "/dev/stdin", "-")
    archive = tmp_path / "redis.tar"
    archive.write_bytes(tool(kubectl, "export", *words, stdin=secret["data"]["key"].encode()))

    shown = checkpointctl("show", archive)
    assert re.search(rf"main\s+{re.escape(WORKLOAD)}\s+[0-9a-f]{{12}}\s+runc\s+\S+\s+containerd\s+[\d.]+ MiB", shown)
    [inspected] = json.loads(checkpointctl("inspect", "--all", "--format", "json", archive))
    assert inspected["container_name"] == "main"
    assert inspected["process_tree"]["command"] == "redis-server"
    assert inspected["statistics"]["pages_written"] > 1000
    assert inspected["mounts"]
    assert inspected["sockets"]
    assert re.search(r"1\s+redis-server\s+[\d.]+ MiB", checkpointctl("memparse", archive))
    assert MARKER in checkpointctl("memparse", "--pid", "1", "--search", MARKER, "--context", "40", archive)


def test_s2_what_is_only_on_its_node_is_refused_by_name_and_what_is_not_moves(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    namespace = migrations.namespace
    settings: Manifest = {"apiVersion": "v1", "metadata": {"name": "settings", "namespace": namespace}}
    kubectl.apply({**settings, "kind": "ConfigMap", "data": {"key": "from the map"}})
    kubectl.apply({**settings, "kind": "Secret", "stringData": {"key": "from the secret"}})
    volumes: list[Manifest] = [
        {"name": "map", "configMap": {"name": "settings"}},
        {"name": "secret", "secret": {"secretName": "settings"}},
        {"name": "downward", "downwardAPI": {"items": [{"path": "key", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"name": "own", "emptyDir": {}},
    ]
    mounts = [{"name": it["name"], "mountPath": f"/{it['name']}"} for it in volumes]
    it = container("main", "bash", "-c", f"echo 'its own' > /own/key; {COUNTER}", volumeMounts=mounts)
    tied: Manifest = {"name": "tied", "hostPath": {"path": "/tmp"}}
    migrations.run_pod(pod_of("refused", namespace, nodes[0], it, volumes=[*volumes, tied]))
    migrations.start("move", "refused", target={"nodeName": nodes[1]})
    message = refusal(migrations)
    assert f"{Why.VOLUME_CANNOT_MOVE}: the volume tied (hostPath)" in message
    assert "the volume own" not in message
    kubectl("delete", "cmig", "move", "-n", namespace)

    migrations.run_pod(pod_of("moves", namespace, nodes[0], it, volumes=volumes))
    log = Follower("moves", namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    moved = move(migrations, "moves", nodes[1])
    read = kubectl.exec(moved, namespace, "sh", "-c", "cat /map/key /secret/key /own/key; echo; cat /downward/key")
    assert "from the map" in read
    assert "from the secret" in read
    assert "its own" in read
    assert read.splitlines()[-1] == moved, "the downward API tells of the pod that it is in"


def test_s3_the_pod_is_rebuilt_from_the_source_and_the_container_from_the_checkpoint(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    manifest = pod("rebuilt", migrations.namespace, ["bash", "-c", f"export AT=$RANDOM; {COUNTER}"], nodes[0])
    manifest["metadata"]["annotations"] = {"team": "shop"}
    manifest["spec"]["containers"][0] |= {
        "env": [{"name": "GREETING", "value": "hello"}],
        "workingDir": "/var",
        "resources": {"limits": {"memory": "64Mi"}},
        "ports": [{"containerPort": 80, "name": "web"}],
    }
    manifest["spec"]["tolerations"] = [{"key": "example.org/x", "operator": "Exists"}]
    before = migrations.run_pod(manifest)
    moved = move(migrations, "rebuilt", nodes[1])
    after = migrations.pod(moved)
    assert after is not None
    kept = ("env", "workingDir", "resources", "ports", "command", "image", "terminationMessagePath")
    old, new = before["spec"]["containers"][0], after["spec"]["containers"][0]
    assert {key: new.get(key) for key in kept} == {key: old.get(key) for key in kept}
    assert after["spec"]["tolerations"] == before["spec"]["tolerations"]
    assert after["metadata"]["labels"].items() >= before["metadata"]["labels"].items()
    assert after["metadata"]["annotations"]["team"] == "shop"
    environment = kubectl.exec(moved, migrations.namespace, "cat", "/proc/1/environ").split("\0")
    assert "GREETING=hello" in environment, "the process has its own environment, from the checkpoint"
    assert kubectl.exec(moved, migrations.namespace, "readlink", "/proc/1/cwd").strip() == "/var"


@pytest.fixture
def several(kubectl: Kubectl, migrations: Migrations) -> Several:
    return Several(kubectl, migrations)


SECOND_IMAGE = "localhost/container-migration/second:dev"


@pytest.fixture
def second_image(kubectl: Kubectl, nodes: tuple[str, str]) -> Iterator[str]:
    """An image that the first node has and the second lacks."""
    tag(kubectl, nodes[0])
    yield SECOND_IMAGE
    for node in nodes:
        on_node(kubectl, node, f"ctr -n k8s.io images rm {SECOND_IMAGE}; true")


def tag(kubectl: Kubectl, node: str) -> None:
    on_node(kubectl, node, f"ctr -n k8s.io images tag --force {WORKLOAD} {SECOND_IMAGE}")


def test_s4_the_images_of_all_containers_are_there_before_the_source_is_touched(
    several: Several, nodes: tuple[str, str], second_image: str
) -> None:
    """An image that the target cannot have costs the source nothing."""
    migrations, (source, target) = several.migrations, nodes
    one, two = (container(name, "bash", "-c", COUNTER) for name in ("one", "two"))
    migrations.run_pod(pod_of("it", migrations.namespace, source, one, {**two, "image": second_image}))
    logs = follow(several, "it", "one", "two")
    migrations.start("lacks", "it", target={"nodeName": target}, deadlineSeconds=15)
    done = migrations.finished("lacks")
    assert condition(done, "Succeeded")["reason"] == "RolledBack"
    assert "ErrImageNeverPull" in condition(done, "Succeeded")["message"], "the admin is not told why"
    assert "frozenAt" not in done["status"]["timings"], "the source was touched"
    tag(several.kubectl, target)
    migrations.start("move", "it", target={"nodeName": target})
    moved = migrations.succeeded("move")["status"]["target"]["podName"]
    migrations.running(moved)
    no_gap(several, logs, moved)
    assert len([name for name in several.init_statuses(moved) if name.startswith("migration-pull-")]) == 1
    assert several.restarts(moved) == {"one": 0, "two": 0}


def test_s5_the_source_can_be_left_running(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    before = migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    log = Follower("counter", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    copy = move(migrations, "counter", nodes[1], leaveSourceRunning=True)
    wait_for("ten numbers", lambda: len(kubectl.logs(copy, migrations.namespace)) >= 10, seconds=20)
    copied = [int(line) for line in kubectl.logs(copy, migrations.namespace)]
    assert copied == list(range(copied[0], copied[0] + len(copied)))
    assert copied[0] > 10, "the copy did not go on from where the source was"
    log.goes_on()
    after = migrations.running("counter")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]


REMOVE = """
f=/run/container-migration/images/{uid}/main/images/inventory.img
for i in $(seq 3000); do rm "$f" 2>/dev/null && echo removed && exit; sleep 0.01; done
"""


def test_s6_without_its_inventory_nothing_is_restored(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    log = Follower("counter", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    migrations.start("move", "counter", target={"nodeName": nodes[1]})
    it = migrations.get("move")
    assert it is not None
    removed = on_node(kubectl, nodes[1], REMOVE.format(uid=it["metadata"]["uid"]), timeout=60)
    assert removed.strip() == "removed", "the migration was faster than the test"
    done = migrations.finished("move")
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    count = len(log.lines)
    wait_for("the source to go on", lambda: len(log.lines) > count + 10, seconds=30)
    seen = [int(line) for line in log.stop()]
    assert seen == list(range(1, len(seen) + 1)), "the source has lost something"


def test_s7_nothing_is_restored_over_what_is_there(migrations: Migrations, nodes: tuple[str, str]) -> None:
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    there = migrations.run_pod(counter("there", migrations.namespace, nodes[1]))
    migrations.start("move", "counter", target={"nodeName": nodes[1], "podName": "there"})
    assert f"{Why.TARGET_NAME_TAKEN}: there is a pod there already" in refusal(migrations)
    after = migrations.running("there")
    assert after["metadata"]["uid"] == there["metadata"]["uid"]
    assert after["status"]["containerStatuses"] == there["status"]["containerStatuses"]


def test_s8_containers_that_share_a_network_move_together(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    several = Several(kubectl, migrations)
    migrations.run_pod(counters("pair", migrations.namespace, nodes[0], "one", "two"))
    logs = follow(several, "pair", "one", "two")
    moved = move(migrations, "pair", nodes[1])
    no_gap(several, logs, moved)
    spaces = {several.run(moved, it, "readlink /proc/1/ns/net /proc/1/ns/ipc") for it in ("one", "two")}
    assert len(spaces) == 1, "they are in two networks"


MOUNTS = 'awk \'$5 ~ "^/(given|masked|plain)" {split($6, o, ","); print $5, o[1], $7}\' /proc/1/mountinfo | sort'


def test_s9_mounts_come_back_with_their_options(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """Read-only, read-only in part, and a part of a volume; and how mounts spread."""
    volumes: list[Manifest] = [
        {"name": "given", "configMap": {"name": "kube-root-ca.crt"}},
        {"name": "own", "emptyDir": {}},
    ]
    mounts: list[Manifest] = [
        {"name": "given", "mountPath": "/given", "readOnly": True},
        {"name": "own", "mountPath": "/plain"},
        {"name": "own", "mountPath": "/masked", "readOnly": True, "subPath": "part"},
    ]
    it = container("main", "bash", "-c", f"echo kept > /plain/part/kept; {COUNTER}", volumeMounts=mounts)
    migrations.run_pod(pod_of("mounts", migrations.namespace, nodes[0], it, volumes=volumes))
    before = kubectl.exec("mounts", migrations.namespace, "sh", "-c", MOUNTS)
    assert "/masked ro" in before
    moved = move(migrations, "mounts", nodes[1])
    after = kubectl.exec(moved, migrations.namespace, "sh", "-c", MOUNTS)
    assert without_peers(after) == without_peers(before)
    assert kubectl.exec(moved, migrations.namespace, "cat", "/masked/kept").strip() == "kept"
    denied = kubectl("exec", moved, "-n", migrations.namespace, "--", "touch", "/masked/new", check=False)
    assert "Read-only file system" in denied.stderr


def without_peers(mounts: str) -> list[str]:
    """Peer groups have other numbers on another node; that there is one, and of which kind, counts."""
    return [line.split(":")[0] for line in mounts.splitlines()]


def test_s10_the_content_of_shared_memory_moves(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    script = f"mkdir /dev/shm/folder; echo kept > /dev/shm/folder/file; chmod 600 /dev/shm/folder/file; {COUNTER}"
    migrations.run_pod(pod("memory", migrations.namespace, ["bash", "-c", script], nodes[0]))
    moved = move(migrations, "memory", nodes[1])
    look = "stat -c '%a %s' /dev/shm/folder/file; cat /dev/shm/folder/file"
    assert kubectl.exec(moved, migrations.namespace, "sh", "-c", look).splitlines() == ["600 5", "kept"]
    it = migrations.pod(moved)
    assert json.dumps((it or {})["spec"].get("volumes", [])).count("/dev/shm") == 0
