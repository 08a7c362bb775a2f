from __future__ import annotations

import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest

from migration_agent.checkpoint.rootfs import RootfsFailure, copy_changes, upper_directory, write_layer
from migration_agent.host import Host

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@dataclass
class Overlay:
    """A real overlay mount."""

    lower: Path
    upper: Path
    merged: Path


@pytest.fixture
def overlay(tmp_path: Path) -> Generator[Overlay]:
    # A tmpfs: the test's own directory may itself lie on an overlay, which cannot be an upper directory.
    base = tmp_path / "mount"
    base.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "cmtest", str(base)], check=True)
    mounted = Overlay(base / "lower", base / "upper", base / "merged")
    try:
        for directory in (mounted.lower, mounted.upper, mounted.merged, base / "work"):
            directory.mkdir()
        (mounted.lower / "deleted").write_text("x")
        (mounted.lower / "kept").write_text("x")
        (mounted.lower / "replaced").mkdir()
        (mounted.lower / "replaced/hidden").write_text("x")
        (mounted.lower / "directory").mkdir()
        (mounted.lower / "directory/deleted").write_text("x")
        options = f"lowerdir={mounted.lower},upperdir={mounted.upper},workdir={base / 'work'}"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "cmtest", str(mounted.merged)], check=True)
        yield mounted
        subprocess.run(["umount", str(mounted.merged)], check=True)
    finally:
        subprocess.run(["umount", "--recursive", "--lazy", str(base)], check=True)


def layer(upper: Path, tmp_path: Path) -> dict[str, tarfile.TarInfo]:
    with (tmp_path / "layer.tar").open("wb") as file:
        write_layer(upper, file)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        members = tar.getmembers()
    assert len({member.name for member in members}) == len(members)
    return {member.name: member for member in members}


def content(tmp_path: Path, name: str) -> bytes:
    with tarfile.open(tmp_path / "layer.tar") as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read()


@as_root
def test_deletions_and_replaced_directories_become_whiteouts(overlay: Overlay, tmp_path: Path) -> None:
    (overlay.merged / "deleted").unlink()
    (overlay.merged / "directory/deleted").unlink()
    (overlay.merged / "replaced/hidden").unlink()
    (overlay.merged / "replaced").rmdir()
    (overlay.merged / "replaced").mkdir()
    (overlay.merged / "replaced/new").write_text("new")
    assert list(layer(overlay.upper, tmp_path)) == [
        ".",
        ".wh.deleted",
        "directory",
        "directory/.wh.deleted",
        "replaced",
        "replaced/.wh..wh..opq",
        "replaced/new",
    ]


@as_root
def test_owner_mode_time_and_attributes_are_kept(overlay: Overlay, tmp_path: Path) -> None:
    file = overlay.merged / "kept"
    file.write_bytes(b"changed")
    os.chown(file, 12345, 3_000_000)
    file.chmod(0o4751)
    os.setxattr(file, "trusted.note", b"\x00\xff=\n")
    os.utime(file, ns=(1, 1_700_000_000_123_456_789))
    member = layer(overlay.upper, tmp_path)["kept"]
    assert (member.uid, member.gid, member.mode, member.uname, member.gname) == (12345, 3_000_000, 0o4751, "", "")
    assert member.pax_headers["mtime"] == "1700000000.123456789"
    attribute = member.pax_headers["SCHILY.xattr.trusted.note"]
    assert attribute.encode("utf-8", "surrogateescape") == b"\x00\xff=\n"
    assert not [key for key in member.pax_headers if "overlay" in key]
    assert content(tmp_path, "kept") == b"changed"


@as_root
def test_devices_are_refused(overlay: Overlay, tmp_path: Path) -> None:
    os.mknod(overlay.merged / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with pytest.raises(RootfsFailure, match="null is a device"):
        layer(overlay.upper, tmp_path)


def test_links_fifos_and_remaps_are_kept_and_sockets_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "b").write_text("content")
    (upper / "a").hardlink_to(upper / "b")
    (upper / "link_remap.7").write_text("remapped")
    (upper / "link").symlink_to("/etc/passwd")
    os.mkfifo(upper / "fifo")
    monkeypatch.chdir(upper)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        members = layer(upper, tmp_path)
    assert list(members) == [".", "a", "b", "fifo", "link", "link_remap.7"]
    assert (members["a"].type, members["b"].type, members["b"].linkname) == (tarfile.REGTYPE, tarfile.LNKTYPE, "a")
    assert (members["fifo"].type, members["link"].linkname) == (tarfile.FIFOTYPE, "/etc/passwd")
    assert content(tmp_path, "a") == b"content"


