"""What a cluster is made from. Written beside it, so that every later command, from any checkout, knows."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, cast

from . import versions

PRIVATE = "private"
"""The engine that the test bed brings itself, for a node image that it makes from packages."""

ENGINES = {"docker": "DOCKER_HOST", "podman": "CONTAINER_HOST"}
"""The commands of engines that can be found, and the variables that say where they find them."""


@dataclass(frozen=True)
class Plan:
    """Two equal plans make the same cluster."""

    workers: int = 2
    containerd: str = next(iter(versions.CONTAINERD))
    """The series in a node image from packages; a pulled one has its own."""
    engine: str = PRIVATE
    """PRIVATE, or the command of an engine that was found on this machine: docker, podman."""
    engine_host: str = ""
    """The value of that command's variable (DOCKER_HOST, CONTAINER_HOST) when it had one."""
    image: str = ""
    """The node image; the name of one made from packages has the hash of everything in it."""
    kindnet: bool = False
    """The node image brings kind's own pod network; without it the test bed connects the pods."""
    config: str = ""
    """The digest of what kind is told."""
    why: str = field(default="", compare=False)
    """Why this engine and this image."""

    @property
    def is_private(self) -> bool:
        return self.engine == PRIVATE

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    def differences(self, other: "Plan") -> str:
        """For example `workers: 3 instead of 2`."""
        ours, theirs = asdict(self), asdict(other)
        changed = [item.name for item in fields(self) if item.compare and ours[item.name] != theirs[item.name]]
        return ", ".join(f"{name}: {theirs[name]} instead of {ours[name]}" for name in changed)


def read(path: Path) -> Plan | None:
    """None for a cluster that was begun by another version of the test bed, or not at all."""
    try:
        return Plan(**cast("dict[str, Any]", json.loads(path.read_text())))
    except (OSError, ValueError, TypeError):
        return None
