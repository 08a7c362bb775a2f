"""PostCopy: the container runs at the target while its memory is still in the frozen processes of the source."""

from __future__ import annotations

import pytest

from support.cluster import SYSTEM, Kubectl, Manifest, agents, condition, on_node, wait_for
from support.migration import Migrations, container_id, leftovers
from support.pages import restarts, running_because, start, verified
from support.points import FAILPOINTS

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("clean_nodes")]


def go_on(kubectl: Kubectl, node: str) -> None:
    """Let it go on."""
    on_node(kubectl, node, f"rm -f {FAILPOINTS}/pager.filling.hit")


def move_without_memory(migrations: Migrations, nodes: tuple[str, str]) -> Manifest:
    """Start the program, move it, and wait until it runs without its memory."""
    start(migrations, nodes[0])
    migrations.start("move", "pages", target={"nodeName": nodes[1]}, strategy="PostCopy")
    return running_because(migrations, "move", "MovingMemory")


def agents_restarts(kubectl: Kubectl) -> dict[str, int]:
    """Return how often each node's agent was restarted, of those that are ready."""
    found: dict[str, int] = {}
    for node, name in agents(kubectl).items():
        it = kubectl.get("pod", name, SYSTEM) or {}
        [status] = it.get("status", {}).get("containerStatuses", [{}])
        if status.get("ready"):
            found[node] = status["restartCount"]
    return found


def all_restarted(kubectl: Kubectl, before: dict[str, int]) -> bool:
    after = agents_restarts(kubectl)
    return all(after.get(node, 0) > count for node, count in before.items())


def test_every_page_is_right_while_memory_moves_and_after_a_second_move(
    migrations: Migrations, nodes: tuple[str, str]
) -> None:
    start(migrations, nodes[0])
    name = "pages"
    for round_, node in enumerate((nodes[1], nodes[0])):
        migrations.start(f"move-{round_}", name, target={"nodeName": node}, strategy="PostCopy")
        it = migrations.succeeded(f"move-{round_}", seconds=120)
        status = it["status"]
        assert status["timings"]["filledAt"] >= status["timings"]["resumedAt"]
        assert condition(it, "MemoryMoved")["status"] == "True"
        moved = status["progress"]["bytesTotal"]
        assert moved < 100 << 20, f"the checkpoint has {moved} bytes: the memory did not stay"
        name = status["target"]["podName"]
        verified(migrations, name)
        assert restarts(migrations, name) == [0]


@pytest.mark.testbed
@pytest.mark.usefixtures("hanging_pager")
def test_the_source_stays_until_its_memory_has_moved_whoever_dies(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    it = move_without_memory(migrations, nodes)
    assert it["status"]["target"]["outcome"] == "Resumed"
    assert condition(it, "MemoryMoved")["status"] == "Unknown"
    before = agents_restarts(kubectl)
    for node in nodes:
        on_node(kubectl, node, "pkill -KILL -f '[c]ontainer-migration-agent'")
    wait_for("both agents to be back", lambda: all_restarted(kubectl, before) or None, seconds=60)
    assert migrations.pod("pages") is not None
    go_on(kubectl, nodes[1])
    status = migrations.succeeded("move", seconds=120)["status"]
    name = status["target"]["podName"]
    verified(migrations, name)
    assert restarts(migrations, name) == [0]
    migrations.gone("pages")


@pytest.mark.testbed
@pytest.mark.usefixtures("hanging_pager")
def test_a_source_that_dies_before_its_memory_has_moved_costs_the_state_and_says_so(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    name = move_without_memory(migrations, nodes)["status"]["target"]["podName"]
    source = container_id(migrations.pod("pages") or {})
    # Frozen by cgroup v1 a process dies only when it is thawed.
    thaw = f"runc --root /run/containerd/runc/k8s.io resume {source} || true"
    on_node(kubectl, nodes[0], f"pkill -KILL -f 'GUARDED = [m]map'; {thaw}")
    gone = "pgrep -f 'GUARDED = [m]map' > /dev/null || echo gone"  # until then its memory can be read
    wait_for("the source's processes to be dead", lambda: "gone" in on_node(kubectl, nodes[0], gone), seconds=30)
    go_on(kubectl, nodes[1])
    it = migrations.finished("move", seconds=120)
    assert condition(it, "Succeeded")["reason"] == "MemoryLost", condition(it, "Succeeded")
    assert nodes[0] in condition(it, "MemoryMoved")["message"]
    wait_for("the container's new start", lambda: restarts(migrations, name) == [1] or None, seconds=60)
    migrations.gone("pages")
    wait_for("nothing to be left", lambda: not leftovers(kubectl) or None, seconds=60)


@pytest.mark.testbed
def test_given_up_before_the_commit_the_source_goes_on_with_its_memory(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    start(migrations, nodes[0])
    on_node(kubectl, nodes[1], f"mkdir -p {FAILPOINTS} && echo fail > {FAILPOINTS}/interposer.prepared")
    try:
        migrations.start("move", "pages", target={"nodeName": nodes[1]}, strategy="PostCopy")
        it = migrations.finished("move")
    finally:
        on_node(kubectl, nodes[1], f"rm -rf {FAILPOINTS}")
    assert condition(it, "Succeeded")["reason"] == "RolledBack"
    assert condition(it, "MemoryMoved")["status"] == "False"
    verified(migrations, "pages")
    assert restarts(migrations, "pages") == [0]
