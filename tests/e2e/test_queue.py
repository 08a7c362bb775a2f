"""Many migrations at once: the limits hold, the order holds, and no pod but the right ones is touched."""

from __future__ import annotations

import os
import time
from collections import Counter
from typing import Any

import pytest

from support.cluster import Kubectl, Manifest, condition, wait_for
from support.migration import Migrations, migration
from support.workloads import counter

CLUSTER, NODE = 5, 2
"""The chart's defaults."""

COUNT = int(os.environ.get("QUEUE_MIGRATIONS", "8"))
"""How many at once; more on a machine with time."""


def runs(it: Manifest) -> bool:
    begun = it.get("status", {}).get("source", {}).get("podUID")
    return bool(begun) and condition(it, "Succeeded").get("status") == "Unknown"


def check_limits(all_: list[Manifest]) -> None:
    running = [it for it in all_ if runs(it)]
    assert len(running) <= CLUSTER
    nodes = Counter(
        node
        for it in running
        for node in {it["status"]["source"]["nodeName"], it["spec"]["target"].get("nodeName", "")}
    )
    assert max(nodes.values(), default=0) <= NODE, nodes


@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("clean_nodes")
def test_many_at_once_run_in_order_and_within_the_limits(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    names = [f"c{number:02}" for number in range(COUNT)]
    where = {name: (nodes[i % 2], nodes[1 - i % 2]) for i, name in enumerate(names)}
    bystanders = ("still-a", "still-b")
    kubectl.apply(*(counter(name, migrations.namespace, where[name][0]) for name in names))
    kubectl.apply(*(counter(name, migrations.namespace, node) for name, node in zip(bystanders, nodes, strict=True)))
    uids = {name: migrations.running(name, 180)["metadata"]["uid"] for name in (*names, *bystanders)}
    counts = {name: int(kubectl.logs(name, migrations.namespace, tailLines="1")[0]) for name in names}

    queued: set[str] = set()

    def look() -> list[Manifest]:
        found = kubectl.list("cmig", migrations.namespace)
        check_limits(found)
        for it in found:
            verdict = condition(it, "PreflightPassed")
            if verdict.get("reason") == "Queued":
                assert "number " in verdict["message"], verdict
                queued.add(it["metadata"]["name"])
        return found

    def all_ended() -> list[Manifest] | None:
        found = look()
        return found if all(condition(it, "Succeeded").get("status") in {"True", "False"} for it in found) else None

    for name in names:  # an object's creation is known by the second
        last = time.time()
        kubectl.apply(migration(name, migrations.namespace, name, target={"nodeName": where[name][1]}))
        wait_for("the next second", lambda last=last: bool(look()) and time.time() > last + 1, seconds=5)

    ended = wait_for("the end of all migrations", all_ended, seconds=60 + 20 * COUNT, every=0.5)
    done: dict[str, Any] = {it["metadata"]["name"]: it for it in ended}
    for name, it in done.items():
        assert condition(it, "Succeeded")["reason"] == "Succeeded", (name, condition(it, "Succeeded"))
        assert it["status"]["source"]["podUID"] == uids[name]
    assert len(queued) >= COUNT // 2, "they did not wait"

    began = sorted(names, key=lambda n: done[n]["status"]["timings"]["admittedAt"])
    late = [n for i, n in enumerate(began) if abs(names.index(n) - i) >= NODE]  # those that run at once may overtake
    assert not late, f"overtaken: {late}; they began as {began}"

    for name in names:
        moved = migrations.running(done[name]["status"]["target"]["podName"])
        assert moved["spec"]["nodeName"] == where[name][1]
        assert moved["status"]["containerStatuses"][0]["restartCount"] == 0
        assert int(kubectl.logs(moved["metadata"]["name"], migrations.namespace, tailLines="1")[0]) > counts[name]
    for name in bystanders:
        it = migrations.running(name)
        assert it["metadata"]["uid"] == uids[name]
        assert it["status"]["containerStatuses"][0]["restartCount"] == 0
