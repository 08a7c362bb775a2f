"""Files, their locks and watches, and whole file systems."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from pathlib import Path

from support.everything.kit import DATA, MEMORY, Check, libc, readable


def deleted_file() -> Check:
    path = Path("/var/tmp/deleted")
    file = path.open("w+b", buffering=0)
    file.write(b"kept" * 100_000)
    path.unlink()

    def check() -> None:
        file.seek(0)
        assert file.read() == b"kept" * 100_000

    return check


def locks() -> Check:
    """Another process must not get them."""
    path = DATA / "locked"
    whole, part = path.open("w"), path.open("w")
    fcntl.flock(whole, fcntl.LOCK_EX)
    fcntl.lockf(part, fcntl.LOCK_EX, 10, 5)
    attempt = f"""
import fcntl
for lock, more in ((fcntl.flock, ()), (fcntl.lockf, (10, 5))):
    with open("{path}", "r+") as file:
        try:
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB, *more)
            print("got it")
        except BlockingIOError:
            pass
"""

    def check() -> None:
        assert not any(file.closed for file in (whole, part))
        got = subprocess.run([sys.executable, "-c", attempt], capture_output=True, text=True, check=True).stdout
        assert not got, "another process got a lock"

    return check


def watches() -> Check:
    """On a volume and on the root file system."""
    watcher = libc.inotify_init1(os.O_NONBLOCK)
    folders = [DATA / "watched", Path("/srv/watched")]
    for folder in folders:
        folder.mkdir()
        assert libc.inotify_add_watch(watcher, str(folder).encode(), 0x100) > 0, "IN_CREATE"

    def check() -> None:
        for folder in folders:
            (folder / "new").touch()
            (folder / "new").unlink()
            readable(watcher)
            assert b"new" in os.read(watcher, 4096), f"{folder} is not watched any more"

    return check


def one_offset_of_two() -> Check:
    first = os.open(DATA / "offset", os.O_RDWR | os.O_CREAT | os.O_APPEND)
    second = os.dup(first)
    os.set_inheritable(second, True)
    os.write(first, b"0123456789")
    os.lseek(first, 4, os.SEEK_SET)

    def check() -> None:
        assert os.lseek(second, 0, os.SEEK_CUR) == 4
        assert fcntl.fcntl(second, fcntl.F_GETFL) & os.O_APPEND
        assert (os.get_inheritable(first), os.get_inheritable(second)) == (False, True)

    return check


def root_file_system() -> Check:
    """Something new, something changed, something gone, a folder that is another one now."""
    Path("/etc/issue").unlink()
    Path("/etc/hostname-of-before").write_text("written")
    os.chown("/etc/hostname-of-before", 1234, 4321)
    Path("/etc/hostname-of-before").chmod(0o640)
    os.link("/etc/hostname-of-before", "/etc/hard-link")
    Path("/etc/soft-link").symlink_to("hostname-of-before")
    subprocess.run(["rm", "-r", "/etc/skel"], check=True)
    Path("/etc/skel").mkdir()
    Path("/etc/skel/only-this").touch()
    with Path("/var/tmp/sparse").open("wb") as file:
        file.truncate(1 << 28)
        file.seek(1 << 27)
        file.write(b"in the middle")

    def check() -> None:
        assert not Path("/etc/issue").exists()
        it = Path("/etc/hostname-of-before").stat()
        assert (it.st_uid, it.st_gid, it.st_mode & 0o7777, it.st_nlink) == (1234, 4321, 0o640, 2)
        assert Path("/etc/hard-link").samefile("/etc/soft-link")
        assert [it.name for it in Path("/etc/skel").iterdir()] == ["only-this"]
        sparse = Path("/var/tmp/sparse").stat()
        assert sparse.st_size == 1 << 28
        assert sparse.st_blocks * 512 < 1 << 20, "a sparse file takes all its room"

    return check


def volumes() -> Check:
    for folder in (DATA, MEMORY):
        inside = folder / "a" / "b"
        inside.mkdir(parents=True, mode=0o711)
        (inside / "file").write_text(str(folder))
        os.chown(inside / "file", 999, 999)
        os.link(inside / "file", folder / "linked")
    os.setxattr(DATA / "a", "user.colour", b"red")

    def check() -> None:
        for folder in (DATA, MEMORY):
            assert (folder / "a" / "b").stat().st_mode & 0o777 == 0o711 & ~0o022
            assert (folder / "linked").read_text() == str(folder)
            assert (folder / "linked").samefile(folder / "a" / "b" / "file")
            assert (folder / "linked").stat().st_uid == 999
        assert os.getxattr(DATA / "a", "user.colour") == b"red"

    return check
