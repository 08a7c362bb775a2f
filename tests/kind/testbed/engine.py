"""A private dockerd from Debian's packages, in its own network and mount namespace.

Nothing is installed, and the host's firewall, interfaces and cgroups stay as they are: the daemon's packets, mounts and
processes are confined to a network namespace, a mount namespace and a cgroup that go away with it.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import debian, host, machine
from .places import SOURCES, Cluster
from .progress import step

PACKAGES = ("docker.io", "containerd", "runc", "tini", "pigz")
START_SECONDS = 60
STOP_SECONDS = 30


def folder() -> Path:
    return debian.unpacked("engine", PACKAGES)


def environment(cluster: Cluster) -> dict[str, str]:
    """What docker and kind need to find this daemon and no other."""
    search = f"{cluster.tools}:{os.environ['PATH']}"
    return {"DOCKER_HOST": f"unix://{cluster.socket}", "PATH": search, "DOCKER_CONFIG": str(cluster.run / "docker-cli")}


def link_tools(cluster: Cluster, *binaries: Path) -> None:
    """Makes tools available under the cluster's own PATH entry, whatever the cache's keys are today."""
    cluster.tools.mkdir(parents=True, exist_ok=True)
    for binary in binaries:
        link = cluster.tools / binary.name
        link.unlink(missing_ok=True)
        link.symlink_to(binary)


def docker(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    return host.run(["docker", *arguments], env=environment(cluster), stdin=stdin)


def inside(cluster: Cluster, *command: str) -> list[str]:
    """The command in the cluster's network namespace. Not by `ip netns exec`: that remounts /sys and hides cgroups."""
    return ["nsenter", f"--net={cluster.netns}", "--", *command]


def is_running(cluster: Cluster) -> bool:
    return cluster.socket.is_socket() and host.succeeds(["docker", "version"], env=environment(cluster))


def start(cluster: Cluster) -> None:
    link_tools(cluster, folder() / "usr/bin/docker")
    if is_running(cluster):
        return
    with step("starting a private Docker daemon"):
        make_network_namespace(cluster)
        log = cluster.run / "dockerd.log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                inside(cluster, "unshare", "--mount", "--propagation=private", f"{SOURCES}/engine/start-dockerd"),
                env={**os.environ, **daemon_settings(cluster)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not is_running(cluster):
            if daemon.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(log.read_text(errors="replace").splitlines()[-host.ERROR_TAIL :])
                raise host.TestbedError(f"The Docker daemon did not start; the end of {log}:\n{tail}")
            time.sleep(0.1)


def make_network_namespace(cluster: Cluster) -> None:
    """A namespace held by a bind mount: it needs no process and no entry in /run/netns."""
    cluster.run.mkdir(parents=True, exist_ok=True)
    cluster.state.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(cluster.netns):
        cluster.netns.touch()
        host.run(["unshare", f"--net={cluster.netns}", "ip", "link", "set", "lo", "up"])


def daemon_settings(cluster: Cluster) -> dict[str, str]:
    options: list[str] = []
    if not machine.inspect().sys_resource:
        wrapper = f"{SOURCES}/engine/runc-without-sys-resource"
        options = ["--add-runtime", f"testbed={wrapper}", "--default-runtime", "testbed", "--oom-score-adjust", "0"]
    return {
        "TESTBED_ENGINE": str(folder()),
        "TESTBED_RUN": str(cluster.run),
        "TESTBED_STATE": str(cluster.state),
        "TESTBED_CGROUP": cluster.cgroup,
        "TESTBED_OPTIONS": " ".join(options),
    }


def stop(cluster: Cluster) -> None:
    """Ends every process, mount, namespace and cgroup of the cluster, also after an `up` that was killed half way.

    Killing is enough: what an orderly shutdown would tidy up lies in namespaces and folders that go away as well.
    """
    kill_processes(cluster)
    for mount in reversed(mounts_below(cluster)):
        host.run(["umount", "--lazy", mount])
    remove_cgroups(cluster)
    for path in (cluster.run, cluster.state):
        if path.exists():
            shutil.rmtree(path)


def kill_processes(cluster: Cluster) -> None:
    """By membership in our cgroup, never by name; again and again, because a dying tree may still fork."""
    deadline = time.monotonic() + STOP_SECONDS
    while pids := processes(cluster):
        if time.monotonic() > deadline:
            raise host.TestbedError(f"These processes of the cluster do not end: {sorted(pids)}")
        thaw(cluster)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)


def thaw(cluster: Cluster) -> None:
    """A migration may have left a container frozen, and under cgroup v1 the frozen do not even die."""
    for group in cgroups(cluster):
        with suppress(OSError):
            (group / "freezer.state").write_text("THAWED")


def processes(cluster: Cluster) -> set[int]:
    """Every process below our cgroup, in any hierarchy."""
    found: set[int] = set()
    for group in cgroups(cluster):
        with suppress(OSError):  # the group has just gone, and its processes with it
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
    return found


def cgroups(cluster: Cluster) -> Iterator[Path]:
    """Our cgroups, the deepest first."""
    for hierarchy in (Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")):
        for top, _, _ in os.walk(hierarchy / cluster.cgroup, topdown=False):
            yield Path(top)


def remove_cgroups(cluster: Cluster) -> None:
    for _ in range(20):
        for group in cgroups(cluster):
            with suppress(OSError):  # a killed process is still being reaped: the next round
                group.rmdir()
        if not any(cgroups(cluster)):
            return
        time.sleep(0.2)


def mounts_below(cluster: Cluster) -> list[str]:
    """Mount points in the host's own namespace below the cluster's folders, in mount order."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if any(Path(point).is_relative_to(ours) for ours in (cluster.run, cluster.state))]
