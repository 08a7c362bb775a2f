"""What people run moves: real programs, each with what only it can check of itself.

With `--workloads-table docs/workloads.md` the rows of that page are written anew from what the tests have shown.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from support.cluster import Kubectl, Manifest, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.programs import HERE, Client, container, pod_of, service
from support.table import Table

pytestmark = [pytest.mark.testbed, pytest.mark.usefixtures("programs"), pytest.mark.timeout(300)]


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
        return self.kubectl.logs(name, self.migrations.namespace, "-c", container_name)


@pytest.fixture
def move(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> Move:
    return Move(kubectl, migrations, *nodes)


TICKERS = {
    "Go program": ("goroutines, channels, a ticker", (f"{HERE}/ticker",)),
    "Node.js": ("timers, an HTTP server and its keep-alive client", ("node", f"{HERE}/ticker.js")),
    "JVM": ("3 worker threads, garbage collector, JIT", ("java", "-Xmx128m", f"{HERE}/Ticker.java")),
    "Python program": (
        (
            "threads, children, a zombie; changed, replaced and deleted files of the image, owners, attributes, hard "
            "links; emptyDir on disk and in memory; open files without a name or another one, locks, pipes, fifo, Unix "
            "sockets, signals by timers, eventfd, epoll, memfd, shared memory (/dev/shm, anonymous, System V), inotify"
        ),
        ("python3", f"{HERE}/everything.py"),
    ),
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
def test_who_it_is_and_what_it_may(move: Move, table: Table) -> None:
    """As another user, with next to no rights, nothing to write to but its volumes, and a terminal."""
    rights = {
        "runAsUser": 1000,
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    limits = {"limits": {"memory": "128Mi", "cpu": "500m"}}
    it = container(
        *("main", "python3", "-B", f"{HERE}/identity.py"),
        securityContext=rights,
        resources=limits,
        tty=True,
        stdin=True,
    )
    move.run("confined", it, securityContext={"fsGroup": 2000})
    moved, done, count = move.counts_on("confined")
    limit = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null | head -1"
    assert move.ask(moved, limit) == str(128 * 2**20)
    what = "user, groups, capabilities, seccomp, read-only root, resource limits, terminal"
    table.add("confined Python program", what, done, f"{count} numbers; all is as it was, checked ten times a second")


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


TRUE = "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)"


@pytest.mark.usefixtures("clean_nodes")
def test_postgresql_under_pgbench(move: Move, table: Table) -> None:
    """pgbench runs beside the server, over its Unix socket: it moves in the middle of its transactions."""
    move.run("postgres", container("main", f"{HERE}/postgres.sh"), port=5432)
    insert = "insert into written values (NUMBER)"
    psql = "psql -q -h postgres -U postgres -v ON_ERROR_STOP=1"
    client = move.client(f"PGCONNECT_TIMEOUT=2 timeout 5 {psql} -c '{insert}'")
    wait_for("pgbench", lambda: "processed" in move.ask("postgres", "cat /data/bench.log"), seconds=60)
    moved, done = move.move("postgres")
    client.goes_on(20)
    told = client.stop()
    move.ask(moved, "touch /data/stop")
    log = wait_for(
        "the end of pgbench",
        lambda: text if (text := move.ask(moved, "cat /data/bench.log")).endswith("done") else None,
        seconds=60,
        every=1,
    )

    def count(what: str) -> int:
        return sum(
            int(line.split(":")[1].split()[0]) for line in log.splitlines() if line.startswith(f"number of {what}")
        )

    def query(text: str) -> str:
        return move.ask(moved, f"psql -U postgres -Atc '{text}'")

    held = {int(line) for line in query("select n from written").split()}
    assert set(told.numbers) <= held, "a committed transaction is lost"
    assert count("failed transactions") == 0, log
    processed = count("transactions actually processed")
    assert int(query("select count(*) from pgbench_history")) == processed, log
    assert query(TRUE) == "t", "the balances do not add up"
    result = f"{processed} transactions of pgbench and {len(told.numbers)} from outside, none lost; balances add up"
    table.add("PostgreSQL under pgbench", "processes of another user, shared memory, WAL in an emptyDir", done, result)


@pytest.mark.usefixtures("clean_nodes")
def test_nginx_under_load(move: Move, table: Table) -> None:
    setup = "echo 'it works' > /var/www/html/index.html && sed -i 's/^worker_processes.*/worker_processes 2;/' "
    start = f"{setup} /etc/nginx/nginx.conf && exec nginx -g 'daemon off;'"
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
    move.run("memcached", container("main", "memcached", "-u", "nobody", "-m", "32"))
    talk = "exec 3<>/dev/tcp/127.0.0.1/11211; printf '{words}\\r\\nquit\\r\\n' >&3; cat <&3"
    store = "; ".join(talk.format(words=f"set key{n} 0 0 5\\r\\n{n:05d}") for n in range(20))
    assert move.ask("memcached", store).split() == ["STORED"] * 20
    moved, done = move.move("memcached")
    fetch = "; ".join(talk.format(words=f"get key{n}") for n in range(20))
    found = move.ask(moved, fetch).replace("\r", "").split("\n")
    assert found[1::3] == [f"{n:05d}" for n in range(20)]
    table.add("memcached", "a process of another user, its cache", done, "every value is still there")


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
    start = "sed -i 's#/var/www/html#/data#' /etc/nginx/sites-enabled/default && exec nginx -g 'daemon off;'"
    waiting = 'until redis-cli ping >/dev/null 2>&1; do sleep 0.1; done; exec python3 -c "$1"'
    program = container("program", "bash", "-c", waiting, "program", INCREMENT)
    move.run("three", redis, program, container("web", "bash", "-c", start))
    moved, done, count = move.counts_on("three", "program")
    assert int(move.ask(moved, "redis-cli get n")) >= count
    assert "appendonly.aof" in move.ask(moved, "curl -sf http://127.0.0.1/appendonlydir/appendonly.aof.manifest")
    what = "redis, a program with a connection to it, nginx on the volume of both"
    table.add("pod of three containers", what, done, f"{count} increments over one connection, none lost or twice")
