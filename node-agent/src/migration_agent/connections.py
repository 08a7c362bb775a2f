"""Which TCP connections a pod has, as its kernel lists them: those on loopback can move with it."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator
from pathlib import Path

from migration_api.wire import Connections

_TIME_WAIT, _CLOSE, _LISTEN = 0x06, 0x07, 0x0A
_NOT_CONNECTED = frozenset({_TIME_WAIT, _CLOSE, _LISTEN})
"""Nobody is at the other end; sockets in TIME_WAIT belong to no process and are in no checkpoint."""

_INODE = 5
"""Where a line names the socket, counted from behind its state."""


def connections(proc: Path, sockets: Collection[int] | None = None) -> Connections:
    """Count the connected sockets in a process's network namespace; those on loopback have both ends in it.

    Args:
        proc: the process's directory below /proc.
        sockets: the inodes of those that count; None: all.

    Raises:
        OSError: there is no such process.
    """
    tables = [proc / "net/tcp", proc / "net/tcp6"]
    found = [loopback for table in tables if table.exists() for loopback in _connections(table, sockets)]
    return Connections(within=sum(found), outside=len(found) - sum(found))


def _connections(table: Path, sockets: Collection[int] | None) -> Iterator[bool]:
    """Yield for each connection whether it is on loopback."""
    for line in table.read_text(encoding="ascii").splitlines()[1:]:
        _, local, remote, state, *rest = line.split()
        counts = sockets is None or int(rest[_INODE]) in sockets
        if counts and int(state, 16) not in _NOT_CONNECTED:
            yield _address(local).is_loopback and _address(remote).is_loopback


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the address of `HEX:PORT`, which the kernel writes as 32-bit words in the machine's byte order."""
    digits = text.partition(":")[0]
    words = (int(digits[i : i + 8], 16) for i in range(0, len(digits), 8))
    raw = b"".join(word.to_bytes(4, "little") for word in words)
    address = ipaddress.ip_address(raw)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
