"""The demo: a redis with 256 MiB of data moves to another node while a client writes to it all the time.

Ends with a report and says by its exit code whether it was true: every key there, no acknowledged write lost, one copy.
"""

from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.table import Table

from support.cluster import Kubectl, Manifest, condition, wait_for, what_happened, workers
from support.migration import Migrations
from support.workloads import Redis

MEBIBYTES = 256
STEPS = ("PreflightPassed", "TargetPrepared", "Checkpointed", "Transferred", "Restored", "Committed", "SourceReleased")
EVERY = "return #redis.call('KEYS', 'key:*')"
"""Counts the keys of the first fill, not those that the client writes."""

console = Console(highlight=False)


@dataclass(frozen=True)
class Result:
    """What the demo measured."""

    migration: Manifest
    keys_before: int
    keys_after: int
    acknowledged: int
    lost: int
    wrong: int
    longest_gap: float
    pods_left: tuple[str, ...]

    @property
    def true(self) -> bool:
        """Whether the container really moved with everything, once."""
        return (
            condition(self.migration, "Succeeded").get("status") == "True"
            and self.keys_before == self.keys_after > 0
            and self.acknowledged > 0
            and self.lost == self.wrong == 0
            and self.pods_left == (self.migration["status"]["target"]["podName"],)
        )


@contextmanager
def namespace(kubectl: Kubectl) -> Generator[str]:
    """A namespace for the demo, removed afterwards."""
    name = f"demo-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    try:
        yield name
    finally:
        kubectl("delete", "namespace", name, "--wait=true", timeout=180)


def follow(migrations: Migrations, name: str) -> Manifest:
    """Print each step when its condition becomes true; return the migration when it has ended."""
    began, seen = time.monotonic(), set[str]()

    def ended() -> Manifest | None:
        it = migrations.get(name)
        for step in STEPS:
            if step not in seen and condition(it, step).get("status") == "True":
                seen.add(step)
                console.print(
                    f"  [green]{time.monotonic() - began:6.2f} s[/]  {step:16} {condition(it, step)['message']}"
                )
        return it if condition(it, "Succeeded").get("status") in {"True", "False"} else None

    return wait_for("the end of the migration", ended, seconds=180, every=0.05)


def run(kubectl: Kubectl, name: str) -> Result:
    """Start redis and its client, move redis, compare."""
    source, target, *_ = workers(kubectl)
    migrations, redis = Migrations(kubectl, name), Redis(kubectl, name)
    console.print(f"[bold]1. redis on {source}[/], a client on {target}, {MEBIBYTES} MiB of data")
    redis.start(source, client_node=target)
    redis.fill("redis", MEBIBYTES)
    keys_before = int(redis.cli("redis", "EVAL", EVERY, "0"))
    redis.write()
    wait_for("the client's first writes", lambda: redis.acknowledged() > 100, seconds=30)
    console.print(f"   {keys_before} keys; the client writes and reads back all the time")

    console.print(f"[bold]2. kubectl apply[/] ContainerMigration: pod redis to {target}")
    migrations.start("move", "redis", target={"nodeName": target})
    migration = follow(migrations, "move")
    verdict = condition(migration, "Succeeded")
    console.print(f"   {verdict['reason']}: {verdict['message']}")
    moved = migration["status"]["target"].get("podName") if verdict["status"] == "True" else "redis"

    console.print("[bold]3. the client goes on[/], then reads every acknowledged write back")
    acknowledged = redis.acknowledged()
    wait_for("the client to write on", lambda: redis.acknowledged() > acknowledged + 100, seconds=60)
    checked = redis.stop_and_check()
    left = kubectl.list("pods", "-n", name, "-l", "app=redis")
    return Result(
        migration=migration,
        keys_before=keys_before,
        keys_after=int(redis.cli(moved, "EVAL", EVERY, "0")),
        acknowledged=int(checked["acknowledged"]),
        lost=int(checked["lost"]),
        wrong=int(checked["wrong"]),
        longest_gap=checked["longest_gap_seconds"],
        pods_left=tuple(p["metadata"]["name"] for p in left),
    )


def seconds_between(timings: dict[str, str], first: str, last: str) -> str:
    """Return the time between two of the status' timings, or a dash when one is missing."""
    if first not in timings or last not in timings:
        return "-"
    moments = [datetime.fromisoformat(timings[name]) for name in (first, last)]
    return f"{(moments[1] - moments[0]).total_seconds():.2f} s"


def report(result: Result) -> None:
    """Print what was measured and whether it was true."""
    status = result.migration["status"]
    timings = status.get("timings", {})
    table = Table(title="report", show_header=False)
    rows = (
        ("from, to", f"{status['source'].get('nodeName')} → {status['target'].get('nodeName')}"),
        ("pod", f"redis → {', '.join(result.pods_left)}"),
        ("keys before, after", f"{result.keys_before}, {result.keys_after}"),
        ("writes acknowledged", str(result.acknowledged)),
        ("writes lost, wrong", f"{result.lost}, {result.wrong}"),
        ("freeze", f"{timings.get('freezeSeconds', '-')} s"),
        ("  dump", seconds_between(timings, "frozenAt", "dumpedAt")),
        ("  transfer", seconds_between(timings, "dumpedAt", "transferredAt")),
        ("  restore", seconds_between(timings, "transferredAt", "restoredAt")),
        ("  commit and resume", seconds_between(timings, "restoredAt", "resumedAt")),
        ("client's longest gap", f"{result.longest_gap:.2f} s"),
        ("total time", seconds_between(timings, "startedAt", "completedAt")),
        ("bytes moved", f"{status.get('progress', {}).get('bytesDone', 0) / 2**20:.1f} MiB"),
    )
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if result.true:
        console.print("[bold green]true[/]: every key, every acknowledged write, and one copy")
    else:
        console.print("[bold red]not true[/]: see the rows above")


def main() -> int:
    """Run the demo; return the exit code."""
    kubectl = Kubectl()
    console.print(kubectl("get", "migrationnodes").stdout)
    with namespace(kubectl) as name:
        try:
            result = run(kubectl, name)
        except (AssertionError, TimeoutError) as problem:
            console.print(f"[bold red]{problem}[/]\n{what_happened(kubectl, [name])}", markup=False)
            return 1
        report(result)
    return 0 if result.true else 1


if __name__ == "__main__":
    sys.exit(main())
