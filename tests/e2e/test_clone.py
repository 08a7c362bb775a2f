"""A clone on a real cluster: the source goes on without a gap, and another pod goes on from the same moment."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint
from migration_api.preflight_reasons import PreflightReason as Why
from support.claims import bind
from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations, migration, pod
from support.owners import is_owned, watching, workload
from support.points import FAILPOINTS
from support.several import COUNTER
from support.stores import Folder
from support.workloads import Redis, ballast, counter

pytestmark = pytest.mark.usefixtures("clean_nodes")


def clone_of(migrations: Migrations, name: str, node: str, pod_name: str, **spec: object) -> None:
    target = {"nodeName": node, "podName": pod_name}
    migrations.start("clone", name, leaveSourceRunning=True, target=target, **spec)


def time_of(done: Manifest, name: str) -> datetime:
    return datetime.fromisoformat(done["status"]["timings"][name])


def numbers(lines: list[str]) -> list[int]:
    return [int(line) for line in lines if line.isdigit()]


def follow(name: str, namespace: str) -> Follower:
    log = Follower(name, namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=30)
    return log


def restarts(it: Manifest) -> int:
    return it["status"]["containerStatuses"][0]["restartCount"]


def written_at(kubectl: Kubectl, name: str, namespace: str) -> dict[int, datetime]:
    """Return when each number came, by the source node's clock."""
    lines = (line.split() for line in kubectl.logs(name, namespace, timestamps="true"))
    return {int(line[1]): datetime.fromisoformat(line[0]) for line in lines if line[1].isdigit()}


