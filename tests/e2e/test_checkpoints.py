"""Kept checkpoints: they outlive migration and pod, are restored as often as wanted, and go with their object."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from migration_agent.transport.chunks import blob_name
from migration_agent.transport.store import HOME
from support.archives import checkpointctl, tool
from support.cluster import Kubectl, Manifest, condition, wait_for
from support.kept import Kept
from support.migration import Migrations
from support.stores import Bucket, Folder
from support.workloads import Redis, counter

pytestmark = pytest.mark.testbed


def count(kubectl: Kubectl, namespace: str, pod: str) -> int:
    """Return where it is; the file is empty for a moment whenever it is written."""
    text = wait_for("a count", lambda: kubectl.exec(pod, namespace, "cat", "/tmp/count").strip() or None, seconds=10)
    return int(text)


def goes_on(kubectl: Kubectl, namespace: str, pod: str) -> None:
    before = count(kubectl, namespace, pod)
    wait_for(f"{pod} to go on", lambda: count(kubectl, namespace, pod) > before + 5, seconds=20)


def first_number(kubectl: Kubectl, namespace: str, pod: str) -> int:
    def found() -> int | None:
        numbers = [int(line) for line in kubectl.logs(pod, namespace) if line.isdigit()]
        return numbers[0] if numbers else None

    return wait_for(f"a number in the log of {pod}", found, seconds=20)


@pytest.mark.usefixtures("clean_nodes")
def test_a_kept_checkpoint_runs_on_two_nodes_when_migration_and_pod_are_gone(
    migrations: Migrations, kept: Kept, nodes: tuple[str, str], folder: Folder, tmp_path: Path
) -> None:
    """Through a volume. The archive that the tool makes of it is one that checkpointctl reads."""
    kubectl = kept.kubectl
    source, target = nodes
    migrations.run_pod(counter("counter", migrations.namespace, source))
    wait_for("some counting", lambda: count(kubectl, migrations.namespace, "counter") > 20, seconds=20)
    it = kept.by_migration("move", "counter", target, transport=folder.transport)
    name, status = it["metadata"]["name"], it["status"]
    moved = migrations.get("move")
    assert moved is not None
    uid = moved["metadata"]["uid"]
    assert (status["uid"], status["source"]["podName"]) == (uid, "counter")
    assert (status["source"]["nodeName"], status["source"]["containers"]) == (source, ["main"])
    progress = moved["status"]["progress"]
    assert status["sizeBytes"] == progress["bytesTotal"] == progress["bytesDone"] > 0
    assert status["images"][0]["container"] == "main"
    assert f"{HOME}/{uid}/manifest" in folder.content()
    last = first_number(kubectl, migrations.namespace, moved["status"]["target"]["podName"]) - 1

    kubectl("delete", "cmig", "move", "-n", migrations.namespace, "--wait=true")
    kubectl("delete", "pod", moved["status"]["target"]["podName"], "-n", migrations.namespace, "--wait=true")
    wait_for(
        "the migration's own key to be gone",
        lambda: kubectl.get("secret", f"migration-key-{uid}", migrations.namespace) is None,
        seconds=30,
    )
    for node in nodes:
        kept.restore(f"to-{node}", name, target={"nodeName": node})
    pods = {node: kept.restored(f"to-{node}") for node in nodes}
    for node, pod in pods.items():
        running = migrations.running(pod)
        assert running["spec"]["nodeName"] == node
        assert first_number(kubectl, migrations.namespace, pod) == last + 1, (
            "it goes on from the state in the checkpoint"
        )
        assert kubectl.exec(pod, migrations.namespace, "cat", "/tmp/kept").strip() == "kept"
        goes_on(kubectl, migrations.namespace, pod)
        progress = (migrations.get(f"to-{node}") or {})["status"]["progress"]
        assert progress["bytesDone"] == progress["bytesTotal"] == status["sizeBytes"]
        assert "secondsLeft" not in progress

    secret = kubectl.get("secret", status["keySecret"], migrations.namespace)
    assert secret is not None
    words = ("--volume", folder.on_nodes, "--uid", uid, "--key-file", "/dev/stdin", "-")
    (tmp_path / "counter.tar").write_bytes(tool(kubectl, "export", *words, stdin=secret["data"]["key"].encode()))
    [inspected] = json.loads(checkpointctl("inspect", "--all", "--format", "json", tmp_path / "counter.tar"))
    assert inspected["container_name"] == "main"

    kept.delete(name)
    assert not [path for path in folder.content() if uid in path]
    wait_for(
        "its key to go with it",
        lambda: kubectl.get("secret", status["keySecret"], migrations.namespace) is None,
        seconds=30,
    )


@pytest.mark.usefixtures("clean_nodes")
def test_a_redis_is_kept_in_a_bucket_and_restored_with_its_data_of_then(
    kubectl: Kubectl, migrations: Migrations, kept: Kept, nodes: tuple[str, str], bucket: Bucket
) -> None:
    source, target = nodes
    redis = Redis(kubectl, migrations.namespace)
    redis.start(source, client_node=target)
    keys = redis.fill("redis", mebibytes=16)
    redis.cli("redis", "SET", "answer", "42")
    it = kept.by_migration("move", "redis", target, transport=bucket.spec)
    moved = (migrations.get("move") or {})["status"]["target"]["podName"]
    redis.cli(moved, "SET", "answer", "43")
    kept.restore("again", it["metadata"]["name"], target={"nodeName": source})
    pod = kept.restored("again")
    assert redis.cli(pod, "GET", "answer") == "42"
    assert redis.cli(moved, "GET", "answer") == "43"
    assert int(redis.cli(pod, "DBSIZE")) == keys + 1
    kept.delete(it["metadata"]["name"])
    assert not bucket.objects()


def refusal(migrations: Migrations, name: str) -> str:
    done = migrations.finished(name)
    verdict = condition(done, "Succeeded")
    assert verdict["status"] == "False"
    return f"{verdict['reason']}: {verdict['message']}"


@pytest.mark.usefixtures("clean_nodes")
def test_what_is_damaged_or_has_no_key_is_refused_and_says_what_to_do(
    kubectl: Kubectl, migrations: Migrations, kept: Kept, nodes: tuple[str, str], folder: Folder
) -> None:
    source, target = nodes
    migrations.run_pod(counter("counter", migrations.namespace, source))
    it = kept.by_migration("move", "counter", target, transport=folder.transport)
    name, uid, key_secret = it["metadata"]["name"], it["status"]["uid"], it["status"]["keySecret"]
    chunk = folder.path / HOME / uid / blob_name("main/images/pages-1.img", 0)
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    kept.restore("damaged", name)
    said = refusal(migrations, "damaged")
    assert said.startswith("NotRestored: ")
    assert "entry main/images/pages-1.img, chunk 0 is not authentic" in said
    chunk.write_bytes(whole)

    secret = kubectl.get("secret", key_secret, migrations.namespace)
    assert secret is not None
    kubectl("delete", "secret", key_secret, "-n", migrations.namespace)
    kept.restore("no-key", name)
    said = refusal(migrations, "no-key")
    assert f"CheckpointKeyUnusable: there is no Secret {key_secret}" in said
    assert "create it anew from your copy" in said
    metadata = {key: secret["metadata"][key] for key in ("name", "namespace", "labels", "ownerReferences")}
    other = base64.b64encode(bytes(32)).decode()
    kubectl.apply({**secret, "metadata": metadata, "data": {"key": other}})
    kept.restore("wrong-key", name)
    said = refusal(migrations, "wrong-key")
    assert "the manifest is not authentic" in said
    kubectl("delete", "secret", key_secret, "-n", migrations.namespace)
    kubectl.apply({**secret, "metadata": metadata})
    kept.restore("right-key", name)
    kept.restored("right-key")

    grant(kubectl, migrations.namespace)
    done = kubectl(
        *("create", "-f", "-", f"--as=system:serviceaccount:{migrations.namespace}:default"),
        check=False,
        stdin=json.dumps(
            {
                "apiVersion": "containermigration.io/v1alpha1",
                "kind": "ContainerMigration",
                "metadata": {"name": "not-mine", "namespace": migrations.namespace},
                "spec": {"checkpointName": name},
            }
        ),
    )
    assert "must be allowed to create pods" in done.stderr


def grant(kubectl: Kubectl, namespace: str) -> None:
    """Let the namespace's default account create migrations, and nothing else."""
    words = ("-n", namespace, "--verb=create,get,list", "--resource=containermigrations.containermigration.io")
    kubectl("create", "role", "migrator", *words)
    kubectl(
        "create", "rolebinding", "migrator", "-n", namespace, "--role=migrator", f"--serviceaccount={namespace}:default"
    )


