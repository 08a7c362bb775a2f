"""The manifest, which lists all of a checkpoint and is written last; and the names that entries may have."""

from __future__ import annotations

import base64
import binascii
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, model_validator

from migration_agent.paths import MEMORY_LOG, ONLY_LOOPBACK, SHARED_DIRECTORY
from migration_agent.transport.chunks import (
    CHUNK_BYTES,
    CHUNK_BYTES_MAX,
    NONCE_BYTES,
    RECORD_BYTES,
    TAG_BYTES,
    VERSION,
    FormatError,
    Record,
    Seal,
    unpacked,
)
from migration_api.base import Model
from migration_api.migration import Uid

ENTRIES_MAX = 20_000
ENTRY_MODE = 0o600
MANIFEST_BYTES = 16 * 1024 * 1024
"""Enough for 400 GiB in chunks of 1 MiB."""
MANIFEST_NAME = "manifest"
"""Its name in a store."""
INVENTORY = "images/inventory.img"
PODMANS_ARCHIVE = "images/podman.tar"
"""All of a Podman container, as Podman exports it; beside it lies the inventory that is in it, too."""
DESCRIPTIONS = ("config.dump", "spec.dump", "stats-dump", "network.status")
"""Beside the images, for whoever reads the checkpoint later; nothing is restored from them."""
_PAGE_BYTES = 4096

_HEADER = b"CMMF" + bytes([VERSION, 0, 0, 0])
_ENTRY = re.compile(
    r"(?P<container>[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)"
    r"/(rootfs-diff\.tar|memory\.log|config\.dump|spec\.dump|stats-dump|network\.status|images/[A-Za-z0-9_][A-Za-z0-9_.-]{0,254})"
)
_SHARED = re.compile(rf"{SHARED_DIRECTORY}/({ONLY_LOOPBACK}|(shm|volume-[a-z0-9]([-a-z0-9]{{0,61}}[a-z0-9])?)\.tar)")


class ManifestEntry(Model):
    """One file of a checkpoint."""

    path: Annotated[str, Field(max_length=512)]
    """`CONTAINER/rootfs-diff.tar`, `CONTAINER/images/FILE`, a description beside them, or one of the pod: `_pod/…`."""
    size: Annotated[int, Field(ge=0)]
    mode: Literal[0o600] = ENTRY_MODE
    chunks: str = ""
    """Base64 of the chunks' records, one after another: 12 bytes nonce, 16 bytes digest."""

    @property
    def records(self) -> list[Record]:
        """The chunks' records in order; raises `FormatError`."""
        try:
            return unpacked(base64.b64decode(self.chunks, validate=True))
        except binascii.Error as error:
            raise FormatError(f"entry {self.path}: the records of its chunks are not base64") from error


