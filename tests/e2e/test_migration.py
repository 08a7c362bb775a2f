"""The main job on a real cluster: what ran on one node goes on on the other, with its state."""

from __future__ import annotations

from typing import Any

import pytest

from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations, container_id
from support.workloads import Redis, counter

STEPS = ("PreflightPassed", "TargetPrepared", "Checkpointed", "Transferred", "Restored", "Committed", "SourceReleased")


def target_of(migration: Manifest) -> str:
    return migration["status"]["target"]["podName"]


def crash(kubectl: Kubectl, migrations: Migrations, pod: str) -> None:
    """Kill the container's first process from outside: from inside its PID namespace nobody can."""
    it = migrations.pod(pod)
    assert it is not None
    on_node(kubectl, it["spec"]["nodeName"], f"runc --root /run/containerd/runc/k8s.io kill {container_id(it)} KILL")


def numbers(lines: list[str]) -> list[int]:
    return [int(line) for line in lines if line.isdigit()]


@pytest.mark.usefixtures("clean_nodes")
def test_a_counter_goes_on_at_the_next_number(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    source, target = nodes
    before = migrations.run_pod(counter("counter", migrations.namespace, source))
    log = Follower("counter", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    migrations.start("move", "counter", target={"nodeName": target})
    done = migrations.succeeded("move")

    moved = target_of(done)
    assert done["status"]["decision"] == "Commit"
    assert done["status"]["target"]["outcome"] == "Resumed"
    assert done["status"]["source"] == {"nodeName": source, "podUID": before["metadata"]["uid"]}
    assert {step: condition(done, step).get("status") for step in STEPS} == dict.fromkeys(STEPS, "True")
    assert {c["observedGeneration"] for c in done["status"]["conditions"]} == {done["metadata"]["generation"]}
    assert float(done["status"]["timings"]["freezeSeconds"]) > 0
    assert done["metadata"].get("finalizers", []) == []

    after = migrations.running(moved)
    assert after["spec"]["nodeName"] == target
    assert after["status"]["containerStatuses"][0]["restartCount"] == 0
    migrations.gone("counter")
    seen = numbers(log.finish())
    wait_for("ten more", lambda: len(kubectl.logs(moved, migrations.namespace)) >= 10, seconds=20)
    seen += numbers(kubectl.logs(moved, migrations.namespace))
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    assert kubectl.exec(moved, migrations.namespace, "cat", "/tmp/kept").strip() == "kept"


@pytest.mark.usefixtures("clean_nodes")
def test_redis_keeps_every_key_and_every_acknowledged_write(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    redis = Redis(kubectl, migrations.namespace)
    redis.start(source, client_node=target)
    keys = redis.fill("redis", mebibytes=64)
    digest = redis.cli("redis", "DEBUG", "DIGEST-VALUE", "key:1", f"key:{keys - 1}")
    redis.write()
    wait_for("acknowledged writes", lambda: redis.acknowledged() > 100, seconds=30)
    migrations.start("move", "redis", target={"nodeName": target})
    done = migrations.succeeded("move")
    assert "TCP connections with others are closed" in condition(done, "Checkpointed")["message"]
    moved = target_of(done)
    acknowledged = redis.acknowledged()
    wait_for("the client to write on", lambda: redis.acknowledged() > acknowledged + 100, seconds=30)
    result: dict[str, Any] = redis.stop_and_check()

    assert result["lost"] == 0
    assert result["wrong"] == 0
    assert result["acknowledged"] > acknowledged
    assert int(redis.cli(moved, "EVAL", "return #redis.call('KEYS', 'key:*')", "0")) == keys
    assert redis.cli(moved, "DEBUG", "DIGEST-VALUE", "key:1", f"key:{keys - 1}") == digest


@pytest.mark.usefixtures("clean_nodes")
def test_there_and_back_again_three_times(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    migrations.run_pod(counter("traveller", migrations.namespace, nodes[0]))
    name, seen = "traveller", list[int]()
    for journey in range(6):
        log = Follower(name, migrations.namespace)
        wait_for("a number", lambda log=log: bool(log.lines), seconds=20)
        migrations.start(f"journey-{journey}", name, target={"nodeName": nodes[(journey + 1) % 2]})
        name = target_of(migrations.succeeded(f"journey-{journey}"))
        seen += numbers(log.finish())
    assert len(name) <= len("traveller-") + 10, "names must not grow"
    wait_for("a number", lambda: bool(kubectl.logs(name, migrations.namespace)), seconds=20)
    seen += numbers(kubectl.logs(name, migrations.namespace))
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"


@pytest.mark.usefixtures("clean_nodes")
def test_without_a_target_the_scheduler_picks_another_node(migrations: Migrations, nodes: tuple[str, str]) -> None:
    source, _ = nodes
    migrations.run_pod(counter("anywhere", migrations.namespace, source))
    migrations.start("move", "anywhere", target={"podName": "elsewhere"})
    done = migrations.succeeded("move")
    assert target_of(done) == "elsewhere"
    assert done["status"]["target"]["nodeName"] != source


@pytest.mark.usefixtures("clean_nodes")
def test_a_moved_container_that_crashes_starts_cold(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """Never the old image: that would be a resurrection of what the container has long left behind."""
    source, target = nodes
    migrations.run_pod(counter("mortal", migrations.namespace, source))
    wait_for("a few numbers", lambda: len(kubectl.logs("mortal", migrations.namespace)) > 20, seconds=20)
    migrations.start("move", "mortal", target={"nodeName": target})
    moved = target_of(migrations.succeeded("move"))
    crash(kubectl, migrations, moved)

    def restarted() -> Manifest | None:
        it = migrations.pod(moved)
        status = (it or {}).get("status", {}).get("containerStatuses", [{}])[0]
        return it if status.get("restartCount", 0) >= 1 and "running" in status.get("state", {}) else None

    wait_for("the restart", restarted, seconds=60)
    wait_for("a number", lambda: bool(kubectl.logs(moved, migrations.namespace)), seconds=20)
    assert numbers(kubectl.logs(moved, migrations.namespace))[0] == 1
