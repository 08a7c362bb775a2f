"""Checkpoints in memory get a file system of their own; without it all goes on, only slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from migration_agent.memory_home import mount_memory_home
from migration_agent.paths import Layout
from support.agent import journal_at
from support.fake_host import Call, FakeHost, fails


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return journal_at(tmp_path).layout


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> set[Path]:
    """The directories that are mounts as the agent sees them."""
    found = set[Path]()

    def is_mount(path: Path) -> bool:
        return path in found

    monkeypatch.setattr(Path, "is_mount", is_mount)
    return found


def test_it_is_mounted_once_with_large_pages_and_nothing_that_runs(layout: Layout, mounted: set[Path]) -> None:
    def answer(call: Call) -> str:
        mounted.add(Path(call.argv[-1]))
        return ""

    host = FakeHost(layout.root, answer=answer)
    for _ in range(2):
        mount_memory_home(host, layout)
    [call] = host.calls
    assert call.argv[:4] == ("mount", "-t", "tmpfs", "-o")
    assert set(call.argv[4].split(",")) == {"nodev", "noexec", "nosuid", "mode=0700", "huge=within_size"}
    assert call.argv[-1] == str(layout.images_home)


def test_a_kernel_without_large_pages_gets_it_with_small_ones(layout: Layout, mounted: set[Path]) -> None:
    def answer(call: Call) -> str:
        if "huge" in call.argv[4]:
            raise fails(call, "wrong fs type, bad option")
        mounted.add(Path(call.argv[-1]))
        return ""

    host = FakeHost(layout.root, answer=answer)
    mount_memory_home(host, layout)
    assert [("huge" in call.argv[4]) for call in host.calls] == [True, False]


def test_a_checkpoint_that_lies_there_is_not_covered(layout: Layout) -> None:
    (layout.images_home / "0b0e2b8e-of-an-older-version").mkdir()
    host = FakeHost(layout.root)
    mount_memory_home(host, layout)
    assert host.calls == []


def test_a_mount_that_the_agent_does_not_see_is_taken_back(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    host = FakeHost(layout.root)
    mount_memory_home(host, layout)
    assert [call.argv[0] for call in host.calls] == ["mount", "umount"]
    assert "does not come into the agent's container" in caplog.text


def test_a_host_that_refuses_keeps_the_agent_working(layout: Layout, caplog: pytest.LogCaptureFixture) -> None:
    def answer(call: Call) -> str:
        raise fails(call, "permission denied")

    mount_memory_home(FakeHost(layout.root, answer=answer), layout)
    assert "stays as slow as /run" in caplog.text
    assert "permission denied" in caplog.text
