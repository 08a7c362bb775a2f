"""Brings images into the containerd of nodes."""

import json
import tarfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import buildah, dockerbuild, engine, host
from .places import Cluster, scratch
from .progress import note, step

CTR = ("ctr", "--namespace", "k8s.io", "images")
IMPORTS_AT_A_TIME = 2


@dataclass(frozen=True)
class Image:
    """A name and the digest of the configuration: what the kubelet calls the image's id."""

    name: str
    id: str


def load(cluster: Cluster, source: str, nodes: tuple[str, ...]) -> None:
    """Loads an archive, or an image of the builder's store, into those of the nodes that have not got it."""
    if Path(source).is_file():
        archive = Path(source)
        import_where_missing(cluster, archive, describe(archive), nodes)
        return
    if not cluster.plan.is_private and dockerbuild.inputs(cluster, source) is not None:
        with scratch() as work:
            dockerbuild.export(cluster, source, work / "image.tar")
            import_where_missing(cluster, work / "image.tar", describe(work / "image.tar"), nodes)
        return
    identity = buildah.image_id(source)
    if identity is None:
        raise host.TestbedError(f"{source} is neither a file nor an image in the builder's store: `cluster build` it.")
    images = [Image(source, f"sha256:{identity}")]
    if nodes_without(cluster, images, nodes):
        with scratch() as work:
            buildah.export(source, work / "image.tar")
            import_where_missing(cluster, work / "image.tar", images, nodes)
    else:
        note(f"image {source}: every node has it")


def import_where_missing(cluster: Cluster, archive: Path, images: list[Image], nodes: tuple[str, ...]) -> None:
    title = " ".join(image.name for image in images)
    missing = nodes_without(cluster, images, nodes)
    if not missing:
        note(f"image {title}: every node has it")
        return
    with step(f"loading {title} into {len(missing)} nodes"), ThreadPoolExecutor(IMPORTS_AT_A_TIME) as pool:
        list(pool.map(partial(import_archive, cluster, archive), missing))


def import_archive(cluster: Cluster, archive: Path, node: str) -> None:
    with archive.open("rb") as content:
        command = engine.command(cluster, "exec", "-i", node, *CTR, "import", "--all-platforms", "-")
        host.run(command, env=engine.environment(cluster), stdin=content)


def nodes_without(cluster: Cluster, images: list[Image], nodes: tuple[str, ...]) -> list[str]:
    return [node for node in nodes if not all(has(cluster, node, image) for image in images)]


def has(cluster: Cluster, node: str, image: Image) -> bool:
    """The runtime keeps each image under its name and under its id: both must mean the same manifest."""
    rows = [line.split() for line in engine.docker(cluster, "exec", node, *CTR, "ls").splitlines()[1:]]
    manifests = {row[0]: row[2] for row in rows}
    return image.name in manifests and manifests[image.name] == manifests.get(image.id)


def describe(archive: Path) -> list[Image]:
    """The images in an archive as `docker save` (manifest.json) or an OCI tool (index.json) writes it."""
    with tarfile.open(archive) as content:
        members = set(content.getnames())
        if "manifest.json" in members:
            return [
                Image(name, f"sha256:{Path(entry['Config']).name.removesuffix('.json')}")
                for entry in read_json(content, "manifest.json")
                for name in entry["RepoTags"] or ()
            ]
        if "index.json" in members:
            return [describe_oci(content, entry) for entry in read_json(content, "index.json")["manifests"]]
    raise host.TestbedError(f"{archive} is neither a docker archive nor an OCI archive.")


def describe_oci(content: tarfile.TarFile, descriptor: dict[str, Any]) -> Image:
    name = descriptor.get("annotations", {}).get("io.containerd.image.name")
    if name is None:
        raise host.TestbedError("The OCI archive names no image: it needs the annotation io.containerd.image.name.")
    manifest = read_json(content, "blobs/" + descriptor["digest"].replace(":", "/"))
    return Image(name, manifest.get("config", {}).get("digest", ""))


def read_json(content: tarfile.TarFile, member: str) -> Any:
    file = content.extractfile(member)
    return json.load(file) if file else None
