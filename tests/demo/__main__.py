"""The demo: a redis with 256 MiB of data moves to another node while a client writes to it all the time.

Ends with a report and says by its exit code whether it was true: every key there, no acknowledged write lost, one copy.
"""

from __future__ import annotations

import secrets
import sys
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console

from demo.report import Result, show
from demo.timeline import Timeline
from support.cluster import Kubectl, Manifest, condition, wait_for, what_happened, workers
from support.migration import Migrations
from support.workloads import Redis

MEBIBYTES = 256
EVERY = "return #redis.call('KEYS', 'key:*')"
"""Counts the keys of the first fill, not those that the client writes."""

console = Console(highlight=False)


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
    """Show the migration as it goes; return it when it has ended."""
    with Timeline(console) as timeline:

        def ended() -> Manifest | None:
            it = migrations.get(name)
            timeline.show(it)
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
    left = kubectl.list("pods", name, labels="app=redis")
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
        show(result, console)
    return 0 if result.true else 1


if __name__ == "__main__":
    sys.exit(main())
