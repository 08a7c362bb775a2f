"""A small file system that two nodes share, as they would share a volume of a storage server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

_SHARE = """
import ctypes, os, sys
path, options, first, *others = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
OPEN_TREE, MOVE_MOUNT, AT_FDCWD, CLONE_NEWNS = 428, 429, -100, 0x20000
OPEN_TREE_CLONE, MOVE_MOUNT_F_EMPTY_PATH = 1, 4
name = path.encode()

def must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result

def enter(pid):
    with open(f"/proc/{pid}/ns/mnt") as namespace:
        must(libc.setns(namespace.fileno(), CLONE_NEWNS))

spaces = [open(f"/proc/{pid}/ns/mnt") for pid in (first, *others)]
must(libc.setns(spaces[0].fileno(), CLONE_NEWNS))
os.makedirs(path, exist_ok=True)
must(libc.mount(b"tmpfs", name, b"tmpfs", 0, options.encode()))
trees = [must(libc.syscall(OPEN_TREE, AT_FDCWD, name, OPEN_TREE_CLONE)) for _ in others]
for space, tree in zip(spaces[1:], trees):
    must(libc.setns(space.fileno(), CLONE_NEWNS))
    must(libc.syscall(MOVE_MOUNT, tree, b"", AT_FDCWD, name, MOVE_MOUNT_F_EMPTY_PATH))
"""
"""A process of its own: only one with a single thread can change its mount namespace."""


@contextmanager
def shared_tmpfs(nodes: Sequence[str], path: str, options: str) -> Generator[None]:
    """Mount one tmpfs at `path` in nodes of the test bed; what they mount below it their agents see."""
    command = ("docker", "inspect", "-f", "{{.State.Pid}}", *nodes)
    pids = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    try:
        subprocess.run((sys.executable, "-c", _SHARE, path, options, *pids), check=True)
        yield
    finally:
        for pid in pids:
            subprocess.run(("nsenter", "-t", pid, "-m", "umount", "-l", path), check=False)
