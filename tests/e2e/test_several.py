"""Several containers of one pod: frozen at one moment, restored together, committed together."""

from __future__ import annotations

import shlex
from datetime import datetime
from itertools import pairwise

import pytest

from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.several import COUNTER, Several, container, counters, follow, no_gap, pod_of
from support.workloads import BALLAST


@pytest.fixture
def several(kubectl: Kubectl, migrations: Migrations) -> Several:
    return Several(kubectl, migrations)


def target_of(migration: Manifest) -> str:
    return migration["status"]["target"]["podName"]


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("names", [("one", "two"), ("one", "two", "three")], ids=len)
def test_every_counter_goes_on_at_its_next_number(
    several: Several, nodes: tuple[str, str], names: tuple[str, ...]
) -> None:
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(counters("counters", migrations.namespace, source, *names))
    logs = follow(several, "counters", *names)
    migrations.start("move", "counters", target={"nodeName": target})
    done = migrations.succeeded("move")
    moved = target_of(done)
    assert migrations.running(moved)["spec"]["nodeName"] == target
    migrations.gone("counters")
    no_gap(several, logs, moved)
    assert several.restarts(moved) == dict.fromkeys(names, 0)
    assert float(done["status"]["timings"]["freezeSeconds"]) > 0
    assert condition(done, "Succeeded")["status"] == "True"


SHARED = """
import ctypes, mmap, os, sys, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
slot = ("first", "second").index(sys.argv[1])
memory = None
if sys.argv[2] == "attach":
    memory = (ctypes.c_long * 512).from_address(libc.shmat(libc.shmget(4242, 4096, 0o1666), None, 0))
path = "/dev/shm/counter"
if slot == 0:
    open(path + ".new", "wb").write(bytes(4096))
    os.rename(path + ".new", path)
while not os.path.exists(path):
    time.sleep(0.1)
mapped = mmap.mmap(os.open(path, os.O_RDWR), 4096)
kept = [open(f"/{kind}/{sys.argv[1]}", "a+") for kind in ("disk", "memory")]
n = 0
while True:
    n += 1
    if memory is not None:
        memory[0] = n
    mapped[slot * 8 : slot * 8 + 8] = n.to_bytes(8, "little")
    for file in kept:
        file.write(f"{n}\\n")
        file.flush()
    print(n, int.from_bytes(mapped[8 - slot * 8 : 16 - slot * 8], "little"), flush=True)
    time.sleep(0.05)
"""
"""Writes its count into shared memory and two volumes, and logs it with the other one's as /dev/shm has it."""

SYSTEM_V = """
import ctypes, time
libc = ctypes.CDLL(None)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
memory = (ctypes.c_long * 512).from_address(libc.shmat(libc.shmget(4242, 4096, 0), None, 0))
before = memory[0]
time.sleep(1)
print(before, memory[0])
"""
"""Run in another container: what it sees of the segment, twice."""