def test_names_that_are_no_text_or_very_long_are_kept(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    strange = os.fsdecode(b"caf\xe9")
    long = "/".join(["directory" * 10] * 4)
    (upper / long).mkdir(parents=True)
    (upper / strange).write_text("x")
    assert {strange, long} <= layer(upper, tmp_path).keys()


def test_the_same_changes_make_the_same_bytes(tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    for name in ("z", "a", "m/k", "m/b"):
        (upper / name).parent.mkdir(parents=True, exist_ok=True)
        (upper / name).write_text(name)
    names = list(layer(upper, tmp_path))
    first = (tmp_path / "layer.tar").read_bytes()
    layer(upper, tmp_path)
    assert (tmp_path / "layer.tar").read_bytes() == first
    assert names == [".", "a", "m", "m/b", "m/k", "z"]


def test_a_file_named_like_a_whiteout_is_refused(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    (tmp_path / "upper/.wh.etc").write_text("x")
    with pytest.raises(RootfsFailure, match="means a deletion"):
        layer(tmp_path / "upper", tmp_path)


@as_root
def test_a_renamed_lower_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "upper/new").mkdir(parents=True)
    os.setxattr(tmp_path / "upper/new", "trusted.overlay.redirect", b"/old")
    with pytest.raises(RootfsFailure, match="redirect_dir"):
        layer(tmp_path / "upper", tmp_path)


ROOTFS = Path("/run/containerd/io.containerd.runtime.v2.task/k8s.io/abc/rootfs")
UPPER = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/9/fs"


def node(tmp_path: Path, *mounts: str) -> Host:
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))
    return Host(tmp_path)


def mount(where: Path, options: str, kind: str = "overlay") -> str:
    return f"400 30 0:57 / {where} rw,relatime shared:1 - {kind} overlay rw,{options}"


def test_the_upper_directory_is_the_one_mounted_last(tmp_path: Path) -> None:
    host = node(
        tmp_path,
        mount(ROOTFS.parent.parent / "other/rootfs", "upperdir=/var/lib/containerd/other"),
        mount(ROOTFS, "lowerdir=/a,upperdir=/var/lib/containerd/old,workdir=/w"),
        mount(ROOTFS, f"lowerdir=/a,upperdir={UPPER},workdir=/w"),
        mount(ROOTFS / "dev", "upperdir=/var/lib/containerd/inner"),
    )
    assert upper_directory(host, ROOTFS) == UPPER


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (mount(ROOTFS, "upperdir=/var/lib/containerd/../kubelet/x"), "not inside /var/lib/containerd"),
        (mount(ROOTFS, "upperdir=/etc"), "not inside /var/lib/containerd"),
        (mount(ROOTFS, "lowerdir=/a"), "no upper directory"),
        (mount(ROOTFS, "", kind="ext4"), "no overlay is mounted"),
        (mount(Path("/elsewhere"), f"upperdir={UPPER}"), "no overlay is mounted"),
    ],
)
def test_no_other_directory_is_taken(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RootfsFailure, match=message):
        upper_directory(node(tmp_path, line), ROOTFS)


def test_copy_is_private_and_replaces_an_older_one(tmp_path: Path) -> None:
    host = node(tmp_path, mount(ROOTFS, f"upperdir={UPPER}"))
    upper = host.host_file(UPPER)
    upper.mkdir(parents=True)
    (upper / "file").write_text("x")
    target = tmp_path / "rootfs-diff.tar"
    target.write_text("older")
    copy_changes(host, ROOTFS, target)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with tarfile.open(target) as tar:
        assert tar.getnames() == [".", "file"]


def test_an_unreadable_layer_is_a_failure(tmp_path: Path) -> None:
    host = node(tmp_path, mount(ROOTFS, f"upperdir={UPPER}"))
    with pytest.raises(RootfsFailure, match="could not be copied"):
        copy_changes(host, ROOTFS, tmp_path / "rootfs-diff.tar")
