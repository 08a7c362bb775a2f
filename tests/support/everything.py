"""A program that holds one of each thing that the kernel keeps for processes, and says which of them are as they were.

It runs in a pod, from its text alone: `python3 -c TEXT`. It prints 1, 2, 3, …, ten times a second. When the file
/data/check is there, it looks at all that it holds, writes what is wrong to /data/report, one line for each, and
removes the file. What a look uses up it makes again, so that it can look as often as is wished.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

Check = Callable[[], None]
"""Raises AssertionError when something is not as it was."""

DATA, MEMORY = Path("/data"), Path("/memory")
"""The pod's emptyDir volumes, on disk and in memory."""
libc = ctypes.CDLL(None, use_errno=True)


def readable(it: int | socket.socket) -> None:
    """Wait for something to read: what was lost is to be told of, not waited for."""
    ready, _, _ = select.select([it], [], [], 2)
    assert ready, "there is nothing to read"


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


def pipe_with_bytes() -> Check:
    reader, writer = os.pipe()
    os.write(writer, b"on its way")

    def check() -> None:
        readable(reader)
        assert os.read(reader, 100) == b"on its way"
        os.write(writer, b"on its way")

    return check


def fifo() -> Check:
    path = DATA / "fifo"
    os.mkfifo(path)
    both = os.open(path, os.O_RDWR)
    os.write(both, b"waits")

    def check() -> None:
        readable(both)
        assert os.read(both, 100) == b"waits"
        os.write(both, b"waits")

    return check


def socket_pair() -> Check:
    one, two = socket.socketpair()
    one.sendall(b"unread")

    def check() -> None:
        readable(two)
        assert two.recv(100) == b"unread"
        one.sendall(b"unread")

    return check


def unix_listeners() -> Check:
    names = ("/data/socket", "\0abstract")
    listeners = {name: socket.socket(socket.AF_UNIX) for name in names}
    for name, it in listeners.items():
        it.bind(name)
        it.listen()

    def check() -> None:
        for name, listener in listeners.items():
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name)
                readable(listener)
                accepted, _ = listener.accept()
                accepted.sendall(b"hello")
                assert client.recv(10) == b"hello"
                accepted.close()

    return check


def connection_to_itself() -> Check:
    listener = socket.create_server(("127.0.0.1", 7777))
    client = socket.create_connection(("127.0.0.1", 7777))
    served, _ = listener.accept()
    served.sendall(b"not read yet")

    def check() -> None:
        readable(client)
        assert client.recv(100) == b"not read yet"
        client.sendall(b"back")
        readable(served)
        assert served.recv(100) == b"back"
        served.sendall(b"not read yet")
        socket.create_connection(("127.0.0.1", 7777)).close()
        listener.accept()[0].close()

    return check


def udp_socket() -> Check:
    bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bound.bind(("127.0.0.1", 7778))

    def check() -> None:
        bound.sendto(b"to myself", ("127.0.0.1", 7778))
        readable(bound)
        assert bound.recv(100) == b"to myself"

    return check


def interval_timer() -> Check:
    rung = [0]

    def ring(number: int, frame: object) -> None:
        del number, frame
        rung[0] += 1

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

    def check() -> None:
        before = rung[0]
        time.sleep(0.5)
        assert rung[0] > before, "the alarm does not ring any more"

    return check


def timer_descriptor() -> Check:
    """One that is far from its end; see docs/workloads.md for one that is due."""
    timer = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
    every, first = (60, 0), (3600, 0)
    assert libc.timerfd_settime(timer, 0, struct.pack("4q", *every, *first), None) == 0

    def check() -> None:
        now = ctypes.create_string_buffer(32)
        assert libc.timerfd_gettime(timer, now) == 0
        interval, _, left, _ = struct.unpack("4q", now.raw)
        assert interval == 60
        assert 3000 < left < 3600

    return check


def event_descriptor() -> Check:
    counter = os.eventfd(7)

    def check() -> None:
        readable(counter)
        assert os.eventfd_read(counter) == 7
        os.eventfd_write(counter, 7)

    return check


def epoll() -> Check:
    reader, writer = os.pipe()
    poll = select.epoll()
    poll.register(reader, select.EPOLLIN)
    os.write(writer, b"x")

    def check() -> None:
        assert poll.poll(1) == [(reader, select.EPOLLIN)]

    return check


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


def terminal() -> Check:
    master, slave = os.openpty()

    def check() -> None:
        assert os.isatty(slave)
        os.write(slave, b"line\n")
        readable(master)
        assert os.read(master, 100).strip() == b"line"

    return check


KINDS = (
    deleted_file, locks, pipe_with_bytes, fifo, socket_pair, unix_listeners, connection_to_itself, udp_socket,
    interval_timer, timer_descriptor, event_descriptor, epoll, memory_file, shared_with_a_child, system_v_memory,
    zombie, session_with_a_grandchild, pending_signal, watches, one_offset_of_two, root_file_system, volumes, terminal,
    own_settings, threads,
)  # fmt: skip
"""Children are made before threads are; what is inherited from `own_settings` on is everybody's."""


def look(checks: dict[str, Check]) -> list[str]:
    wrong: list[str] = []
    for name, check in checks.items():
        try:
            check()
        except (AssertionError, OSError) as error:
            code = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
            wrong.append(f"{name}: {code} {error!r}")
    return wrong


def main() -> None:
    checks = {make.__name__: make() for make in KINDS}
    number = 0
    while True:
        number += 1
        print(number, flush=True)
        time.sleep(0.1)
        if (DATA / "check").exists():
            report = "\n".join([*look(checks), f"{len(checks)} looked at"])
            (DATA / "report.new").write_text(report)
            (DATA / "check").unlink()
            (DATA / "report.new").rename(DATA / "report")


if __name__ == "__main__":
    main()
