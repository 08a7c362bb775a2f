"""What people run moves: real programs, with what only they can check of themselves.

With `--workloads-table FILE` the results are written there as the table of docs/workloads.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.cluster import Kubectl, Manifest, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.programs import Client, program, service

POSTGRES = "/usr/lib/postgresql/17/bin"


@dataclass
class Table:
    """One row for each program that moved."""

    rows: list[tuple[str, ...]] = field(default_factory=list[tuple[str, ...]])

    def add(self, workload: str, moved: str, migration: Manifest, result: str) -> None:
        """Add what a test has shown."""
        status = migration["status"]
        mebibytes = int(status["progress"]["bytesTotal"]) / 2**20
        freeze = f"{float(status['timings']['freezeSeconds']):.1f} s"
        self.rows.append((workload, moved, f"{mebibytes:.0f} MiB", freeze, result))

    def write(self, path: Path) -> None:
        head = ("workload", "what moved", "checkpoint", "freeze", "result")
        lines = [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *self.rows)]
        before = path.read_text(encoding="utf-8").partition("| workload |")[0]
        path.write_text(before + "\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Iterator[Table]:
    it = Table()
    yield it
    if path := pytestconfig.getoption("--workloads-table"):
        it.write(Path(path))


@pytest.fixture(autouse=True)
def image(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    """The programs' image is big and not loaded everywhere."""
    for node in nodes:
        name = f"image-{node}"
        kubectl.apply(program(name, migrations.namespace, node, "sleep", "infinity"))
    for node in nodes:
        migrations.running(f"image-{node}", seconds=90)
        kubectl("delete", "pod", f"image-{node}", "-n", migrations.namespace, "--grace-period=0", "--force")


@dataclass(frozen=True)
class Move:
    """The pair of nodes, and the move of a pod between them."""

    kubectl: Kubectl
    migrations: Migrations
    source: str
    target: str

    def run(self, name: str, *command: str, **fields: object) -> None:
        self.migrations.run_pod(program(name, self.migrations.namespace, self.source, *command, **fields))

    def move(self, name: str) -> tuple[str, Manifest]:
        """Move the pod; return the new one's name and the finished migration."""
        self.migrations.start("move", name, target={"nodeName": self.target})
        done = self.migrations.succeeded("move", seconds=180)
        moved = done["status"]["target"]["podName"]
        status = self.migrations.running(moved)["status"]["containerStatuses"][0]
        assert status["restartCount"] == 0
        return moved, done

    def ask(self, name: str, script: str) -> str:
        return self.kubectl.exec(name, self.migrations.namespace, "bash", "-c", script, timeout=120).strip()


