"""Where checkpoints lie meanwhile; and I4: both agents die in the middle of a transfer, which ends in success."""

from __future__ import annotations

import pytest

from support.cluster import SYSTEM, Kubectl, Manifest, agents, on_node, wait_for
from support.migration import Migrations
from support.workloads import ballast

MEBIBYTES = 1024
ENOUGH = 64
"""Chunks that have arrived when the target's agent is stopped; there are more than a thousand."""

AGENT = "pgrep -f '[c]ontainer-migration-agent$|[m]igration_agent.main' | head -1"


def kill_agent(kubectl: Kubectl, node: str) -> None:
    """Kill a node's agent in a moment: what runs in its pod, as this does, ends with it."""
    on_node(kubectl, node, f'pid=$({AGENT}); nohup sh -c "sleep 0.5; kill -KILL $pid" >/dev/null 2>&1 &')


def uid_of(migrations: Migrations) -> str:
    it = migrations.get("move")
    assert it is not None
    return it["metadata"]["uid"]


def receipts(kubectl: Kubectl, node: str, uid: str) -> int:
    path = f"/run/container-migration/images/{uid}/_receipts"
    return int(on_node(kubectl, node, f"wc -l < {path} 2>/dev/null || echo 0").strip())


def source_state(kubectl: Kubectl, node: str, uid: str) -> str:
    path = f"/var/lib/container-migration/migrations/{uid}/source.json"
    return on_node(kubectl, node, f'grep -o \'"state":"[A-Za-z]*"\' {path} || true').strip()


def ready_again(kubectl: Kubectl, node: str, before: Manifest) -> None:
    def restarted() -> bool:
        pod = kubectl.get("pod", agents(kubectl).get(node, "none"), SYSTEM)
        status = (pod or {}).get("status", {}).get("containerStatuses", [{}])[0]
        return bool(status.get("ready")) and status["restartCount"] > restarts(before)

    wait_for(f"the next life of the agent on {node}", restarted, seconds=60, every=0.2)


def restarts(pod: Manifest) -> int:
    return pod["status"]["containerStatuses"][0]["restartCount"]


@pytest.mark.testbed
def test_checkpoints_in_memory_have_large_pages_and_host_and_agent_see_the_same(
    kubectl: Kubectl, nodes: tuple[str, str]
) -> None:
    home = "/run/container-migration/images"
    look = f"grep ' {home} ' /proc/self/mountinfo"
    for node in nodes:
        on_host = on_node(kubectl, node, look).split()
        in_agent = kubectl.exec(agents(kubectl)[node], SYSTEM, "sh", "-c", look).split()
        assert on_host[2] == in_agent[2], "these are two file systems"
        assert "huge=within_size" in on_host[-1]
        assert {"nosuid", "nodev", "noexec"} <= set(on_host[5].split(","))


@pytest.mark.usefixtures("clean_nodes")
def test_i4_both_agents_are_killed_in_the_middle_of_a_transfer(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    source, target = nodes
    migrations.run_pod(ballast("ballast", migrations.namespace, source, MEBIBYTES))
    wait_for("the memory to be filled", lambda: "ready" in kubectl.logs("ballast", migrations.namespace), seconds=60)
    before = {node: kubectl.get("pod", agents(kubectl)[node], SYSTEM) for node in nodes}
    migrations.start("move", "ballast", target={"nodeName": target}, freezeBudgetSeconds=90)
    uid = uid_of(migrations)

    # Stopped in the middle it takes no more chunks, so that the dump is complete before the transfer is.
    stop = f"""
    for i in $(seq 3000); do
      [ "$(wc -l < /run/container-migration/images/{uid}/_receipts 2>/dev/null || echo 0)" -ge {ENOUGH} ] && break
      sleep 0.02
    done
    kill -STOP $({AGENT})"""
    on_node(kubectl, target, stop, timeout=90)
    there = receipts(kubectl, target, uid)
    assert ENOUGH <= there < MEBIBYTES, "the transfer was faster than the test; give it more to move"
    wait_for("the dump", lambda: "Dumped" in source_state(kubectl, source, uid), seconds=60, every=0.1)
    kill_agent(kubectl, source)
    kill_agent(kubectl, target)
    for node in nodes:
        it = before[node]
        assert it is not None
        ready_again(kubectl, node, it)

    done = migrations.succeeded("move")
    moved = done["status"]["target"]["podName"]
    migrations.running(moved)
    migrations.gone("ballast")
    lines = [line for line in kubectl.logs(moved, migrations.namespace) if line.isdigit()]
    assert lines, "the memory went on"
    progress = done["status"]["progress"]
    assert progress["chunksResumed"] >= there
    assert progress["chunksSent"] < MEBIBYTES
    assert progress["bytesDone"] == progress["bytesTotal"]
