"""A real checkpoint as an archive: the real checkpointctl reads it, and an archive of the real podman is imported."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import zstandard

from migration_agent.transport.store import HOME
from support.archives import checkpointctl
from support.cluster import SYSTEM, Kubectl, agents, on_node, wait_for
from support.migration import WORKLOAD, Migrations
from support.stores import Folder, watching
from support.testbed import Testbed
from support.workloads import Redis

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

MARKER = "a-marker-that-checkpointctl-must-find"
SLOW = 8 * 1024 * 1024


def tool(kubectl: Kubectl, *words: str, stdin: bytes = b"") -> bytes:
    """Run the command of the agent's image in an agent's pod."""
    pod = next(iter(agents(kubectl).values()))
    command = ("kubectl", "exec", "-i", pod, "-n", SYSTEM, "--", "container-migration", *words)
    done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with (
        zstandard.ZstdDecompressor().stream_reader(BytesIO(archive), read_across_frames=True) as plain,
        tarfile.open(fileobj=plain, mode="r|") as tar,
    ):
        return {member.name: member for member in tar}


@pytest.mark.usefixtures("clean_nodes")
def test_checkpointctl_reads_the_checkpoint_of_a_redis(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], folder: Folder, tmp_path: Path
) -> None:
    """It is copied out of the volume while it lies there."""
    source, target = nodes
    redis = Redis(kubectl, migrations.namespace)
    redis.start(source, client_node=target)
    redis.fill("redis", mebibytes=16)
    redis.cli("redis", "SET", "marker", MARKER)
    transport = {**folder.transport, "bytesPerSecond": SLOW}
    with watching(folder.content) as seen:
        migrations.start("move", "redis", target={"nodeName": target}, transport=transport)
        uid = migrations.succeeded("move")["metadata"]["uid"]
        wait_for("an empty volume", lambda: not any(p.is_file() for p in folder.path.rglob("*")), seconds=30)
    secret = kubectl.get("secret", f"migration-key-{uid}", migrations.namespace)
    assert secret is not None
    copied = folder.path / "copied" / HOME / uid
    copied.mkdir(parents=True)
    for name, blob in seen.items():
        if name.startswith(f"{HOME}/{uid}/") and ".new-" not in name:
            (copied / Path(name).name).write_bytes(blob)

    words = ("--volume", f"{folder.on_nodes}/copied", "--uid", uid, "--key-file", "/dev/stdin", "-")
    archive = tmp_path / "redis.tar"
    archive.write_bytes(tool(kubectl, "export", *words, stdin=secret["data"]["key"].encode()))

    shown = checkpointctl("show", archive)
    assert re.search(rf"main\s+{re.escape(WORKLOAD)}\s+[0-9a-f]{{12}}\s+runc\s+\S+\s+containerd\s+[\d.]+ MiB", shown)
    [inspected] = json.loads(checkpointctl("inspect", "--all", "--format", "json", archive))
    assert inspected["container_name"] == "main"
    assert inspected["process_tree"]["command"] == "redis-server"
    assert inspected["statistics"]["pages_written"] > 1000
    assert inspected["mounts"]
    assert inspected["sockets"]
    assert re.search(r"1\s+redis-server\s+[\d.]+ MiB", checkpointctl("memparse", archive))
    assert MARKER in checkpointctl("memparse", "--pid", "1", "--search", MARKER, "--context", "40", archive)


@pytest.fixture
def podman_archive(testbed: Testbed, kubectl: Kubectl, nodes: tuple[str, str], folder: Folder) -> Iterator[bytes]:
    """Let the real podman checkpoint a container that has changed and deleted files of its image."""
    testbed("add", "podman")
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
