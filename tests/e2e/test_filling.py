"""A large container runs before all of its memory is in place: no page is lost, and none is ever read as zeroes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations, pod

pytestmark = pytest.mark.timeout(300)

PROGRAM = """
import array, mmap, os, random, signal, sys
SIZE, PAGES, DROPPED = mmap.PAGESIZE, 192 * 256, 64
memory = mmap.mmap(-1, PAGES * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
expected = array.array("Q", range(1, PAGES + 1))

def held(page):
    return int.from_bytes(memory[page * SIZE : page * SIZE + 8], "little")

def write(page, value):
    memory[page * SIZE : page * SIZE + 8] = value.to_bytes(8, "little")
    expected[page] = value

def check(pages):
    for page in pages:
        if held(page) != expected[page]:
            print("page", page, "holds", held(page), "instead of", expected[page], flush=True)
            os._exit(1)

def drop(first):
    memory.madvise(mmap.MADV_DONTNEED, first * SIZE, DROPPED * SIZE)
    for page in range(first, first + DROPPED):
        expected[page] = 0

asked = False

def ask(*_):
    global asked
    asked = True

for page in range(PAGES):
    write(page, page + 1)
signal.signal(signal.SIGUSR1, ask)
print("ready", flush=True)
step = 0
while True:
    step += 1
    if asked:
        asked = False
        check(range(PAGES))
        print("verified", flush=True)
    for _ in range(20):
        page = random.randrange(PAGES)
        check([page])
        write(page, random.getrandbits(64))
    if step % 50 == 0:
        drop(random.randrange(PAGES - DROPPED))
    if step % 20 == 0:
        child = os.fork()
        if child == 0:
            check(random.sample(range(PAGES), 300))
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            print("a child found a wrong page", flush=True)
            os._exit(1)
    signal.sigtimedwait([], 0.0005)
"""
"""Fills 192 MiB, goes on changing it, drops some of it and forks, and checks every page that it touches."""


def start(migrations: Migrations, node: str) -> None:
    """Run the program."""
    migrations.run_pod(pod("pages", migrations.namespace, ["python3", "-c", PROGRAM], node))
    wait_for("192 MiB of pages", lambda: "ready" in migrations.kubectl.logs("pages", migrations.namespace), seconds=60)


def verified(migrations: Migrations, name: str) -> None:
    """Let the program check every page that it has."""
    log = Follower(name, migrations.namespace)
    migrations.kubectl.exec(name, migrations.namespace, "kill", "-USR1", "1")
    wait_for("the check of all pages", lambda: "verified" in log.lines, seconds=60)


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
        it = migrations.running(name)
        assert [container["restartCount"] for container in it["status"]["containerStatuses"]] == [0]


FAILPOINT = "/run/container-migration/failpoints/pager.filling"


@pytest.fixture
def hanging_server(kubectl: Kubectl, nodes: tuple[str, str]) -> Iterator[None]:
    """Let the page server at the target hang when all is restored: only what was asked for before is in place."""
    on_node(kubectl, nodes[1], f"mkdir -p {FAILPOINT.rpartition('/')[0]} && echo hang > {FAILPOINT}")
    yield
    on_node(kubectl, nodes[1], f"rm -rf {FAILPOINT.rpartition('/')[0]}")


@pytest.mark.testbed
@pytest.mark.usefixtures("clean_nodes", "hanging_server")
def test_a_container_crashes_rather_than_read_zeroes(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]
) -> None:
    start(migrations, nodes[0])
    migrations.start("move", "pages", target={"nodeName": nodes[1]})

    def filling() -> Manifest | None:
        it = migrations.get("move")
        return it if condition(it or {}, "Succeeded").get("reason") == "FillingMemory" else None

    name = wait_for("the container to run without its memory", filling, seconds=90)["status"]["target"]["podName"]
    on_node(kubectl, nodes[1], "pkill -KILL -f '[c]ontainer-migration-fill-server'")
    migrations.succeeded("move", seconds=120)

    def started_anew() -> Manifest | None:
        it = migrations.running(name)["status"]["containerStatuses"][0]
        return it if it["restartCount"] == 1 else None

    again = wait_for("the container's new start", started_anew, seconds=60)
    assert again["lastState"]["terminated"]["exitCode"] == 137
    before = kubectl.logs(name, migrations.namespace, "--previous")
    assert not [line for line in before if "holds" in line or "wrong" in line]
    assert on_node(kubectl, nodes[1], "pgrep -f '[c]ontainer-migration-fill' || echo none").strip() == "none"
