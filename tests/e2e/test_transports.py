"""A checkpoint on its way through a volume or bucket: it arrives, nobody can read it there, nothing stays behind."""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from migration_agent.transport.store import HOME
from support.cluster import SYSTEM, Kubectl, Manifest, agents, condition, on_node, wait_for
from support.follower import Follower
from support.migration import Migrations
from support.stores import Bucket, Folder, watching
from support.testbed import Testbed
from support.workloads import Redis, ballast, counter

pytestmark = pytest.mark.testbed

MARKER = "a-marker-that-must-not-be-readable-in-any-store"
SLOW = 4 * 1024 * 1024
"""Bytes per second: a checkpoint can be looked at on its way."""


class Store(Protocol):
    """What a test sees of a volume or bucket."""

    @property
    def transport(self) -> dict[str, Any]: ...

    def content(self) -> dict[str, bytes]: ...


@dataclass(frozen=True)
class S3:
    """A bucket of the test bed's S3 server."""

    bucket: Bucket

    @property
    def transport(self) -> dict[str, Any]:
        return self.bucket.spec

    def content(self) -> dict[str, bytes]:
        return self.bucket.objects()


@pytest.fixture(params=["SharedVolume", "ObjectStore"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "SharedVolume":
        return request.getfixturevalue("folder")
    return S3(request.getfixturevalue("bucket"))


def blobs(seen: dict[str, bytes], uid: str) -> dict[str, bytes]:
    return {name: blob for name, blob in seen.items() if f"{HOME}/{uid}/" in name and ".new-" not in name}


def shown(kubectl: Kubectl, namespace: str, nodes: tuple[str, str]) -> str:
    """Return all that somebody may read who may not read Secrets: objects, events, logs, command lines."""
    text = [kubectl("get", "cmig,events,pods", "-n", namespace, "-o", "json").stdout]
    text += [kubectl("get", "pods,migrationnodes,events", "-n", SYSTEM, "-o", "json").stdout]
    operator = kubectl("get", "pods", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "-o", "name").stdout
    for pod in (*agents(kubectl).values(), operator.strip().removeprefix("pod/")):
        text += kubectl.logs(pod, SYSTEM)
    text += [on_node(kubectl, node, "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' ' '") for node in nodes]
    return "\n".join(text)


def key_of(kubectl: Kubectl, namespace: str, uid: str) -> tuple[str, ...]:
    secret = kubectl.get("secret", f"migration-key-{uid}", namespace)
    assert secret is not None
    text: str = secret["data"]["key"]
    raw = base64.b64decode(text)
    assert len(raw) == 32
    return text, raw.hex(), base64.urlsafe_b64encode(raw).decode()


@pytest.mark.usefixtures("clean_nodes")
def test_redis_moves_through_a_store_that_learns_nothing_and_keeps_nothing(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], store: Store
) -> None:
    source, target = nodes
    redis = Redis(kubectl, migrations.namespace)
    redis.start(source, client_node=target)
    keys = redis.fill("redis", mebibytes=32)
    redis.cli("redis", "SET", "marker", MARKER)
    redis.write()
    wait_for("acknowledged writes", lambda: redis.acknowledged() > 100, seconds=30)
    transport = {**store.transport, "bytesPerSecond": SLOW}
    with watching(store.content) as seen:
        migrations.start("move", "redis", target={"nodeName": target}, transport=transport, freezeBudgetSeconds=55)
        done = migrations.succeeded("move")
        uid = done["metadata"]["uid"]
        wait_for("an empty store", lambda: not store.content(), seconds=30)
    moved = done["status"]["target"]["podName"]
    result = redis.stop_and_check()

    assert done["status"]["transport"] == transport
    assert (result["lost"], result["wrong"]) == (0, 0)
    assert redis.cli(moved, "GET", "marker") == MARKER
    assert int(redis.cli(moved, "EVAL", "return #redis.call('KEYS', 'key:*')", "0")) == keys

    kept = blobs(seen, uid)
    assert len(kept) > 3, "the checkpoint did not travel through the store"
    for name, blob in kept.items():
        for plain in (MARKER.encode(), b"key:1", b"redis-server", b"\x7fELF"):
            assert plain not in blob, f"{name} can be read in the store"
    text = shown(kubectl, migrations.namespace, nodes)
    hidden = list(key_of(kubectl, migrations.namespace, uid))
    if isinstance(store, S3):
        hidden += store.bucket.secret_values
    for secret in hidden:
        assert secret not in text, "I7: a secret is shown"

    kubectl("delete", "cmig", "move", "-n", migrations.namespace)
    name = f"migration-key-{uid}"
    wait_for("the key to go", lambda: kubectl.get("secret", name, migrations.namespace) is None, seconds=60)


def test_what_a_dead_node_left_is_swept_by_the_next_migration_and_nothing_else(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], folder: Folder
) -> None:
    old, fresh = (f"5f0c7c1e-0000-4000-8000-00000000000{n}" for n in range(2))
    for name in (f"{HOME}/{old}/chunk-1", f"{HOME}/{fresh}/chunk-1", f"{HOME}/notes/chunk-1", "data"):
        path = folder.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    for name in (old, "notes"):
        os.utime(folder.path / HOME / name, (0, 0))
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    migrations.start("move", "counter", target={"nodeName": nodes[1]}, transport=folder.transport)
    migrations.succeeded("move")
    left = {f"{HOME}/{fresh}/chunk-1", f"{HOME}/notes/chunk-1", "data"}
    wait_for("only what is fresh or foreign", lambda: set(folder.content()) == left, seconds=30)


