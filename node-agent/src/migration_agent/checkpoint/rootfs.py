"""Copies what a container changed in its root file system: the overlay's upper directory, as an OCI layer in a tar.

PAX format, numeric owners, times in nanoseconds, extended attributes as `SCHILY.xattr.NAME`, deletions as `.wh.NAME`,
hidden lower directories as `.wh..wh..opq`. The container is frozen meanwhile, so nothing moves under the walk.
"""

from __future__ import annotations

import os
import re
import stat
import tarfile
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from migration_agent.checkpoint.sparse import open_sparse
from migration_agent.host import Host

STORAGE = "/var/lib/containerd/"
"""Where the upper directory must lie; anything else is not a container's own layer."""

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_OVERLAY_XATTRS = "trusted.overlay."
_UNCARRIED = {
    "trusted.overlay.redirect": "was renamed from a lower layer",
    "trusted.overlay.metacopy": "has its content in a lower layer",
}
"""The upper directory alone does not hold these files; overlay makes such entries only with non-default settings."""


class RootfsFailure(Exception):
    """The changes of a root file system could not be copied; the message is for an admin."""


def copy_changes(host: Host, rootfs: Path, target: Path) -> None:
    """Write the changes of the overlay mounted at `rootfs` on the host to the new tar file `target` (0600).

    Raises:
        RootfsFailure: there is no such overlay, it holds what a tar of it cannot carry, or reading or writing failed.
    """
    upper = host.host_file(upper_directory(host, rootfs))
    try:
        target.unlink(missing_ok=True)
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            write_layer(upper, file)
    except (OSError, ValueError) as error:
        raise RootfsFailure(f"the changes of the root file system could not be copied: {error}") from error


def upper_directory(host: Host, rootfs: Path) -> str:
    """Return the upper directory, a path on the host, of the overlay mounted at `rootfs`.

    Raises:
        RootfsFailure: there is none, or it lies outside containerd's storage.
    """
    options = None
    mounts = host.path(f"/proc/{host.first_process}/mountinfo")
    for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        mount, _, super_block = line.partition(" - ")
        mount_point = _unescape(mount.split(" ")[4])
        kind, _, rest = super_block.partition(" ")
        if mount_point == str(rootfs) and kind == "overlay":
            options = rest.partition(" ")[2]
    if options is None:
        raise RootfsFailure(
            f"no overlay is mounted at {rootfs}: only containers of the overlayfs snapshotter can be migrated"
        )
    found = re.search(r"(?:^|,)upperdir=([^,]*)", options)
    if found is None:
        raise RootfsFailure(f"the overlay at {rootfs} has no upper directory")
    upper = os.path.normpath(_unescape(found[1]))
    if not upper.startswith(STORAGE):
        raise RootfsFailure(f"the upper directory {upper} of the overlay at {rootfs} is not inside {STORAGE}")
    return upper


def write_layer(upper: Path, file: BinaryIO) -> None:
    """Write an overlay's upper directory as a layer, in a fixed order, parents before children.

    Raises:
        RootfsFailure: it holds something a layer cannot carry.
        OSError: reading or writing failed.
        ValueError: a name that no tar can carry.
    """
    with _tar(file) as tar:
        layer = _Layer(upper, tar)
        for name in _walk(upper):
            layer.add(name)


def write_exact(root: Path, file: BinaryIO) -> None:
    """Write a directory so that applying it makes another one exactly the same: what is not in it goes.

    Raises:
        RootfsFailure: it holds something a layer cannot carry, an overlay's own files included.
        OSError: reading or writing failed.
        ValueError: a name that no tar can carry.
    """
    with _tar(file) as tar:
        layer = _Layer(root, tar, exact=True)
        for name in _walk(root):
            layer.add(name)
        tar.addfile(tarfile.TarInfo(_OPAQUE))


def _tar(file: BinaryIO) -> tarfile.TarFile:
    pax = tarfile.PAX_FORMAT
    return tarfile.TarFile(fileobj=file, mode="w", format=pax, encoding="utf-8", copybufsize=1 << 20)


