from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from migration_agent.connections import connections

HEADING = "  sl  local_address rem_address   st tx_queue rx_queue\n"
LISTENING = "   0: 00000000:1F90 00000000:0000 0A 00000000:00000000\n"
LOOPBACK = "   1: 0100007F:1F90 0100007F:D2F0 01 00000000:00000000\n"
OUTSIDE = "   2: 0200F40A:1F90 0300F40A:D2F0 01 00000000:00000000\n"
OWN_ADDRESS = "   3: 0200F40A:1F90 0200F40A:D2F0 01 00000000:00000000\n"
GONE = "   4: 0200F40A:1F90 0300F40A:D2F0 06 00000000:00000000\n"
CLOSING = "   5: 0200F40A:1F90 0300F40A:D2F0 08 00000000:00000000\n"
SIX = "   0: 00000000000000000000000001000000:1F90 00000000000000000000000001000000:D2F0 01 00000000:00000000\n"
MAPPED = "   1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:D2F0 01 00000000:00000000\n"
SIX_OUTSIDE = "   2: 000080FE00000000FF005450FE00A8C0:1F90 000080FE00000000FF005450FE00A8C1:D2F0 01 00000000:00000000\n"


def tables(root: Path, four: str, six: str = "") -> Path:
    (root / "net").mkdir()
    (root / "net/tcp").write_text(HEADING + four)
    (root / "net/tcp6").write_text(HEADING + six)
    return root


@pytest.mark.parametrize(
    ("four", "six", "expected"),
    [
        ("", "", False),
        (LISTENING + GONE, "", False),
        (LOOPBACK, "", True),
        (LISTENING + LOOPBACK + GONE, SIX + MAPPED, True),
        ("", MAPPED, True),
        (LOOPBACK + OUTSIDE, "", False),
        (LOOPBACK + CLOSING, "", False),
        (LOOPBACK + OWN_ADDRESS, "", False),
        (LOOPBACK, SIX_OUTSIDE, False),
    ],
)
def test_only_connections_within_the_pod_can_move(tmp_path: Path, four: str, six: str, expected: bool) -> None:
    assert connections(tables(tmp_path, four, six)).stay is expected


def test_they_are_counted(tmp_path: Path) -> None:
    found = connections(tables(tmp_path, LISTENING + LOOPBACK + OUTSIDE + GONE, SIX + SIX_OUTSIDE))
    assert (found.within, found.outside) == (2, 2)


def test_the_kernels_own_table_is_understood() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            assert client.getsockname()
            lines = Path("/proc/self/net/tcp").read_text(encoding="ascii")
            assert f":{server.getsockname()[1]:04X}" in lines
        assert connections(Path(f"/proc/{os.getpid()}")).within >= 1