@pytest.fixture
def move(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> Move:
    return Move(kubectl, migrations, *nodes)


TICKERS = {
    "Go program": ("goroutines, channels, a ticker", ("/opt/workloads/ticker",)),
    "Node.js": ("timers, an HTTP server and its keep-alive client", ("node", "/opt/workloads/ticker.js")),
    "JVM": ("3 worker threads, garbage collector, JIT", ("java", "-Xmx64m", "-cp", "/opt/workloads", "Ticker")),
    "Python program": (
        (
            "threads, children and a zombie, files deleted but open, locks, pipes, fifo, Unix sockets, timers and "
            "signals, eventfd, epoll, memfd, /dev/shm, inotify"
        ),
        ("python3", "/opt/workloads/everything.py"),
    ),
}
"""Programs that print 1, 2, 3, … and end when something that they hold is not as it was."""


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("name", TICKERS)
def test_a_program_that_checks_itself(move: Move, table: Table, name: str) -> None:
    what, command = TICKERS[name]
    move.run("ticker", *command)
    log = Follower("ticker", move.migrations.namespace)
    wait_for("twenty numbers", lambda: len(log.lines) >= 20, seconds=60)
    moved, done = move.move("ticker")
    seen = log.numbers()
    logs = lambda: move.kubectl.logs(moved, move.migrations.namespace)  # noqa: E731
    wait_for("thirty more", lambda: len(logs()) >= 30, seconds=30)
    seen += [int(line) for line in logs()]
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    table.add(name, what, done, "no number missing or twice; checks itself every 0.1 s")


@pytest.mark.usefixtures("clean_nodes")
def test_redis_with_an_append_only_file(move: Move, table: Table) -> None:
    move.run("redis", "redis-server", "--dir", "/data", "--appendonly", "yes", "--protected-mode", "no")
    move.kubectl.apply(service("redis", move.migrations.namespace, 6379))
    client = Client(move.kubectl, move.migrations)
    client.start(move.target, "timeout 2 redis-cli -e -h redis rpush numbers NUMBER")
    wait_for("writes", lambda: client.done() >= 50, seconds=60)
    moved, done = move.move("redis")
    before = client.done()
    wait_for("writes after the move", lambda: client.done() >= before + 50, seconds=60)
    acknowledged = client.stop()
    held = {int(line) for line in move.ask(moved, "redis-cli lrange numbers 0 -1").split()}
    assert set(acknowledged) <= held, "an acknowledged write is lost"
    move.ask(moved, "redis-check-aof /data/appendonlydir/appendonly.aof.manifest")
    result = f"{len(acknowledged)} acknowledged writes, none lost; the append-only file is valid"
    table.add("redis with AOF", "keys, an open file in an emptyDir volume", done, result)


@pytest.mark.usefixtures("clean_nodes")
def test_postgresql_under_pgbench(move: Move, table: Table) -> None:
    """pgbench runs beside the server, over its Unix socket: it moves in the middle of its transactions."""
    user = "setpriv --reuid postgres --regid postgres --init-groups"
    server = f"{user} {POSTGRES}/postgres -D /data/pg -c listen_addresses='*' -c fsync=on"
    prepare = f"install -d -o postgres -m 700 /data/pg && {user} {POSTGRES}/initdb -D /data/pg -A trust >/dev/null"
    allow = "echo 'host all all 0.0.0.0/0 trust' >> /data/pg/pg_hba.conf"
    move.run("postgres", "bash", "-c", f"{prepare} && {allow} && exec {server}")
    move.kubectl.apply(service("postgres", move.migrations.namespace, 5432))
    wait_for("the server", lambda: "accepting" in move.ask("postgres", "pg_isready || true"), seconds=60)
    move.ask("postgres", "pgbench -U postgres -i -s 2 -q; psql -U postgres -c 'create table written (n int)'")
    bench = "nohup pgbench -U postgres -n -c 4 -T 60 >/data/bench.log 2>&1 & echo $! >/data/bench.pid"
    move.ask("postgres", bench)
    client = Client(move.kubectl, move.migrations)
    insert = "insert into written values (NUMBER)"
    client.start(move.target, f"timeout 5 psql -q -h postgres -U postgres -v ON_ERROR_STOP=1 -c '{insert}'")
    wait_for("transactions from outside", lambda: client.done() >= 20, seconds=60)
    moved, done = move.move("postgres")
    before = client.done()
    wait_for("transactions after the move", lambda: client.done() >= before + 20, seconds=60)
    acknowledged = client.stop()
    held = {int(line) for line in move.ask(moved, "psql -U postgres -Atc 'select n from written'").split()}
    assert set(acknowledged) <= held, "a committed transaction is lost"
    log = wait_for(
        "the end of pgbench",
        lambda: text if "processed" in (text := move.ask(moved, "cat /data/bench.log")) else None,
        seconds=90,
        every=1,
    )
    processed = int(log.partition("actually processed:")[2].split()[0])
    assert int(move.ask(moved, "psql -U postgres -Atc 'select count(*) from pgbench_history'")) == processed, log
    sums = "select sum(abalance) from pgbench_accounts union select sum(delta) from pgbench_history"
    assert len(move.ask(moved, f"psql -U postgres -Atc '{sums}'").split()) == 1, "the balances do not add up"
    result = f"{processed} transactions of pgbench and {len(acknowledged)} from outside, none lost; balances add up"
    table.add("PostgreSQL under pgbench", "processes of another user, shared memory, WAL in an emptyDir", done, result)


@pytest.mark.usefixtures("clean_nodes")
def test_nginx_under_load(move: Move, table: Table) -> None:
    setup = "echo 'it works' > /var/www/html/index.html && sed -i 's/^worker_processes.*/worker_processes 2;/' "
    move.run("nginx", "bash", "-c", f"{setup} /etc/nginx/nginx.conf && exec nginx -g 'daemon off;'")
    move.kubectl.apply(service("nginx", move.migrations.namespace, 80))
    workers = "ps -o pid= -C nginx | tr -d ' '"
    before = wait_for("workers", lambda: ps if len(ps := move.ask("nginx", workers).split()) == 3 else None, seconds=30)
    client = Client(move.kubectl, move.migrations)
    client.start(move.target, "[ \"$(curl -sfm 2 http://nginx/)\" = 'it works' ]")
    wait_for("requests", lambda: client.done() >= 50, seconds=60)
    moved, done = move.move("nginx")
    count = client.done()
    wait_for("requests after the move", lambda: client.done() >= count + 50, seconds=60)
    answered = client.stop()
    assert move.ask(moved, workers).split() == before, "other workers than before"
    refused = answered[-1] - len(answered)
    assert move.ask(moved, "nginx -s reload 2>&1; echo $?").endswith("0"), "the master does not take signals"
    table.add(
        "nginx under load", "master and 2 workers", done, f"{len(answered)} requests answered, {refused} to repeat"
    )


@pytest.mark.usefixtures("clean_nodes")
def test_memcached(move: Move, table: Table) -> None:
    move.run("memcached", "memcached", "-u", "nobody", "-m", "32")
    talk = "exec 3<>/dev/tcp/127.0.0.1/11211; printf '{words}\\r\\nquit\\r\\n' >&3; cat <&3"
    for n in range(20):
        stored = move.ask("memcached", talk.format(words=f"set key{n} 0 0 5\\r\\n{n:05d}"))
        assert stored.startswith("STORED")
    moved, done = move.move("memcached")
    for n in range(20):
        assert f"{n:05d}" in move.ask(moved, talk.format(words=f"get key{n}"))
    table.add("memcached", "a process of another user, its cache", done, "every value is still there")
