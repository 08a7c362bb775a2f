"""The other end of a sending that goes into a store and to nobody: what is put is enough, nobody fetches it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Generator
from contextlib import contextmanager

from migration_agent.transport.frames import Answer, Frame, FrameError, read_frame, read_into, write_frame


@contextmanager
def nobody() -> Generator[socket.socket]:
    """Yield a control connection at whose other end all is well as soon as the manifest has come."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=_listen, args=(theirs,), name="nobody", daemon=True)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join()


def _listen(control: socket.socket) -> None:
    with control:
        try:
            while (length := read_frame(control, Frame).manifest) is None:
                pass
            read_into(control, memoryview(bytearray(length)))
            write_frame(control, Answer(ok=True))
        except (OSError, FrameError):
            return  # the sender has ended
