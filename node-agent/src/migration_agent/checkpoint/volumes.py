"""What a pod's containers share on the node and take along: its emptyDir volumes and the sandbox's /dev/shm.

Copied once per pod, while every container is frozen. Each becomes one exact archive (`rootfs.write_exact`), which the
interposer applies before it restores the first container.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from migration_agent.checkpoint.rootfs import RootfsFailure, write_exact
from migration_agent.host import Host

SHARED_MEMORY = "shm.tar"
_VOLUME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_EMPTY_DIRS = "/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir"
_POD_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_COUNTED_FILES = 1_000_000


def copy_shared(host: Host, pod_uid: str, shared_memory: str | None, directory: Path) -> None:
    """Write the archives of a frozen pod into `directory`, which is made.

    `shared_memory` is the sandbox's /dev/shm on the host; None when it has none of its own.

    Raises:
        RootfsFailure: a volume holds what an archive cannot carry, or reading or writing failed.
    """
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        for name, root in _shared(host, pod_uid, shared_memory):
            _write(root, directory / name)
    except (OSError, ValueError) as error:
        raise RootfsFailure(f"the volumes of the pod could not be copied: {error}") from error


def shared_bytes(host: Host, pod_uid: str, shared_memory: str | None) -> int:
    """Return what the archives are expected to take, in bytes; a running pod may change it at any time."""
    total = files = 0
    for _, root in _shared(host, pod_uid, shared_memory):
        for parent, _, names in os.walk(root):
            for name in names:
                try:
                    status = os.lstat(os.path.join(parent, name))  # noqa: PTH118  # a million of them
                except FileNotFoundError:
                    continue
                total += min(status.st_blocks * 512, status.st_size)
            files += len(names)
            if files > _COUNTED_FILES:
                return total
    return total


def _shared(host: Host, pod_uid: str, shared_memory: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the name of each archive and the directory that it holds."""
    if not _POD_UID.fullmatch(pod_uid):
        raise RootfsFailure(f"{pod_uid!r} is not a pod's UID")
    volumes = host.host_file(_EMPTY_DIRS.format(uid=pod_uid))
    names = sorted(entry.name for entry in volumes.iterdir()) if volumes.is_dir() else []
    for name in names:
        if _VOLUME.fullmatch(name) and stat.S_ISDIR((volumes / name).lstat().st_mode):
            yield f"volume-{name}.tar", volumes / name
    if shared_memory is not None:
        root = host.host_file(shared_memory)
        if any(root.iterdir()):
            yield SHARED_MEMORY, root


def _write(root: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        write_exact(root, file)
