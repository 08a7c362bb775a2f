"""With the late gate the kubelet has done all but start the containers before the source stands still."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from support.cluster import SYSTEM, Kubectl, Manifest, condition, wait_for
from support.migration import Migrations
from support.several import COUNTER, Several, container, follow, in_a_new_sandbox, pod_of
from support.workloads import BALLAST

OPERATOR = "deployment/container-migration-operator"


@pytest.fixture
def several(kubectl: Kubectl, migrations: Migrations) -> Several:
    return Several(kubectl, migrations)


@pytest.fixture(scope="module")
def late(kubectl: Kubectl) -> Iterator[None]:
    """Every pod gets the late gate, as if it were large."""
    set_threshold(kubectl, "0")
    yield
    set_threshold(kubectl, "60")


def set_threshold(kubectl: Kubectl, seconds: str) -> None:
    kubectl("set", "env", OPERATOR, "-n", SYSTEM, f"LATE_GATE_SECONDS={seconds}")
    kubectl("rollout", "status", OPERATOR, "-n", SYSTEM, "--timeout=90s", timeout=100)


def late_gate(several: Several, pod: str) -> Manifest:
    [status] = [s for name, s in several.init_statuses(pod).items() if name.startswith("migration-late-gate-")]
    return status["state"]


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def counter(name: str, **fields: object) -> Manifest:
    return container(name, "bash", "-c", COUNTER, **fields)


@pytest.mark.usefixtures("clean_nodes", "late")
def test_all_moves_through_the_late_gate_and_back(several: Several, nodes: tuple[str, str]) -> None:
    """With an init container and a sidecar; the kubelet passes the gate only when the copy is complete."""
    migrations, there, back = several.migrations, *reversed(nodes)
    they = [container("before", "sh", "-c", "exit 0"), counter("side", restartPolicy="Always")]
    manifest = pod_of("it", migrations.namespace, back, counter("one"), counter("two"), initContainers=they)
    migrations.run_pod(manifest)
    pod, kept = "it", {"side": list[int](), "one": list[int](), "two": list[int]()}
    for journey, target in enumerate((there, back)):
        logs = follow(several, pod, *kept)
        migrations.start(f"move-{journey}", pod, target={"nodeName": target})
        done = migrations.succeeded(f"move-{journey}")
        moved, timings = done["status"]["target"]["podName"], done["status"]["timings"]
        ended = late_gate(several, moved)["terminated"]
        assert ended["exitCode"] == 0
        assert moment(ended["startedAt"]) <= moment(timings["frozenAt"]), "the freeze began before the gate was reached"
        second = timedelta(seconds=1)  # the kubelet drops the fraction
        assert moment(ended["finishedAt"]) + second > moment(timings["transferredAt"]), "I2: it opened too early"
        for name, log in logs.items():
            kept[name] += log.numbers()
        migrations.gone(pod)
        migrations.running(moved)
        pod = moved
    for name, seen in kept.items():
        wait_for(f"ten more of {name}", lambda name=name: len(several.numbers(pod, name)) >= 10, seconds=20)
        both = seen + several.numbers(pod, name)
        assert both == list(range(1, len(both) + 1)), f"the log of {name} has a gap or a repeat"
    assert len(several.init_statuses(pod)) == 3, "what the first move added is still there"


@pytest.mark.usefixtures("clean_nodes", "late")
def test_what_was_added_does_nothing_in_a_later_sandbox_too(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(pod_of("it", migrations.namespace, source, counter("main")))
    migrations.start("move", "it", target={"nodeName": target})
    done = migrations.succeeded("move")
    moved, uid = done["status"]["target"]["podName"], done["status"]["target"]["podUID"]
    migrations.running(moved)
    migrations.gone("it")
    in_a_new_sandbox(several, moved, target, uid)
    wait_for("numbers", lambda: len(several.numbers(moved, "main")) >= 10, seconds=20)
    assert several.numbers(moved, "main")[:3] == [1, 2, 3]


@pytest.mark.usefixtures("clean_nodes", "late")
def test_cancelled_at_the_late_gate_the_source_goes_on(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    ballast = container("ballast", "python3", "-c", BALLAST.format(mebibytes=768))
    migrations.run_pod(pod_of("heavy", migrations.namespace, source, counter("one"), ballast))
    wait_for("the memory to be filled", lambda: "ready" in several.log("heavy", "ballast"), seconds=60)
    migrations.start("move", "heavy", target={"nodeName": target})

    def frozen() -> bool:
        return bool((migrations.get("move") or {}).get("status", {}).get("timings", {}).get("frozenAt"))

    wait_for("the freeze", frozen, seconds=60, every=0.1)
    moved = (migrations.get("move") or {})["status"]["target"]["podName"]
    assert "running" in late_gate(several, moved), "it opened before the copy was complete"
    cancel = ("patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}')
    several.kubectl(*cancel)
    done = migrations.finished("move")
    assert condition(done, "Succeeded")["reason"] == "RolledBack"
    more = len(several.numbers("heavy", "one")) + 5
    wait_for("more", lambda: len(several.numbers("heavy", "one")) > more, seconds=20)
    seen = several.numbers("heavy", "one")
    assert seen == list(range(1, len(seen) + 1))
    assert several.restarts("heavy") == {"one": 0, "ballast": 0}
    migrations.gone(moved)
