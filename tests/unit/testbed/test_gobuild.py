"""Binaries are built once, however many want them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from kind.testbed import gobuild


def test_two_that_want_the_same_tool_at_once_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The lanes of the end-to-end tests do: the second build could not take the place of the first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    module, built = gobuild.MODULES[0], list[str]()
    monkeypatch.setattr(gobuild, "fetch", str)  # nothing comes over the network
    both = threading.Barrier(2, timeout=1)

    def run(command: list[str], **_: object) -> str:
        if "build" not in command:
            return "go1.26 linux amd64"
        out = Path(command[command.index("-o") + 1])
        with suppress(threading.BrokenBarrierError):
            both.wait()  # two builds at a time, if there are two
        built.append(str(out))
        (out / "tool").touch()
        return ""

    monkeypatch.setattr(gobuild.host, "run", run)
    with ThreadPoolExecutor(2) as pool:
        found = [it.result(30) for it in [pool.submit(gobuild.build, module) for _ in range(2)]]
    assert found[0] == found[1]
    assert (found[0] / "tool").exists()
    assert len(built) == 1
