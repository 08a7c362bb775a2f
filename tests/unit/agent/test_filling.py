from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from migration_agent import source_copy
from migration_agent.filling import Filling
from migration_agent.host import Host
from migration_agent.journal import TargetRecord
from migration_agent.paths import Layout
from migration_agent.processes import Processes
from migration_agent.restores import restore_options
from migration_agent.transport.manifest import ManifestEntry
from migration_api.wire import LAZY_FROM_BYTES, SourceState
from support.agent import SOURCE_POD, TARGET_POD, journal_at, target_request
from support.source_world import World

SELF = {"pid": os.getpid(), "start": Host().process_start(os.getpid()), "bootId": "boot"}
DEAD = {**SELF, "start": 1}
"""Another process had this pid."""


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return journal_at(tmp_path).layout


@pytest.fixture
def filling(layout: Layout) -> Filling:
    return Filling(layout, Processes(Host().process_start), lambda: "boot")


def record(layout: Layout, pod_uid: str, container: str, content: object) -> None:
    """Leave what the interposer leaves beside the ticket."""
    directory = layout.ticket(pod_uid)
    directory.mkdir(exist_ok=True)
    (directory / f"{container}.filling").write_text(content if isinstance(content, str) else json.dumps(content))


def test_a_container_is_filled_in_as_long_as_its_pager_lives(layout: Layout, filling: Filling) -> None:
    assert filling.containers(TARGET_POD) == ()
    record(layout, TARGET_POD, "main", SELF)
    record(layout, TARGET_POD, "ended", DEAD)
    record(layout, TARGET_POD, "before-the-reboot", {**SELF, "bootId": "another"})
    record(layout, TARGET_POD, "torn", '{"pid": 1')
    assert filling.containers(TARGET_POD) == ("main",)


@pytest.mark.parametrize(
    ("size", "lazily", "lazy"), [(LAZY_FROM_BYTES, True, True), (LAZY_FROM_BYTES, False, False), (1000, True, False)]
)
def test_much_memory_is_filled_in_later_where_the_kernel_can(size: int, *, lazily: bool, lazy: bool) -> None:
    entries = [
        ("main/images/pages-1.img", size),
        ("other/images/pages-1.img", LAZY_FROM_BYTES),
        ("main/rootfs", 1 << 40),
    ]
    manifest = tuple(ManifestEntry(path=path, size=size, chunks="") for path, size in entries)
    kept = TargetRecord(request=target_request().task, boot_id="boot", entries=manifest)
    assert ("lazy-pages" in restore_options(kept, "main", lazily=lazily)) is lazy


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


async def test_nobody_is_frozen_before_all_of_the_memory_is_there(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_copy, "_FILLING_SECONDS", 0.05)
    alive = {"pid": world.node.pid, "start": world.node.start, "bootId": world.clock.boot}
    record(world.journal.layout, SOURCE_POD, "main", alive)
    await world.reach(SourceState.THAWED)
    assert not {"fence", "drop", "pause", "dump"} & set(world.node.log)
    assert world.cluster.failure is not None
    assert "memory of container main is still being filled in" in world.cluster.failure.message
