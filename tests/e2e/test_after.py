"""After the move a pod is as any other: logs, exec, attach, port-forward, probes, exit codes, restarts."""

from __future__ import annotations

import re
import subprocess
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support import served
from support.cluster import Kubectl, Manifest, condition, wait_for
from support.follower import Follower
from support.migration import Migrations, pod
from support.workloads import counter

SERVER = Path(served.__file__).read_text(encoding="utf-8")


def container_of(migrations: Migrations, name: str) -> Manifest:
    it = migrations.pod(name)
    assert it is not None
    return it["status"]["containerStatuses"][0]


def ready(migrations: Migrations, name: str, status: str) -> None:
    wait_for(
        f"Ready to be {status}", lambda: condition(migrations.pod(name), "Ready").get("status") == status, seconds=30
    )


@pytest.fixture
def moved(migrations: Migrations, nodes: tuple[str, str]) -> str:
    """A server with probes and an open standard input that was moved twice; the name of its pod."""
    manifest = pod("served", migrations.namespace, ["python3", "-c", SERVER], nodes[0])
    manifest["spec"]["containers"][0] |= {
        "stdin": True,
        "readinessProbe": {"exec": {"command": ["test", "!", "-e", "/tmp/busy"]}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"path": "/health", "port": 8080}, "periodSeconds": 2, "failureThreshold": 10},
    }
    migrations.run_pod(manifest)
    name = "served"
    for turn in range(2):
        migrations.start(f"move-{turn}", name, target={"nodeName": nodes[(turn + 1) % 2]})
        name = migrations.succeeded(f"move-{turn}")["status"]["target"]["podName"]
        migrations.running(name)
    return name


@contextmanager
def running(*command: str) -> Generator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        return answer.read().decode()


@contextmanager
def forwarded(namespace: str, name: str) -> Generator[int]:
    """Forward a free port of this machine to the server's."""
    with running("kubectl", "port-forward", f"pod/{name}", ":8080", "-n", namespace) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.match(r"Forwarding from 127\.0\.0\.1:(\d+)", line)
        assert found, line
        yield int(found[1])


@pytest.mark.usefixtures("clean_nodes")
def test_logs_exec_attach_and_port_forward(kubectl: Kubectl, migrations: Migrations, moved: str) -> None:
    namespace = migrations.namespace
    log = Follower(moved, namespace)
    wait_for("the log to go on", lambda: len(log.lines) >= 20, seconds=20)
    assert kubectl("logs", moved, "-n", namespace).stdout.splitlines()[:10] == log.lines[:10]
    assert len(kubectl("logs", moved, "-n", namespace, "--tail=3").stdout.splitlines()) == 3

    assert kubectl.exec(moved, namespace, "sh", "-c", "echo $((6*7))").strip() == "42"
    failed = kubectl("exec", moved, "-n", namespace, "--", "sh", "-c", "exit 7", check=False)
    assert "exit code 7" in failed.stderr
    given = kubectl("exec", "-i", moved, "-n", namespace, "--", "tr", "a-z", "A-Z", stdin="given").stdout
    assert given == "GIVEN"

    with running("kubectl", "attach", "-i", moved, "-n", namespace) as attached:
        assert attached.stdin is not None
        assert attached.stdout is not None
        attached.stdin.write("something\n")
        attached.stdin.flush()
        lines = iter(attached.stdout.readline, "")
        seen = next(line for line in lines if "told" in line)
        assert seen.strip() == "told something"
    wait_for("the same in the log", lambda: "told something" in log.lines, seconds=20)
    log.stop()

    with forwarded(namespace, moved) as port:
        first = int(get(port, "/"))
        assert first > 20
        wait_for("the next number", lambda: int(get(port, "/")) > first, seconds=10)


@pytest.mark.usefixtures("clean_nodes")
def test_probes_exit_codes_and_restarts(kubectl: Kubectl, migrations: Migrations, moved: str) -> None:
    namespace = migrations.namespace
    ready(migrations, moved, "True")
    kubectl.exec(moved, namespace, "touch", "/tmp/busy")
    ready(migrations, moved, "False")
    kubectl.exec(moved, namespace, "rm", "/tmp/busy")
    ready(migrations, moved, "True")

    last = int([line for line in kubectl.logs(moved, namespace) if line.isdigit()][-1])
    with forwarded(namespace, moved) as port, pytest.raises(OSError, match=r"[Cc]losed|[Rr]eset|[Rr]emote"):
        get(port, "/end/3")
    wait_for("the restart", lambda: container_of(migrations, moved)["restartCount"] == 1, seconds=60)
    assert container_of(migrations, moved)["lastState"]["terminated"]["exitCode"] == 3
    previous = [int(line) for line in kubectl.logs(moved, namespace, previous="true") if line.isdigit()]
    assert previous[-1] >= last, "the log of the moved container is lost"
    ready(migrations, moved, "True")
    first = wait_for("its first line", lambda: kubectl.logs(moved, namespace) or None, seconds=20)[0]
    assert first == "1", "it did not start afresh"

    kubectl.exec(moved, namespace, "touch", "/tmp/sick")
    wait_for("the kubelet to kill it", lambda: container_of(migrations, moved)["restartCount"] == 2, seconds=90)
    ready(migrations, moved, "True")
    assert wait_for("its first line", lambda: kubectl.logs(moved, namespace) or None, seconds=20)[0] == "1"


@pytest.mark.usefixtures("clean_nodes")
def test_what_somebody_runs_in_it_by_exec_ends_with_the_source(migrations: Migrations, nodes: tuple[str, str]) -> None:
    """An open shell is no reason not to move: it is none of the container's own processes."""
    namespace = migrations.namespace
    migrations.run_pod(counter("visited", namespace, nodes[0]))
    log = Follower("visited", namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=20)
    with running("kubectl", "exec", "-i", "visited", "-n", namespace, "--", "cat") as visit:
        assert visit.stdin is not None
        assert visit.stdout is not None
        visit.stdin.write("there\n")
        visit.stdin.flush()
        assert visit.stdout.readline() == "there\n"
        migrations.start("move", "visited", target={"nodeName": nodes[1]})
        moved = migrations.succeeded("move")["status"]["target"]["podName"]
        assert visit.wait(60) != 0
    seen = log.numbers()
    kubectl = migrations.kubectl
    wait_for("ten more", lambda: len(kubectl.logs(moved, namespace)) >= 10, seconds=20)
    seen += [int(line) for line in kubectl.logs(moved, namespace)]
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    assert "cat" not in kubectl.exec(moved, namespace, "ps", "-eo", "comm").split()
