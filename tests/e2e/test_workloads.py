"""What people run moves: real programs, each with what only it can check of itself.

With `--workloads-table docs/workloads.md` the rows of that page are written anew from what the tests have shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from support.cluster import Kubectl, Manifest, condition, wait_for
from support.everything.packed import packed
from support.follower import Follower
from support.migration import Migrations
from support.programs import HERE, Client, container, pod_of, service
from support.table import Table

pytestmark = [
    pytest.mark.testbed,
    pytest.mark.usefixtures("programs"),
    pytest.mark.timeout(300, func_only=True),  # not the making of `programs`
]


@dataclass(frozen=True)
class Move:
    """The pair of nodes, and the move of a pod between them."""

    kubectl: Kubectl
    migrations: Migrations
    source: str
    target: str

    def run(self, name: str, *containers: Manifest, port: int | None = None, **spec: object) -> None:
        """Run a pod at the source, with a Service of its name when it has a port."""
        namespace = self.migrations.namespace
        if port:
            self.kubectl.apply(service(name, namespace, port))
        self.migrations.run_pod(pod_of(name, namespace, self.source, *containers, **spec))

    def move(self, name: str) -> tuple[str, Manifest]:
        """Move the pod; return the new one's name and the finished migration."""
        self.migrations.start("move", name, target={"nodeName": self.target})
        done = self.migrations.succeeded("move", seconds=180)
        moved = done["status"]["target"]["podName"]
        it = self.migrations.running(moved)
        assert it["spec"]["nodeName"] == self.target
        assert {status["restartCount"] for status in it["status"]["containerStatuses"]} == {0}
        return moved, done

    def ask(self, name: str, script: str) -> str:
        """Run a shell script in the pod's first container, and return its output."""
        return self.kubectl.exec(name, self.migrations.namespace, "bash", "-c", script, timeout=120).strip()

    def client(self, command: str) -> Client:
        """Run a command all the time at the target node, and wait until it has been answered."""
        client = Client(self.kubectl, self.migrations)
        client.start(self.target, command)
        client.goes_on(20)
        return client

    def counts_on(self, name: str, container_name: str = "main") -> tuple[str, Manifest, int]:
        """Move a pod whose container prints 1, 2, 3, …; no number may be missing or there twice."""
        namespace = self.migrations.namespace
        log = Follower(name, namespace, container_name)
        wait_for("twenty numbers", lambda: len(log.lines) >= 20, seconds=60)
        moved, done = self.move(name)
        seen = log.numbers()
        wait_for("thirty more", lambda: len(self._log(moved, container_name)) >= 30, seconds=30)
        seen += [int(line) for line in self._log(moved, container_name)]
        assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
        self.migrations.running(moved)
        return moved, done, len(seen)

    def _log(self, name: str, container_name: str) -> list[str]:
        return self.kubectl.logs(name, self.migrations.namespace, container=container_name)


