"""A bucket of S3, GCS or Azure as a store: one object per blob.

The client is obstore, whose calls block without holding Python's lock: several threads are several requests in flight.
Its own retries are off: whoever calls knows how long it may wait, and may have to stop. Credentials come from the
caller alone; without any, obstore would look for the node's own, which are none of a migration's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import AzureStore, GCSStore, S3Store

from migration_agent.transport.store import (
    BLOB_BYTES,
    HOME,
    KEPT,
    BlobMissing,
    StoreFailure,
    checked_migration,
    checked_name,
    is_migration,
    is_name,
)

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

REQUEST_SECONDS = 20.0
"""For one blob; the caller's patience may be longer, and then there is another try."""

_CONNECT = timedelta(seconds=5)
_ONE_TRY: RetryConfig = {"max_retries": 0, "retry_timeout": timedelta(seconds=REQUEST_SECONDS)}
_DELETE_AT_ONCE = 500

_STATUS = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([A-Za-z0-9]{1,64})</Code>")
_KIND = re.compile(r"kind: ([A-Z][A-Za-z]{1,30}),")
_SERVER_ERROR = 500
_BUSY = (408, 429)
_NO_SUCH_OBJECT = ("NoSuchKey", "BlobNotFound", "")
"""The codes of a 404 that is about the object; a bucket or an access key that nobody knows is a 404 as well."""


@dataclass(frozen=True)
class Bucket:
    """A bucket, or a part of it, for the checkpoints of all migrations. Implements `store.Place`.

    Attributes:
        url: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`.
        credentials: by the names that obstore gives them; see `KEYS` in `migration_api.transport`.
        endpoint: of an S3 server or an Azure-like one other than the provider's own; `http://` means without TLS.
        region: of an S3 bucket.
        authority: certificates in PEM to trust instead of the public ones.
    """

    url: str
    credentials: Mapping[str, str] = field(repr=False)
    endpoint: str | None = None
    region: str | None = None
    authority: str | None = field(default=None, repr=False)

    def store(self, uid: str) -> BucketStore:
        """Return the store of one migration. See `Place`."""
        return BucketStore(self, uid, self.client(f"{HOME}/{checked_migration(uid)}"))

    def demand(self) -> None:
        """Return: whoever asks a bucket for anything is told when it is not there. See `Place`."""

    def sweep(self, keep: frozenset[str], seconds: float) -> tuple[str, ...]:
        """Remove what crashed migrations left. See `Place`."""
        client = self.client(HOME)
        objects: dict[str, list[str]] = {}
        latest: dict[str, datetime] = {}
        with _explained(self):
            for path, written in _listed(client):
                uid, _, name = path.partition("/")
                if is_migration(uid) and is_name(name) and uid not in keep:
                    objects.setdefault(uid, []).append(path)
                    latest[uid] = max(written, latest.get(uid, written))
            limit = datetime.now(UTC) - timedelta(seconds=seconds)
            kept = {uid for uid, paths in objects.items() if f"{uid}/{KEPT}" in paths}
            stale = sorted(uid for uid, written in latest.items() if written < limit and uid not in kept)
            for uid in stale:
                _delete(client, objects[uid])
        return tuple(stale)

    def client(self, directory: str) -> Any:
        """Return obstore's client for what lies below a directory of the bucket.

        Raises:
            StoreFailure: URL or credentials cannot be used.
        """
        parts = urlsplit(self.url)
        prefix = f"{parts.path.strip('/')}/{directory}".lstrip("/")
        make = _CLIENTS.get(parts.scheme)
        if make is None or not parts.netloc:
            raise StoreFailure(f"{self.url!r} is not the URL of a bucket: s3://…, gs://… or az://…")
        if not self.credentials:
            raise StoreFailure(f"there are no credentials for {self.url}")
        try:
            return make(self, parts.netloc, prefix)
        except (BaseError, ValueError) as error:
            # obstore's own words may hold a part of what it was given.
            raise StoreFailure(f"the credentials or settings for {self.url} cannot be used") from error

    def __str__(self) -> str:
        return f"the object store {self.url}"


