"""An archive of the real podman is imported, and comes back; the other way round is S1 in test_seed.py."""

from __future__ import annotations

import secrets
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import zstandard

from support import machine
from support.archives import checkpointctl, tool
from support.cluster import Kubectl, on_node
from support.migration import WORKLOAD
from support.stores import Folder
from support.testbed import Testbed

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with (
        zstandard.ZstdDecompressor().stream_reader(BytesIO(archive), read_across_frames=True) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        return {member.name: member for member in tar}


@pytest.fixture
def podman_archive(testbed: Testbed, kubectl: Kubectl, nodes: tuple[str, str], folder: Folder) -> Iterator[bytes]:
    """Let the real podman checkpoint a container that has changed and deleted files of its image."""
    Testbed(testbed.name, machine.machines_network())("add", "podman")  # its packages are outside the cluster's network
    node, name, on_nodes = nodes[0], f"e2e-{secrets.token_hex(4)}", folder.on_nodes
    change = "echo changed > /etc/motd; rm -rf /srv; mkdir /new; echo new > /new/file; exec sleep 1000"
    podman = f"podman --root /var/lib/{name} --runroot /run/{name}"
    try:
        on_node(
            kubectl,
            node,
            f"ctr -n k8s.io images export - {WORKLOAD} | {podman} load -q && "
            f"{podman} run -d --name web {WORKLOAD} sh -c '{change}' && "
            f"until {podman} exec web cat /new/file; do sleep 0.2; done && "
            f"{podman} container checkpoint --export {on_nodes}/podman.tar web",
            timeout=180,
        )
        yield (folder.path / "podman.tar").read_bytes()
    finally:
        on_node(kubectl, node, f"{podman} rm -af -t 0; {podman} unshare true; rm -rf /var/lib/{name} /run/{name}; true")


def test_an_archive_of_the_real_podman_is_imported_and_comes_back_in_its_layout(
    kubectl: Kubectl, folder: Folder, podman_archive: bytes, tmp_path: Path
) -> None:
    volume = ("--volume", folder.on_nodes)
    key = f"{folder.on_nodes}/key"
    uid = tool(kubectl, "import", *volume, "--container", "web", "--key-file", key, f"{volume[1]}/podman.tar")
    again = tool(kubectl, "export", *volume, "--uid", uid.decode().strip(), "--key-file", key, "-")

    before, after = members(podman_archive), members(again)
    assert before.keys() - after.keys() <= {"artifacts", "ctr.log", "devshm-checkpoint.tar"}
    assert after.keys() <= before.keys()
    for name in after.keys() - {"rootfs-diff.tar"}:
        assert (after[name].type, after[name].size) == (before[name].type, before[name].size), name
    archives = tmp_path / "podman.tar", tmp_path / "again.tar"
    for path, content in zip(archives, (podman_archive, again), strict=True):
        path.write_bytes(content)
    for words in (("inspect", "--all", "--format", "json"), ("memparse",)):
        theirs, ours = (checkpointctl(*words, path) for path in archives)
        assert ours.replace("again.tar", "podman.tar").splitlines()[1:] == theirs.splitlines()[1:]
    assert "Podman" in checkpointctl("show", archives[1])