class Manifest(Model):
    """All that a checkpoint consists of."""

    model_config = ConfigDict(hide_input_in_errors=True)

    version: Literal[1] = VERSION
    migration: Uid
    chunk_bytes: Annotated[int, Field(ge=1024 * 1024, le=CHUNK_BYTES_MAX, multiple_of=_PAGE_BYTES)] = CHUNK_BYTES
    """Every chunk of an entry but its last has this many bytes."""
    entries: Annotated[tuple[ManifestEntry, ...], Field(min_length=1, max_length=ENTRIES_MAX)]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Each entry has as many records as its size needs, and comes once."""
        if len({entry.path for entry in self.entries}) != len(self.entries):
            raise ValueError("an entry comes twice")
        for entry in self.entries:
            records = chunk_count(entry.size, self.chunk_bytes)
            if len(entry.chunks) != -(-records * RECORD_BYTES // 3) * 4:
                raise ValueError(f"entry {entry.path} of {entry.size} bytes needs the records of {records} chunks")
        return self


@dataclass(frozen=True)
class Entry:
    """One file that is to be sent."""

    path: str
    file: Path
    size: int


def chunk_count(size: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return into how many chunks an entry is cut."""
    return -(-size // chunk_bytes)


def chunk_length(size: int, index: int, chunk_bytes: int = CHUNK_BYTES) -> int:
    """Return how many bytes one chunk of an entry has."""
    return min(chunk_bytes, size - index * chunk_bytes)


def sealed_manifest(seal: Seal, manifest: Manifest) -> bytes:
    """Return the manifest as it is sent and stored.

    Raises:
        FormatError: it is too long.
    """
    nonce = os.urandom(NONCE_BYTES)
    content = manifest.model_dump_json(by_alias=True).encode()
    blob = _HEADER + nonce + seal.encrypt_manifest(nonce, content, _HEADER)
    if len(blob) > MANIFEST_BYTES:
        raise FormatError(f"the manifest would have {len(blob)} bytes; at most {MANIFEST_BYTES} are allowed")
    return blob


def opened_manifest(seal: Seal, blob: bytes, migration: str) -> Manifest:
    """Return the manifest when it is authentic and this migration's.

    Raises:
        FormatError: it is not.
    """
    start = len(_HEADER) + NONCE_BYTES
    if not start + TAG_BYTES <= len(blob) <= MANIFEST_BYTES or blob[: len(_HEADER)] != _HEADER:
        raise FormatError(f"what came is no manifest of format version {VERSION}")
    content = seal.decrypt_manifest(blob[len(_HEADER) : start], blob[start:], _HEADER)
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        raise FormatError(f"the manifest is not one: {error}") from error
    if manifest.migration != migration:
        raise FormatError(f"the manifest is that of migration {manifest.migration}")
    return manifest


def checked_path(path: str, containers: Sequence[str]) -> str:
    """Return the path of an entry when it is one that a checkpoint of these containers may have.

    Raises:
        FormatError: it is not: other directories, `..`, absolute paths, odd characters.
    """
    if _SHARED.fullmatch(path):
        return path
    match = _ENTRY.fullmatch(path)
    if match is None or match["container"] not in containers:
        raise FormatError(f"a checkpoint has no entry {path[:300]!r}")
    return path


def entries_below(directory: Path) -> tuple[Entry, ...]:
    """Return the files of all checkpoints below a migration's directory: a directory per container, one for the pod.

    CRIU's logs and other work files are not among them.

    Raises:
        FormatError: something there is not a plain file, or there is no checkpoint.
    """
    found: list[Entry] = []
    children = sorted(child.name for child in directory.iterdir() if child.is_dir())
    containers = [name for name in children if name != SHARED_DIRECTORY]
    files = sorted((directory / SHARED_DIRECTORY).iterdir()) if SHARED_DIRECTORY in children else []
    for container in containers:
        beside = (directory / container / name for name in ("rootfs-diff.tar", MEMORY_LOG, *DESCRIPTIONS))
        files += [*(file for file in beside if file.exists()), *sorted((directory / container / "images").iterdir())]
    for file in files:
        status = file.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise FormatError(f"{file} is not a plain file")
        path = checked_path(file.relative_to(directory).as_posix(), containers)
        found.append(Entry(path, file, status.st_size))
    if not found or len(found) > ENTRIES_MAX:
        raise FormatError(f"{directory} holds {len(found)} files; a checkpoint has 1 to {ENTRIES_MAX}")
    return tuple(found)


def growing_below(directory: Path) -> tuple[Entry, ...]:
    """Return the files that are only appended to while a checkpoint is made, with their sizes now."""
    found: list[Entry] = []
    inside = ("images/pages-*.img", PODMANS_ARCHIVE, "rootfs-diff.tar", MEMORY_LOG)
    patterns = (*(f"*/{pattern}" for pattern in inside), f"{SHARED_DIRECTORY}/*.tar")
    for file in sorted(file for pattern in patterns for file in directory.glob(pattern)):
        status = file.lstat()
        if stat.S_ISREG(status.st_mode):
            found.append(Entry(file.relative_to(directory).as_posix(), file, status.st_size))
    return tuple(found)


def checkpoint_bytes(directory: Path) -> int:
    """Return the size of what is sent of a migration's directory, in bytes: the progress reaches this total.

    Raises:
        FormatError: it holds what does not belong into a checkpoint.
    """
    return sum(entry.size for entry in entries_below(directory))


def verify(seal: Seal, directory: Path, entries: Sequence[ManifestEntry], chunk_bytes: int = CHUNK_BYTES) -> bool:
    """Say whether a checkpoint that was received earlier is still exactly what it was."""
    buffer = memoryview(bytearray(chunk_bytes))
    for entry in entries:
        try:
            descriptor = os.open(directory / entry.path, os.O_RDONLY | os.O_NOFOLLOW)
        except OSError:
            return False
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size != entry.size:
                return False
            for index, record in enumerate(entry.records):
                chunk = buffer[: chunk_length(entry.size, index, chunk_bytes)]
                read_chunk(file.fileno(), index * chunk_bytes, chunk)
                if seal.digest(record.nonce, chunk) != record.digest:
                    return False
    return True


def read_chunk(descriptor: int, offset: int, into: memoryview) -> None:
    """Fill the buffer from a file.

    Raises:
        FormatError: the file is shorter.
    """
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], offset + done)
        if count == 0:
            raise FormatError(f"a file of the checkpoint ended at {offset + done}, before its chunk did")
        done += count
