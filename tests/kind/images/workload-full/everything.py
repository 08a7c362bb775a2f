"""Holds one of everything that a process can hold, and checks all of it ten times a second.

It runs as root, with an emptyDir volume on disk at /data and one in memory at /memory.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import shutil
import signal
import socket
import stat
import struct
import threading
import time
from pathlib import Path

from checks import check, run

libc = ctypes.CDLL(None, use_errno=True)
EVERY = 10
"""Calls of a check between two looks at what is slow, or takes a while to change."""


def demand(holds: object, what: str) -> None:
    """End the program unless what was held is still so; `assert` would vanish with -O."""
    if not holds:
        raise SystemExit(what)


# Children, before there are threads: one that works, one that is dead and not waited for, one whose parent has gone.


def work(pipe: int) -> None:
    for i in range(1, 1 << 62):
        os.write(pipe, i.to_bytes(8, "big"))
        time.sleep(0.05)


work_reader, work_writer = os.pipe()
if os.fork() == 0:
    work(work_writer)
zombie = os.fork()
if zombie == 0:
    os._exit(7)
orphan_reader, orphan_writer = os.pipe()
middle = os.fork()
if middle == 0:
    if os.fork() == 0:
        os.setsid()
        work(orphan_writer)
    os._exit(0)
os.waitpid(middle, 0)
last = {work_reader: 0, orphan_reader: 0}


@check
def children(n: int) -> None:
    for pipe, before in list(last.items()):
        demand(n % EVERY or select.select([pipe], [], [], 5)[0], "a child works no more")
        data = os.read(pipe, 8 * 1024) if select.select([pipe], [], [], 0)[0] else b""
        numbers = [int.from_bytes(data[i : i + 8], "big") for i in range(0, len(data), 8)]
        last[pipe] = before + len(numbers)
        demand(numbers == [*range(before + 1, last[pipe] + 1)], f"after {before} a child said {numbers}")
    fields = Path(f"/proc/{zombie}/stat").read_text().rpartition(")")[2].split()
    demand((fields[0], fields[-1]) == ("Z", str(7 << 8)), f"the zombie is {fields}")


# Threads.

counts = [0] * 4
seen = [-1] * 4


def count(slot: int) -> None:
    while True:
        counts[slot] += 1
        time.sleep(0.01)


for slot in range(4):
    threading.Thread(target=count, args=(slot,), daemon=True).start()


@check
def threads(n: int) -> None:
    if n % EVERY == 0:
        demand(all(a > b for a, b in zip(counts, seen, strict=True)), f"a thread stands still: {seen}, {counts}")
        seen[:] = counts


# The root file system: what the image has is changed, deleted, replaced, and there is more than it has.

os.unlink("/etc/issue.net")
shutil.rmtree("/etc/apt")
os.mkdir("/etc/apt")
Path("/etc/apt/new").write_text("new")
os.chown("/etc/issue", 1234, 4321)
os.chmod("/etc/issue", 0o640)
Path("/tmp/a").write_text("linked")
os.link("/tmp/a", "/tmp/b")
os.symlink("a", "/tmp/c")
os.setxattr("/tmp/a", "user.kept", b"attribute")
os.utime("/tmp/a", ns=(1_577_934_245_123_456_789, 1_577_934_245_123_456_789))
os.mkfifo("/tmp/fifo", 0o600)


@check
def root(n: int) -> None:
    if n % EVERY:
        return
    demand(not os.path.lexists("/etc/issue.net"), "a deleted file is back")
    demand(os.listdir("/etc/apt") == ["new"], "a directory that was replaced shows the image's files")
    issue, a, b = os.stat("/etc/issue"), os.stat("/tmp/a"), os.stat("/tmp/b")
    demand((issue.st_uid, issue.st_gid, stat.S_IMODE(issue.st_mode)) == (1234, 4321, 0o640), "owner or mode changed")
    demand((a.st_ino, a.st_nlink) == (b.st_ino, 2), "two names of one file are two files")
    demand(os.readlink("/tmp/c") == "a", "a symbolic link changed")
    demand(os.getxattr("/tmp/b", "user.kept") == b"attribute", "an extended attribute is lost")
    demand(a.st_mtime_ns == 1_577_934_245_123_456_789, "a time changed")
    demand(stat.S_ISFIFO(os.stat("/tmp/fifo").st_mode), "a fifo is none any more")


# Open files: with a name, without one from the start, deleted, deleted with another name left; and locks.

named = os.open("/tmp/named", os.O_RDWR | os.O_CREAT | os.O_APPEND)
nameless = os.open("/tmp", os.O_RDWR | os.O_TMPFILE)
os.pwrite(nameless, b"g" * 3_000_000, 0)
deleted = os.open("/memory/deleted", os.O_RDWR | os.O_CREAT)
os.pwrite(deleted, b"d" * 100_000, 0)
os.unlink("/memory/deleted")
relinked = os.open("/data/first", os.O_RDWR | os.O_CREAT)
os.pwrite(relinked, b"two names", 0)
os.link("/data/first", "/data/second")
os.unlink("/data/first")
locked = os.open("/tmp/locked", os.O_RDWR | os.O_CREAT)
fcntl.flock(locked, fcntl.LOCK_EX)
ranged, asking = (os.open("/data/ranged", os.O_RDWR | os.O_CREAT) for _ in range(2))
fcntl.lockf(ranged, fcntl.LOCK_EX, 10, 5)
held_volumes = {folder: os.open(f"{folder}/kept", os.O_RDWR | os.O_CREAT) for folder in ("/data", "/memory")}
# l_type, l_whence, l_start, l_len, l_pid of struct flock: whose lock would be in the way of the bytes 0 to 99?
ASK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 100, 0)


@check
def files(n: int) -> None:
    os.write(named, n.to_bytes(8, "big"))
    demand(os.fstat(named).st_size == 8 * n, "an open file lost or repeated what was written")
    demand(os.pread(nameless, 2, 2_999_998) == b"gg", "a file without a name lost its content")
    demand(os.fstat(deleted).st_nlink == 0 and os.fstat(deleted).st_size == 100_000, "a deleted file is not as it was")
    demand(os.fstat(relinked).st_ino == os.stat("/data/second").st_ino, "a file is not the one of its other name")
    demand(not os.path.exists("/data/first"), "a deleted name is back")
    for folder, file in held_volumes.items():
        os.pwrite(file, n.to_bytes(8, "big"), 0)
        demand(Path(f"{folder}/kept").read_bytes() == n.to_bytes(8, "big"), f"{folder} is not the volume that is open")


@check
def locks(n: int) -> None:
    if n % EVERY:
        return
    other = os.open("/tmp/locked", os.O_RDWR)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        raise SystemExit("the lock of a file (flock) is gone")
    except BlockingIOError:
        pass
    finally:
        os.close(other)
    kind, _, start, length, _ = struct.unpack("hhqqi4x", fcntl.fcntl(asking, fcntl.F_OFD_GETLK, ASK))
    demand((kind, start, length) == (fcntl.F_WRLCK, 5, 10), "the lock of a range (fcntl) is gone")


# Within the process: pipe, fifo, socket pair, eventfd, epoll, memfd.

reader, writer = os.pipe()
os.write(writer, b"in the pipe")
fifo = os.open("/tmp/fifo", os.O_RDWR)
os.write(fifo, b"in the fifo")
left, right = socket.socketpair()
left.send(b"in the socket")
event = os.eventfd(7)
epoll = select.epoll()
epoll.register(reader, select.EPOLLIN)
memfd = os.memfd_create("kept")
os.write(memfd, b"in the memfd")


@check
def within(_: int) -> None:
    demand(os.read(reader, 64) == b"in the pipe", "the pipe lost its content")
    os.write(writer, b"in the pipe")
    demand(os.read(fifo, 64) == b"in the fifo", "the fifo lost its content")
    os.write(fifo, b"in the fifo")
    demand(right.recv(64, socket.MSG_PEEK) == b"in the socket", "the socket pair lost its content")
    demand(epoll.poll(0) == [(reader, select.EPOLLIN)], "epoll watches something else")
    demand(os.eventfd_read(event) == 7, "the eventfd counts something else")
    os.eventfd_write(event, 7)
    demand(os.pread(memfd, 64, 0) == b"in the memfd", "the memfd lost its content")


# Memory that is shared: by name in /dev/shm, without a name, and System V's.

by_name = os.open("/dev/shm/kept", os.O_RDWR | os.O_CREAT)
os.truncate(by_name, 4096)
libc.shmat.restype = ctypes.c_void_p
libc.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
segment = libc.shmat(libc.shmget(0, 4096, 0o1600), None, 0)
memories = {
    "/dev/shm": mmap.mmap(by_name, 4096),
    "anonymous": mmap.mmap(-1, 4096),
    "System V": (ctypes.c_char * 4096).from_address(segment),
}


@check
def memory(n: int) -> None:
    for kind, it in memories.items():
        demand(int.from_bytes(it[:8], "big") == n - 1, f"shared memory ({kind}) lost what was written")
        it[:8] = n.to_bytes(8, "big")
    demand(os.pread(by_name, 8, 0) == n.to_bytes(8, "big"), "/dev/shm is not what is mapped")


# Timers, and signals that come by them.

ticks, rang = [0], [-1]


def tick(*_: object) -> None:
    ticks[0] += 1


signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
timer = libc.timerfd_create(time.CLOCK_MONOTONIC, 0)
# it_interval and it_value of struct itimerspec: seconds and nanoseconds.
libc.timerfd_settime(timer, 0, struct.pack("qqqq", 0, 50_000_000, 0, 50_000_000), None)


@check
def timers(n: int) -> None:
    if n % EVERY == 0:
        demand(ticks[0] > rang[0], "no signal came")
        rang[0] = ticks[0]
    demand(int.from_bytes(os.read(timer, 8), "little") > 0, "the timer never rang")


# Unix sockets that others find by name.

listeners = {address: socket.socket(socket.AF_UNIX) for address in ("/tmp/listener", "\0kept")}
for address, listener in listeners.items():
    listener.bind(address)
    listener.listen()


@check
def named_sockets(n: int) -> None:
    for address, listener in listeners.items() if n % EVERY == 0 else ():
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            listener.accept()[0].close()


# inotify, on the root file system and in the volumes.

WATCHED = [f"{folder}/watched" for folder in ("/tmp", "/data", "/memory")]
watches = [libc.inotify_init1(os.O_NONBLOCK) for _ in WATCHED]
for watch, folder in zip(watches, WATCHED, strict=True):
    os.mkdir(folder)
    demand(libc.inotify_add_watch(watch, folder.encode(), 0x100) >= 0, f"{folder} cannot be watched")


def is_told(watch: int, name: str) -> bool:
    Path(name).touch()
    os.unlink(name)
    try:
        return os.path.basename(name).encode() in os.read(watch, 65536)
    except BlockingIOError:
        return False


@check
def watched(n: int) -> None:
    """Events that are pending when it moves are lost, as in every queue that overflows: ask a second time."""
    for watch, folder in zip(watches, WATCHED, strict=True):
        told = any(is_told(watch, f"{folder}/{n}-{i}") for i in range(2))
        demand(told, f"{folder} is watched no more")


run()
