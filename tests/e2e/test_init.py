"""Init containers and native sidecars: what has run does not run again, what runs moves with its state."""

from __future__ import annotations

import pytest

from support.cluster import Kubectl, Manifest, wait_for
from support.migration import Migrations
from support.several import COUNTER, Several, container, follow, in_a_new_sandbox, no_gap, pod_of

RESTRICTED = {
    "runAsNonRoot": True,
    "runAsUser": 12345,
    "readOnlyRootFilesystem": True,
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}
DATA = [{"name": "data", "mountPath": "/data"}]
VOLUMES: list[Manifest] = [{"name": "data", "emptyDir": {}}]


@pytest.fixture
def several(kubectl: Kubectl, migrations: Migrations) -> Several:
    return Several(kubectl, migrations)


def counter(name: str, **fields: object) -> Manifest:
    return container(name, "bash", "-c", COUNTER, volumeMounts=DATA, **fields)


def sidecar(name: str, **fields: object) -> Manifest:
    return counter(name, restartPolicy="Always", **fields)


def init(name: str, **fields: object) -> Manifest:
    """Return an init container that leaves a line with its name."""
    return container(name, "sh", "-c", f"umask 0; echo {name} >> /data/ran", volumeMounts=DATA, **fields)


def move(several: Several, pod: str, target: str, **spec: object) -> Manifest:
    several.migrations.start("move", pod, target={"nodeName": target}, **spec)
    return several.migrations.succeeded("move")


@pytest.mark.usefixtures("clean_nodes")
def test_init_containers_do_not_run_again(several: Several, nodes: tuple[str, str]) -> None:
    """Whatever they are confined to, the first sandbox of the target passes them without a line of theirs."""
    migrations, (source, target) = several.migrations, nodes
    they = [
        init("plain"),
        init("confined", securityContext=RESTRICTED),
        init("limited", resources={"requests": {"cpu": "5m"}, "limits": {"cpu": "50m", "memory": "16Mi"}}),
    ]
    manifest = pod_of("it", migrations.namespace, source, counter("main"), volumes=VOLUMES, initContainers=they)
    manifest["spec"]["securityContext"] = {"fsGroup": 12345}
    before = migrations.run_pod(manifest)["spec"]["initContainers"]
    ran = several.run("it", "main", "cat /data/ran")
    assert [line.split()[0] for line in ran.splitlines()] == ["plain", "confined", "limited"]
    logs = follow(several, "it", "main")
    done = move(several, "it", target)
    moved = done["status"]["target"]["podName"]
    made = migrations.running(moved)
    no_gap(several, logs, moved)
    assert several.run(moved, "main", "cat /data/ran") == ran, "an init container ran again"
    kept = ("name", "command", "securityContext", "resources")
    assert [{key: c.get(key) for key in kept} for c in made["spec"]["initContainers"]] == [
        {key: c.get(key) for key in kept} for c in before
    ]
    for name, status in several.init_statuses(moved).items():
        assert status["state"]["terminated"]["exitCode"] == 0, name
        assert status["restartCount"] == 0, name
    assert several.restarts(moved) == {"main": 0}


@pytest.mark.usefixtures("clean_nodes")
def test_in_a_later_sandbox_they_run_as_for_any_pod(several: Several, nodes: tuple[str, str]) -> None:
    """A sandbox that dies is remade by the kubelet: then everything of the pod starts afresh."""
    migrations, (source, target) = several.migrations, nodes
    manifest = pod_of(
        "it", migrations.namespace, source, counter("main"), volumes=VOLUMES, initContainers=[init("one")]
    )
    migrations.run_pod(manifest)
    done = move(several, "it", target)
    moved, uid = done["status"]["target"]["podName"], done["status"]["target"]["podUID"]
    migrations.running(moved)
    migrations.gone("it")
    assert len(several.run(moved, "main", "cat /data/ran").splitlines()) == 1
    in_a_new_sandbox(several, moved, target, uid)
    assert several.run(moved, "main", "cat /data/ran").split() == ["one", "one"]


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("names", [None, ["side", "main"], ["main"], ["side"]], ids=["all", "both", "main", "side"])
def test_a_sidecar_moves_with_its_state_or_starts_afresh(
    several: Several, nodes: tuple[str, str], names: list[str] | None
) -> None:
    """Among ordinary init containers, before and after it."""
    migrations, (source, target) = several.migrations, nodes
    they = [init("before"), sidecar("side"), init("after")]
    migrations.run_pod(
        pod_of("it", migrations.namespace, source, counter("main"), volumes=VOLUMES, initContainers=they)
    )
    moving = names or ["side", "main"]
    ran = several.run("it", "main", "cat /data/ran")
    logs = follow(several, "it", *moving)
    done = move(several, "it", target, **({"containers": names} if names else {}))
    moved = done["status"]["target"]["podName"]
    migrations.running(moved)
    migrations.gone("it")
    no_gap(several, logs, moved)
    for left in {"side", "main"} - set(moving):
        wait_for(f"numbers of {left}", lambda left=left: len(several.numbers(moved, left)) >= 10, seconds=20)
        assert several.numbers(moved, left)[:10] == list(range(1, 11)), "it did not start afresh"
    assert several.run(moved, "main", "cat /data/ran") == ran, "an init container ran again"
    assert {name: s["restartCount"] for name, s in several.init_statuses(moved).items()} == dict.fromkeys(
        ("before", "side", "after"), 0
    )
    assert several.restarts(moved) == {"main": 0}
