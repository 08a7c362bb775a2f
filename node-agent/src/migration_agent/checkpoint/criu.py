"""The files that tell CRIU what to do during a dump, and what its log says when it failed."""

from __future__ import annotations

import json
import os
from collections import deque
from pathlib import Path

from migration_agent.host import Host
from migration_agent.runtime.interface import Dump
from migration_api.names import INSTALL_DIR, RUN_DIR

HOOK = f"{INSTALL_DIR}/bin/runc-migratable"
"""The interposer is CRIU's action script too."""

_DUMP_CONFIGURATION = f"""action-script {HOOK}
network-lock skip
ghost-limit 256M
"""
"""`network-lock skip`: the packets are dropped already. The rest goes by flags of runc, which would win anyway."""

_ERROR_LINES = 3
_ERROR_CHARACTERS = 300


def configuration_path(container_id: str) -> str:
    """Return the path of a container's CRIU configuration; a restored container's annotation names it for ever."""
    return f"{RUN_DIR}/criu/{container_id}.conf"


def prepare(host: Host, dump: Dump) -> None:
    """Make a dump's directory, the configuration of CRIU and the description for the hook beside the images.

    Raises:
        OSError: a file could not be written.
    """
    for directory in (dump.directory, images(dump), work(dump)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = host.path(configuration_path(dump.container.container_id))
    configuration.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_private(configuration, _DUMP_CONFIGURATION)
    hook = {"socket": f"{RUN_DIR}/agent.sock", "migration": dump.migration, "container": dump.container.name}
    write_private(dump.directory / "hook.json", json.dumps(hook))


def images(dump: Dump) -> Path:
    """Return where CRIU writes its images."""
    return dump.directory / "images"


def work(dump: Dump) -> Path:
    """Return where CRIU writes its log."""
    return dump.directory / "work"


def drop_shared_ipc(directory: Path) -> None:
    """Remove System V shared memory, queues and semaphores from one container's checkpoint.

    All containers of a pod share them, and CRIU puts all of them into each dump but cannot make them twice in one
    namespace. They are left with one container (`Freezer.memory_owner`). At the source, since what is not sent costs
    no time in the freeze.

    Raises:
        OSError: a file could not be removed.
    """
    for kind in ("shm", "msg", "sem"):
        for file in (directory / "images").glob(f"ipcns-{kind}*.img"):
            file.unlink()


def log_errors(log: Path) -> str:
    """Return the last error lines of a CRIU log in one line; empty when there is no log or it holds none."""
    errors: deque[str] = deque(maxlen=_ERROR_LINES)
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            errors.extend(line.strip()[:_ERROR_CHARACTERS] for line in file if "Error" in line)
    except FileNotFoundError:
        return ""
    return "; ".join(errors)


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically; only root can read it."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
