"""Images built by the engine that was found, as any Docker user builds them."""

from pathlib import Path

from . import engine, host
from .buildah import INPUTS_LABEL
from .places import Cluster


def inputs(cluster: Cluster, tag: str) -> str | None:
    """The hash that the image was built from; None when the engine has no such image."""
    form = f'{{{{index .Config.Labels "{INPUTS_LABEL}"}}}}'
    try:
        return engine.docker(cluster, "image", "inspect", "--format", form, tag).strip()
    except host.CommandError:
        return None


def build(cluster: Cluster, tag: str, dockerfile: Path, context: Path, key: str) -> None:
    label = f"{INPUTS_LABEL}={key}"
    engine.docker(cluster, "build", "--label", label, "--tag", tag, "--file", str(dockerfile), str(context))


def export(cluster: Cluster, tag: str, archive: Path) -> None:
    engine.docker(cluster, "save", "--output", str(archive), tag)