def test_without_a_target_the_scheduler_picks_a_node_that_can_use_the_store(
    migrations: Migrations, nodes: tuple[str, str], folder: Folder
) -> None:
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    migrations.start("move", "counter", transport=folder.transport)
    assert migrations.succeeded("move")["status"]["target"]["nodeName"] != nodes[0]


@contextmanager
def damaging(folder: Folder, damage: Callable[[Path, Path], None]) -> Generator[None]:
    """Damage each blob once, as soon as it is seen: `damage` gets it, and the one that was seen before it."""
    over = threading.Event()

    def work() -> None:
        done: list[Path] = []
        while not over.is_set():
            with suppress(FileNotFoundError):
                for path in folder.path.glob(f"{HOME}/*/[0-9a-f]*-*"):
                    if path not in done:
                        damage(path, done[-1] if done else path)
                        done.append(path)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def flip(path: Path, _: Path) -> None:
    """Change one bit in the middle."""
    size = path.stat().st_size
    with path.open("r+b", buffering=0) as file:
        file.seek(size // 2)
        byte = file.read(1)
        file.seek(size // 2)
        file.write(bytes([byte[0] ^ 1]))


def cut(path: Path, _: Path) -> None:
    """Cut it short."""
    os.truncate(path, path.stat().st_size - 1)


def swap(path: Path, other: Path) -> None:
    """Put the content of another blob in its place."""
    path.write_bytes(other.read_bytes())


@pytest.mark.usefixtures("clean_nodes")
@pytest.mark.parametrize("damage", [flip, cut, swap])
def test_i6_a_chunk_that_was_damaged_in_the_store_is_refused_and_the_source_goes_on(
    kubectl: Kubectl,
    migrations: Migrations,
    nodes: tuple[str, str],
    folder: Folder,
    damage: Callable[[Path, Path], None],
) -> None:
    migrations.run_pod(ballast("ballast", migrations.namespace, nodes[0], 48))
    log = Follower("ballast", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=40)
    transport = {**folder.transport, "bytesPerSecond": 2 * SLOW}
    with damaging(folder, damage):
        migrations.start("move", "ballast", target={"nodeName": nodes[1]}, transport=transport, freezeBudgetSeconds=55)
        done = migrations.finished("move")
    verdict = condition(done, "Succeeded")
    assert (verdict["status"], verdict["reason"]) == ("False", "RolledBack"), verdict["message"]
    assert condition(done, "Transferred")["reason"] == "TransferFailed"
    message = verdict["message"]
    assert re.search(r"entry main/\S+, chunk \d+|blob [0-9a-f]{16}-[0-9a-f]{8}", message), message
    log.goes_on()
    wait_for("an empty store", lambda: not folder.content(), seconds=60)


@pytest.mark.usefixtures("clean_nodes")
def test_a_store_that_is_away_for_half_a_minute_costs_only_time(
    testbed: Testbed, kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], bucket: Bucket
) -> None:
    def server(signal: str) -> None:
        testbed("node", "control-plane", "--", "systemctl", "kill", "--signal", signal, "s3")

    migrations.run_pod(ballast("ballast", migrations.namespace, nodes[0], 48))
    log = Follower("ballast", migrations.namespace)
    wait_for("ten numbers", lambda: len(log.lines) >= 10, seconds=40)
    transport = {**bucket.spec, "bytesPerSecond": SLOW}
    migrations.start("move", "ballast", target={"nodeName": nodes[1]}, transport=transport, freezeBudgetSeconds=70)
    try:
        wait_for("the first chunks", lambda: any("probe" not in name for name in bucket.objects()), seconds=60)
        server("STOP")
        gone = time.monotonic()
        wait_for("half a minute without the store", lambda: time.monotonic() - gone > 30, seconds=40)
        assert condition(migrations.get("move"), "Succeeded")["status"] == "Unknown"
    finally:
        server("CONT")
    done = migrations.succeeded("move")
    assert float(done["status"]["timings"]["freezeSeconds"]) > 30
    moved = done["status"]["target"]["podName"]
    seen = [int(line) for line in log.finish() if line.isdigit()]
    wait_for("ten more", lambda: len(kubectl.logs(moved, migrations.namespace)) >= 10, seconds=20)
    seen += [int(line) for line in kubectl.logs(moved, migrations.namespace) if line.isdigit()]
    assert seen == list(range(1, len(seen) + 1)), "the log has a gap or a repeat"
    wait_for("an empty store", lambda: not bucket.objects(), seconds=60)


def test_the_key_outlives_the_operator(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    """The operator dies when the target has been told and the source has not: both must get one key."""
    migrations.run_pod(counter("counter", migrations.namespace, nodes[0]))
    migrations.start("move", "counter", target={"nodeName": nodes[1]})

    def key() -> Manifest | None:
        it = migrations.get("move")
        return it and kubectl.get("secret", f"migration-key-{it['metadata']['uid']}", migrations.namespace)

    before = wait_for("the key", key, seconds=60)
    kubectl("delete", "pod", "-n", SYSTEM, "-l", "app.kubernetes.io/component=operator", "--wait=false")
    done = migrations.succeeded("move", seconds=180)
    after = kubectl.get("secret", before["metadata"]["name"], migrations.namespace)
    assert after is not None
    assert after["data"] == before["data"]
    [owner] = after["metadata"]["ownerReferences"]
    assert owner["uid"] == done["metadata"]["uid"]
    assert json.dumps(before["data"]["key"]) not in json.dumps(done)
