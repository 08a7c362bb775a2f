"""Memory, and what processes are to each other."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import signal
import struct
import subprocess
import threading
import time
from pathlib import Path

from support.everything.kit import Check, libc


def memory_file() -> Check:
    file = os.memfd_create("everything")
    os.ftruncate(file, 8192)
    shared = mmap.mmap(file, 8192)
    shared[:5] = b"there"

    def check() -> None:
        assert os.pread(file, 5, 0) == shared[:5] == b"there"

    return check


def shared_with_a_child() -> Check:
    """Anonymous, and in /dev/shm: what the child writes the parent sees."""
    anonymous = mmap.mmap(-1, 4096)
    with Path("/dev/shm/everything").open("w+b") as file:
        file.truncate(4096)
        named = mmap.mmap(file.fileno(), 4096)
    child = os.fork()
    if not child:
        while True:
            for shared in (anonymous, named):
                shared[:8] = struct.pack("Q", struct.unpack("Q", shared[:8])[0] + 1)
            time.sleep(0.01)

    def check() -> None:
        before = [shared[:8] for shared in (anonymous, named)]
        time.sleep(0.3)
        assert all(shared[:8] != then for shared, then in zip((anonymous, named), before, strict=True))
        assert Path(f"/proc/{child}/stat").read_text().split()[3] == str(os.getpid())

    return check


def system_v_memory() -> Check:
    libc.shmat.restype = ctypes.c_void_p
    segment = libc.shmget(0x7E57, 4096, 0o1600)
    assert segment >= 0, os.strerror(ctypes.get_errno())
    address = libc.shmat(segment, None, 0)
    ctypes.memmove(address, b"attached", 8)

    def check() -> None:
        assert ctypes.string_at(address, 8) == b"attached"
        assert libc.shmget(0x7E57, 4096, 0) == segment

    return check


def zombie() -> Check:
    child = os.fork()
    if not child:
        os._exit(7)
    time.sleep(0.1)

    def check() -> None:
        info = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        assert info is not None
        assert info.si_status == 7

    return check


def session_with_a_grandchild() -> Check:
    script = "sleep 10000 & echo $!; wait"
    child = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    grandchild = int(child.stdout.readline())

    def check() -> None:
        assert child.poll() is None
        assert os.getsid(grandchild) == os.getpgid(grandchild) == child.pid

    return check


def threads() -> Check:
    counts = [0] * 3

    def count(index: int) -> None:
        while True:
            counts[index] += 1
            time.sleep(0.01)

    for index in range(3):
        threading.Thread(target=count, args=(index,), daemon=True).start()

    def check() -> None:
        before = list(counts)
        time.sleep(0.3)
        assert all(now > then for now, then in zip(counts, before, strict=True)), "a thread stands still"

    return check


def pending_signal() -> Check:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    signal.raise_signal(signal.SIGUSR2)

    def check() -> None:
        assert signal.sigpending() == {signal.SIGUSR2}

    return check


def own_settings() -> Check:
    os.chdir("/srv")
    os.umask(0o027)
    niceness = os.nice(1)
    resource.setrlimit(resource.RLIMIT_NOFILE, (777, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    wanted = ("Uid", "Gid", "Groups", "Seccomp", "CapEff", "CapBnd", "NoNewPrivs")

    def status() -> list[str]:
        lines = Path("/proc/self/status").read_text().splitlines()
        return [line for line in lines if line.split(":")[0] in wanted]

    before = status()

    def check() -> None:
        assert Path.cwd() == Path("/srv")
        umask = os.umask(0o027)
        assert (umask, os.nice(0), resource.getrlimit(resource.RLIMIT_NOFILE)[0]) == (0o027, niceness, 777)
        assert status() == before, f"{before} became {status()}"

    return check
