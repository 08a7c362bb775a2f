"""Puts an image into a registry: `python registry.py HOST:PORT NAME:TAG`, with what `docker save` writes on stdin.

Its layers stay uncompressed, which saves the better part of a minute per GB.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import posixpath
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"

CHUNK = 1 << 20


@dataclass(frozen=True)
class Repository:
    """Where the blobs and manifests of one image's name are."""

    registry: str
    name: str

    def put_blob(self, media_type: str, content: Iterator[bytes]) -> dict[str, Any]:
        """Store content whose digest is known when all of it has been read; return its descriptor."""
        place = self.request("POST", f"/v2/{self.name}/blobs/uploads/")
        digest, size = hashlib.sha256(), 0

        def counted() -> Iterator[bytes]:
            nonlocal size
            for chunk in content:
                digest.update(chunk)
                size += len(chunk)
                yield chunk

        place = self.request("PATCH", place, counted(), "application/octet-stream")
        name = f"sha256:{digest.hexdigest()}"
        self.request("PUT", f"{place}&digest={name}")
        return {"mediaType": media_type, "size": size, "digest": name}

    def put_manifest(self, tag: str, manifest: dict[str, Any]) -> None:
        self.request("PUT", f"/v2/{self.name}/manifests/{tag}", iter([json.dumps(manifest).encode()]), MANIFEST)

    def request(self, method: str, place: str, body: Iterator[bytes] | None = None, media_type: str = "") -> str:
        """Send one request and return the place that the answer names, if any."""
        connection = http.client.HTTPConnection(self.registry, timeout=60)
        headers = {"Content-Type": media_type} if media_type else {}
        connection.request(method, place, body, headers, encode_chunked=body is not None)
        answer = connection.getresponse()
        said = answer.read()
        if not 200 <= answer.status < 300:
            raise OSError(f"{method} {place}: {answer.status} {said.decode(errors='replace')}")
        connection.close()
        return answer.headers.get("Location", "").removeprefix(f"http://{self.registry}")


def push(repository: Repository, tag: str, archive: IO[bytes]) -> None:
    """Read the archive once, as it comes: its manifest may be at its end."""
    layers: dict[str, dict[str, Any]] = {}
    links: dict[str, str] = {}
    texts: dict[str, bytes] = {}
    with tarfile.open(fileobj=archive, mode="r|") as content:
        for member in content:
            if member.issym():
                links[member.name] = posixpath.normpath(posixpath.join(posixpath.dirname(member.name), member.linkname))
            elif (file := content.extractfile(member)) and member.name.endswith(".tar"):
                layers[member.name] = repository.put_blob(LAYER, chunks(file))
            elif file:
                texts[member.name] = file.read()
    [image] = json.loads(texts["manifest.json"])
    config = repository.put_blob(CONFIG, iter([texts[image["Config"]]]))
    names: list[str] = image["Layers"]
    wanted = [layers[links.get(name, name)] for name in names]
    repository.put_manifest(tag, {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": wanted})


def chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(CHUNK):
        yield chunk


if __name__ == "__main__":
    where, (image_name, _, image_tag) = sys.argv[1], sys.argv[2].rpartition(":")
    push(Repository(where, image_name), image_tag, sys.stdin.buffer)