@pytest.mark.usefixtures("clean_nodes")
def test_a_store_that_is_gone_holds_no_object_for_ever(
    kubectl: Kubectl, migrations: Migrations, kept: Kept, nodes: tuple[str, str], folder: Folder
) -> None:
    source, target = nodes
    migrations.run_pod(counter("counter", migrations.namespace, source))
    name = kept.by_migration("move", "counter", target, transport=folder.transport)["metadata"]["name"]
    away = folder.path.with_name(f"{folder.path.name}-away")
    folder.path.rename(away)
    try:
        kept.delete(name)
        events = kubectl.list("events", migrations.namespace, fields="reason=NotRemoved")
        assert len(events) == 1
        assert "was not removed" in events[0]["message"]
        assert "mount it on this node" in events[0]["message"]
    finally:
        away.rename(folder.path)


def take(kubectl: Kubectl, namespace: str, name: str, **spec: object) -> None:
    kubectl.apply(
        {
            "apiVersion": "containermigration.io/v1alpha1",
            "kind": "ContainerCheckpoint",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        }
    )


@pytest.mark.usefixtures("clean_nodes")
def test_a_running_pod_s_checkpoint_is_taken_and_it_goes_on_without_a_gap(
    kubectl: Kubectl, migrations: Migrations, kept: Kept, nodes: tuple[str, str], folder: Folder
) -> None:
    """And of its series only as many and as young ones are kept as is said."""
    source, target = nodes
    before = migrations.run_pod(counter("counter", migrations.namespace, source))
    for number in range(3):
        here = count(kubectl, migrations.namespace, "counter")
        take(
            kubectl,
            migrations.namespace,
            f"c{number}",
            podName="counter",
            transport=folder.transport,
            retention={"count": 2},
        )
        it = kept.ready(f"c{number}")
        assert it["status"]["source"] == {
            "podName": "counter",
            "podUID": before["metadata"]["uid"],
            "nodeName": source,
            "containers": ["main"],
        }
        assert 0 < float(it["status"]["freezeSeconds"]) < 10
        goes_on(kubectl, migrations.namespace, "counter")
        assert count(kubectl, migrations.namespace, "counter") > here
    wait_for("the oldest to go", lambda: kept.get("c0") is None, seconds=30)
    assert kept.get("c1")
    assert len({path.split("/")[1] for path in folder.content()}) == 2

    kept.restore("again", "c1", target={"nodeName": target})
    pod = kept.restored("again")
    numbers = [int(line) for line in kubectl.logs("counter", migrations.namespace) if line.isdigit()]
    assert numbers == list(range(1, numbers[-1] + 1)), "no gap, no start from the beginning"
    assert first_number(kubectl, migrations.namespace, pod) in numbers, "the copy goes on from where the pod was then"
    running = migrations.pod("counter")
    assert running is not None
    assert running["status"]["containerStatuses"][0]["restartCount"] == 0

    take(
        kubectl,
        migrations.namespace,
        "young",
        podName="counter",
        transport=folder.transport,
        retention={"ageSeconds": 5, "count": 100},
    )
    wait_for("it to be taken and to go for its age", lambda: kept.get("young") is None, seconds=60)


