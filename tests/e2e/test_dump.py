"""What only the dump finds out: all go on at the source, and the reason is a sentence, with CRIU's own lines."""

from __future__ import annotations

import pytest

from migration_api.conditions import Reason
from support.cluster import Manifest, condition, wait_for
from support.holders import HOLDS
from support.migration import WORKLOAD, Migrations, pod
from support.table import Table

VOLUME: Manifest = {"name": "data", "emptyDir": {}}


def holder(name: str, what: str, *arguments: str) -> Manifest:
    return {
        "name": name,
        "image": WORKLOAD,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", HOLDS[what], *arguments],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }


CASES: dict[str, tuple[tuple[Manifest, ...], str]] = {
    "io_uring": ((holder("main", "io_uring"),), "a program uses io_uring"),
    "userfaultfd": ((holder("main", "userfaultfd"),), "a device or another object of the kernel open"),
    "deleted file of 257 MiB": ((holder("main", "deleted file"),), "is larger than 256 MiB"),
    "socket between two containers": (
        (holder("main", "socket", "first"), holder("second", "socket", "second")),
        "a Unix socket in it is connected with one outside the container",
    ),
}


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("case", CASES)
def test_what_cannot_be_dumped_is_rolled_back_with_the_reason(
    migrations: Migrations, nodes: tuple[str, str], table: Table, case: str
) -> None:
    containers, sentence = CASES[case]
    names = [it["name"] for it in containers]
    manifest = pod("holder", migrations.namespace, [], nodes[0], containers=list(containers), volumes=[VOLUME])
    migrations.run_pod(manifest)
    kubectl, namespace = migrations.kubectl, migrations.namespace
    for name in names:
        wait_for(name, lambda name=name: kubectl.logs("holder", namespace, container=name) == ["ready"], seconds=30)
    migrations.start("move", "holder", target={"nodeName": nodes[1]})
    done = migrations.finished("move")
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    why = condition(done, "Checkpointed")
    assert why["reason"] == Reason.CHECKPOINT_FAILED
    assert sentence in why["message"]
    assert "(CRIU: " in why["message"]
    events = [
        it["message"]
        for it in kubectl.list("events", namespace)
        if it["involvedObject"]["name"] == "move" and it["type"] == "Warning"
    ]
    assert any(sentence in message and "Error (criu/" in message for message in events), events
    it = migrations.running("holder")
    assert {status["restartCount"] for status in it["status"]["containerStatuses"]} == {0}
    table.refused(f"program with a {case}" if case[0] in "ds" else f"program with {case}", sentence)
