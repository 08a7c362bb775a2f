"""What a running cluster gets on demand: CRIU and podman in its nodes, and an S3 server."""

import json
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import debian, engine, gobuild, host, versions
from .nodes import nodes
from .places import Cluster, cache, digest, finished, scratch
from .progress import note, step
from .waiting import wait_for

CRIU_FOLDER = "/opt/criu"
CRIU_WRAPPER = f"""\
#!/bin/sh
LD_LIBRARY_PATH={CRIU_FOLDER}/lib exec {CRIU_FOLDER}/criu "$@"
"""
"""CRIU of a newer Debian release, with its libraries but the node's libc."""

COLLECT_CRIU = r"""
mkdir -p /out/lib
cp /usr/sbin/criu /out/
ldd /usr/sbin/criu | sed -n 's/.*=> \(\/[^ ]*\).*/\1/p' | grep -v '/libc\.so' | xargs -I{} cp -L {} /out/lib/
"""

PODMAN_PACKAGES = ("podman", "crun", "conmon", "libcriu2", "iptables", "nftables", "ca-certificates")
PODMAN_SETTINGS = """\
[containers]
netns = "host"
pids_limit = -1
[engine]
cgroup_manager = "cgroupfs"
runtime = "crun"
env = ["PODMAN_IGNORE_CGROUPSV1_WARNING=1"]
"""
"""A node has no session manager for podman, and under cgroup v1 only part of the controllers."""

NOT_INTO_NODES = ("./dev", "./proc", "./sys", "./run", "./tmp", "./var/lib/dpkg", "./var/lib/apt", "./var/cache")

S3_PORT = 7070
S3_REGION = "us-east-1"
S3_UNIT = "s3"


def add_criu(cluster: Cluster) -> None:
    """For experiments: the project's agent brings its own CRIU."""
    folder = criu()
    for node in cluster.nodes:
        if not works(cluster, node, "criu", "--version"):
            with step(f"putting CRIU into {node}"):
                engine.docker(cluster, "cp", f"{folder}/.", f"{node}:{CRIU_FOLDER}")
                install = "cat > /usr/local/sbin/criu && chmod 755 /usr/local/sbin/criu"
                engine.in_node(cluster, node, "sh", "-c", install, stdin=CRIU_WRAPPER)
    note(f"CRIU in every node: {version(cluster, 'criu', '--version')}")


def criu() -> Path:
    root = debian.root("criu", ("criu",), "30 s", versions.RUNTIME_SUITE)
    target = cache("extras", f"criu-{digest(root.name, COLLECT_CRIU)}")
    if not target.is_dir():
        with finished(target) as out, scratch() as work:
            host.run(["tar", "-C", str(work), "-xf", str(root)])
            host.run(host.contained("chroot", str(work), "sh", "-ec", COLLECT_CRIU))
            shutil.copytree(work / "out", out, dirs_exist_ok=True)
    return target


def add_podman(cluster: Cluster) -> None:
    """The node's own files stay: what podman and its dependencies bring beyond them is added."""
    add_criu(cluster)
    root = debian.root("podman", PODMAN_PACKAGES, "40 s")
    excludes = [f"--exclude={path}" for path in NOT_INTO_NODES]
    for node in cluster.nodes:
        if not works(cluster, node, "podman", "--version"):
            with step(f"putting podman into {node}", "5 s"), root.open("rb") as tarball:
                unpack = ("tar", "-C", "/", "--skip-old-files", *excludes, "-xf", "-")
                host.run(
                    engine.command(cluster, "exec", "-i", node, *unpack),
                    env=engine.environment(cluster),
                    stdin=tarball,
                )
                settings = "ldconfig; cat > /etc/containers/containers.conf"
                engine.in_node(cluster, node, "sh", "-c", settings, stdin=PODMAN_SETTINGS)
    note(f"podman in every node: {version(cluster, 'podman', '--version')}")


def works(cluster: Cluster, node: str, *command: str) -> bool:
    return host.succeeds(engine.command(cluster, "exec", node, *command), env=engine.environment(cluster))


def version(cluster: Cluster, *command: str) -> str:
    """Asked in one node: all have the same."""
    return engine.in_node(cluster, cluster.workers[0], *command).splitlines()[0]


@dataclass(frozen=True)
class S3:
    """A server, as its clients know it."""

    endpoint: str
    access_key: str
    secret_key: str

    def variables(self) -> dict[str, str]:
        """Under the names that S3 clients read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": S3_REGION,
        }


def s3(cluster: Cluster) -> S3:
    """A real S3 server, a unit in the control plane's node: nodes, pods and tests reach it."""
    server = S3(endpoint(cluster), *credentials(cluster))
    node = cluster.nodes[0]
    if not works(cluster, node, "systemctl", "--quiet", "is-active", S3_UNIT):
        with step("starting the S3 server"):
            binary = gobuild.tool("versitygw")
            engine.docker(cluster, "cp", str(binary), f"{node}:/usr/local/bin/versitygw")
            keys = (f"--setenv=ROOT_ACCESS_KEY={server.access_key}", f"--setenv=ROOT_SECRET_KEY={server.secret_key}")
            run = ("systemd-run", "--quiet", f"--unit={S3_UNIT}", "--property=StateDirectory=s3", *keys)
            serve = ("versitygw", "--port", f":{S3_PORT}", "--region", S3_REGION, "posix", "/var/lib/s3")
            engine.in_node(cluster, node, *run, *serve)
            wait_for(cluster, "the S3 server answers", lambda: s3_answers(cluster, server))
    return server


def s3_answers(cluster: Cluster, server: S3) -> bool:
    """Any status will do: without credentials it is 403."""
    return works(cluster, cluster.workers[0], "curl", "--silent", "--max-time", "2", server.endpoint)


def endpoint(cluster: Cluster) -> str:
    ip = next(node.ip for node in nodes(cluster) if node.name == cluster.nodes[0])
    return f"http://{ip}:{S3_PORT}"


def credentials(cluster: Cluster) -> tuple[str, str]:
    """Made once per cluster."""
    file = cluster.run / "s3.json"
    if not file.exists():
        file.touch(0o600)
        file.write_text(json.dumps([f"testbed{secrets.token_hex(6)}", secrets.token_urlsafe(24)]))
    access_key, secret_key = json.loads(file.read_text())
    return access_key, secret_key
