"""The ContainerMigration resource: what a cluster admin asks for and what the parts report."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import ConfigDict, Field

from migration_api.base import Model, Time
from migration_api.conditions import Condition
from migration_api.transport import Transport

DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
UID = r"^[A-Za-z0-9]([-A-Za-z0-9]{0,62}[A-Za-z0-9])?$"

DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=DNS_NAME)]
ContainerName = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Uid = Annotated[str, Field(min_length=1, max_length=64, pattern=UID)]
Message = Annotated[str, Field(max_length=32768)]
LabelValue = Annotated[str, Field(max_length=63)]
Bytes = Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
PodmanName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-zA-Z0-9][a-zA-Z0-9_.-]*$")]
"""The name or the ID of a container that Podman runs."""


class Strategy(StrEnum):
    """How the memory moves."""

    STOP_AND_COPY = "StopAndCopy"
    """The container is frozen, copied whole, and goes on at the target."""
    POST_COPY = "PostCopy"
    """The container is frozen and goes on at the target at once; large memory follows, on demand and in the
    background. Until all of it has come the container cannot do without the source's node."""
    PRE_COPY = "PreCopy"
    """Large memory is copied while the container runs, again where it changes; frozen, only what has changed since is
    sent, and the container goes on at the target with a copy that is complete there."""


class TcpConnections(StrEnum):
    """What becomes of established TCP connections."""

    CLOSE = "Close"
    """Clients are disconnected at the commit and reconnect; listening sockets go on."""
    REFUSE = "Refuse"
    """A pod that has any with others is not moved."""


class Decision(StrEnum):
    """The first write-once register."""

    COMMIT = "Commit"
    """The container will run on the target node."""
    ABORT = "Abort"
    """The container goes on at the source."""


class Outcome(StrEnum):
    """The second write-once register: what became of a committed target."""

    RESUMED = "Resumed"
    """The container runs on the target node."""
    RETURNED = "Returned"
    """The target gave the container back: it will never run there, the source goes on."""


class Target(Model):
    """Where to, and under which name."""

    node_name: DnsName | None = None
    """The node to move to. Absent: the scheduler picks one with an agent, never the source node."""
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=32)] | None = None
    """Labels that the node must have, in addition to the pod's own constraints."""
    pod_name: DnsName | None = None
    """The name of the new pod. Absent: the source pod's name with a suffix derived from this object's UID; of a pod of
    a StatefulSet the name itself, and no other is possible."""


class PodmanContainer(Model):
    """A container that the node's own Podman runs, as root: no pod, and the kubelet knows nothing of it."""

    node_name: DnsName
    """The node that it runs on."""
    container: PodmanName
    """Its name, or its whole ID."""


