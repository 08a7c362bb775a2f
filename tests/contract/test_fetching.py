"""I6: a target without a source fetches a kept checkpoint out of a real volume, and refuses what is not exactly it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from migration_agent.archive.stored import StoredCheckpoint, StoreWriter
from migration_agent.fetching import Fetch, Fetched
from migration_agent.peer import Admission, Refused
from migration_agent.transport.chunks import CHUNK_BYTES, FormatError, blob_name
from migration_agent.transport.manifest import MANIFEST_NAME
from migration_agent.transport.store import StoreFailure
from migration_agent.transport.volume import Folder, Volume, VolumeStore
from migration_api.wire import StoredRef
from support.agent import SHIPPING

UID = "5f0c7c1e-0000-4000-8000-0000000000ff"
PAGES = "main/images/pages-1.img"
CONTENT = {"main/images/inventory.img": b"inventory", PAGES: bytes(CHUNK_BYTES) + b"memory" * 2_000_000}


def write(store: VolumeStore) -> None:
    writer = StoreWriter(store, SHIPPING.key_bytes, UID)
    for path, content in CONTENT.items():
        entry = writer.entry(path)
        entry.write(content)
        entry.close()
    writer.finish()


@pytest.fixture
def store(tmp_path: Path) -> VolumeStore:
    (tmp_path / "volume").mkdir()
    found = Volume(Folder(tmp_path / "volume", (tmp_path,))).store(UID)
    write(found)
    return found


class Counted:
    """A store that counts what is fetched, and may be away for a while."""

    def __init__(self, store: VolumeStore, away: int = 0) -> None:
        self.store, self.away, self.got = store, away, list[str]()

    def get(self, name: str) -> bytes:
        if self.away:
            self.away -= 1
            raise StoreFailure("the store is away", passing=True)
        self.got.append(name)
        return self.store.get(name)

    def put(self, name: str, blob: bytes | bytearray | memoryview) -> None:
        raise AssertionError(f"a restore writes nothing: {name} {len(blob)}")

    def list(self) -> tuple[str, ...]:
        return self.store.list()

    def wipe(self) -> None:
        raise AssertionError("a restore removes nothing")


def ref(store: VolumeStore) -> StoredRef:
    return StoredRef(uid=UID, digest=StoredCheckpoint(store, SHIPPING.key_bytes, UID).digest)


def fetch(
    store: VolumeStore,
    directory: Path,
    *,
    counted: Counted | None = None,
    containers: tuple[str, ...] = ("main",),
    stored: StoredRef | None = None,
    progress: Callable[[int, int | None], None] = lambda _count, _expected: None,
) -> Fetched:
    admission = Admission("a-migration", directory, containers, SHIPPING, progress)
    return Fetch(counted or Counted(store), admission, stored or ref(store)).run()


def test_it_comes_as_it_was_and_nothing_is_fetched_twice(store: VolumeStore, tmp_path: Path) -> None:
    directory, counts = tmp_path / "images", list[int]()

    def stop_early(count: int, _expected: int | None) -> None:
        counts.append(count)
        if count > 2 * CHUNK_BYTES:
            raise Refused("the migration was given up")

    with pytest.raises(Refused, match="given up"):
        fetch(store, directory, progress=stop_early)
    again = Counted(store, away=2)
    fetched = fetch(store, directory, counted=again)
    assert {e.path: e.size for e in fetched.entries} == {path: len(content) for path, content in CONTENT.items()}
    for path, content in CONTENT.items():
        assert (directory / path).read_bytes() == content
    assert 0 < len(again.got) - 1 < 12, "what had come was not fetched again"


@pytest.mark.parametrize("how", ["damaged", "cut short", "missing", "swapped"])
def test_i6_a_chunk_that_is_not_the_one_is_refused_by_name(store: VolumeStore, tmp_path: Path, how: str) -> None:
    stored, name = ref(store), blob_name(PAGES, 1)
    blob = bytearray(store.get(name))
    match how:
        case "damaged":
            blob[-1] ^= 1
            store.put(name, blob)
        case "cut short":
            store.put(name, blob[:-1])
        case "missing":
            (tmp_path / "volume/container-migration" / UID / name).unlink()
        case _:
            store.put(name, store.get(blob_name(PAGES, 2)))
    with pytest.raises(FormatError, match=rf"entry {PAGES}, chunk 1"):
        fetch(store, tmp_path / "images", stored=stored)


def test_i6_another_manifest_of_the_same_key_is_refused(store: VolumeStore, tmp_path: Path) -> None:
    stored = ref(store)
    write(store)  # the same content, sealed anew
    with pytest.raises(FormatError, match="is not the one that was kept"):
        fetch(store, tmp_path / "images", stored=stored)
    (tmp_path / "volume/container-migration" / UID / MANIFEST_NAME).unlink()
    with pytest.raises(FormatError, match="no complete checkpoint"):
        fetch(store, tmp_path / "images", stored=stored)


def test_a_checkpoint_of_other_containers_is_refused(store: VolumeStore, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="of main, not of these containers"):
        fetch(store, tmp_path / "images", containers=("web",))
