"""The status as an admin, `kubectl wait` and GitOps tools see it on a real API server."""

from __future__ import annotations

import json

from support.cluster import SYSTEM, Kubectl, wait_for
from support.kstatus import kstatus
from support.migration import Migrations, pod
from support.workloads import counter

SLEEP = ["sleep", "infinity"]


def test_an_object_that_nobody_has_looked_at_is_in_progress(kubectl: Kubectl, migrations: Migrations) -> None:
    """The API server's own answer to the creation: no tool may take it for one that is done."""
    manifest = {
        "apiVersion": "containermigration.io/v1alpha1",
        "kind": "ContainerMigration",
        "metadata": {"name": "move", "namespace": migrations.namespace},
        "spec": {"podName": "nobody"},
    }
    created = json.loads(kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(manifest)).stdout)
    assert created["status"] == {"observedGeneration": -1}
    assert kstatus(created) == "InProgress"
    done = migrations.finished("move")
    assert kstatus(done) == "Failed"
    assert done["status"]["observedGeneration"] == 1


def test_a_success_for_admins_and_tools(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    source, target = nodes
    migrations.run_pod(counter("counter", migrations.namespace, source))
    migrations.start("move", "counter", target={"nodeName": target})
    here = ("-n", migrations.namespace)
    kubectl("wait", "cmig/move", *here, "--for=condition=Succeeded", "--timeout=90s", timeout=100)
    done = migrations.succeeded("move")
    assert kstatus(done) == "Current"
    timings = done["status"]["timings"]
    steps = ("startedAt", "preparedAt", "frozenAt", "dumpedAt", "transferredAt", "restoredAt", "resumedAt")
    moments = [timings[step] for step in (*steps, "completedAt")]
    assert len(set(moments)) == len(moments)
    progress = done["status"]["progress"]
    assert progress["bytesDone"] == progress["bytesTotal"] > 0
    head, row = kubectl("get", "cmig", "move", *here).stdout.splitlines()
    assert head.split() == ["NAME", "POD", "FROM", "TO", "PHASE", "FREEZE", "AGE"]
    assert row.split()[:6] == ["move", "counter", source, target, "Succeeded", timings["freezeSeconds"]]
    events = kubectl.list("events", migrations.namespace, fields="involvedObject.kind=ContainerMigration")
    assert {e["reason"] for e in events} == {"Committed", "Succeeded"}


def test_a_finished_migration_is_deleted_after_its_time_also_by_a_new_operator(
    kubectl: Kubectl, migrations: Migrations
) -> None:
    migrations.start("kept", "nobody")
    migrations.start("short", "nobody", ttlSecondsAfterFinished=0)
    migrations.finished("kept")
    wait_for("the end of its time", lambda: migrations.get("short") is None, seconds=30)
    migrations.start("later", "nobody", ttlSecondsAfterFinished=15)
    migrations.finished("later")
    kubectl("rollout", "restart", "deployment/container-migration-operator", "-n", SYSTEM)
    assert migrations.get("later") is not None
    wait_for("the end of its time", lambda: migrations.get("later") is None, seconds=90)
    assert migrations.get("kept") is not None


def test_an_unfinished_migration_does_not_expire(migrations: Migrations, nodes: tuple[str, str]) -> None:
    migrations.run_pod(pod("it", migrations.namespace, SLEEP, nodes[0]))
    nowhere = {"nodeSelector": {"no-node": "has-this"}}
    migrations.start("waiting", "it", target=nowhere, ttlSecondsAfterFinished=0)
    migrations.start("short", "nobody", ttlSecondsAfterFinished=0)
    wait_for("the other to expire", lambda: migrations.get("short") is None, seconds=30)
    assert migrations.get("waiting") is not None
    migrations.kubectl(
        *("patch", "cmig", "waiting", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}')
    )
    wait_for("its end, and then its expiry", lambda: migrations.get("waiting") is None, seconds=60)
