"""Where the engine and the node image come from: the only difference between machines.

Docker or Podman that answers and has or can pull kind's own node image is used; otherwise the test bed brings a private
engine and makes the node image from packages.
"""

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace

from . import engine, gobuild, host, requirements
from .places import RUN, Cluster
from .plan import ENGINES, PRIVATE, Plan
from .progress import step


@dataclass(frozen=True)
class Wishes:
    """What the person at the terminal says."""

    workers: int
    containerd: str | None = None
    from_packages: bool = False
    image: str = ""


@dataclass(frozen=True)
class Source:
    """The answer: where from, and why."""

    engine: str
    why: str
    engine_host: str = ""
    image: str = ""
    kindnet: bool = False


def choose(cluster: Cluster, wishes: Wishes, *, running: bool) -> Source:
    """Finds out, by asking and pulling. Refuses a machine that lacks something, before anything is changed on it."""
    why = why_packages(cluster, wishes, running=running)
    found = None if why else find_engine(os.environ)
    require(wishes, running=running, packages=found is None)
    if found is None:
        return Source(PRIVATE, why or "no Docker and no Podman answers on this machine")
    image = wishes.image or kinds_own_image()
    there = replace(cluster, plan=Plan(engine=found.engine, engine_host=found.engine_host))
    if refusal := refusal_to_pull(there, image):
        require(wishes, running=running, packages=True)
        return Source(PRIVATE, f"{found.engine} answers, but cannot pull {image}: {refusal}")
    return Source(
        found.engine, f"{found.why}, and has {image}", found.engine_host, image, kindnet=has_kindnet(there, image)
    )


def why_packages(cluster: Cluster, wishes: Wishes, *, running: bool) -> str:
    """Empty when an engine of this machine may be used, if there is one."""
    if wishes.from_packages:
        return "asked for with --from-packages"
    if wishes.containerd:
        return "--containerd chooses what a pulled node image has already"
    return cluster.plan.why if running and cluster.plan.is_private else ""


def require(wishes: Wishes, *, running: bool, packages: bool) -> None:
    if running:
        requirements.require_tools(packages=packages)
    else:
        requirements.require_for_cluster(packages=packages, workers=wishes.workers)


def find_engine(environment: Mapping[str, str]) -> Source | None:
    """The first engine that answers; a cluster's private one is none, though `cluster env` may have named it."""
    for command, variable in ENGINES.items():
        place = environment.get(variable, "")
        if not shutil.which(command) or str(RUN) in place:
            continue
        if host.succeeds([command, "info"]):
            return Source(command, f"{command} answers on this machine", place)
    return None


def kinds_own_image() -> str:
    """The node image that this version of kind was released with, pinned by its digest."""
    defaults = gobuild.module_source("kind", "sigs.k8s.io/kind") / "pkg/apis/config/defaults/image.go"
    found = re.search(r'^const Image = "(\S+)"', defaults.read_text(), re.MULTILINE)
    if not found:
        raise host.TestbedError(f"{defaults} names no node image: choose one with --image.")
    return f"docker.io/{found[1]}"


def refusal_to_pull(cluster: Cluster, image: str) -> str:
    """Empty when the engine has the image, perhaps since now; otherwise the last line of what it says."""
    if host.succeeds(engine.command(cluster, "image", "inspect", image), env=engine.environment(cluster)):
        return ""
    with step(f"trying to pull {image}", "1 minute"):
        try:
            engine.docker(cluster, "pull", "--quiet", image)
        except host.CommandError as error:
            return (error.output.strip().splitlines() or ["no reason given"])[-1]
    return ""


def has_kindnet(cluster: Cluster, image: str) -> bool:
    """kind's own node images have it; those made from packages have not, and somebody may have published one."""
    test = ("--entrypoint", "test", image, "-f", "/kind/manifests/default-cni.yaml")
    run = engine.command(cluster, "run", "--rm", "--network", "none", *test)
    return host.succeeds(run, env=engine.environment(cluster))
