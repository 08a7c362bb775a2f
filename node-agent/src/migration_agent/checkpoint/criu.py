"""The files that tell CRIU what to do during a dump, and what its log says when it failed."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from pathlib import Path

from migration_agent.host import Host
from migration_agent.runtime.interface import Dump
from migration_api.names import INSTALL_DIR, RUN_DIR

HOOK = f"{INSTALL_DIR}/bin/runc-migratable"
"""The interposer is CRIU's action script too."""

PAGE_SERVER_PORT = 27000
WITHOUT_MEMORY = (HOOK, "container-migration-dump", str(PAGE_SERVER_PORT))
"""Runs a command in which CRIU leaves the memory where it is, and tells CRIU that nobody fetches it."""

_DUMP_CONFIGURATION = f"""action-script {HOOK}
network-lock skip
ghost-limit 256M
"""
"""`network-lock skip`: the packets are dropped already. The rest goes by flags of runc, which would win anyway."""

_PLAIN_NAME = re.compile(r"[\w.+@-]+")
"""A name that is one word in CRIU's configuration, whatever a container calls its directories."""

_SENTENCES = (
    (
        r"Can't dump half of stream unix connection|External socket is used",
        "a Unix socket in it is connected with one outside the container: close that connection",
    ),
    (
        r"Can't dump ghost file .* increase limit",
        "a file that is deleted but open is larger than 256 MiB: let the program close it",
    ),
    (
        r"fsnotify: (Can't dump that handle|Handle .* cannot be opened)",
        "a file or directory that a program watches (inotify, fanotify) cannot be found again: end the watch",
    ),
    (
        # Its file cannot even be handed to CRIU over a socket, so that is all that CRIU says of it.
        r"io_uring|Message reply from daemon is trimmed",
        "a program uses io_uring, whose state in the kernel cannot be read: configure the program to do without",
    ),
    (
        r"Can't dump file \d+ of that type|Can't handle non-regular mapping|Unsupported anon(ymous)? inode",
        "a program has a device or another object of the kernel open whose state cannot be read: let it close that",
    ),
    (
        r"Can't lookup mount=",
        "a program has a file open on a file system that is not mounted in the container any more: let it close that",
    ),
)
"""What CRIU says when something cannot be dumped, and what that means to an admin; the first that fits counts."""

_ERROR_LINES = 3
_ERROR_CHARACTERS = 300


def configuration_path(container_id: str) -> str:
    """Return the path of a container's CRIU configuration; a restored container's annotation names it for ever."""
    return f"{RUN_DIR}/criu/{container_id}.conf"


def prepare(host: Host, dump: Dump) -> None:
    """Make a dump's directory, the configuration of CRIU and the description for the hook beside the images.

    An overlay cannot open a file by the handle that the kernel gives for an inotify watch, so CRIU looks for it by its
    inode number, but only where it is told to.

    Raises:
        OSError: a file could not be written.
    """
    for directory in (dump.directory, images(dump), work(dump)):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    configuration = host.path(configuration_path(dump.container.container_id))
    configuration.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    watched = "".join(f"irmap-scan-path {path}\n" for path in own_directories(host, dump.container.init_pid))
    write_private(configuration, _DUMP_CONFIGURATION + watched)
    hook = {"socket": f"{RUN_DIR}/agent.sock", "migration": dump.migration, "container": dump.container.name}
    write_private(dump.directory / "hook.json", json.dumps(hook))


def own_directories(host: Host, pid: int) -> list[str]:
    """Return the top directories of a container's root file system, without those where something else is mounted.

    Raises:
        OSError: the process is gone.
    """
    root = host.path(f"/proc/{pid}/root")
    device = root.stat().st_dev
    with os.scandir(root) as entries:
        found = [it for it in entries if it.is_dir(follow_symlinks=False) and _PLAIN_NAME.fullmatch(it.name)]
        return sorted(f"/{it.name}" for it in found if it.stat(follow_symlinks=False).st_dev == device)


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
    """Return what a CRIU log says went wrong: in a sentence where that is known, then its last error lines.

    Empty when there is no log or it holds no error.
    """
    errors: deque[str] = deque(maxlen=_ERROR_LINES)
    known = ""
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                if "Error" in line:
                    known = known or meaning(line)
                    errors.append(line.strip()[:_ERROR_CHARACTERS])
    except FileNotFoundError:
        return ""
    lines = "; ".join(errors)
    return f"{known} (CRIU: {lines})" if known and lines else lines


def meaning(line: str) -> str:
    """Return what a line of CRIU's log means to an admin; empty when that is not known."""
    return next((sentence for pattern, sentence in _SENTENCES if re.search(pattern, line)), "")


def write_private(path: Path, text: str) -> None:
    """Replace a file atomically; only root can read it."""
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)