@pytest.mark.usefixtures("clean_nodes")
def test_what_cannot_be_taken_says_why_and_an_object_that_is_deleted_meanwhile_leaves_nothing(
    kubectl: Kubectl, migrations: Migrations, kept: Kept, nodes: tuple[str, str], folder: Folder
) -> None:
    take(kubectl, migrations.namespace, "nobody", podName="nobody", transport=folder.transport)

    def verdict() -> Manifest | None:
        found = condition(kept.get("nobody"), "Ready")
        return found if found.get("status") == "False" else None

    refused = wait_for("the refusal", verdict, seconds=20)
    assert (refused["reason"], "PodNotFound" in refused["message"]) == ("NotTaken", True)

    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    slow = {**folder.transport, "bytesPerSecond": 65536}
    take(kubectl, migrations.namespace, "slow", podName="counter", transport=slow)
    wait_for("something in the store", lambda: any("-0000" in path for path in folder.content()), seconds=40)
    kept.delete("slow")
    goes_on(kubectl, migrations.namespace, "counter")
    wait_for("an empty store", lambda: not folder.content(), seconds=30)


def test_only_the_operator_says_what_is_stored_where(
    kubectl: Kubectl, migrations: Migrations, kept: Kept, folder: Folder
) -> None:
    """Whoever could would have others' data removed with his object, or a pod made as he likes."""
    foreign = {
        "apiVersion": "containermigration.io/v1alpha1",
        "kind": "ContainerCheckpoint",
        "metadata": {"name": "foreign", "namespace": migrations.namespace},
        "spec": {"migration": {"name": "move", "uid": "somebody-s"}, "transport": folder.transport},
    }
    done = kubectl("create", "-f", "-", "--dry-run=server", stdin=json.dumps(foreign), check=False)
    assert "only the migration operator makes the ContainerCheckpoint of a migration" in done.stderr
    take(kubectl, migrations.namespace, "nobody", podName="nobody", transport=folder.transport)
    pod = json.dumps({"status": {"pod": "{}", "uid": "somebody-s"}})
    words = ("patch", "ccp", "nobody", "-n", migrations.namespace, "--subresource=status", "--type=merge", "-p", pod)
    assert "only the migration operator writes the status" in kubectl(*words, check=False).stderr
    changed = json.dumps({"spec": {"podName": "another"}})
    words = ("patch", "ccp", "nobody", "-n", migrations.namespace, "--type=merge", "-p", changed)
    assert "spec.podName is immutable" in kubectl(*words, check=False).stderr
