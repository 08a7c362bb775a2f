"""What a checkpoint consists of on the wire: entries, their digests, and the names they may have."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from migration_agent.paths import ONLY_LOOPBACK, SHARED_DIRECTORY
from migration_api.base import Model

CHUNK_BYTES = 4 * 1024 * 1024
ENTRIES_MAX = 20_000
ENTRY_MODE = 0o600

_ENTRY = re.compile(
    r"(?P<container>[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)/(rootfs-diff\.tar|images/[A-Za-z0-9_][A-Za-z0-9_.-]{0,254})"
)
_SHARED = re.compile(rf"{SHARED_DIRECTORY}/({ONLY_LOOPBACK}|(shm|volume-[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?)\.tar)")

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class ManifestError(Exception):
    """A checkpoint that must not be used; the message is for an admin."""


class EntryDigest(Model):
    """One file of a checkpoint."""

    path: str
    """`CONTAINER/rootfs-diff.tar`, `CONTAINER/images/FILE`, or one of the pod: `_pod/…`."""
    size: Annotated[int, Field(ge=0)]
    sha256: Sha256
    """Of the concatenated raw SHA-256 digests of the file's chunks."""


@dataclass(frozen=True)
class Entry:
    """One file that is to be sent."""

    path: str
    file: Path
    size: int


def checked_path(path: str, containers: Sequence[str]) -> str:
    """Return the path of an entry when it is one that a checkpoint of these containers may have.

    Raises:
        ManifestError: it is not: other directories, `..`, absolute paths, odd characters.
    """
    if _SHARED.fullmatch(path):
        return path
    match = _ENTRY.fullmatch(path)
    if match is None or match["container"] not in containers:
        raise ManifestError(f"a checkpoint has no entry {path[:300]!r}")
    return path


def entries_below(directory: Path) -> tuple[Entry, ...]:
    """Return the files of all checkpoints below a migration's directory: a directory per container, one for the pod.

    CRIU's logs and other work files are not among them.

    Raises:
        ManifestError: something there is not a plain file, or there is no checkpoint.
    """
    found: list[Entry] = []
    children = sorted(child.name for child in directory.iterdir() if child.is_dir())
    containers = [name for name in children if name != SHARED_DIRECTORY]
    files = sorted((directory / SHARED_DIRECTORY).iterdir()) if SHARED_DIRECTORY in children else []
    for container in containers:
        diff = directory / container / "rootfs-diff.tar"
        files += [*([diff] if diff.exists() else []), *sorted((directory / container / "images").iterdir())]
    for file in files:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise ManifestError(f"{file} is not a plain file")
        path = checked_path(file.relative_to(directory).as_posix(), containers)
        found.append(Entry(path, file, status.st_size))
    if not found or len(found) > ENTRIES_MAX:
        raise ManifestError(f"{directory} holds {len(found)} files; a checkpoint has 1 to {ENTRIES_MAX}")
    return tuple(found)


def checkpoint_bytes(directory: Path) -> int:
    """Return the size of what is sent of a migration's directory, in bytes: the progress reaches this total.

    Raises:
        ManifestError: it holds what does not belong into a checkpoint.
    """
    return sum(entry.size for entry in entries_below(directory))


def combined(digests: Iterable[bytes]) -> str:
    """Return an entry's digest, of its chunks' raw digests."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


def verify(directory: Path, entries: Sequence[EntryDigest]) -> bool:
    """Say whether a checkpoint that was received earlier is still exactly what it was."""
    buffer = memoryview(bytearray(CHUNK_BYTES))
    for entry in entries:
        try:
            descriptor = os.open(directory / entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        digests: list[bytes] = []
        size = 0
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            while count := _fill(file.fileno(), buffer):
                digests.append(hashlib.sha256(buffer[:count]).digest())
                size += count
        if size != entry.size or combined(digests) != entry.sha256:
            return False
    return True


def _fill(descriptor: int, buffer: memoryview) -> int:
    """Read until the buffer is full or the file ends: chunks are always cut at the same places."""
    count = 0
    while count < len(buffer) and (read := os.readv(descriptor, [buffer[count:]])):
        count += read
    return count
