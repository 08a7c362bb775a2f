"""The target's end: pagers connect to a Unix socket, and what they ask for is fetched from the source's agent.

Blocking, in a thread for each connection: nearly all that they do is to wait and to copy.
"""

from __future__ import annotations

import logging
import select
import socket
import struct
import threading
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from migration_agent.pages.wire import ANSWER, BYTES_MAX, Lost, Request, lost_answer, read_answer, read_request
from migration_agent.ports import PeerUnreachable
from migration_agent.transport.frames import FrameError
from migration_api.base import Model
from migration_api.migration import ContainerName, Uid

log = logging.getLogger(__name__)

_HELLO_BYTES = 512
_HELLO_SECONDS = 10.0
_AGAIN_SECONDS = 0.3
_CONNECTIONS_MAX = 64
_CREDENTIALS = struct.Struct("3i")


class _Hello(Model):
    """What a pager says first, in a line."""

    migration: Uid
    container: ContainerName


class Lender(Protocol):
    """Finds who has the memory of a container that runs here; called in threads."""

    def borrow(self, migration: str, container: str) -> AbstractContextManager[socket.socket]:
        """Connect with the agent that has it.

        Raises:
            PeerUnreachable: it does not answer now.
            Lost: it has nothing, and never will.
        """
        ...

    def lost(self, migration: str, container: str, reason: str) -> None:
        """Take note that the memory is lost: the container is about to be killed."""
        ...


class PageRelay:
    """The Unix socket; only root may talk to it."""

    def __init__(self, path: Path, lender: Lender, *, owner: int = 0) -> None:
        """`owner`: the only user that is answered."""
        self._path = path
        self._lender = lender
        self._owner = owner
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self._closed = threading.Event()
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Listen; a socket that an earlier agent left behind is replaced."""
        self._path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._path.chmod(0o600)
        self._listener.listen(_CONNECTIONS_MAX)
        threading.Thread(target=self._accept, args=(self._listener,), name="pages", daemon=True).start()

    def close(self) -> None:
        """Answer nobody any more; pagers ask the next agent."""
        self._closed.set()
        if self._listener is not None:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                pager, _ = listener.accept()
            except OSError:
                return  # closed
            if not self._slots.acquire(blocking=False):
                log.warning("a pager is refused: %d are connected; it tries again", _CONNECTIONS_MAX)
                pager.close()
                continue
            threading.Thread(target=self._serve, args=(pager,), name="page-relay", daemon=True).start()

    def _serve(self, pager: socket.socket) -> None:
        try:
            with pager:
                uid = _CREDENTIALS.unpack(pager.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))[1]
                if uid != self._owner:
                    log.warning("a connection to %s is closed: user %d may not use it", self._path, uid)
                    return
                pager.settimeout(_HELLO_SECONDS)
                hello = _Hello.model_validate_json(_line(pager))
                pager.settimeout(None)
                self._relay(pager, hello)
        except (ValidationError, FrameError, OSError) as error:
            log.info("a connection to %s ended: %s", self._path, error)
        except Exception:
            log.exception("a connection to %s failed", self._path)
        finally:
            self._slots.release()

    def _relay(self, pager: socket.socket, hello: _Hello) -> None:
        """Answer one request after another; while the source is out of reach the pager waits."""
        buffer = memoryview(bytearray(ANSWER.size + BYTES_MAX))
        with ExitStack() as stack:
            source: socket.socket | None = None
            while (request := read_request(pager)) is not None:
                while True:
                    try:
                        source = source or stack.enter_context(self._lender.borrow(hello.migration, hello.container))
                        answer = _asked(source, request, buffer)
                        break
                    except Lost as error:
                        log.warning("migration %s: the memory is lost: %s", hello.migration, error)
                        self._lender.lost(hello.migration, hello.container, str(error))
                        pager.sendall(lost_answer(str(error)))
                        return
                    except (PeerUnreachable, FrameError, OSError) as error:
                        log.info("migration %s: memory of the source is asked for again: %s", hello.migration, error)
                        stack.close()
                        source = None
                    if self._closed.wait(_AGAIN_SECONDS) or _hung_up(pager):
                        return
                pager.sendall(answer)


def _asked(source: socket.socket, request: Request, buffer: memoryview) -> memoryview:
    source.sendall(request.encoded())
    return read_answer(source, request, buffer)


def _line(pager: socket.socket) -> bytes:
    """Read a line, and nothing behind it: a request follows at once."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = pager.recv(1)
        if not byte or len(line) > _HELLO_BYTES:
            raise FrameError("it did not say which container it is for")
        line += byte
    return bytes(line)


def _hung_up(pager: socket.socket) -> bool:
    """Say whether nobody waits any more. A pager says nothing while it waits."""
    return bool(select.select([pager], [], [], 0)[0])