@dataclass
class _Layer:
    upper: Path
    tar: tarfile.TarFile
    first_names: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])
    """The first name of each file with several hard links."""
    exact: bool = False
    """It is no overlay's upper directory, so what looks like an overlay's bookkeeping would be lost."""

    def add(self, name: str) -> None:
        path = self.upper / name
        status = path.lstat()
        if stat.S_ISSOCK(status.st_mode):
            return  # CRIU binds the sockets of the container anew; others have no listener
        attributes = _attributes(path)
        if self.exact and any(key.startswith(_OVERLAY_XATTRS) for key in attributes):
            raise RootfsFailure(f"{name} is part of an overlay file system that the container made in a volume")
        if not self.exact and _is_whiteout(status, attributes):
            directory, _, deleted = name.rpartition("/")
            self.tar.addfile(tarfile.TarInfo(f"{directory}/{_WHITEOUT}{deleted}".lstrip("/")))
            return
        _refuse_uncarried(name, status, attributes)
        self._add_entry(path, self._header(name, path, status, attributes), status)
        if attributes.get("trusted.overlay.opaque") == b"y":
            self.tar.addfile(tarfile.TarInfo(f"{name}/{_OPAQUE}"))

    def _header(self, name: str, path: Path, status: os.stat_result, attributes: dict[str, bytes]) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.mode = stat.S_IMODE(status.st_mode)
        info.uid, info.gid = status.st_uid, status.st_gid
        info.mtime = max(0, status.st_mtime_ns // 1_000_000_000)
        info.pax_headers = {"mtime": _seconds(status.st_mtime_ns)} | {
            f"SCHILY.xattr.{key}": value.decode("utf-8", "surrogateescape")
            for key, value in sorted(attributes.items())
            if not key.startswith(_OVERLAY_XATTRS)
        }
        info.type = _tar_type(status)
        if info.type == tarfile.SYMTYPE:
            info.linkname = str(path.readlink())
        elif info.type == tarfile.REGTYPE:
            info.size = status.st_size
        return info

    def _add_entry(self, path: Path, info: tarfile.TarInfo, status: os.stat_result) -> None:
        if not stat.S_ISDIR(status.st_mode) and status.st_nlink > 1:
            first = self.first_names.setdefault((status.st_dev, status.st_ino), info.name)
            if first != info.name:
                info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0
        if info.type != tarfile.REGTYPE:
            self.tar.addfile(info)
            return
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as content:
            self.tar.addfile(info, open_sparse(content, info, status) or content)


def _walk(upper: Path) -> Generator[str]:
    """Yield every path below `upper`, relative to it: sorted by name, a directory before its content."""
    waiting = ["."]
    while waiting:
        relative = waiting.pop()
        path = upper / relative
        yield relative
        if stat.S_ISDIR(path.lstat().st_mode):
            names = sorted((entry.name for entry in path.iterdir()), key=os.fsencode, reverse=True)
            waiting.extend(name if relative == "." else f"{relative}/{name}" for name in names)


def _attributes(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def _is_whiteout(status: os.stat_result, attributes: dict[str, bytes]) -> bool:
    if stat.S_ISCHR(status.st_mode):
        return status.st_rdev == os.makedev(0, 0)
    return stat.S_ISREG(status.st_mode) and "trusted.overlay.whiteout" in attributes


def _refuse_uncarried(name: str, status: os.stat_result, attributes: dict[str, bytes]) -> None:
    if name.rpartition("/")[2].startswith(_WHITEOUT):
        raise RootfsFailure(f"the file {name} has a name that means a deletion in a layer: rename it")
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        raise RootfsFailure(f"{name} is a device that the container made; it would be other hardware on another node")
    for attribute, meaning in _UNCARRIED.items():
        if attribute in attributes:
            raise RootfsFailure(
                f"{name} {meaning} ({attribute}): the node mounts overlays with redirect_dir or metacopy; switch it off"
            )


def _tar_type(status: os.stat_result) -> bytes:
    types = {
        stat.S_IFDIR: tarfile.DIRTYPE,
        stat.S_IFREG: tarfile.REGTYPE,
        stat.S_IFLNK: tarfile.SYMTYPE,
        stat.S_IFIFO: tarfile.FIFOTYPE,
    }
    return types[stat.S_IFMT(status.st_mode)]


def _seconds(nanoseconds: int) -> str:
    whole, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    return f"{'-' if nanoseconds < 0 else ''}{whole}.{fraction:09d}"


def _unescape(text: str) -> str:
    r"""Undo the kernel's octal escapes (`\040` for a space) in a field of mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)
