"""The source's end: reads memory of frozen processes for whoever restores them elsewhere. Blocking, in threads."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from migration_agent.metrics import SENT
from migration_agent.pages.wire import ANSWER, BYTES_MAX, HERE, RANGES_MAX, Lost, Request, lost_answer, read_request
from migration_agent.processes import Processes, ProcessRef
from migration_agent.transport.bandwidth import Bandwidth, throttle


@dataclass(frozen=True)
class Lending:
    """One container's memory, as long as its processes stand still."""

    processes: Mapping[int, ProcessRef]
    """By the pids that the images count."""
    looks: Processes
    standing: Callable[[], str]
    """Why the memory may not be read any more; empty when it may."""
    sent: Callable[[int], None] = lambda _: None
    """Called with the bytes of each answer, in the thread that has sent it."""

    def read(self, request: Request, into: memoryview) -> None:
        """Fill the buffer with all that is asked for.

        Raises:
            Lost: the process is gone, or did not stand still.
        """
        process = self.processes.get(request.pid)
        if process is None:
            raise Lost(f"it has no process {request.pid}")
        trouble = ""
        try:
            _read(process.pid, request, into)
        except OSError as error:
            trouble = f"the memory of its process {process.pid} cannot be read: {error}"
        # Afterwards: what was read before it ended, or before it was let go on, is good.
        if not self.looks.alive(process):
            raise Lost(f"its process {process.pid} died while it was frozen")
        if trouble:
            raise Lost(trouble)
        if why := self.standing():
            raise Lost(why)


def serve(connection: socket.socket, lending: Lending, limits: Sequence[Bandwidth]) -> None:
    """Answer requests, under all limits, until the other side hangs up, or the memory is lost."""
    buffer = memoryview(bytearray(ANSWER.size + BYTES_MAX))
    never = threading.Event()
    while (request := read_request(connection)) is not None:
        answer = buffer[: ANSWER.size + request.size]
        try:
            lending.read(request, answer[ANSWER.size :])
        except Lost as error:
            connection.sendall(lost_answer(str(error)))
            return
        ANSWER.pack_into(answer, 0, HERE, request.size)
        throttle(limits, request.size, never.wait)
        connection.sendall(answer)
        lending.sent(request.size)
        SENT.inc(request.size)


class _Piece(ctypes.Structure):
    """`struct iovec`."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.process_vm_readv.restype = ctypes.c_ssize_t
_LIBC.process_vm_readv.argtypes = (
    ctypes.c_int,
    *(ctypes.POINTER(_Piece), ctypes.c_ulong) * 2,
    ctypes.c_ulong,
)


def _read(pid: int, request: Request, into: memoryview) -> None:
    """Read with process_vm_readv(2), which keeps to what the process may read; what is left out, with /proc/PID/mem.

    That one copies twice, and a page at a time.

    Raises:
        OSError: the process is gone, or has no such memory.
    """
    local = (_Piece * 1)(_Piece(ctypes.addressof(ctypes.c_char.from_buffer(into)), request.size))
    remote = (_Piece * RANGES_MAX)(*(_Piece(it.address, it.length) for it in request.ranges))
    count = _LIBC.process_vm_readv(pid, local, 1, remote, len(request.ranges), 0)
    if count == request.size:
        return
    number = ctypes.get_errno() if count < 0 else errno.EFAULT
    try:
        _read_protected(pid, request, into)
    except OSError as error:
        raise OSError(number, os.strerror(number)) from error


def _read_protected(pid: int, request: Request, into: memoryview) -> None:
    """Read also what the process has forbidden itself to touch (mprotect).

    Raises:
        OSError: as `_read`.
    """
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for it in request.ranges:
            part, into = into[: it.length], into[it.length :]
            while part:
                count = os.preadv(memory.fileno(), [part], it.address + it.length - len(part))
                if count == 0:
                    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
                part = part[count:]
