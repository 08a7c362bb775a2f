"""Whether a container stands still, by the files of its cgroup."""

from __future__ import annotations

from pathlib import Path

import pytest

from migration_agent.runtime.cgroup import is_frozen
from support.fake_host import FakeHost, write

V1 = "12:pids:/kubelet/pod/abc\n7:freezer:/kubelet/pod/abc\n1:name=systemd:/kubelet/pod/abc\n0::/\n"
V2 = "0::/kubepods.slice/pod.slice/cri-containerd-abc.scope\n"


@pytest.mark.parametrize(("state", "frozen"), [("FROZEN\n", True), ("FREEZING\n", False), ("THAWED\n", False)])
def test_cgroup_v1(tmp_path: Path, state: str, frozen: bool) -> None:
    write(tmp_path / "proc/77/cgroup", V1)
    write(tmp_path / "proc/1/root/sys/fs/cgroup/freezer/kubelet/pod/abc/freezer.state", state)
    assert is_frozen(FakeHost(tmp_path), 77) is frozen


@pytest.mark.parametrize(("frozen", "expected"), [(1, True), (0, False)])
def test_cgroup_v2(tmp_path: Path, frozen: int, expected: bool) -> None:
    write(tmp_path / "proc/77/cgroup", V2)
    group = "proc/1/root/sys/fs/cgroup/kubepods.slice/pod.slice/cri-containerd-abc.scope"
    write(tmp_path / group / "cgroup.events", f"populated 1\nfrozen {frozen}\n")
    assert is_frozen(FakeHost(tmp_path), 77) is expected


@pytest.mark.parametrize("cgroup", [None, "", "7:freezer:/../elsewhere\n", "0::/../elsewhere\n", "nonsense\n"])
def test_what_cannot_be_seen_is_not_guessed(tmp_path: Path, cgroup: str | None) -> None:
    if cgroup is not None:
        write(tmp_path / "proc/77/cgroup", cgroup)
    assert is_frozen(FakeHost(tmp_path), 77) is None