def test_source_and_clone_go_on_from_the_same_number(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    before = migrations.run_pod(counter("counter", migrations.namespace, source))
    log = follow("counter", migrations.namespace)
    clone_of(migrations, "counter", target, "copy")
    done = migrations.succeeded("clone")
    there = migrations.running("copy")
    assert there["spec"]["nodeName"] == target
    wait_for("ten numbers", lambda: len(kubectl.logs("copy", migrations.namespace)) >= 10, seconds=30)
    copied = numbers(kubectl.logs("copy", migrations.namespace))
    assert copied == list(range(copied[0], copied[0] + len(copied))), "the clone's log has a gap or a repeat"

    # The last number before the freeze is the clone's last, too: its first one comes at the source after the thaw.
    came = written_at(kubectl, "counter", migrations.namespace)
    frozen_at, thawed_at = time_of(done, "frozenAt"), time_of(done, "thawedAt")
    assert came[copied[0] - 1] <= thawed_at
    assert came[copied[0]] >= frozen_at
    assert time_of(done, "dumpedAt") <= thawed_at <= time_of(done, "transferredAt"), "it stood still for the transfer"
    assert thawed_at <= time_of(done, "restoredAt")
    freeze = float(done["status"]["timings"]["freezeSeconds"])
    assert freeze == pytest.approx((thawed_at - frozen_at).total_seconds(), abs=0.01)

    released = condition(done, "SourceReleased")
    assert (released["status"], released["reason"]) == ("True", Reason.LEFT_RUNNING)
    assert condition(done, "Checkpointed")["message"] == "The source goes on."
    after = migrations.running("counter")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    assert restarts(after) == restarts(there) == 0
    assert there["metadata"]["labels"]["containermigration.io/clone"] == "true"
    assert "app" not in there["metadata"]["labels"]

    migrations.start("move", "counter", target={"nodeName": target, "podName": "moved"})
    migrations.succeeded("move")
    seen = numbers(log.finish())
    wait_for("ten more", lambda: len(kubectl.logs("moved", migrations.namespace)) >= 10, seconds=30)
    seen += numbers(kubectl.logs("moved", migrations.namespace))
    assert seen == list(range(1, len(seen) + 1)), "the source's log has a gap or a repeat"
    assert restarts(migrations.running("copy")) == 0


def test_a_redis_keeps_its_clients_and_its_clone_has_every_key(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    redis = Redis(kubectl, migrations.namespace)
    redis.start(source, client_node=target)
    keys = redis.fill("redis", mebibytes=32)
    redis.write()
    wait_for("acknowledged writes", lambda: redis.acknowledged() > 100, seconds=30)
    clone_of(migrations, "redis", target, "redis-copy")
    done = migrations.succeeded("clone")
    assert "stay with it; the clone's are closed" in condition(done, "Checkpointed")["message"]
    copied = int(redis.cli("redis-copy", "DBSIZE"))
    acknowledged = redis.acknowledged()
    wait_for("the client to write on", lambda: redis.acknowledged() > acknowledged + 100, seconds=30)
    assert int(redis.cli("redis-copy", "DBSIZE")) == copied > keys, "somebody writes to the clone"
    assert int(redis.cli("redis-copy", "EVAL", "return #redis.call('KEYS', 'key:*')", "0")) == keys
    client = migrations.pod(redis.client)
    assert client is not None
    address = client["status"]["podIP"]
    assert address in redis.cli("redis", "CLIENT", "LIST")
    assert address not in redis.cli("redis-copy", "CLIENT", "LIST")
    result: dict[str, Any] = redis.stop_and_check()
    assert (result["lost"], result["wrong"]) == (0, 0)


def test_cancelled_in_mid_copy_the_source_never_notices(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    namespace = migrations.namespace
    migrations.run_pod(ballast("ballast", namespace, nodes[0], mebibytes=128))
    log = follow("ballast", namespace)
    clone_of(migrations, "ballast", nodes[1], "copy", transport={"type": "Direct", "bytesPerSecond": 4 << 20})

    def thawed() -> Manifest | None:
        it = migrations.get("clone")
        return it if (it or {}).get("status", {}).get("timings", {}).get("thawedAt") else None

    copying = wait_for("the source to go on", thawed, seconds=60)
    assert "transferredAt" not in copying["status"]["timings"]
    count = len(log.lines)
    wait_for("the source to count on", lambda: len(log.lines) > count + 10, seconds=20)
    migrations.start("another", "ballast", target={"nodeName": nodes[1]})
    refused = condition(migrations.finished("another"), "PreflightPassed")
    assert Why.ALREADY_MIGRATING in refused["message"]
    kubectl("patch", "cmig", "clone", "-n", namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}')
    done = migrations.finished("clone")
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    assert "transferredAt" not in done["status"]["timings"], "the copy was complete before it was cancelled"
    assert float(done["status"]["timings"]["freezeSeconds"]) < 15, "128 MiB at 4 MiB/s take 32 s"
    assert migrations.pod("copy") is None
    log.goes_on()
    assert restarts(migrations.running("ballast")) == 0


def test_an_agent_that_is_killed_right_after_the_thaw_goes_on(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], failpoints: None
) -> None:
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    log = follow("counter", migrations.namespace)
    on_node(kubectl, nodes[0], f"mkdir -p {FAILPOINTS} && echo kill > {FAILPOINTS}/{Failpoint.SOURCE_WENT_ON}")
    clone_of(migrations, "counter", nodes[1], "copy")
    done = migrations.succeeded("clone")
    hit = on_node(kubectl, nodes[0], f"ls {FAILPOINTS}")
    assert f"{Failpoint.SOURCE_WENT_ON}.hit" in hit
    assert done["status"]["timings"]["thawedAt"]
    migrations.running("copy")
    log.goes_on()
    assert restarts(migrations.running("counter")) == 0


@pytest.fixture
def failpoints(kubectl: Kubectl, nodes: tuple[str, str]) -> Iterator[None]:
    """Failpoints of the source node's agent; none stay."""
    yield
    on_node(kubectl, nodes[0], f"rm -rf {FAILPOINTS}")


def test_a_clone_of_a_deployment_s_pod_leaves_the_deployment_alone(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    template = pod("web", migrations.namespace, ["bash", "-c", COUNTER], nodes[0])["spec"]
    kubectl.apply(workload("Deployment", "web", migrations.namespace, template, replicas=1))
    kubectl("rollout", "status", "deployment/web", "-n", migrations.namespace, "--timeout=60s", timeout=70)
    [it] = kubectl.list("pods", migrations.namespace, labels="app=web")
    name = it["metadata"]["name"]
    log = follow(name, migrations.namespace)
    with watching(kubectl, migrations.namespace, "app=web") as watch:
        clone_of(migrations, name, nodes[1], "copy")
        migrations.succeeded("clone")
        copy = migrations.running("copy")
        log.goes_on()
    assert watch.names == {name}, "the Deployment made or lost a pod"
    assert watch.fewest == 1
    assert not is_owned(copy)
    deployment = kubectl.get("deployment", "web", migrations.namespace)
    assert deployment is not None
    assert deployment["status"]["readyReplicas"] == deployment["status"]["replicas"] == 1
    kubectl("delete", "deployment", "web", "-n", migrations.namespace, "--wait=true", timeout=90)
    assert restarts(migrations.running("copy")) == 0, "the clone belongs to nobody"


@pytest.mark.testbed
def test_what_cannot_be_cloned_is_refused_by_name(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], folder: Folder
) -> None:
    namespace = migrations.namespace
    volume = bind(kubectl, "data", namespace, folder.on_nodes, "ReadWriteMany")
    try:
        it = counter("writer", namespace, nodes[0])
        it["spec"]["volumes"] = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]
        it["spec"]["containers"][0]["volumeMounts"] = [{"name": "data", "mountPath": "/data"}]
        migrations.run_pod(it)
        clone_of(migrations, "writer", nodes[1], "copy")
        message = condition(migrations.finished("clone"), "PreflightPassed")["message"]
        assert f"{Why.SHARED_WRITERS}: the volume data is the claim data, which pod writer may write" in message
        same = migration("same", namespace, "writer", leaveSourceRunning=True, target={"podName": "writer"})
        with pytest.raises(AssertionError, match=r"spec.target.podName must not be spec.podName"):
            kubectl.apply(same)
    finally:
        kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=1", timeout=90)
        kubectl("delete", "persistentvolumeclaim", "data", "-n", namespace, timeout=90)
        kubectl("delete", "persistentvolume", volume, timeout=90)
