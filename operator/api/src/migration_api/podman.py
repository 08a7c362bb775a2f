"""What operator and agents say to each other about containers that a node's own Podman runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from migration_api.base import Model
from migration_api.migration import Bytes, Message, PodmanName, Uid
from migration_api.wire import Connections

ENTRY = "container"
"""The name under which the checkpoint of a Podman container lies: its own may be none that a path can have."""

_Text = Annotated[str, Field(max_length=4096)]
_Texts = Annotated[tuple[_Text, ...], Field(max_length=256)]


class PodmanQuestion(Model):
    """POST /v1/podman: what the preflight wants to know of a node's Podman."""

    container: PodmanName
    """The name or whole ID of a container."""
    image_name: _Text = ""
    """An image; empty: none is asked for."""
    paths: _Texts = ()
    """Paths of the node that must be there, since the container has them mounted."""


class PodmanContainerFacts(Model):
    """A container as Podman describes it."""

    id: Uid
    name: PodmanName
    status: _Text
    """`running`, `paused`, `exited`, …"""
    image_id: _Text
    image_name: _Text
    memory_bytes: Bytes
    """What a checkpoint of its memory is expected to take."""
    changed_bytes: Bytes
    """What it has changed in its root file system."""
    volumes: _Texts = ()
    """Named and anonymous volumes, by name."""
    binds: _Texts = ()
    """Directories and files of the node that are mounted in it."""
    dependencies: _Texts = ()
    """Other containers that it needs: of its pod, or those whose namespaces it shares."""
    pod: _Text = ""
    """The Podman pod that it is in."""
    restart_policy: _Text = ""
    """Empty, or why Podman would start it again by itself."""
    systemd_unit: _Text = ""
    """The unit that would start it again."""
    auto_remove: bool = False
    """`--rm`."""
    cgroups: bool = True
    """Whether it has a cgroup of its own by its ID."""
    host_network: bool = False
    connections: Connections = Connections()
    migration: Uid | None = None
    """The migration that holds it in this node's journal, if any."""


class PodmanFacts(Model):
    """A node's Podman, and what was asked for."""

    problem: Message = ""
    """Why it cannot be used at all; then the rest means nothing."""
    criu_version: _Text = ""
    """Of the CRIU that Podman finds: the node's, not the agent's. Empty: it finds none."""
    container: PodmanContainerFacts | None = None
    """None: there is no such container of root's."""
    image_id: _Text = ""
    """What the image's name stands for here; empty: it is not here."""
    missing_paths: _Texts = ()
    """Those of the question that are not here."""
