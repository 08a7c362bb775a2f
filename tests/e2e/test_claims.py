"""Claims: what many nodes can mount stays where it is and the pod moves; what only one can is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from migration_api.preflight_reasons import PreflightReason as Why
from support.claims import bind
from support.cluster import Kubectl, Manifest, condition, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.several import container, pod_of
from support.table import Table
from support.testbed import SHARED

WRITER = """
import itertools, time
log = open("/data/log", "a")
for n in itertools.count(1):
    print(n, file=log, flush=True)
    print(n, flush=True)
    time.sleep(0.1)
"""


@pytest.fixture
def claim(kubectl: Kubectl, namespace: str) -> Iterator[Callable[[str, str], str]]:
    """Return a function that binds a claim to a folder, and returns its name."""
    volumes: list[str] = []

    def make(folder: str, mode: str) -> str:
        volumes.append(bind(kubectl, "data", namespace, f"{folder}/{namespace}", mode))
        return "data"

    yield make
    kubectl("delete", "pods", "--all", "-n", namespace, "--grace-period=1", timeout=90)
    kubectl("delete", "persistentvolumeclaims", "--all", "-n", namespace, timeout=90)
    kubectl("delete", "persistentvolume", *volumes, timeout=90)


def writer(name: str, namespace: str, node: str, claim: str) -> Manifest:
    """Return a pod that writes 1, 2, 3, … into the claim and into its log."""
    mounts = [{"name": "data", "mountPath": "/data"}]
    volumes: list[Manifest] = [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]
    return pod_of(
        name, namespace, node, container("main", "python3", "-c", WRITER, volumeMounts=mounts), volumes=volumes
    )


@pytest.mark.testbed
@pytest.mark.usefixtures("clean_nodes")
def test_a_claim_that_many_nodes_mount_is_there_on_both_sides(
    kubectl: Kubectl,
    migrations: Migrations,
    nodes: tuple[str, str],
    table: Table,
    claim: Callable[[str, str], str],
) -> None:
    namespace = migrations.namespace
    migrations.run_pod(writer("writer", namespace, nodes[0], claim(SHARED, "ReadWriteMany")))
    log = Follower("writer", namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    migrations.start("move", "writer", target={"nodeName": nodes[1]})
    done = migrations.succeeded("move")
    moved = done["status"]["target"]["podName"]
    wait_for("ten more", lambda: len(kubectl.logs(moved, namespace)) >= 10, seconds=20)
    seen = log.numbers() + [int(line) for line in kubectl.logs(moved, namespace)]
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    written = [int(line) for line in kubectl.exec(moved, namespace, "cat", "/data/log").split()]
    assert written == list(range(1, len(written) + 1)), "the file in the volume has a gap or a repeat"
    assert len(written) >= len(seen)
    result = f"{len(written)} lines in one file, none missing or twice"
    table.add("program on a ReadWriteMany claim", "an open file on a volume of both nodes", done, result)


@pytest.mark.parametrize("mode", ["ReadWriteOnce", "ReadWriteOncePod"])
def test_a_claim_that_one_node_mounts_is_refused(
    migrations: Migrations, nodes: tuple[str, str], table: Table, claim: Callable[[str, str], str], mode: str
) -> None:
    before = migrations.run_pod(writer("writer", migrations.namespace, nodes[0], claim("/tmp", mode)))
    migrations.start("move", "writer", target={"nodeName": nodes[1]})
    verdict = condition(migrations.finished("move", seconds=30), "PreflightPassed")
    words = f"the volume data is the claim data ({mode}), which the target's node cannot mount"
    assert f"{Why.VOLUME_CANNOT_MOVE}: {words}" in verdict["message"]
    assert Why.VOLUME_CANNOT_MOVE.remedy in verdict["message"]
    after = migrations.running("writer")
    assert after["metadata"]["uid"] == before["metadata"]["uid"]
    table.refused(f"pod with a {mode} claim", f"{Why.VOLUME_CANNOT_MOVE}: only one node can mount it")
