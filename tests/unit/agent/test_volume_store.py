"""A shared directory as a store: atomic, confined, private, and full or read-only in words."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from migration_agent.transport.store import BLOB_BYTES, HOME, BlobMissing, StoreFailure
from migration_agent.transport.volume import Folder, Volume, VolumeStore

MIGRATION = "5f0c7c1e-0000-4000-8000-0000000000ff"


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    return Volume(Folder(tmp_path, (tmp_path,)))


@pytest.fixture
def store(volume: Volume) -> VolumeStore:
    return volume.store(MIGRATION)


def files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())


def test_what_is_put_can_be_got_listed_and_wiped(store: VolumeStore, tmp_path: Path) -> None:
    store.put("chunk-1", memoryview(b"one"))
    store.put("chunk-2", b"two")
    store.put("chunk-1", b"one again")
    assert (store.get("chunk-1"), store.get("chunk-2")) == (b"one again", b"two")
    assert store.list() == ("chunk-1", "chunk-2")
    store.wipe()
    assert store.list() == ()
    assert list((tmp_path / HOME).iterdir()) == []
    store.wipe()


def test_what_is_not_there_is_missing(store: VolumeStore) -> None:
    assert store.list() == ()
    with pytest.raises(BlobMissing, match="has no blob chunk-1"):
        store.get("chunk-1")
    store.put("chunk-2", b"")
    with pytest.raises(BlobMissing):
        store.get("chunk-1")


def test_nobody_else_can_read_it(store: VolumeStore, tmp_path: Path) -> None:
    store.put("chunk-1", b"one")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / HOME).rglob("*")}
    assert modes == {MIGRATION: 0o700, "chunk-1": 0o600}
    assert stat.S_IMODE((tmp_path / HOME).stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["", "..", "../x", "/etc/passwd", ".new-x", "a/b", "A", "x" * 200])
def test_odd_names_are_refused(store: VolumeStore, name: str) -> None:
    with pytest.raises(StoreFailure, match="not the name of a blob"):
        store.get(name)
    with pytest.raises(StoreFailure, match="not the name of a blob"):
        store.put(name, b"")


@pytest.mark.parametrize("uid", ["", "..", "x/y", "a" * 36])
def test_odd_migrations_are_refused(volume: Volume, uid: str) -> None:
    with pytest.raises(StoreFailure, match="not the UID"):
        volume.store(uid)


def test_only_allowed_directories_are_used(tmp_path: Path) -> None:
    inside, outside = tmp_path / "allowed", tmp_path / "allowed-not"
    for directory in (inside / "team", outside):
        directory.mkdir(parents=True)
    Volume(Folder(inside / "team", (inside,))).store(MIGRATION).put("chunk-1", b"")
    for path, allowed in ((outside, (inside,)), (inside / ".." / "allowed-not", (inside,)), (inside, ())):
        with pytest.raises(StoreFailure, match=r"allowedPaths"):
            Volume(Folder(path, allowed)).store(MIGRATION).put("chunk-1", b"")
    assert files(tmp_path) == [f"allowed/team/{HOME}/{MIGRATION}/chunk-1"]


@pytest.mark.parametrize("link", ["team", f"team/{HOME}", f"team/{HOME}/{MIGRATION}"])
def test_a_symbolic_link_leads_nowhere(tmp_path: Path, link: str) -> None:
    """Whoever can write into the volume must not make a privileged agent write, read or remove elsewhere."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "chunk-1").write_bytes(b"secret")
    path = tmp_path / "allowed" / link
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    volume = Volume(Folder(tmp_path / "allowed" / "team", (tmp_path / "allowed",)))
    store = volume.store(MIGRATION)
    operations = [lambda: store.put("chunk-2", b""), lambda: store.get("chunk-1"), store.wipe, store.list]
    for operation in operations:
        with pytest.raises(StoreFailure, match="symbolic link"):
            operation()
    assert files(elsewhere) == ["chunk-1"]


def test_a_blob_that_is_a_link_or_a_pipe_is_not_read(store: VolumeStore, tmp_path: Path) -> None:
    store.put("chunk-1", b"")
    directory = tmp_path / HOME / MIGRATION
    (tmp_path / "secret").write_bytes(b"secret")
    (directory / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(directory / "pipe")
    with (directory / "large").open("wb") as file:
        file.truncate(BLOB_BYTES + 1)
    for name in ("link", "pipe", "large"):
        with pytest.raises(StoreFailure):
            store.get(name)
    store.wipe()
    assert (tmp_path / "secret").read_bytes() == b"secret"


def test_half_a_blob_has_no_name(store: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same test shows a full volume: the message says so, and nothing stays of the attempt."""
    store.put("chunk-1", b"old")

    def full(descriptor: int, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for name in ("chunk-1", "chunk-2"):
        with pytest.raises(StoreFailure, match="is full: free some of it") as failure:
            store.put(name, b"new")
        assert not failure.value.passing
    monkeypatch.undo()
    assert files(tmp_path) == [f"{HOME}/{MIGRATION}/chunk-1"]
    assert store.get("chunk-1") == b"old"


def test_what_a_crash_left_half_written_is_neither_listed_nor_in_the_way(store: VolumeStore, tmp_path: Path) -> None:
    store.put("chunk-1", b"")
    (tmp_path / HOME / MIGRATION / ".new-chunk-2").write_bytes(b"half")
    assert store.list() == ("chunk-1",)
    store.put("chunk-2", b"whole")
    (tmp_path / HOME / MIGRATION / ".new-chunk-3").write_bytes(b"half")
    store.wipe()
    assert files(tmp_path) == []


def test_a_volume_that_is_not_mounted_is_said(tmp_path: Path) -> None:
    gone = Volume(Folder(tmp_path / "gone", (tmp_path,))).store(MIGRATION)
    with pytest.raises(StoreFailure, match="is not there: mount it"):
        gone.put("chunk-1", b"")
    (tmp_path / "gone").write_bytes(b"")
    with pytest.raises(StoreFailure, match="file stands where a directory is needed"):
        gone.put("chunk-1", b"")


def test_a_server_that_is_away_passes(store: VolumeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(descriptor: int) -> None:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(os, "fsync", stale)
    with pytest.raises(StoreFailure, match="Stale file handle") as failure:
        store.put("chunk-1", b"")
    assert failure.value.passing


def test_several_threads_put_at_once(store: VolumeStore) -> None:
    threads = [threading.Thread(target=store.put, args=(f"chunk-{n}", bytes([n]))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [store.get(name) for name in store.list()] == [bytes([n]) for n in range(8)]


def test_a_sweep_takes_what_is_old_and_ours_and_nobody_s(volume: Volume, tmp_path: Path) -> None:
    old, kept, fresh = (f"5f0c7c1e-0000-4000-8000-00000000000{n}" for n in range(3))
    home = tmp_path / HOME
    assert volume.sweep(frozenset(), 60) == ()
    for uid in (old, kept, fresh):
        volume.store(uid).put("chunk-1", b"")
    (home / "notes").mkdir()
    (home / "notes" / "chunk-1").write_bytes(b"")
    (tmp_path / "data").write_bytes(b"")
    (home / old / "Not ours").write_bytes(b"")
    for name in (old, kept, "notes"):
        os.utime(home / name, (0, 0))
    assert volume.sweep(frozenset({kept}), 60) == (old,)
    assert files(tmp_path) == [
        f"{HOME}/{old}/Not ours",
        f"{HOME}/{kept}/chunk-1",
        f"{HOME}/{fresh}/chunk-1",
        f"{HOME}/notes/chunk-1",
        "data",
    ]
