"""The MigrationNode resource: one per node, written by that node's agent alone."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from migration_api.base import Model, Time
from migration_api.conditions import Condition
from migration_api.migration import Metadata

Text = Annotated[str, Field(max_length=1024)]
Endpoint = Annotated[str, Field(max_length=512)]


class RuntimeFacts(Model):
    """The container runtime as the agent found it."""

    name: Text
    """`containerd`."""
    version: Text
    """The runtime's version."""
    oci_version: Text
    """The version of runc."""
    handler_registered: bool
    """Whether the handler `migratable` is in the runtime's configuration."""


class NodeFacts(Model):
    """What must match between two nodes, and what an admin wants to know."""

    kernel_version: Text
    """As in `uname -r`."""
    architecture: Text
    """As in `uname -m`."""
    cpu_flags: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=1024)] = ()
    """CPU features, as in /proc/cpuinfo, sorted."""
    kernel_features: Annotated[tuple[Annotated[str, Field(max_length=64)], ...], Field(max_length=64)] = ()
    """Features of the kernel that a restore may need, as `criu check --feature` names them, sorted."""
    post_copy: bool = False
    """Memory can move after the commit: it is filled in while the container runs."""
    criu_version: Text
    """The version of the CRIU that the agent brought; empty when it does not run."""
    runtime: RuntimeFacts | None = None
    """The container runtime."""
    run_bytes_free: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """Room for checkpoints in the node's /run, in bytes."""
    disk_bytes_free: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] = 0
    """Room for checkpoints on the node's disk, in bytes; 0 when the chart does not allow them there."""

    @property
    def room_bytes(self) -> int:
        """The largest checkpoint that the node has room for: it lies in one of the two places."""
        return max(self.run_bytes_free, self.disk_bytes_free)


class MigrationNodeStatus(Model):
    """What the node's agent reports about itself."""

    endpoint: Endpoint | None = None
    """`https://ADDRESS:PORT` for the operator."""
    peer_endpoint: Endpoint | None = None
    """`ADDRESS:PORT` for other agents (mutual TLS)."""
    certificate: Annotated[str, Field(max_length=16384)] | None = None
    """The agent's TLS certificate in PEM; operator and peers trust exactly this one."""
    facts: NodeFacts | None = None
    """What must match between two nodes."""
    heartbeat_time: Time | None = None
    """When the agent reported last, every 20 s while it lives."""
    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` that this status is about."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """`Ready`: this node can be source and target; otherwise the message says everything that is missing."""


class MigrationNode(Model):
    """A node as seen by its migration agent: whether it can take part, and how to reach and trust the agent."""

    metadata: Metadata
    status: MigrationNodeStatus = MigrationNodeStatus()
