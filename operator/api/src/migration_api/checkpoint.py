"""The ContainerCheckpoint resource: a checkpoint that lies in a volume or bucket, and for how long it is kept."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from migration_api.base import Model, Time
from migration_api.conditions import Condition
from migration_api.migration import Bytes, ContainerName, DnsName, Message, Metadata, Uid
from migration_api.node import NodeFacts
from migration_api.transport import Transport

POD_BYTES = 256 * 1024
"""The longest description of a pod that is kept."""

Containers = Annotated[
    tuple[ContainerName, ...],
    Field(min_length=1, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
]


class Retention(Model):
    """For how long it is kept. What is absent is as the chart's value `checkpoints.retention` says."""

    count: Annotated[int, Field(ge=1, le=10000, json_schema_extra={"format": "int32"})] | None = None
    """It goes when there are so many newer ones of the same series."""
    age_seconds: Annotated[int, Field(ge=1, le=315360000, json_schema_extra={"format": "int32"})] | None = None
    """It goes when it is so old, in seconds."""
    total_bytes: Annotated[int, Field(ge=1, json_schema_extra={"format": "int64"})] | None = None
    """It goes when it and the newer ones of its series have more bytes together; the newest one never does for this."""


class MigrationReference(Model):
    """The migration that kept it."""

    name: DnsName
    """The name of the ContainerMigration, which may be gone."""
    uid: Uid
    """Its UID, under which the checkpoint lies in the store."""


class CheckpointSpec(Model):
    """What is taken or kept. Immutable."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.podName) != has(self.migration)",
                    "message": "podName must be given; only the operator makes the checkpoint of a migration",
                },
                {
                    "rule": "!has(self.migration) || !(has(self.podUID) || has(self.containers))",
                    "message": "podUID and containers are for a checkpoint that is taken from a running pod",
                },
                {
                    "rule": "self.transport.type != 'Direct'",
                    "message": "a checkpoint is kept in a SharedVolume or an ObjectStore",
                },
            ]
        }
    )

    pod_name: DnsName | None = None
    """The running pod to take it from; it must be in this object's namespace. It stands still for its checkpoint only,
    and goes on."""
    pod_uid: Uid | None = Field(default=None, alias="podUID")
    """Pins the pod's incarnation: nothing is taken from another one of that name."""
    containers: Containers | None = None
    """The containers whose state is taken. Absent: all of the pod."""
    freeze_budget_seconds: Annotated[int, Field(ge=1, le=3600, json_schema_extra={"format": "int32"})] = 30
    """How long the container may stand still before it is given up, in seconds; less when the pod has HTTP, TCP or gRPC
    liveness probes. What is copied into the store after that counts no more."""
    deadline_seconds: Annotated[int, Field(ge=10, le=86400, json_schema_extra={"format": "int32"})] = 600
    """How long it may take until all lies in the store, in seconds."""
    migration: MigrationReference | None = None
    """In place of a pod: the migration that kept it. Written by the operator alone."""
    transport: Transport
    """Where it lies: a volume or a bucket."""
    retention: Retention = Retention()
    """For how long it is kept."""


class CheckpointSource(Model):
    """What it was taken from."""

    pod_name: DnsName
    """The pod."""
    pod_uid: Uid = Field(alias="podUID")
    """The pod's incarnation."""
    node_name: DnsName | None = None
    """The node it ran on."""
    containers: Containers
    """The containers whose state it holds."""


class CheckpointImage(Model):
    """The image of one of the pod's containers."""

    container: ContainerName
    """The container's name."""
    image: Annotated[str, Field(max_length=4096)]
    """The image as a pod restored from here will name it: by digest where a registry can."""
    image_id: Annotated[str, Field(max_length=4096)] = Field(default="", alias="imageID")
    """What the container runtime called it."""


class CheckpointStatus(Model):
    """What is known of it. Only the operator writes here."""

    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` that this status is about; -1 until the operator has looked."""
    phase: Annotated[str, Field(max_length=64)] | None = None
    """A word for the print column; nothing depends on it."""
    message: Message | None = None
    """How it is, in a sentence."""
    uid: Uid | None = None
    """Under which it lies in the store: the directory `container-migration/UID`."""
    key_secret: DnsName | None = None
    """The Secret with its key, in this object's namespace."""
    digest: Annotated[str, Field(max_length=71, pattern=r"^sha256:[0-9a-f]{64}$")] | None = None
    """Of the sealed manifest as it lies in the store."""
    size_bytes: Bytes | None = None
    """Its size before compression, in bytes."""
    begun_at: Time | None = None
    """When it was begun to take it from a running pod; `deadlineSeconds` count from here."""
    freeze_seconds: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?$")] | None = None
    """How long the running pod stood still, in seconds, as a decimal number."""
    created_at: Time | None = None
    """When the memory was copied: what is restored goes on from this moment."""
    series: Annotated[str, Field(max_length=253)] | None = None
    """Which others `retention` counts: those of the same workload."""
    source: CheckpointSource | None = None
    """What it was taken from."""
    images: Annotated[
        tuple[CheckpointImage, ...],
        Field(
            max_length=128,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["container"]},
        ),
    ] = ()
    """The images of the pod's containers."""
    node: NodeFacts | None = None
    """The node it was taken on: what a node must have to restore it."""
    pod: Annotated[str, Field(max_length=POD_BYTES)] | None = None
    """The pod as it was, as JSON: what a pod restored from here is made from."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """`Ready`: it lies complete in its store and can be restored."""


class ContainerCheckpoint(Model):
    """A checkpoint of a container, with its memory, that lies in a volume or bucket."""

    metadata: Metadata
    spec: CheckpointSpec
    status: CheckpointStatus = CheckpointStatus()

    @property
    def uid(self) -> str:
        """Under which it lies in the store."""
        return self.spec.migration.uid if self.spec.migration else self.metadata.uid

    @property
    def deleting(self) -> bool:
        return self.metadata.deletion_timestamp is not None
