"""Archives as Podman writes them, sound or not, and checkpoints that lie in a store."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import zstandard

from migration_agent.archive.stored import StoredCheckpoint
from support.cluster import SYSTEM, Kubectl, agents

SPEC = {"ociVersion": "1.2.1", "annotations": {"io.container.manager": "libpod"}, "process": {"args": ["sleep"]}}
CONFIG = {
    "id": "5" * 64,
    "name": "web",
    "rootfsImageName": "registry.example/web:1",
    "runtime": "crun",
    "createdTime": "2026-11-24T20:00:00.123456789Z",
    "checkpointedTime": "2026-11-24T20:30:00Z",
    "restoredTime": "0001-01-01T00:00:00Z",
    "restored": False,
}
Member = tuple[tarfile.TarInfo, bytes]


def file(name: str, content: bytes = b"x", **changes: Any) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o600
    for key, value in changes.items():
        setattr(info, key, value)
    return info, content


def other(name: str, kind: bytes, target: str = "") -> Member:
    """Return a member without content."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def tar_of(members: Iterable[Member]) -> bytes:
    out = io.BytesIO()
    with tarfile.TarFile(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


def podman_archive(*more: Member, without: tuple[str, ...] = (), config: object = CONFIG) -> bytes:
    """Return an archive in Podman's order, less some of it, and with more at the end."""
    members = [
        file("config.dump", json.dumps(config).encode()),
        file("spec.dump", json.dumps(SPEC).encode()),
        file("network.status", b"{}"),
        file("stats-dump", b"\x01\x02"),
        other("checkpoint", tarfile.DIRTYPE),
        file("checkpoint/inventory.img", b"inventory"),
        file("checkpoint/pages-1.img", bytes(range(256)) * 8192),
    ]
    return tar_of([*(member for member in members if member[0].name not in without), *more])


def compressed(content: bytes, how: str) -> bytes:
    return {"zstd": zstandard.compress, "gzip": gzip.compress, "none": bytes}[how](content)


def listing(archive: bytes) -> dict[str, bytes | None]:
    """Return an archive's members and their contents, in order; a directory has none."""
    if archive.startswith(b"\x28\xb5\x2f\xfd"):
        archive = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive)).read()
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {m.name: content.read() if (content := tar.extractfile(m)) else None for m in tar}


def contents(checkpoint: StoredCheckpoint) -> dict[str, bytes]:
    """Return a checkpoint's entries."""
    found: dict[str, bytes] = {}
    for path in checkpoint.paths:
        reader, parts = checkpoint.reader(path), list[bytes]()
        while part := reader.read(min(1 << 20, reader.size - reader.tell())):
            parts.append(part)
        found[path] = b"".join(parts)
    return found


def checkpointctl(*words: str | Path) -> str:
    """Run the real checkpointctl, as the test bed builds it."""
    bed = Path(__file__).parents[1] / "kind/cluster"
    built = subprocess.run((bed, "tool", "--path", "checkpointctl"), check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    done = subprocess.run((built.stdout.strip(), *map(str, words)), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def tool(kubectl: Kubectl, *words: str, stdin: bytes = b"") -> bytes:
    """Run the command of the agent's image in an agent's pod."""
    pod = next(iter(agents(kubectl).values()))
    command = ("kubectl", "exec", "-i", pod, "-n", SYSTEM, "--", "container-migration", *words)
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
