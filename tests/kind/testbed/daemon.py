"""A private dockerd from Debian's packages, in its own network and mount namespace.

Nothing is installed, and the host's firewall, interfaces and cgroups stay as they are: the daemon's packets, mounts and
processes are confined to a network namespace, a mount namespace and a cgroup that go away with it.
"""

import os
import subprocess
import time
from pathlib import Path

from . import debian, engine, host, machine
from .places import SOURCES, Cluster
from .progress import step

PACKAGES = ("docker.io", "containerd", "runc", "tini", "pigz")
START_SECONDS = 60


def folder() -> Path:
    return debian.unpacked("engine", PACKAGES)


def log(cluster: Cluster) -> Path:
    return cluster.run / "dockerd.log"


def start(cluster: Cluster, *options: str) -> None:
    """Starts it, unless it runs; `options` are further ones of dockerd's."""
    engine.link_tools(cluster, folder() / "usr/bin/docker")
    if engine.is_running(cluster):
        return
    with step("starting a private Docker daemon"):
        make_network_namespace(cluster)
        dockerd = engine.owned(
            cluster, "unshare", "--mount", "--propagation=private", f"{SOURCES}/engine/start-dockerd"
        )
        with log(cluster).open("wb") as output:
            daemon = subprocess.Popen(
                engine.inside(cluster, *dockerd),
                env={**os.environ, **settings(cluster, *options)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while not engine.is_running(cluster):
            if daemon.poll() is not None or time.monotonic() > deadline:
                end = host.tail(log(cluster).read_text(errors="replace"))
                raise host.TestbedError(f"The Docker daemon did not start; the end of {log(cluster)}:\n{end}")
            time.sleep(0.1)


def make_network_namespace(cluster: Cluster) -> None:
    """A namespace held by a bind mount: it needs no process and no entry in /run/netns."""
    cluster.run.mkdir(parents=True, exist_ok=True)
    cluster.state.mkdir(parents=True, exist_ok=True)
    if not os.path.ismount(cluster.netns):
        cluster.netns.touch()
        host.run(["unshare", f"--net={cluster.netns}", "ip", "link", "set", "lo", "up"])


def settings(cluster: Cluster, *further: str) -> dict[str, str]:
    options = list(further)
    if not machine.inspect().sys_resource:
        wrapper = "runc-without-sys-resource"
        options += [
            "--add-runtime",
            f"{wrapper}={SOURCES}/engine/{wrapper}",
            "--default-runtime",
            wrapper,
            "--oom-score-adjust",
            "0",
        ]
    return {
        "TESTBED_ENGINE": str(folder()),
        "TESTBED_RUN": str(cluster.run),
        "TESTBED_STATE": str(cluster.state),
        "TESTBED_CGROUP": cluster.cgroup,
        "TESTBED_OPTIONS": " ".join(options),
    }