@dataclass(frozen=True)
class BucketStore:
    """The blobs of one migration in a bucket. Implements `store.Store`."""

    bucket: Bucket
    uid: str
    client: Any = field(repr=False)

    def put(self, name: str, blob: bytes | bytearray | memoryview) -> None:
        """Keep a blob. See `Store`."""
        with _explained(self.bucket):
            obstore.put(self.client, checked_name(name), bytes(blob), use_multipart=False)

    def get(self, name: str) -> bytes:
        """Return a blob. See `Store`."""
        with _explained(self.bucket):
            try:
                answer = obstore.get(self.client, checked_name(name))
            except FileNotFoundError as error:
                if _found(_CODE, error) not in _NO_SUCH_OBJECT:
                    raise
                raise BlobMissing(f"{self.bucket} has no blob {name} of migration {self.uid}") from None
            if answer.meta["size"] > BLOB_BYTES:
                raise StoreFailure(f"{name} in {self.bucket} is larger than {BLOB_BYTES} bytes")
            return bytes(answer.bytes())

    def list(self) -> tuple[str, ...]:
        """Return the names of all blobs. See `Store`."""
        with _explained(self.bucket):
            return tuple(sorted(path for path, _ in _listed(self.client) if is_name(path)))

    def wipe(self) -> None:
        """Remove all blobs. See `Store`."""
        with _explained(self.bucket):
            _delete(self.client, [path for path, _ in _listed(self.client) if is_name(path)])


def _options(bucket: Bucket) -> ClientConfig:
    options: ClientConfig = {
        "connect_timeout": _CONNECT,
        "timeout": timedelta(seconds=REQUEST_SECONDS),
        "allow_http": bool(bucket.endpoint and bucket.endpoint.startswith("http://")),
    }
    if bucket.authority:
        options["root_certificate"] = bucket.authority
    return options


def _s3(bucket: Bucket, name: str, prefix: str) -> S3Store:
    settings: Any = dict(bucket.credentials)
    if bucket.endpoint:
        settings["endpoint"] = bucket.endpoint
    region = bucket.region or "us-east-1"
    return S3Store(
        name, prefix=prefix, region=region, client_options=_options(bucket), retry_config=_ONE_TRY, **settings
    )


def _gcs(bucket: Bucket, name: str, prefix: str) -> GCSStore:
    settings: Any = dict(bucket.credentials)
    return GCSStore(name, prefix=prefix, client_options=_options(bucket), retry_config=_ONE_TRY, **settings)


def _azure(bucket: Bucket, name: str, prefix: str) -> AzureStore:
    settings: Any = dict(bucket.credentials)
    if bucket.endpoint:
        settings["endpoint"] = bucket.endpoint
    return AzureStore(name, prefix=prefix, client_options=_options(bucket), retry_config=_ONE_TRY, **settings)


_CLIENTS: dict[str, Callable[[Bucket, str, str], Any]] = {"s3": _s3, "gs": _gcs, "az": _azure}


def _listed(client: Any) -> Iterator[tuple[str, datetime]]:
    library: Any = obstore  # one of the overloads of its `list` has no types
    for page in library.list(client):
        for meta in page:
            yield meta["path"], meta["last_modified"]


def _delete(client: Any, paths: list[str]) -> None:
    for start in range(0, len(paths), _DELETE_AT_ONCE):
        obstore.delete(client, paths[start : start + _DELETE_AT_ONCE])


@contextmanager
def _explained(bucket: Bucket) -> Generator[None, None, None]:
    """Turn what the store answered into what an admin can use.

    Only the status and the error's code are shown: the rest of an answer may hold the access key or what was signed,
    and it is written by whoever stands behind the endpoint.
    """
    try:
        yield
    except StoreFailure:
        raise
    except (BaseError, OSError, ValueError) as error:
        status, code = _found(_STATUS, error), _found(_CODE, error)
        if status:
            number = int(status[:3])
            passing = number >= _SERVER_ERROR or number in _BUSY
            what = f"answers {status.strip()}{f' ({code})' if code else ''}"
        else:
            passing = not isinstance(error, (PermissionDeniedError, UnauthenticatedError))
            what = f"cannot be reached ({_found(_KIND, error) or type(error).__name__})"
        raise StoreFailure(f"{bucket} {what}", passing=passing) from error


def _found(pattern: re.Pattern[str], error: Exception) -> str:
    match = pattern.search(str(error))
    return match[1] if match else ""
