"""What all kinds are made with."""

from __future__ import annotations

import ctypes
import select
import socket
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
