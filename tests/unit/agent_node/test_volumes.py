"""What a pod's containers share becomes archives; the interposer's tests apply one to see that nothing is lost."""

from __future__ import annotations

import os
import stat
import tarfile
from pathlib import Path

import pytest

from migration_agent.checkpoint import volumes
from migration_agent.checkpoint.rootfs import RootfsFailure
from migration_agent.host import Host

POD = "0f3c8a52-6d1e-4b7a-9c2d-1a2b3c4d5e6f"
SHM = "/run/sandbox/shm"


class Pod:
    """A node's files: one pod with the emptyDir `data` and a sandbox's /dev/shm."""

    def __init__(self, root: Path) -> None:
        self.host = Host(root)
        files = root / "proc/1/root"
        self.empty_dirs = files / "var/lib/kubelet/pods" / POD / "volumes/kubernetes.io~empty-dir"
        self.data = self.empty_dirs / "data"
        self.shm = files / SHM.lstrip("/")
        self.data.mkdir(parents=True)
        self.shm.mkdir(parents=True)
        self.target = root / "images/_pod"
        self.target.parent.mkdir()

    def copy(self) -> dict[str, list[str]]:
        """Return the names in each archive."""
        volumes.copy_shared(self.host, POD, SHM, self.target)
        found: dict[str, list[str]] = {}
        for path in sorted(self.target.iterdir()):
            assert stat.S_IMODE(path.lstat().st_mode) == 0o600, "I7"
            with tarfile.open(path) as tar:
                found[path.name] = tar.getnames()
        return found


@pytest.fixture
def pod(tmp_path: Path) -> Pod:
    return Pod(tmp_path)


def test_every_volume_becomes_an_archive_that_ends_with_the_mark_for_all_else(pod: Pod) -> None:
    (pod.data / "dir").mkdir()
    (pod.data / "dir/file").write_text("x")
    (pod.empty_dirs / "scratch").mkdir()
    (pod.shm / "segment").write_text("y")
    assert pod.copy() == {
        "shm.tar": [".", "segment", ".wh..wh..opq"],
        "volume-data.tar": [".", "dir", "dir/file", ".wh..wh..opq"],
        "volume-scratch.tar": [".", ".wh..wh..opq"],
    }


def test_an_empty_shm_costs_nothing_and_odd_names_are_no_volumes(pod: Pod) -> None:
    (pod.empty_dirs / "..odd").mkdir()
    (pod.empty_dirs / "link").symlink_to("/etc")
    (pod.empty_dirs / "file").touch()
    assert list(pod.copy()) == ["volume-data.tar"]


def test_a_second_copy_replaces_the_first(pod: Pod) -> None:
    (pod.data / "old").touch()
    pod.copy()
    (pod.data / "old").rename(pod.data / "new")
    assert pod.copy() == {"volume-data.tar": [".", "new", ".wh..wh..opq"]}


def test_holes_are_not_written(pod: Pod) -> None:
    with (pod.data / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"in the middle")
    (pod.data / "dense").write_bytes(bytes(8192))
    pod.copy()
    archive = pod.target / "volume-data.tar"
    assert archive.stat().st_size < 1 << 20
    with tarfile.open(archive) as tar:
        content = tar.extractfile("sparse")
        assert content is not None
        assert content.seek(0, os.SEEK_END) == 64 << 20
        content.seek(32 << 20)
        assert content.read(20) == b"in the middle" + bytes(7)


@pytest.mark.parametrize("name", [".wh.x", "device"])
def test_what_no_archive_can_carry_is_refused(pod: Pod, name: str) -> None:
    if name == "device":
        os.mknod(pod.data / name, stat.S_IFCHR | 0o600, os.makedev(0, 0))  # would mean a deletion in a layer
    else:
        (pod.data / name).touch()
    with pytest.raises(RootfsFailure):
        pod.copy()


def test_bytes_are_counted_without_holes(pod: Pod) -> None:
    assert volumes.shared_bytes(pod.host, POD, SHM) == 0
    (pod.shm / "segment").write_bytes(b"x" * 100_000)
    (pod.data / "file").write_bytes(b"x" * 50_000)
    with (pod.data / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    assert 150_000 <= volumes.shared_bytes(pod.host, POD, SHM) < 300_000
    assert volumes.shared_bytes(pod.host, "00000000-0000", None) == 0


def test_a_pod_uid_is_one_name(pod: Pod) -> None:
    with pytest.raises(RootfsFailure):
        volumes.copy_shared(pod.host, "../../etc", None, pod.target)
