"""The cluster's container engine, as everything else talks to it: the private one, or one found on this machine."""

import os
from pathlib import Path

from . import host
from .places import SOURCES, Cluster
from .plan import ENGINES


def environment(cluster: Cluster) -> dict[str, str]:
    """What docker, podman and kind need to find this engine and no other."""
    search = {"PATH": f"{cluster.tools}:{os.environ['PATH']}"}
    if cluster.plan.is_private:
        return {**search, "DOCKER_HOST": f"unix://{cluster.socket}", "DOCKER_CONFIG": str(cluster.run / "docker-cli")}
    place = {ENGINES[cluster.plan.engine]: cluster.plan.engine_host} if cluster.plan.engine_host else {}
    return {**search, **place, "KIND_EXPERIMENTAL_PROVIDER": cluster.plan.engine, **network_settings(cluster)}


def network_settings(cluster: Cluster) -> dict[str, str]:
    """In an engine that others use too, the cluster gets a network of its own, which goes away with it."""
    return {f"KIND_EXPERIMENTAL_{tool}_NETWORK": network(cluster) for tool in ("DOCKER", "PODMAN")}


def network(cluster: Cluster) -> str:
    return f"kind-{cluster.name}"


def command(cluster: Cluster, *arguments: str) -> list[str]:
    return ["docker" if cluster.plan.is_private else cluster.plan.engine, *arguments]


def docker(cluster: Cluster, *arguments: str, stdin: str | None = None) -> str:
    return host.run(command(cluster, *arguments), env=environment(cluster), stdin=stdin)


def in_node(cluster: Cluster, node: str, *arguments: str, stdin: str | None = None) -> str:
    return docker(cluster, "exec", "-i", node, *arguments, stdin=stdin)


def inside(cluster: Cluster, *argv: str) -> list[str]:
    """The command in the network that the nodes are reached from: the private engine's namespace, or this machine's.

    Not by `ip netns exec`: that remounts /sys and hides cgroups.
    """
    return ["nsenter", f"--net={cluster.netns}", "--", *argv] if cluster.plan.is_private else list(argv)


def owned(cluster: Cluster, *argv: str) -> list[str]:
    """The command as a part of the cluster: `down` ends it."""
    return [f"{SOURCES}/engine/in-cgroup", cluster.cgroup, *argv]


def is_running(cluster: Cluster) -> bool:
    if cluster.plan.is_private and not cluster.socket.is_socket():
        return False
    return host.succeeds(command(cluster, "version"), env=environment(cluster))


def link_tools(cluster: Cluster, *binaries: Path) -> None:
    """Makes tools available under the cluster's own PATH entry, whatever the cache's keys are today."""
    cluster.tools.mkdir(parents=True, exist_ok=True)
    for binary in binaries:
        link = cluster.tools / binary.name
        link.unlink(missing_ok=True)
        link.symlink_to(binary)
