"""Where a migration's files go, and that they go in the end."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from migration_agent.journal import Journal
from migration_agent.paths import Layout
from migration_agent.room import ROOM_LEFT_BYTES, Room, RoomFinder
from support.agent import MIGRATION

GIBIBYTE = 1 << 30


@pytest.mark.parametrize(
    ("memory", "disk", "on_disk"),
    [
        (GIBIBYTE + ROOM_LEFT_BYTES, 100 * GIBIBYTE, False),
        (GIBIBYTE + ROOM_LEFT_BYTES - 1, 100 * GIBIBYTE, True),
        (GIBIBYTE, GIBIBYTE + ROOM_LEFT_BYTES, True),
        (GIBIBYTE, GIBIBYTE, False),  # fits nowhere
        (GIBIBYTE, 0, False),  # the chart does not allow it
    ],
)
def test_memory_where_it_fits_else_the_disk_where_that_is_allowed(memory: int, disk: int, on_disk: bool) -> None:
    files = Room(memory, disk).files(GIBIBYTE)
    assert files.on_disk is on_disk
    assert ("may take 1024 MiB, and /run/container-migration/images has" in files.why) is on_disk


def test_what_others_may_take_still_is_not_there() -> None:
    room = Room(memory=2 * GIBIBYTE, disk=100 * GIBIBYTE)
    assert not room.files(GIBIBYTE).on_disk
    assert room.files(GIBIBYTE, promised=GIBIBYTE).on_disk
    assert "/images has 0 MiB left" in room.files(GIBIBYTE, promised=3 * GIBIBYTE).why


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    layout = Layout(tmp_path)
    layout.prepare()
    return Journal(layout)


def test_the_disk_counts_only_where_it_is_allowed(journal: Journal) -> None:
    assert RoomFinder(journal.layout, disk_allowed=False).look().disk == 0
    room = RoomFinder(journal.layout, disk_allowed=True).look()
    assert room.disk > 0
    assert room.memory > 0


def test_files_on_the_disk_are_private_and_wiped_and_their_place_stays_until_the_record_goes(journal: Journal) -> None:
    layout = journal.layout
    assert layout.images(MIGRATION) == layout.images_in_memory(MIGRATION)
    journal.place_images(MIGRATION, on_disk=True)
    directory = layout.images(MIGRATION)
    assert directory.is_relative_to(layout.state)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (directory, directory.parent, layout.state)} == {0o700}
    for _ in range(2):
        (layout.image(MIGRATION, "main") / "images").mkdir(parents=True)
        (layout.image(MIGRATION, "main") / "images/pages-1.img").write_bytes(b"secret")
        (directory / "_receipts").write_text("receipt")
        journal.wipe_images(MIGRATION)
        assert layout.images(MIGRATION) == directory, "what comes again comes to the same place"
        assert list(directory.iterdir()) == []
    journal.forget(MIGRATION)
    assert not directory.exists()


def test_what_a_crash_left_is_swept_in_memory_and_on_the_disk(journal: Journal) -> None:
    layout, other = journal.layout, "0b0e2b8e-other"
    for uid in (MIGRATION, other):
        for directory in (layout.images_in_memory(uid), layout.images_on_disk(uid)):
            (directory / "main").mkdir(parents=True)
            (directory / "main/pages-1.img").write_bytes(b"secret")
    journal.sweep_images({MIGRATION})
    left = {path.name for home in (layout.run, layout.state) for path in (home / "images").iterdir()}
    assert left == {MIGRATION}
