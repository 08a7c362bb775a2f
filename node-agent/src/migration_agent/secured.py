"""A checkpoint that is the only one: brought to the disk, so that it outlives a reboot (docs/protocol.md, section 12).

Its key lies in memory and does not outlive that. So what was verified with it gets one digest more, in the journal.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from migration_agent.paths import sync_directory
from migration_agent.transport.manifest import ManifestEntry

_READ_BYTES = 1 << 20


def secure(directory: Path, entries: Iterable[ManifestEntry]) -> str:
    """Bring the files of a checkpoint to the disk, names included, and return their digest; blocks.

    Raises:
        OSError: one is missing or could not be written.
    """
    paths = [entry.path for entry in entries]
    with ThreadPoolExecutor(max_workers=1) as beside:
        digesting = beside.submit(_digest, directory, paths)
        for path in paths:
            _sync(directory / path)
        for parent in sorted({parent for path in paths for parent in Path(path).parents}):
            sync_directory(directory / parent)
        sync_directory(directory.parent)
        return digesting.result()


def is_secured(directory: Path, entries: Iterable[ManifestEntry], digest: str | None) -> bool:
    """Say whether the files are still those that were brought to the disk; blocks."""
    try:
        return digest == _digest(directory, [entry.path for entry in entries])
    except OSError:
        return False


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _digest(directory: Path, paths: Iterable[str]) -> str:
    """Return one digest over names, sizes and contents."""
    whole = hashlib.sha256()
    for path in sorted(paths):
        with os.fdopen(os.open(directory / path, os.O_RDONLY | os.O_NOFOLLOW), "rb", buffering=0) as file:
            whole.update(f"{path}\0{os.fstat(file.fileno()).st_size}\0".encode())
            while chunk := file.read(_READ_BYTES):
                whole.update(chunk)
    return f"sha256:{whole.hexdigest()}"
