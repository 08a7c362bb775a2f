"""A program with 192 MiB of pages that it goes on changing, and checks whenever it touches one."""

from __future__ import annotations

from support.cluster import Manifest, condition, wait_for
from support.follower import Follower
from support.migration import Migrations, pod

PROGRAM = """
import array, ctypes, mmap, os, random, signal, sys
SIZE, PAGES, DROPPED, GUARDED = mmap.PAGESIZE, 192 * 256, 64, 256
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

guarded = mmap.mmap(-1, GUARDED * SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
guarded[:] = b"kept" * (GUARDED * SIZE // 4)

def protect(how):
    where = ctypes.addressof(ctypes.c_char.from_buffer(guarded))
    if ctypes.CDLL(None).mprotect(ctypes.c_void_p(where), GUARDED * SIZE, how):
        os._exit(1)

def check_guarded():
    protect(mmap.PROT_READ)
    if guarded[:] != b"kept" * (GUARDED * SIZE // 4):
        print("pages that nobody may touch were changed", flush=True)
        os._exit(1)
    protect(0)

protect(0)
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
        check_guarded()
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
"""Fills 192 MiB, goes on changing it, drops some of it and forks, and checks every page that it touches.

One MiB it has forbidden itself to touch, as collectors of garbage and guards of stacks do."""


def start(migrations: Migrations, node: str) -> None:
    """Run the program."""
    migrations.run_pod(pod("pages", migrations.namespace, ["python3", "-c", PROGRAM], node))
    wait_for("192 MiB of pages", lambda: "ready" in migrations.kubectl.logs("pages", migrations.namespace), seconds=60)


def verified(migrations: Migrations, name: str) -> None:
    """Let the program check every page that it has."""
    log = Follower(name, migrations.namespace)
    migrations.kubectl.exec(name, migrations.namespace, "kill", "-USR1", "1")
    wait_for("the check of all pages", lambda: "verified" in log.lines, seconds=60)


def running_because(migrations: Migrations, name: str, reason: str) -> Manifest:
    """Wait until a moved container runs without all of its memory, which that reason says."""

    def running() -> Manifest | None:
        it = migrations.get(name)
        return it if condition(it or {}, "Succeeded").get("reason") == reason else None

    return wait_for("the container to run without its memory", running, seconds=90)


def restarts(migrations: Migrations, name: str) -> list[int]:
    """Return how often each container of a pod was started again."""
    return [container["restartCount"] for container in migrations.running(name)["status"]["containerStatuses"]]
