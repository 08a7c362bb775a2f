"""A large container runs before all of its memory is in place: no page is lost, and none is ever read as zeroes."""

from __future__ import annotations

import pytest

from support.cluster import Kubectl, Manifest, on_node, wait_for
from support.migration import Migrations
from support.pages import restarts, running_because, start, verified

pytestmark = pytest.mark.timeout(300)


@pytest.mark.usefixtures("clean_nodes")
def test_every_page_is_right_while_memory_is_filled_in_and_after_a_second_move(
    migrations: Migrations, nodes: tuple[str, str]
) -> None:
    start(migrations, nodes[0])
    name = "pages"
    for round_, node in enumerate((nodes[1], nodes[0])):
        migrations.start(f"move-{round_}", name, target={"nodeName": node})
        status = migrations.succeeded(f"move-{round_}", seconds=120)["status"]
        assert status["timings"]["filledAt"] >= status["timings"]["resumedAt"]
        name = status["target"]["podName"]
        verified(migrations, name)
        assert restarts(migrations, name) == [0]


@pytest.mark.testbed
@pytest.mark.usefixtures("clean_nodes", "hanging_pager")
def test_a_container_crashes_rather_than_read_zeroes(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    start(migrations, nodes[0])
    migrations.start("move", "pages", target={"nodeName": nodes[1]})

    name = running_because(migrations, "move", "FillingMemory")["status"]["target"]["podName"]
    on_node(kubectl, nodes[1], "pkill -KILL -f '[c]ontainer-migration-fill-server'")
    migrations.succeeded("move", seconds=120)

    def started_anew() -> Manifest | None:
        it = migrations.running(name)["status"]["containerStatuses"][0]
        return it if it["restartCount"] == 1 else None

    again = wait_for("the container's new start", started_anew, seconds=60)
    assert again["lastState"]["terminated"]["exitCode"] == 137
    before = kubectl.logs(name, migrations.namespace, previous="true")
    assert not [line for line in before if "holds" in line or "wrong" in line]
    assert on_node(kubectl, nodes[1], "pgrep -f '[c]ontainer-migration-fill' || echo none").strip() == "none"
