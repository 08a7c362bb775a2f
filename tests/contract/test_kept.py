"""A checkpoint in a real volume or bucket is looked at, marked, spared by every sweep, and removed on order."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from migration_agent.archive.stored import StoreWriter
from migration_agent.kept import Kept
from migration_agent.places import Places
from migration_agent.transport.chunks import blob_name
from migration_agent.transport.manifest import MANIFEST_NAME
from migration_agent.transport.store import HOME, KEPT
from migration_api.shipping import StoreAccess
from migration_api.stored import KeepRequest, RemoveRequest
from migration_api.transport import ObjectStore, SecretReference, SharedVolume
from support import s3_server
from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY

pytestmark = pytest.mark.timeout(900)  # the S3 server is built when the test bed has not built it yet

UID = "5f0c7c1e-0000-4000-8000-0000000000ff"
KEY = bytes(range(32))


@pytest.fixture
def volume(tmp_path: Path) -> StoreAccess:
    (tmp_path / "shared").mkdir()
    return StoreAccess(shared_volume=SharedVolume(path=str(tmp_path / "shared")))


@pytest.fixture
def bucket(tmp_path: Path) -> Iterator[StoreAccess]:
    with s3_server.running(s3_server.server_in(tmp_path / "s3", s3_server.binary())) as server:
        yield StoreAccess(
            object_store=ObjectStore(
                url=f"s3://{BUCKET}/team", endpoint=server.endpoint, secret_ref=SecretReference(name="s")
            ),
            credentials={"access_key_id": SecretStr(ACCESS_KEY), "secret_access_key": SecretStr(SECRET_KEY)},
        )


@pytest.fixture(params=["volume", "bucket"])
def access(request: pytest.FixtureRequest) -> StoreAccess:
    return request.getfixturevalue(request.param)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places("node-a", (tmp_path,), leftover_seconds=-3600)


def stored(places: Places, access: StoreAccess) -> None:
    writer = StoreWriter(places.store(access, UID), KEY, UID)
    for path, content in (("main/images/inventory.img", b"inventory"), ("main/images/pages-1.img", bytes(3 << 20))):
        entry = writer.entry(path)
        entry.write(content)
        entry.close()
    writer.finish()


def request(access: StoreAccess, key: bytes = KEY) -> KeepRequest:
    return KeepRequest(uid=UID, key=SecretStr(base64.b64encode(key).decode()), store=access)


def test_a_complete_one_is_described_and_stays_until_it_is_removed(places: Places, access: StoreAccess) -> None:
    stored(places, access)
    kept, store = Kept(places), places.store(access, UID)
    for _ in range(2):  # an interrupted operator does it again
        report = kept.keep(request(access))
        assert (report.problem, report.size_bytes, report.containers) == ("", 9 + (3 << 20), ("main",))
        assert report.digest == f"sha256:{hashlib.sha256(store.get(MANIFEST_NAME)).hexdigest()}"
    assert KEPT in store.list()
    assert places.clear(access, "0b0e2b8e-1111-4222-8333-444455556666", ()) == (), "another migration's sweep, by age"
    assert places.clear(access, UID, ()) == (), "a late order to clear the migration itself"
    assert store.get(MANIFEST_NAME)
    for found in (True, False):
        removed = kept.remove(RemoveRequest(uid=UID, store=access))
        assert (removed.problem, removed.found) == ("", found)
        assert store.list() == ()


def test_without_the_mark_it_is_swept(places: Places, access: StoreAccess) -> None:
    stored(places, access)
    assert places.clear(access, "0b0e2b8e-1111-4222-8333-444455556666", ()) == (UID,)


def test_what_is_not_complete_is_not_kept(places: Places, volume: StoreAccess, tmp_path: Path) -> None:
    kept = Kept(places)
    assert "there is no complete checkpoint" in kept.keep(request(volume)).problem
    stored(places, volume)
    assert "sealed with another key" in kept.keep(request(volume, bytes(32))).problem
    (tmp_path / "shared" / HOME / UID / blob_name("main/images/pages-1.img", 1)).unlink()
    report = kept.keep(request(volume))
    assert (report.problem, report.passing) == ("entry main/images/pages-1.img, chunk 1 is missing", False)
    assert not (tmp_path / "shared" / HOME / UID / KEPT).exists()


def test_a_store_that_is_gone_says_so(places: Places, volume: StoreAccess, tmp_path: Path) -> None:
    (tmp_path / "shared").rmdir()
    kept = Kept(places)
    assert kept.keep(request(volume)).passing
    report = kept.remove(RemoveRequest(uid=UID, store=volume))
    assert "mount it on this node" in report.problem
    assert not report.passing
