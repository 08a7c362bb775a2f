"""Holds one of everything that a process can hold, checks all of it every tenth of a second, and prints 1, 2, 3, …"""

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct
import tempfile
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)
checks = []


def check(function):
    checks.append(function)
    return function


# Threads, each with its own memory.
counts = [0] * 4


def worker(slot):
    while True:
        counts[slot] += 1
        time.sleep(0.01)


for slot in range(4):
    threading.Thread(target=worker, args=(slot,), daemon=True).start()
seen = [-1] * 4


@check
def threads(n):
    if n % 10 == 0:
        assert all(now > before for now, before in zip(counts, seen, strict=True)), (counts, seen)
        seen[:] = counts


# Files: with a name, deleted but open, with a hole, one of several hard links unlinked, and a lock on one.
named = open("/tmp/named", "a+b", buffering=0)
ghost = tempfile.TemporaryFile(buffering=0)
ghost.write(b"g" * 3_000_000)
locked = open("/tmp/locked", "w+b", buffering=0)
fcntl.flock(locked, fcntl.LOCK_EX)
os.symlink("/tmp/named", "/tmp/link")


@check
def files(n):
    named.write(n.to_bytes(8, "big"))
    assert os.fstat(named.fileno()).st_size == 8 * n
    assert os.fstat(ghost.fileno()).st_nlink == 0
    ghost.seek(2_999_999)
    assert ghost.read(1) == b"g"
    with open("/tmp/locked", "rb") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        raise AssertionError("the lock is gone")


# Within the process: pipe, socketpair, eventfd, epoll, memfd, shared and private memory.
reader, writer = os.pipe()
os.write(writer, b"in the pipe")
left, right = socket.socketpair()
left.send(b"in the socket")
event = os.eventfd(7)
epoll = select.epoll()
epoll.register(reader, select.EPOLLIN)
memfd = os.memfd_create("kept")
os.write(memfd, b"in the memfd")
kept = os.open("/dev/shm/kept", os.O_RDWR | os.O_CREAT)
os.truncate(kept, 4096)
shared = mmap.mmap(kept, 4096)


@check
def within(n):
    assert select.select([reader], [], [], 0)[0]
    assert right.recv(64, socket.MSG_PEEK) == b"in the socket"
    assert epoll.poll(0) == [(reader, select.EPOLLIN)]
    assert os.eventfd_read(event) == 7
    os.eventfd_write(event, 7)
    assert os.pread(memfd, 64, 0) == b"in the memfd"
    if n > 1:
        assert int.from_bytes(shared[:8], "big") == n - 1
    shared[:8] = n.to_bytes(8, "big")


# Timers, and signals that come by them.
ticks = 0


def tick(*_):
    global ticks
    ticks += 1


signal.signal(signal.SIGALRM, tick)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
timer = os.timerfd_create(time.CLOCK_MONOTONIC)
os.timerfd_settime(timer, initial=0.05, interval=0.05)
rang = -1


@check
def timers(n):
    global rang
    if n % 10 == 0:
        assert ticks > rang, "no signal came"
        rang = ticks
    assert struct.unpack("Q", os.read(timer, 8))[0] > 0


# Unix sockets that others would find by name, and a fifo.
listener = socket.socket(socket.AF_UNIX)
listener.bind("/tmp/listener")
listener.listen()
abstract = socket.socket(socket.AF_UNIX)
abstract.bind("\0kept")
abstract.listen()
os.mkfifo("/tmp/fifo")
fifo = os.open("/tmp/fifo", os.O_RDWR)
os.write(fifo, b"in the fifo")


@check
def named_sockets(n):
    for address, server in (("/tmp/listener", listener), ("\0kept", abstract)):
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            accepted, _ = server.accept()
            accepted.close()
    os.write(fifo, os.read(fifo, 64))


# inotify on the root file system.
inotify = libc.inotify_init1(os.O_NONBLOCK)
os.mkdir("/tmp/watched")
assert libc.inotify_add_watch(inotify, b"/tmp/watched", 0x100) >= 0


@check
def watches(n):
    with open(f"/tmp/watched/{n}", "w"):
        pass
    os.unlink(f"/tmp/watched/{n}")
    assert str(n).encode() in os.read(inotify, 4096)


# Children: one that works, one that is dead and not waited for, one whose parent has gone.
work_reader, work_writer = os.pipe()
if os.fork() == 0:
    signal.setitimer(signal.ITIMER_REAL, 0)
    i = 0
    while True:
        i += 1
        os.write(work_writer, i.to_bytes(8, "big"))
        time.sleep(0.05)
zombie = os.fork()
if zombie == 0:
    os._exit(7)
child = 0


@check
def children(n):
    global child
    for i in range(len(data := os.read(work_reader, 4096)) // 8):
        number = int.from_bytes(data[8 * i : 8 * i + 8], "big")
        assert number == child + 1, (number, child)
        child = number
    with open(f"/proc/{zombie}/stat") as stat:
        assert stat.read().split()[2] == "Z"


n = 0
while True:
    n += 1
    for function in checks:
        function(n)
    print(n, flush=True)
    deadline = time.monotonic() + 0.1
    while (left_over := deadline - time.monotonic()) > 0:
        time.sleep(left_over)