class MigrationSpec(Model):
    """What is asked for. Immutable but for `cancel`."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "[has(self.podName), has(self.checkpointName), has(self.podman)]"
                    ".filter(given, given).size() == 1",
                    "message": "exactly one of podName, checkpointName and podman must be given",
                },
                {
                    "rule": "!has(self.podman) || (has(self.target) && has(self.target.nodeName)"
                    " && !has(self.target.podName) && !has(self.target.nodeSelector))",
                    "message": "with podman the target is target.nodeName and nothing else: the container keeps its"
                    " name",
                },
                {
                    "rule": "!has(self.podman) || !(has(self.podUID) || has(self.containers) || self.retain"
                    " || (has(self.strategy) && self.strategy != 'StopAndCopy'))",
                    "message": "with podman there is no podUID, containers, retain or strategy but StopAndCopy",
                },
                {
                    "rule": "!has(self.checkpointName) || !(has(self.podUID) || has(self.containers)"
                    " || has(self.transport) || self.retain || self.leaveSourceRunning)",
                    "message": "with checkpointName there is no podUID, containers, transport, retain or"
                    " leaveSourceRunning: the ContainerCheckpoint says what it holds and where it lies",
                },
                {
                    "rule": "!self.retain || (has(self.transport) && self.transport.type != 'Direct')",
                    "message": "retain needs a transport of the type SharedVolume or ObjectStore",
                },
                {
                    "rule": "!has(self.strategy) || self.strategy == 'StopAndCopy' || !(has(self.checkpointName)"
                    " || self.retain || self.leaveSourceRunning)",
                    "message": "checkpointName, retain and leaveSourceRunning need the strategy StopAndCopy: with the"
                    " others no checkpoint has the memory in it",
                },
            ]
        }
    )

    pod_name: DnsName | None = None
    """The running pod to move; it must be in this object's namespace."""
    podman: PodmanContainer | None = None
    """In place of `podName`: the Podman container to move. It goes on under its name and ID, in the Podman of the node
    `target.nodeName`, which must have its image. Only in the namespace of the operator, since nodes' own containers are
    nobody's but the cluster admins'."""
    checkpoint_name: DnsName | None = None
    """In place of `podName`: the ContainerCheckpoint in this object's namespace that a new pod is restored from.
    Nothing is moved, and the checkpoint stays: it can be restored as often as wanted, on any node. Who creates such an
    object must be allowed to create pods in the namespace."""
    pod_uid: Uid | None = Field(default=None, alias="podUID")
    """Pins the pod's incarnation: with another UID under that name the migration is refused. A tool that recreates a
    deleted ContainerMigration would otherwise move the next pod of that name."""
    containers: (
        Annotated[
            tuple[ContainerName, ...],
            Field(min_length=1, max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = None
    """The containers to move with their state. Absent: all of the pod."""
    target: Target = Target()
    """Where to, and under which name."""
    strategy: Strategy = Strategy.STOP_AND_COPY
    """How the memory moves. `StopAndCopy`: frozen, copied whole, resumed. `PreCopy`: copied while it runs, then frozen
    for what has changed; both nodes need room for 2.5 times the memory. `PostCopy`: it stands still for a short time,
    whatever its memory; that follows while it runs at the target, slower at first (condition `MemoryMoved`). When the
    source's node is lost meanwhile, so is the container's state: it starts afresh."""
    transport: Transport | None = None
    """How the checkpoint travels. Absent: as the chart's value `transport.default` says, which is `Direct` unless the
    cluster's admin has changed it."""
    tcp_connections: TcpConnections = TcpConnections.CLOSE
    """What becomes of established TCP connections with others. `Close`: clients reconnect. `Refuse`: the pod is not
    moved while it has any."""
    leave_source_running: bool = False
    """Make a clone: the pod stands still for its checkpoint only and goes on where it is; a new pod on the other node
    goes on from the same moment. Established TCP connections stay with the source. The clone has neither owner nor
    labels of the source, so no Service and no controller knows it until somebody labels it. Refused for pods with a
    claim that both would write."""
    freeze_budget_seconds: Annotated[int, Field(ge=1, le=3600, json_schema_extra={"format": "int32"})] = 30
    """How long the container may stand still before the migration is given up, in seconds. The effective budget is less
    when the pod has HTTP, TCP or gRPC liveness probes: the kubelet would kill the frozen container."""
    retain: bool = False
    """Keep the checkpoint, when the migration has ended well, as a ContainerCheckpoint. Only with a transport of the
    type `SharedVolume` or `ObjectStore`, which must be given here."""
    deadline_seconds: Annotated[int, Field(ge=10, le=86400, json_schema_extra={"format": "int32"})] = 600
    """How long the migration may take before it is given up, in seconds; not after the commit."""
    ttl_seconds_after_finished: (
        Annotated[int, Field(ge=0, le=31536000, json_schema_extra={"format": "int32"})] | None
    ) = None
    """How long this object is kept after the migration has ended, in seconds. Absent: until somebody deletes it. Not
    for objects that a GitOps tool manages: it would create them again."""
    cancel: bool = False
    """Set to true to give the migration up; has no effect once it is committed."""


class SourceStatus(Model):
    """The source side. `nodeName` and `podUID` are written once, by the operator."""

    node_name: DnsName | None = None
    """The node that the pod was found on."""
    pod_uid: Uid | None = Field(default=None, alias="podUID")
    """The incarnation that is moved; of a Podman container its ID."""
    revision: LabelValue | None = None
    """Of a pod of a StatefulSet: its label `controller-revision-hash`. What gets its name and is of another revision is
    not given its memory. Written once, by the operator."""
    checkpoint_uid: Uid | None = Field(default=None, alias="checkpointUID")
    """In place of node and pod: the ContainerCheckpoint that is restored from. Written once, by the operator."""
    reason: Annotated[str, Field(max_length=1024)] | None = None
    """Why the source's agent wrote Abort, as a documented constant."""
    message: Message | None = None
    """Why the source's agent wrote Abort, as a sentence."""


class TargetStatus(Model):
    """The target side. `nodeName`, `podName` and `podUID` are written once, by the operator."""

    node_name: DnsName | None = None
    """The node that the target pod was scheduled to."""
    pod_name: DnsName | None = None
    """The name of the target pod."""
    pod_uid: Uid | None = Field(default=None, alias="podUID")
    """The only pod that may ever resume this migration; one that has its source's name is known when it has. Of a
    Podman container its ID."""
    outcome: Outcome | None = None
    """Write-once, by the target node's agent: `Resumed`: the container runs there; `Returned`: it never will."""
    message: Message | None = None
    """Why the target was returned."""


class KeptCheckpoint(Model):
    """What became of the checkpoint of a migration with `spec.retain`."""

    name: DnsName | None = None
    """The ContainerCheckpoint, in this object's namespace."""
    message: Message | None = None
    """Why there is none."""


class Progress(Model):
    """How far the copy is."""

    bytes_total: Bytes | None = None
    """Size of the checkpoint, in bytes."""
    bytes_done: Bytes | None = None
    """Bytes that have arrived verified at the target."""
    bytes_per_second: Bytes | None = None
    """The mean since the freeze, in which the transfer begins."""
    seconds_left: Annotated[int, Field(ge=0)] | None = None
    """Until the transfer is complete, at that rate; absent when it is, or when nobody can say."""
    chunks_sent: Annotated[int, Field(ge=0)] | None = None
    """Pieces of the checkpoint that were sent, since the source's agent was started last."""
    chunks_resumed: Annotated[int, Field(ge=0)] | None = None
    """Pieces that were not sent again after a connection broke or an agent was restarted."""


class Timings(Model):
    """When things happened, and how long the container stood still."""

    started_at: Time | None = None
    """When the operator looked at it first."""
    admitted_at: Time | None = None
    """When its turn came among those that wanted to run; `deadlineSeconds` count from here."""
    prepared_at: Time | None = None
    """When the target pod reached the gate: image, volumes and network were ready."""
    frozen_at: Time | None = None
    """When the source's containers stopped, by the source node's clock."""
    dumped_at: Time | None = None
    """When the checkpoint was complete on the source node."""
    thawed_at: Time | None = None
    """With `leaveSourceRunning`: when the source went on, by its node's clock."""
    transferred_at: Time | None = None
    """When the checkpoint was complete and verified on the target node."""
    restored_at: Time | None = None
    """When the container was restored and held on the target node."""
    resumed_at: Time | None = None
    """When the container went on, by the clock of the node where it went on."""
    filled_at: Time | None = None
    """When all of a large container's memory was in place: it ran since `resumedAt`, and slower until then."""
    completed_at: Time | None = None
    """When the migration ended."""
    freeze_estimate_seconds: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?$")] | None = None
    """How long it was expected to stand still at most, before anything was touched, in seconds, as a decimal number."""
    freeze_seconds: Annotated[str, Field(max_length=32, pattern=r"^[0-9]+(\.[0-9]+)?$")] | None = None
    """How long the container stood still, in seconds, as a decimal number; with `leaveSourceRunning`, the source."""


class MigrationStatus(Model):
    """What the parts report."""

    observed_generation: Annotated[int, Field(ge=-1, json_schema_extra={"format": "int64"})] | None = None
    """The `metadata.generation` that this status is about; -1 until the operator has looked."""
    phase: Annotated[str, Field(max_length=64)] | None = None
    """A word for the print column; nothing depends on it."""
    message: Message | None = None
    """What is happening, in a sentence."""
    decision: Decision | None = None
    """Write-once: `Commit` by the target node's agent, `Abort` by the operator or the source node's agent."""
    source: SourceStatus = SourceStatus()
    """The source side."""
    target: TargetStatus = TargetStatus()
    """The target side."""
    transport: Transport | None = None
    """How the checkpoint of this migration travels, also when the spec leaves it to the chart."""
    checkpoint: KeptCheckpoint = KeptCheckpoint()
    """What became of the checkpoint, with `spec.retain`."""
    progress: Progress = Progress()
    """How far the copy is."""
    timings: Timings = Timings()
    """When things happened."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(
            max_length=32, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}
        ),
    ] = ()
    """Observations, one per step; `Succeeded` is Unknown until the end."""


class Metadata(Model):
    """The part of an object's metadata that this project reads."""

    name: str
    namespace: str = ""
    uid: str = ""
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: Time | None = None
    deletion_timestamp: Time | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()


class ContainerMigration(Model):
    """Moves a running container, with its memory, open files and file-system changes, to another node."""

    metadata: Metadata
    spec: MigrationSpec
    status: MigrationStatus = MigrationStatus()

    @property
    def begun(self) -> bool:
        """From here on something may have been touched."""
        source = self.status.source
        return source.pod_uid is not None or source.checkpoint_uid is not None

    @property
    def same_name(self) -> bool:
        """The target pod has its source's name: it is created by their controller when the source is gone."""
        return self.spec.pod_name is not None and self.status.target.pod_name == self.spec.pod_name

    @property
    def restores(self) -> bool:
        """There is no source: a new pod is made from a checkpoint."""
        return self.spec.checkpoint_name is not None

    @property
    def of_podman(self) -> bool:
        """A container of Podman moves: there are no pods."""
        return self.spec.podman is not None

    @property
    def subject(self) -> str:
        """What it is about, in words."""
        if self.spec.podman is not None:
            return f"Podman container {self.spec.podman.container}"
        return f"checkpoint {self.spec.checkpoint_name}" if self.restores else f"pod {self.spec.pod_name}"

    @property
    def destination(self) -> str:
        """Where it goes on in the end, in words."""
        target = self.status.target
        where = "the Podman of" if self.of_podman else f"pod {target.pod_name} on"
        return f"{where} node {target.node_name}"