@pytest.fixture
def move(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> Move:
    return Move(kubectl, migrations, *nodes)


TICKERS = {
    "Go program": ("goroutines, channels, a ticker", (f"{HERE}/ticker",)),
    "JVM": ("3 worker threads, garbage collector, JIT", ("java", "-Xmx128m", f"{HERE}/Ticker.java")),
}
"""Programs that print 1, 2, 3, … and end when something that they hold is not as it was."""


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("name", TICKERS)
def test_a_program_that_checks_itself(move: Move, table: Table, name: str) -> None:
    what, command = TICKERS[name]
    move.run("ticker", container("main", *command))
    _, done, count = move.counts_on("ticker")
    table.add(name, what, done, f"{count} numbers, none missing or twice; checks itself ten times a second")


@pytest.mark.usefixtures("clean_nodes")
def test_node_js_uses_io_uring_and_runs_on(move: Move, table: Table) -> None:
    """Its event loop has a ring even when it is told to use none, and no checkpoint can hold one."""
    move.run("ticker", container("main", "env", "UV_USE_IO_URING=0", "node", f"{HERE}/ticker.js"))
    log = Follower("ticker", move.migrations.namespace)
    wait_for("twenty numbers", lambda: len(log.lines) >= 20, seconds=60)
    move.migrations.start("move", "ticker", target={"nodeName": move.target})
    verdict = condition(move.migrations.finished("move"), "Succeeded")
    assert verdict["reason"] == "RolledBack"
    assert "a program uses io_uring" in verdict["message"]
    before = len(log.lines)
    wait_for("thirty more", lambda: len(log.lines) >= before + 30, seconds=30)
    table.refused("Node.js 20", "goes back: its event loop has an io_uring ring, which cannot be dumped")


def looked_at(move: Move, name: str) -> int:
    """Let the program of `support.everything` look at what it holds; return how many things that are."""
    report = move.ask(
        name, "rm -f /data/report; touch /data/check; until cat /data/report 2>/dev/null; do sleep 0.1; done"
    )
    *wrong, count = report.splitlines()
    assert not wrong, report
    return int(count.split()[0])


@pytest.mark.usefixtures("clean_nodes")
def test_a_program_that_holds_one_of_everything(move: Move, table: Table) -> None:
    """Under the runtime's own seccomp profile, and with few capabilities."""
    few = {"drop": ["ALL"], "add": ["CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL"]}
    rights = {"capabilities": few, "seccompProfile": {"type": "RuntimeDefault"}, "allowPrivilegeEscalation": False}
    move.run("everything", container("main", *packed(), securityContext=rights))
    held = looked_at(move, "everything")
    moved, done, _ = move.counts_on("everything")
    assert looked_at(move, moved) == held > 20
    assert looked_at(move, moved) == held, "what a look used up is made again"
    kinds = "files, locks, pipes, sockets, timers, watches, shared memory, a zombie, threads, a terminal, …"
    table.add(
        "Python program with one of everything", kinds, done, f"{held} kinds of state of the kernel, all as before"
    )


@pytest.mark.usefixtures("clean_nodes")
def test_redis_with_an_append_only_file(move: Move, table: Table) -> None:
    redis = container("main", "redis-server", "--dir", "/data", "--appendonly", "yes", "--protected-mode", "no")
    move.run("redis", redis, port=6379)
    client = move.client("timeout 2 redis-cli -e -h redis rpush numbers NUMBER")
    moved, done = move.move("redis")
    client.goes_on(50)
    told = client.stop()
    held = {int(line) for line in move.ask(moved, "redis-cli lrange numbers 0 -1").split()}
    assert set(told.numbers) <= held, "an acknowledged write is lost"
    move.ask(moved, "redis-check-aof /data/appendonlydir/appendonly.aof.manifest")
    result = f"{len(told.numbers)} acknowledged writes, none lost; the append-only file is valid"
    table.add("redis with AOF", "keys, an open file in an emptyDir volume", done, result)


@pytest.mark.usefixtures("clean_nodes")
def test_nginx_under_load(move: Move, table: Table) -> None:
    changes = "s/^worker_processes.*/worker_processes 2;/; s/^user .*/user root;/"
    setup = f"echo 'it works' > /var/www/html/index.html && sed -i '{changes}' /etc/nginx/nginx.conf"
    start = f"{setup} && exec nginx -g 'daemon off;'"
    move.run("nginx", container("main", "bash", "-c", start), port=80)
    processes = "ps -o pid= -C nginx"
    before = wait_for(
        "the workers", lambda: pids if len(pids := move.ask("nginx", processes).split()) == 3 else None, seconds=30
    )
    client = move.client("[ \"$(curl -sfm 2 http://nginx/)\" = 'it works' ]")
    moved, done = move.move("nginx")
    client.goes_on(50)
    told = client.stop()
    assert move.ask(moved, processes).split() == before, "other workers than before"
    move.ask(moved, "nginx -s reload")
    wait_for("other workers", lambda: move.ask(moved, processes).split() != before, seconds=30)
    result = f"{len(told.numbers)} requests answered, {told.failed} to repeat; the master takes signals"
    table.add("nginx under load", "master and 2 workers", done, result)


@pytest.mark.usefixtures("clean_nodes")
def test_memcached(move: Move, table: Table) -> None:
    move.run("memcached", container("main", "memcached", "-u", "root", "-m", "32"))
    talk = "exec 3<>/dev/tcp/127.0.0.1/11211; printf '{words}\\r\\nquit\\r\\n' >&3; cat <&3"
    store = "; ".join(talk.format(words=f"set key{n} 0 0 5\\r\\n{n:05d}") for n in range(20))
    assert move.ask("memcached", store).split() == ["STORED"] * 20
    moved, done = move.move("memcached")
    fetch = "; ".join(talk.format(words=f"get key{n}") for n in range(20))
    found = move.ask(moved, fetch).replace("\r", "").split("\n")
    assert found[1::3] == [f"{n:05d}" for n in range(20)]
    table.add("memcached", "its cache", done, "every value is still there")


INCREMENT = """
import socket, time
connection = socket.create_connection(("127.0.0.1", 6379))
answers = connection.makefile("r", newline="\\r\\n")
n = 0
while True:
    n += 1
    connection.sendall(b"incr n\\r\\n")
    answer = answers.readline().strip()
    if answer != f":{n}":
        raise SystemExit(f"the answer to the increment {n} is {answer}")
    print(n, flush=True)
    time.sleep(0.05)
"""


@pytest.mark.usefixtures("clean_nodes")
def test_a_pod_of_three_containers(move: Move, table: Table) -> None:
    """A program that keeps one connection to the redis beside it, and a web server on their volume."""
    redis = container("redis", "redis-server", "--dir", "/data", "--appendonly", "yes")
    changes = "sed -i 's#/var/www/html#/data#; s/^user .*/user root;/' sites-enabled/default nginx.conf"
    start = f"cd /etc/nginx && {changes} && exec nginx -g 'daemon off;'"
    waiting = 'until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done; exec python3 -c "$1"'
    program = container("program", "bash", "-c", waiting, "program", INCREMENT)
    move.run("three", redis, program, container("web", "bash", "-c", start))
    moved, done, count = move.counts_on("three", "program")
    assert int(move.ask(moved, "redis-cli get n")) >= count
    assert "appendonly.aof" in move.ask(moved, "curl -sf http://127.0.0.1/appendonlydir/appendonly.aof.manifest")
    what = "redis, a program with a connection to it, nginx on the volume of both"
    table.add("pod of three containers", what, done, f"{count} increments over one connection, none lost or twice")
