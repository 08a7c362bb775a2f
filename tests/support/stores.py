"""Volumes and buckets of the test bed, as an admin and as an onlooker see them."""

from __future__ import annotations

import base64
import threading
import urllib.request
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import obstore
from obstore.store import S3Store

from migration_api.transport import SECRET_TYPE
from support.cluster import Manifest
from support.s3 import presigned

SECRET = "store"


def files(folder: Path) -> dict[str, bytes]:
    """Return the files below a directory; what vanishes meanwhile is left out."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError, IsADirectoryError):
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    return found


@contextmanager
def watching(content: Callable[[], dict[str, bytes]]) -> Generator[dict[str, bytes]]:
    """Collect all that lies in a store at any time while the context is open."""
    seen: dict[str, bytes] = {}
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            with suppress(FileNotFoundError):  # a directory that went while it was looked through
                seen.update(content())
            over.wait(0.05)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


@dataclass(frozen=True)
class Folder:
    """A directory of the folder that all nodes share, seen from this machine."""

    path: Path
    on_nodes: str

    @property
    def transport(self) -> dict[str, Any]:
        return {"type": "SharedVolume", "sharedVolume": {"path": self.on_nodes}}

    def content(self) -> dict[str, bytes]:
        return files(self.path)


@dataclass(frozen=True)
class Bucket:
    """A bucket of the test bed's S3 server."""

    name: str
    variables: dict[str, str]

    @property
    def spec(self) -> dict[str, Any]:
        """The transport of a migration through it; its credentials are in the Secret of `secret`."""
        store = {
            "url": f"s3://{self.name}/checkpoints",
            "endpoint": self.variables["AWS_ENDPOINT_URL"],
            "secretRef": {"name": SECRET},
        }
        return {"type": "ObjectStore", "objectStore": store}

    @property
    def secret_values(self) -> tuple[str, str]:
        """What must be seen nowhere, in the clear or in base64."""
        key = self.variables["AWS_SECRET_ACCESS_KEY"]
        return key, base64.b64encode(key.encode()).decode()

    def secret(self, namespace: str, name: str = SECRET, type_: str = SECRET_TYPE, **changes: str | None) -> Manifest:
        """Return a Secret with the credentials; None among the changes leaves a key out."""
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        data = {**{key: self.variables[key] for key in names}, **changes}
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "type": type_,
            "stringData": {key: value for key, value in data.items() if value is not None},
        }

    def create(self) -> None:
        url = presigned("PUT", f"/{self.name}", self.variables)
        urllib.request.urlopen(urllib.request.Request(url, method="PUT"), timeout=10).close()  # noqa: S310  ours

    def objects(self) -> dict[str, bytes]:
        """Return what lies there by name; what vanishes meanwhile is left out."""
        return dict(self._objects())

    def put(self, name: str, content: bytes) -> None:
        """Put something in place of what lies there."""
        obstore.put(self._client, name, content, use_multipart=False)

    def _objects(self) -> Iterator[tuple[str, bytes]]:
        library: Any = obstore  # one of the overloads of its `list` has no types
        for page in library.list(self._client):
            for meta in page:
                try:
                    yield meta["path"], bytes(obstore.get(self._client, meta["path"]).bytes())
                except FileNotFoundError:
                    continue

    @property
    def _client(self) -> S3Store:
        return S3Store(
            self.name,
            endpoint=self.variables["AWS_ENDPOINT_URL"],
            region=self.variables["AWS_REGION"],
            access_key_id=self.variables["AWS_ACCESS_KEY_ID"],
            secret_access_key=self.variables["AWS_SECRET_ACCESS_KEY"],
            client_options={"allow_http": True},
        )