def sharers(namespace: str, node: str, *attach: str) -> Manifest:
    """Return a pod of two containers that share everything; those in `attach` have System V memory attached."""
    mounts = [{"name": kind, "mountPath": f"/{kind}"} for kind in ("disk", "memory")]
    volumes: list[Manifest] = [
        {"name": "disk", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]
    they = [
        container(it, "python3", "-c", SHARED, it, "attach" if it in attach else "no", volumeMounts=mounts)
        for it in ("first", "second")
    ]
    return pod_of("sharers", namespace, node, *they, volumes=volumes)


@pytest.mark.usefixtures("clean_nodes")
def test_what_the_containers_share_moves_with_them(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(sharers(migrations.namespace, source, "second"))
    several.run(
        "sharers",
        "first",
        "cd /disk; echo linked > a; ln a b; chown 1234:4321 a; chmod 640 a; truncate -s 64M holes; mkdir d;"
        "ln -s a d/s; touch -d '2020-01-02 03:04:05.123456789' a;"
        "echo there > /memory/there; echo plain > /dev/shm/plain",
    )
    look = "cd /disk; stat -c '%n %s %a %u:%g %h %y %N' a b holes d d/s; cat a /memory/there /dev/shm/plain"
    looked = several.run("sharers", "first", look)
    logs = {it: Follower("sharers", migrations.namespace, it) for it in ("first", "second")}
    wait_for("lines of both", lambda: all(len(log.lines) >= 40 for log in logs.values()), seconds=20)
    migrations.start("move", "sharers", target={"nodeName": target})
    moved = target_of(migrations.succeeded("move"))
    migrations.running(moved)

    assert several.run(moved, "second", look) == looked
    assert int(several.run(moved, "second", "du -k /disk/holes").split()[0]) < 1024, "the holes are gone"
    for name, log in logs.items():
        lines = [tuple(map(int, line.split())) for line in log.finish()]
        wait_for(f"more of {name}", lambda name=name: len(several.log(moved, name)) >= 20, seconds=20)
        lines += [tuple(map(int, line.split())) for line in several.log(moved, name)]
        own = [line[0] for line in lines]
        assert own == list(range(1, len(own) + 1)), f"the log of {name} has a gap or a repeat"
        assert lines[-1][1] > lines[len(lines) // 2][1], "/dev/shm is shared no more"
        assert all(a[1] <= b[1] for a, b in pairwise(lines)), "it went back"
        for kind in ("disk", "memory"):
            kept = [int(line) for line in several.run(moved, "first", f"cat /{kind}/{name}").split()]
            assert kept == list(range(1, len(kept) + 1)), f"the volume {kind} lost what {name} wrote"
    before, after = map(int, several.run(moved, "first", f"python3 -c '{SYSTEM_V}'").split())
    assert after > before > 0, "System V shared memory is shared no more"
    assert several.restarts(moved) == {"first": 0, "second": 0}


@pytest.mark.usefixtures("clean_nodes")
def test_system_v_memory_that_two_attach_is_refused_with_the_reason(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(sharers(migrations.namespace, source, "first", "second"))
    migrations.start("move", "sharers", target={"nodeName": target})
    done = migrations.finished("move")
    assert condition(done, "Succeeded")["reason"] == "RolledBack"
    assert "System V shared memory" in condition(done, "Checkpointed")["message"]
    assert several.restarts("sharers") == {"first": 0, "second": 0}


@pytest.mark.usefixtures("clean_nodes")
def test_one_container_keeps_its_volumes_too(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    script = f"echo kept > /data/kept; {COUNTER}"
    it = container("main", "bash", "-c", script, volumeMounts=[{"name": "data", "mountPath": "/data"}])
    volumes: list[Manifest] = [{"name": "data", "emptyDir": {}}]
    manifest = pod_of("keeper", migrations.namespace, source, it, volumes=volumes)
    migrations.run_pod(manifest)
    logs = follow(several, "keeper", "main")
    migrations.start("move", "keeper", target={"nodeName": target})
    moved = target_of(migrations.succeeded("move"))
    migrations.running(moved)
    no_gap(several, logs, moved)
    assert several.run(moved, "main", "cat /data/kept").strip() == "kept"
    assert on_node(several.kubectl, target, "ls /run/container-migration/images") == ""


LOOPBACK_SERVER = """
import socket
server = socket.create_server(("127.0.0.1", 7000))
connection, _ = server.accept()
lines = connection.makefile("rw")
expected = 0
for line in lines:
    expected += 1
    assert int(line) == expected, (line, expected)
    print(expected, flush=True)
    lines.write(line)
    lines.flush()
raise SystemExit("the connection was closed")
"""

LOOPBACK_CLIENT = """
import socket, time
while True:
    try:
        connection = socket.create_connection(("127.0.0.1", 7000))
        break
    except ConnectionRefusedError:
        time.sleep(0.1)
lines = connection.makefile("rw")
n = 0
while True:
    n += 1
    lines.write(f"{n}\\n")
    lines.flush()
    assert int(lines.readline()) == n
    print(n, flush=True)
    time.sleep(0.02)
"""


@pytest.mark.usefixtures("clean_nodes")
def test_a_connection_between_two_containers_goes_on(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    they = [
        container("server", "python3", "-c", LOOPBACK_SERVER),
        container("client", "python3", "-c", LOOPBACK_CLIENT),
    ]
    migrations.run_pod(pod_of("talkers", migrations.namespace, source, *they))
    logs = follow(several, "talkers", "server", "client")
    migrations.start("move", "talkers", target={"nodeName": target})
    moved = target_of(migrations.succeeded("move"))
    migrations.running(moved)
    no_gap(several, logs, moved)  # the programs themselves end at a lost or repeated message
    assert several.restarts(moved) == {"server": 0, "client": 0}


ORDERS = [("left", "one", "two"), ("one", "left", "two"), ("one", "two", "left")]


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("order", ORDERS, ids=["first", "middle", "last"])
def test_a_left_out_container_starts_afresh_after_the_commit(
    several: Several, nodes: tuple[str, str], order: tuple[str, ...]
) -> None:
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(counters("partly", migrations.namespace, source, *order))
    logs = follow(several, "partly", "one", "two")
    migrations.start("move", "partly", target={"nodeName": target}, containers=["two", "one"])
    done = migrations.succeeded("move")
    moved = target_of(done)
    migrations.running(moved)
    no_gap(several, logs, moved)
    wait_for("numbers of the one left out", lambda: len(several.numbers(moved, "left")) >= 10, seconds=20)
    assert several.numbers(moved, "left")[:10] == list(range(1, 11)), "it did not start afresh"
    first = several.kubectl.logs(moved, migrations.namespace, container="left", timestamps="true")[0].split()[0]
    assert moment(first) > moment(done["status"]["timings"]["restoredAt"]), "I3: it ran before the commit"
    assert several.restarts(moved) == dict.fromkeys(order, 0)


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def with_ballast(name: str, namespace: str, node: str) -> Manifest:
    """Return a pod whose second container takes seconds to copy and to restore."""
    ballast = container("ballast", "python3", "-c", BALLAST.format(mebibytes=768))
    return pod_of(name, namespace, node, container("one", "bash", "-c", COUNTER), ballast)


def goes_on(several: Several, pod: str, names: tuple[str, ...]) -> None:
    """At the source every container goes on with no gap and was not restarted."""
    for name in names:
        more = len(several.numbers(pod, name)) + 5
        wait_for("more", lambda name=name, more=more: len(several.numbers(pod, name)) > more, seconds=20)
        seen = several.numbers(pod, name)
        assert seen == list(range(1, len(seen) + 1)), f"the log of {name} has a gap or a repeat"
    assert several.restarts(pod) == dict.fromkeys(names, 0)


@pytest.mark.usefixtures("clean_nodes")
def test_cancelled_while_frozen_all_go_on(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(with_ballast("heavy", migrations.namespace, source))
    wait_for("the memory to be filled", lambda: "ready" in several.log("heavy", "ballast"), seconds=60)
    migrations.start("move", "heavy", target={"nodeName": target})
    runc = "runc --root /run/containerd/runc/k8s.io state"
    they = [several.container_id("heavy", name) for name in ("one", "ballast")]
    paused = "; ".join(f"{runc} {it} | grep -c paused" for it in they)
    frozen = wait_for(
        "the freeze", lambda: on_node(several.kubectl, source, f"{paused}; true").split() == ["1", "1"], seconds=60
    )
    assert frozen
    cancel = ("patch", "cmig", "move", "-n", migrations.namespace, "--type=merge", "-p", '{"spec":{"cancel":true}}')
    several.kubectl(*cancel)
    done = migrations.finished("move")
    assert done["status"]["decision"] == "Abort", "the copy was faster than the test; give it more to copy"
    assert condition(done, "Succeeded")["reason"] == "RolledBack"
    goes_on(several, "heavy", ("one", "ballast"))


KILL_WHEN_HELD = """
f=/var/lib/container-migration/tickets/{pod}/one.tree
for i in $(seq 3000); do
  if [ -e "$f" ]; then
    pid=$({victim}); kill -9 "$pid" && echo killed; exit
  fi
  sleep 0.02
done
"""
HELD_TREE = """sed 's/.*"initPID":\\([0-9]*\\).*/\\1/' "$f\""""
CONTAINERD = "systemctl show --property=MainPID --value containerd"


@pytest.mark.usefixtures("clean_nodes")
def test_killing_one_held_tree_loses_all_and_the_source_goes_on(several: Several, nodes: tuple[str, str]) -> None:
    """`one` returned early and is held while `ballast` is restored: nobody may run twice, nothing may be lost."""
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(with_ballast("heavy", migrations.namespace, source))
    wait_for("the memory to be filled", lambda: "ready" in several.log("heavy", "ballast"), seconds=60)
    migrations.start("move", "heavy", target={"nodeName": target})
    pod = wait_for("the target pod", lambda: _target_uid(migrations), seconds=60)
    assert (
        on_node(several.kubectl, target, KILL_WHEN_HELD.format(pod=pod, victim=HELD_TREE), timeout=90).strip()
        == "killed"
    )
    done = migrations.finished("move")
    assert done["status"]["decision"] == "Abort", "it was committed before the kill; give it more to restore"
    assert condition(done, "Succeeded")["reason"] == "RolledBack"
    goes_on(several, "heavy", ("one", "ballast"))


@pytest.mark.usefixtures("clean_nodes")
def test_containerd_killed_while_one_is_held(several: Several, nodes: tuple[str, str]) -> None:
    """Who was cut off at the gate comes again and is restored, or all go back. Never some of them."""
    migrations, (source, target) = several.migrations, nodes
    migrations.run_pod(with_ballast("heavy", migrations.namespace, source))
    wait_for("the memory to be filled", lambda: "ready" in several.log("heavy", "ballast"), seconds=60)
    logs = follow(several, "heavy", "one", "ballast")
    migrations.start("move", "heavy", target={"nodeName": target}, freezeBudgetSeconds=60)
    pod = wait_for("the target pod", lambda: _target_uid(migrations), seconds=60)
    kill = KILL_WHEN_HELD.format(pod=pod, victim=CONTAINERD)
    file = f"/tmp/killed-{pod}"  # whoever asks through containerd loses the connection with it
    on_node(several.kubectl, target, f"setsid sh -c {shlex.quote(kill)} >{file} 2>&1 </dev/null &")
    done = migrations.finished("move", seconds=200)
    assert on_node(several.kubectl, target, f"cat {file}; rm {file}").strip() == "killed"
    if condition(done, "Succeeded")["status"] == "True":
        moved = target_of(done)
        migrations.running(moved)
        no_gap(several, logs, moved)
        assert several.restarts(moved)["one"] == 0  # the kubelet counts a `create` that was cut off as a restart
    else:
        assert condition(done, "Succeeded")["reason"] == "RolledBack"
        goes_on(several, "heavy", ("one", "ballast"))


def _target_uid(migrations: Migrations) -> str | None:
    return (migrations.get("move") or {}).get("status", {}).get("target", {}).get("podUID")


@pytest.mark.usefixtures("clean_nodes")
def test_the_pod_is_pending_and_unready_until_the_commit(several: Several, nodes: tuple[str, str]) -> None:
    migrations, (source, target) = several.migrations, nodes
    manifest = with_ballast("heavy", migrations.namespace, source)
    probe = {"exec": {"command": ["sh", "-c", "date +%s.%N >> /tmp/probed"]}, "periodSeconds": 1}
    manifest["spec"]["containers"][0] |= {"readinessProbe": probe, "livenessProbe": probe}
    migrations.run_pod(manifest)
    wait_for("the memory to be filled", lambda: "ready" in several.log("heavy", "ballast"), seconds=60)
    migrations.start("move", "heavy", target={"nodeName": target})
    seen: list[tuple[str, str]] = []

    def committed() -> bool:
        it = migrations.get("move")
        pod = migrations.pod((it or {}).get("status", {}).get("target", {}).get("podName", "none"))
        again = migrations.get("move")
        decided = "decision" in (again or {}).get("status", {})
        if not decided and pod is not None:
            seen.append((pod["status"]["phase"], condition(pod, "Ready").get("status", "")))
        return decided

    wait_for("the decision", committed, seconds=90, every=0.05)
    assert seen
    assert {phase for phase, _ in seen} == {"Pending"}
    assert "True" not in {ready for _, ready in seen}
    done = migrations.succeeded("move")
    migrations.running(target_of(done))
