"""Checkpoints in a bucket, against a real S3 server: kept, fetched, listed, wiped, swept, and failures in words."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from migration_agent.certificate import ensure_certificate
from migration_agent.transport.objects import Bucket
from migration_agent.transport.store import HOME, BlobMissing, StoreFailure
from support import s3_server
from support.s3_server import ACCESS_KEY, BUCKET, SECRET_KEY, S3Server

pytestmark = pytest.mark.timeout(900)  # the server is built when the test bed has not built it yet

MIGRATION = "5f0c7c1e-0000-4000-8000-0000000000ff"
OTHER = "5f0c7c1e-0000-4000-8000-0000000000fe"


@pytest.fixture(scope="module")
def binary() -> str:
    return s3_server.binary()


@pytest.fixture
def server(binary: str, tmp_path: Path) -> Generator[S3Server, None, None]:
    with s3_server.running(s3_server.server_in(tmp_path / "s3", binary)) as it:
        yield it


@pytest.fixture
def bucket(server: S3Server) -> Bucket:
    return of(server)


def of(server: S3Server, prefix: str = "/team/a") -> Bucket:
    keys = {"access_key_id": ACCESS_KEY, "secret_access_key": SECRET_KEY}
    return Bucket(f"s3://{BUCKET}{prefix}", keys, endpoint=server.endpoint)


def test_what_is_put_can_be_got_listed_and_wiped(server: S3Server, bucket: Bucket) -> None:
    store = bucket.store(MIGRATION)
    blob = bytes(range(256)) * 16384
    store.put("chunk-1", memoryview(blob))
    store.put("chunk-2", b"two")
    store.put("chunk-2", b"two again")
    assert store.get("chunk-1") == blob
    assert store.get("chunk-2") == b"two again"
    assert store.list() == ("chunk-1", "chunk-2")
    assert server.objects() == [f"team/a/{HOME}/{MIGRATION}/chunk-{n}" for n in (1, 2)]
    store.wipe()
    assert store.list() == ()
    assert server.objects() == []
    store.wipe()


def test_what_is_not_there_is_missing(bucket: Bucket) -> None:
    with pytest.raises(BlobMissing, match="has no blob chunk-1"):
        bucket.store(MIGRATION).get("chunk-1")


def test_several_requests_are_in_flight(bucket: Bucket) -> None:
    """More blobs than one page of a listing, and than one request of a removal, has."""
    store = bucket.store(MIGRATION)
    names = [f"chunk-{n:05}" for n in range(1100)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(store.put, names, [name.encode() for name in names]))
        assert store.list() == tuple(names)
        assert list(threads.map(store.get, names)) == [name.encode() for name in names]
    store.wipe()
    assert store.list() == ()


def test_one_migration_does_not_see_the_other(bucket: Bucket) -> None:
    for uid in (MIGRATION, OTHER):
        bucket.store(uid).put("chunk-1", uid.encode())
    bucket.store(MIGRATION).wipe()
    assert bucket.store(OTHER).get("chunk-1") == OTHER.encode()


def test_a_sweep_takes_what_is_old_and_ours_and_nobody_s(server: S3Server, bucket: Bucket) -> None:
    kept = "5f0c7c1e-0000-4000-8000-0000000000fd"
    for uid in (MIGRATION, OTHER, kept):
        bucket.store(uid).put("chunk-1", b"")
    foreign = ["team/a/data", f"team/a/{HOME}/notes/chunk-1", f"team/a/{HOME}/{MIGRATION}/NOT-OURS"]
    for name in foreign:
        path = server.bucket / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    assert bucket.sweep(frozenset(), 3600) == ()
    assert bucket.sweep(frozenset({kept}), -3600) == (OTHER, MIGRATION)
    assert server.objects() == sorted([*foreign, f"team/a/{HOME}/{kept}/chunk-1"])


@pytest.mark.parametrize(
    ("change", "message", "passing"),
    [
        ({"credentials": {"access_key_id": ACCESS_KEY, "secret_access_key": "wrong"}}, "403 Forbidden", False),
        ({"credentials": {"access_key_id": "nobody", "secret_access_key": SECRET_KEY}}, "404 Not Found", False),
        ({"credentials": {"access_key_id": ACCESS_KEY}}, "credentials or settings", False),
        ({"credentials": {}}, "there are no credentials", False),
        ({"url": "s3://no-such-bucket"}, r"404 Not Found \(NoSuchBucket\)", False),
        ({"url": "ftp://checkpoints"}, "not the URL of a bucket", False),
        ({"region": "eu-west-9"}, r"400 Bad Request \(AuthorizationHeaderMalformed\)", False),
        ({"endpoint": "http://127.0.0.1:1"}, r"cannot be reached \(Connect\)", True),
    ],
)
def test_a_failure_is_told_without_secrets(bucket: Bucket, change: dict[str, Any], message: str, passing: bool) -> None:
    """The server's answer to a wrong signature holds the access key and all that was signed."""
    with pytest.raises(StoreFailure, match=message) as failure:
        replace(bucket, **change).store(MIGRATION).put("chunk-1", b"")
    assert failure.value.passing is passing
    for secret in (ACCESS_KEY, SECRET_KEY, "wrong", "nobody", "AWS4"):
        assert secret not in str(failure.value)
        assert secret not in repr(bucket) + repr(bucket.store(MIGRATION))


def test_a_server_that_is_away_passes(server: S3Server, bucket: Bucket) -> None:
    store = bucket.store(MIGRATION)
    store.put("chunk-1", b"one")
    server.stop()
    with pytest.raises(StoreFailure) as failure:
        store.put("chunk-2", b"two")
    assert failure.value.passing
    assert not isinstance(failure.value, BlobMissing)
    server.start()
    store.put("chunk-2", b"two")
    assert [store.get(name) for name in store.list()] == [b"one", b"two"]


def test_tls_is_checked_against_the_authority_that_was_given(binary: str, tmp_path: Path) -> None:
    certificate, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    pem = ensure_certificate(certificate, key, "s3", "127.0.0.1")
    with s3_server.running(s3_server.server_in(tmp_path / "s3", binary, (certificate, key))) as server:
        trusting = urllib.request.HTTPSHandler(context=ssl.create_default_context(cadata=pem))
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.build_opener(trusting).open(server.endpoint)
        replace(of(server), authority=pem).store(MIGRATION).put("chunk-1", b"one")
        with pytest.raises(StoreFailure, match="cannot be reached"):
            of(server).store(MIGRATION).put("chunk-2", b"two")
        assert [Path(name).name for name in server.objects()] == ["chunk-1"]


@pytest.mark.parametrize("url", ["gs://checkpoints/a", "az://checkpoints/a"])
def test_the_other_providers_clients_are_made_from_what_a_secret_holds(url: str) -> None:
    """Their servers are not at hand: what is shown is that names and settings are those that obstore takes."""
    keys = {
        "gs": {"service_account_key": '{"private_key": "x", "private_key_id": "y", "client_email": "z"}'},
        "az": {"account_name": "account", "account_key": "a2V5"},
    }[url[:2]]
    with pytest.raises(StoreFailure, match="cannot be used"):
        Bucket(url, {**keys, "nonsense": "1"}).store(MIGRATION)
    if url.startswith("az"):
        assert "AzureStore" in repr(Bucket(url, keys).store(MIGRATION).client)
        Bucket(url, {"account_name": "account", "sas_key": "sv=1&sig=x"}).store(MIGRATION)
