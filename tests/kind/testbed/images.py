"""Images without a registry: the official base images' stand-ins, and the project's own images on top of them."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import buildah, debian, dockerbuild, host, source, versions
from .places import REPOSITORY, SOURCES, Cluster, digest, scratch
from .progress import note, step

APT_CONFIGURATION = """\
Acquire::Check-Valid-Until "false";
DPkg::Post-Invoke { "rm -f /var/cache/apt/archives/*.deb"; };
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""
"""For Dockerfiles that run apt: a mirror may be an expired snapshot; and like the official image this one keeps no
packages and no caches, which would be a third of an image. apt's own proxy settings are added to it."""


@dataclass(frozen=True)
class Base:
    """A stand-in for an official image; its Dockerfile lies in `images/<name>/`."""

    name: str
    tag: str
    packages: tuple[str, ...] = ()

    @property
    def dockerfile(self) -> Path:
        return SOURCES / "images" / self.name / "Dockerfile"


@dataclass(frozen=True)
class Project:
    """An image that the project builds: the paths are those of any Docker user."""

    name: str
    dockerfile: Path
    context: Path = REPOSITORY
    usually: str = "1 minute"

    @property
    def tag(self) -> str:
        return f"localhost/container-migration/{self.name}:dev"


BASES = (
    Base("debian", versions.DEBIAN_IMAGE, ("ca-certificates",)),
    Base("python", versions.PYTHON_IMAGE, ("ca-certificates", "python3", "python3-pip", "python3-venv")),
    Base("golang", versions.GOLANG_IMAGE),
)
PROJECT = (
    Project("operator", REPOSITORY / "operator/Dockerfile"),
    Project("agent", REPOSITORY / "node-agent/Dockerfile"),
    Project("workload", SOURCES / "images/workload/Dockerfile", SOURCES / "images/workload"),
    Project(
        "workload-full", SOURCES / "images/workload-full/Dockerfile", SOURCES / "images/workload-full", "2 minutes"
    ),
)


def names() -> list[str]:
    return [image.name for image in PROJECT]


def build(cluster: Cluster, name: str) -> None:
    """Builds the image, where its inputs have changed since the last time."""
    image = next(image for image in PROJECT if image.name == name)
    if not image.dockerfile.is_file():
        raise host.TestbedError(f"{image.dockerfile} does not exist: there is no {name} image to build.")
    text = image.dockerfile.read_text()
    bases = [base for base in BASES if re.search(rf"^FROM {re.escape(base.tag)}\b", text, re.MULTILINE)]
    files = tuple(copied(text, image.context))
    if not cluster.plan.is_private and all(not source.refusal_to_pull(cluster, base.tag) for base in bases):
        build_with_engine(cluster, image, digest(image.dockerfile, *files))
    else:
        build_with_buildah(image, digest(image.dockerfile, *files, *(build_base(base) for base in bases)))


def build_with_engine(cluster: Cluster, image: Project, key: str) -> None:
    """Where the base images can be pulled."""
    if dockerbuild.inputs(cluster, image.tag) == key:
        note(f"image {image.tag}: unchanged")
        return
    with step(f"building image {image.tag} with {cluster.plan.engine}", image.usually):
        dockerbuild.build(cluster, image.tag, image.dockerfile, image.context, key)


def build_with_buildah(image: Project, key: str) -> None:
    """Where they have stand-ins."""
    if buildah.inputs(image.tag) == key:
        note(f"image {image.tag}: unchanged")
        return
    with step(f"building image {image.tag}", image.usually):
        buildah.build(image.tag, image.dockerfile, image.context, key)


def copied(dockerfile: str, context: Path) -> Iterator[Path]:
    """The context's files that the Dockerfile copies: nothing else can change the image."""
    joined = dockerfile.replace("\\\n", " ")
    for line in joined.splitlines():
        words = line.split()
        if words[:1] in (["COPY"], ["ADD"]) and not any(word.startswith("--from") for word in words):
            yield from (context / word for word in words[1:-1] if not word.startswith("--"))


def build_base(base: Base) -> str:
    """Builds a stand-in if it is not there; returns what it was made from."""
    if base.name == "golang":
        return build_golang(base)
    root = debian.root(base.name, base.packages, "30 s")
    files = {
        "debian.sources": debian.mirror().sources(versions.NODE_SUITE),
        "testbed.conf": APT_CONFIGURATION + apt_proxies(),
    }
    key = digest(root.name, base.dockerfile, *files.values())
    if buildah.inputs(base.tag) != key:
        with step(f"building the stand-in for {base.tag}", "10 s"), scratch() as context:
            os.link(root, context / "root.tar")
            for name, text in files.items():
                (context / name).write_text(text)
            buildah.build(base.tag, base.dockerfile, context, key)
    return key


def apt_proxies() -> str:
    lines = host.run(["apt-config", "dump"]).splitlines()
    return "".join(f"{line}\n" for line in lines if re.match(r'Acquire::https?::Proxy\S* "[^"]', line))


def build_golang(base: Base) -> str:
    """The host's own Go, at the place where the official image has it."""
    below = build_base(next(item for item in BASES if item.name == "debian"))
    goroot, version = host.run(["go", "env", "GOROOT", "GOVERSION"]).split()
    key = digest(below, version, base.dockerfile)
    if buildah.inputs(base.tag) != key:
        with step(f"building the stand-in for {base.tag}", "20 s"):
            buildah.build(base.tag, base.dockerfile, Path(goroot).resolve(), key)
    return key
