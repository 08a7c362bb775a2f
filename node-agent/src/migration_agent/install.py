"""Brings the interposer and CRIU, with its libraries and loader, from the agent's image to the host."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from pathlib import Path

from migration_agent.host import Host
from migration_api.names import INSTALL_DIR

log = logging.getLogger(__name__)

DISTRIBUTION = Path("/opt/container-migration-dist")
"""Where the image holds what goes to the host: `bin/` and `criu/`."""


class InstallFailure(Exception):
    """The host's files could not be brought up to date; the message is for an admin."""


def install(host: Host, distribution: Path = DISTRIBUTION) -> None:
    """Make the host's installation equal to the image's; files that are equal already are left alone.

    Each file is replaced by a rename: a binary that runs keeps its old content, and none is ever half written.
    Libraries come before the binaries that need them.

    Raises:
        InstallFailure: the image holds nothing to install, or a file could not be written.
    """
    files = sorted((file for file in distribution.rglob("*") if file.is_file()), key=_libraries_first)
    if not files:
        raise InstallFailure(f"{distribution} is empty: this is not the agent's image")
    for file in files:
        target = host.path(INSTALL_DIR) / file.relative_to(distribution)
        try:
            if not target.is_file() or _digest(target) != _digest(file):
                _replace(file, target)
                log.info("installed %s", target)
        except OSError as error:
            raise InstallFailure(
                f"{target} could not be installed: {error}; {INSTALL_DIR} must be a writable directory of the node, "
                "on a file system without noexec"
            ) from error


def _libraries_first(file: Path) -> tuple[bool, str]:
    return file.parent.name == "bin", str(file)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _replace(source: Path, target: Path) -> None:
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = target.with_name(f".{target.name}.new")
    with source.open("rb") as original, new.open("wb") as copy:
        shutil.copyfileobj(original, copy)
        os.fchmod(copy.fileno(), 0o755)
        copy.flush()
        os.fsync(copy.fileno())
    new.replace(target)
    directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
