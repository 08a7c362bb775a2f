"""PreCopy: memory is copied while the container runs; frozen, only what has changed since is."""

from __future__ import annotations

import pytest

from migration_api.conditions import Reason
from support.cluster import SYSTEM, Kubectl, agents, condition, on_node, wait_for
from support.migration import Migrations
from support.pages import restarts, start, verified
from support.points import Points

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("clean_nodes")]

ALL_PAGES = 192 << 20


def rounds(kubectl: Kubectl, node: str, migration: str) -> int:
    """Return how often the source's agent has copied memory while it changed."""
    log = kubectl.logs(agents(kubectl)[node], SYSTEM)
    return sum(migration in line and "of memory copied while it runs" in line for line in log)


def test_every_page_is_right_after_a_move_and_after_a_second_one(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    start(migrations, nodes[0])
    name, source = "pages", nodes[0]
    for round_, node in enumerate((nodes[1], nodes[0])):
        migrations.start(f"move-{round_}", name, target={"nodeName": node}, strategy="PreCopy")
        it = migrations.succeeded(f"move-{round_}", seconds=120)
        status = it["status"]
        assert status["progress"]["bytesTotal"] > ALL_PAGES
        assert status["timings"]["filledAt"] >= status["timings"]["resumedAt"]
        assert rounds(kubectl, source, it["metadata"]["uid"]) >= 2
        name, source = status["target"]["podName"], node
        verified(migrations, name)
        assert restarts(migrations, name) == [0]


def test_given_up_while_memory_is_copied_nothing_has_stood_still(
    migrations: Migrations, nodes: tuple[str, str], points: Points
) -> None:
    start(migrations, nodes[0])
    points.arm(nodes[0], "source.round", "hang")
    migrations.start("move", "pages", target={"nodeName": nodes[1]}, strategy="PreCopy")
    points.reached(nodes[0], "source.round")
    migrations.kubectl(
        "patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}'
    )
    wait_for("the decision", lambda: (migrations.get("move") or {}).get("status", {}).get("decision"), seconds=30)
    points.clear()
    done = migrations.finished("move")
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    assert "frozenAt" not in done["status"].get("timings", {})
    verified(migrations, "pages")
    assert restarts(migrations, "pages") == [0]


@pytest.mark.parametrize("victim", ["source", "target"])
def test_i4_an_agent_that_dies_while_memory_is_copied_begins_anew(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], points: Points, victim: str
) -> None:
    start(migrations, nodes[0])
    points.arm(nodes[0], "source.round", "kill" if victim == "source" else "hang")
    migrations.start("move", "pages", target={"nodeName": nodes[1]}, strategy="PreCopy")
    points.reached(nodes[0], "source.round")
    if victim == "target":
        on_node(kubectl, nodes[1], "pkill -KILL -f '[c]ontainer-migration-agent'")
    points.clear()
    it = migrations.succeeded("move", seconds=150)
    name = it["status"]["target"]["podName"]
    verified(migrations, name)
    assert restarts(migrations, name) == [0]


@pytest.mark.parametrize("point", ["source.dumped", "target.held"])
def test_i2_given_up_when_it_stands_still_the_source_goes_on_with_every_page(
    migrations: Migrations, nodes: tuple[str, str], points: Points, point: str
) -> None:
    start(migrations, nodes[0])
    node = nodes[0] if point.startswith("source") else nodes[1]
    points.arm(node, point, "fail")
    migrations.start("move", "pages", target={"nodeName": nodes[1]}, strategy="PreCopy")
    done = migrations.finished("move")
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    verified(migrations, "pages")
    assert restarts(migrations, "pages") == [0]
