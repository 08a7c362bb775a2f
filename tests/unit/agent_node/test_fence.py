from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from migration_agent.freeze import Fence, FreezeFailure
from migration_agent.host import Host

UID = "0d9b5d4e-6a60-4a53-9a86-6a4d9a1d0a11"


@pytest.fixture
def pod(tmp_path: Path) -> Path:
    directory = tmp_path / "var/lib/kubelet/pods" / UID
    directory.mkdir(parents=True)
    (directory / "etc-hosts").write_text("original")
    return directory


@pytest.fixture
def fence(tmp_path: Path) -> Fence:
    return Fence(Host(tmp_path), UID)


def test_a_directory_stands_where_the_kubelet_mounts_a_file(pod: Path, fence: Fence) -> None:
    assert not fence.is_up()
    fence.raise_()
    assert fence.is_up()
    assert (pod / "etc-hosts").is_dir()
    assert (pod / "etc-hosts.container-migration").read_text() == "original"


def test_lifting_brings_the_very_file_back(pod: Path, fence: Fence) -> None:
    inode = (pod / "etc-hosts").stat().st_ino
    fence.raise_()
    fence.lift()
    assert (pod / "etc-hosts").stat().st_ino == inode
    assert [entry.name for entry in pod.iterdir()] == ["etc-hosts"]


def test_raising_and_lifting_can_be_repeated(pod: Path, fence: Fence) -> None:
    for _ in range(2):
        fence.raise_()
        fence.raise_()
        assert fence.is_up()
        fence.lift()
        fence.lift()
        assert not fence.is_up()
    assert (pod / "etc-hosts").read_text() == "original"


def half_raised(pod: Path) -> None:
    (pod / "etc-hosts").rename(pod / "etc-hosts.container-migration")


def rewritten_by_the_kubelet(pod: Path) -> None:
    half_raised(pod)
    (pod / "etc-hosts").write_text("new")


def without_the_file_aside(pod: Path) -> None:
    (pod / "etc-hosts").unlink()
    (pod / "etc-hosts").mkdir()


@pytest.mark.parametrize("state", [half_raised, rewritten_by_the_kubelet])
def test_raising_goes_on_from_every_half_done_state(pod: Path, fence: Fence, state: Callable[[Path], None]) -> None:
    state(pod)
    fence.raise_()
    assert fence.is_up()
    fence.lift()
    assert (pod / "etc-hosts").is_file()
    assert not (pod / "etc-hosts.container-migration").exists()


@pytest.mark.parametrize(
    ("state", "content"), [(half_raised, "original"), (rewritten_by_the_kubelet, "new"), (without_the_file_aside, None)]
)
def test_lifting_goes_on_from_every_half_done_state(
    pod: Path, fence: Fence, state: Callable[[Path], None], content: str | None
) -> None:
    state(pod)
    fence.lift()
    assert not fence.is_up()
    assert not (pod / "etc-hosts.container-migration").exists()
    if content is not None:
        assert (pod / "etc-hosts").read_text() == content


def test_a_pod_with_its_own_hosts_file_is_refused(pod: Path, fence: Fence) -> None:
    (pod / "etc-hosts").unlink()
    with pytest.raises(FreezeFailure, match="mounts its own /etc/hosts"):
        fence.raise_()
    assert not list(pod.iterdir())


def test_a_pod_that_is_gone_needs_no_lifting_but_cannot_be_fenced(fence: Fence) -> None:
    fence.lift()
    with pytest.raises(FreezeFailure):
        fence.raise_()


@pytest.mark.parametrize("uid", ["", "..", "a/b", "../../etc"])
def test_only_a_uid_names_a_pod(tmp_path: Path, uid: str) -> None:
    with pytest.raises(FreezeFailure, match="not a pod's UID"):
        Fence(Host(tmp_path), uid)
