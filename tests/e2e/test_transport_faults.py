"""Checkpoints that cannot travel, or not as usual: a volume that fills up, another key, files on the disk."""

from __future__ import annotations

import base64
import os
import re
import secrets
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from support.cluster import Kubectl, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.mounts import shared_tmpfs
from support.testbed import SHARED
from support.workloads import ballast

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

DISK_BYTES_PER_SECOND = 32 * 1024 * 1024
IN_MEMORY = "/run/container-migration/images"
"""The files can be looked at while they are there."""


@pytest.mark.usefixtures("clean_nodes")
def test_a_volume_that_becomes_full_is_said_and_the_source_goes_on(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """What the preflight puts there fits, the checkpoint does not."""
    path = f"{SHARED}/full-{secrets.token_hex(4)}"
    with shared_tmpfs(nodes, path, "size=16m,mode=0700"):
        migrations.run_pod(ballast("ballast", migrations.namespace, nodes[0], 48))
        log = Follower("ballast", migrations.namespace)
        wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=40)
        transport = {"type": "SharedVolume", "sharedVolume": {"path": path}}
        migrations.start("move", "ballast", target={"nodeName": nodes[1]}, transport=transport)
        done = migrations.finished("move")
        verdict = condition(done, "Succeeded")
        assert (verdict["status"], verdict["reason"]) == ("False", "RolledBack"), verdict["message"]
        assert condition(done, "Transferred")["reason"] == "TransferFailed"
        assert f"the shared volume {path} is full: free some of it, or make it larger" in verdict["message"]
        log.goes_on()
        for node in nodes:
            wait_for("an empty volume", lambda: not on_node(kubectl, node, f"find {path} -type f"), seconds=60)  # noqa: B023


@pytest.mark.usefixtures("clean_nodes")
def test_i6_a_target_with_another_key_refuses_the_checkpoint_and_the_source_goes_on(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    """The key in the target's memory is exchanged as soon as it is there."""
    source, target = nodes
    other = base64.b64encode(os.urandom(32)).decode()
    exchange = f"""
    cd /run/container-migration/shipping && for i in $(seq 600); do
      for f in *; do
        [ -e "$f" ] && sed -i 's#"key": "[^"]*"#"key": "{other}"#' "$f" && grep -q '{other}' "$f" && exit 0
      done
      sleep 0.05
    done; exit 1
    """
    migrations.run_pod(ballast("ballast", migrations.namespace, source, 16))
    log = Follower("ballast", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=40)
    with ThreadPoolExecutor() as pool:
        exchanged = pool.submit(on_node, kubectl, target, exchange)
        migrations.start("move", "ballast", target={"nodeName": target})
        done = migrations.finished("move")
        exchanged.result()
    verdict = condition(done, "Succeeded")
    assert (verdict["status"], verdict["reason"]) == ("False", "RolledBack"), verdict["message"]
    assert re.search(r"entry main/\S+, chunk \d+ is not authentic.* sealed with another key", verdict["message"])
    assert other not in str(done)
    log.goes_on()


@contextmanager
def small_memory(kubectl: Kubectl, nodes: tuple[str, str], mebibytes: int) -> Generator[None]:
    """Leave so much room where checkpoints lie in the nodes' memory."""
    sizes = {node: on_node(kubectl, node, f"findmnt -bno SIZE {IN_MEMORY}").strip() for node in nodes}
    resize = f"used=$(findmnt -bno USED {IN_MEMORY}) && mount -o remount,size=$((used + {mebibytes << 20})) {IN_MEMORY}"
    try:
        for node in nodes:
            on_node(kubectl, node, resize)
        yield
    finally:
        for node, size in sizes.items():
            on_node(kubectl, node, f"mount -o remount,size={size} {IN_MEMORY}")


@pytest.mark.usefixtures("clean_nodes")
def test_a_checkpoint_that_does_not_fit_into_memory_lies_on_the_disk_until_the_end(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    home = "/var/lib/container-migration/images"
    migrations.run_pod(ballast("ballast", migrations.namespace, source, 192))
    log = Follower("ballast", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=60)
    with small_memory(kubectl, nodes, 160):
        transport = {"type": "Direct", "bytesPerSecond": DISK_BYTES_PER_SECOND}
        migrations.start("move", "ballast", target={"nodeName": target}, transport=transport, freezeBudgetSeconds=55)
        for node in nodes:
            pages = f"find {home} -name 'pages-*.img' -size +1M"
            wait_for(f"memory on the disk of {node}", lambda: on_node(kubectl, node, pages), seconds=60)  # noqa: B023
            assert on_node(kubectl, node, f"find {home} -perm /077") == "", "I7: others can read it"
            assert on_node(kubectl, node, f"find {IN_MEMORY} -type f") == ""
        done = migrations.succeeded("move")
    said = condition(done, "TargetPrepared")["message"]
    for node in nodes:
        why = rf"Node {node}: the checkpoint may take \d+ MiB, and {IN_MEMORY} has \d+ MiB left: .* the disk"
        assert re.search(why, said)
        wait_for("nothing on the disk", lambda: on_node(kubectl, node, f"ls {home}") == "", seconds=30)  # noqa: B023
    moved = done["status"]["target"]["podName"]
    seen = [int(line) for line in log.finish() if line.isdigit()]
    wait_for("ten more", lambda: len(kubectl.logs(moved, migrations.namespace)) >= 10, seconds=20)
    seen += [int(line) for line in kubectl.logs(moved, migrations.namespace) if line.isdigit()]
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
