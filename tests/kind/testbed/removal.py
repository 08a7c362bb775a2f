"""Removes a cluster, whole or in pieces: processes, mounts, namespaces, cgroups and files."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from . import engine, host, limits
from .places import Cluster

STOP_SECONDS = 30
KIND_LABEL = "io.x-k8s.kind.cluster"


def remove(cluster: Cluster) -> None:
    """Ends everything of the cluster, also after an `up` or `down` that was killed half way.

    Killing is enough: what an orderly shutdown would tidy up lies in namespaces and folders that go away as well.
    The record goes last: until then the next `down` knows where to look.
    """
    kill_processes(cluster)
    if not cluster.plan.is_private:
        remove_from_found_engine(cluster)
    for mount in reversed(mounts_below(cluster)):
        host.run(["umount", "--lazy", mount])
    remove_cgroups(cluster)
    for path in (cluster.state, cluster.run):
        if path.exists():
            shutil.rmtree(path)
    with suppress(OSError):  # another cluster's folder is in it, or it is not there
        cluster.state.parent.rmdir()
    limits.restore()


def remove_from_found_engine(cluster: Cluster) -> None:
    if not engine.is_running(cluster):
        raise host.TestbedError(
            f"The nodes of cluster {cluster.name} are in {cluster.plan.engine}, which does not answer:"
            " start it, and run `cluster down` again."
        )
    label = f"label={KIND_LABEL}={cluster.name}"
    if containers := engine.docker(cluster, "ps", "--all", "--quiet", "--filter", label).split():
        engine.docker(cluster, "rm", "--force", "--volumes", *containers)
    if volumes := volumes_of_nodes(cluster):
        engine.docker(cluster, "volume", "rm", "--force", *volumes)
    networks = engine.docker(cluster, "network", "ls", "--format", "{{.Name}}").split()
    if engine.network(cluster) in networks:
        engine.docker(cluster, "network", "rm", engine.network(cluster))


def volumes_of_nodes(cluster: Cluster) -> list[str]:
    """In podman kind makes a node's volume before the node, labelled with its name: it does not go with the node."""
    if cluster.plan.engine != "podman":
        return []
    listed = [engine.docker(cluster, "volume", "ls", "--quiet", "--filter", f"label={node}") for node in cluster.nodes]
    return [volume for line in listed for volume in line.split()]


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
    left: list[str] = []
    for _ in range(20):
        for group in cgroups(cluster):
            with suppress(OSError):  # a killed process is still being reaped: the next round
                group.rmdir()
        left = sorted(map(str, cgroups(cluster)))
        if not left:
            return
        time.sleep(0.2)
    raise host.TestbedError(f"These cgroups of the cluster cannot be removed: {', '.join(left)}")


def mounts_below(cluster: Cluster) -> list[str]:
    """Mount points in the host's own namespace below the cluster's folders, in mount order."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if any(Path(point).is_relative_to(ours) for ours in (cluster.run, cluster.state))]
