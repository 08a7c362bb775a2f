"""What operator and agents say to each other over HTTPS (docs/protocol.md, section 5)."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from migration_api.base import Model, Time
from migration_api.conditions import Reason
from migration_api.migration import Bytes, ContainerName, DnsName, LabelValue, Message, PodmanName, Uid
from migration_api.shipping import Shipping


class RefKind(StrEnum):
    """What kind of object an agent acts for."""

    CONTAINER_MIGRATION = "ContainerMigration"
    CONTAINER_CHECKPOINT = "ContainerCheckpoint"
    """A checkpoint is taken of a running pod: there is no target, and nothing to decide."""


class MigrationRef(Model):
    """Names one migration, or the taking of one checkpoint; the UID is what counts."""

    namespace: DnsName
    name: DnsName
    uid: Uid
    kind: RefKind = RefKind.CONTAINER_MIGRATION


LAZY_FROM_BYTES = 32 * 1024 * 1024
"""A container with less memory has it in place again before anything that comes later would have begun: it is dumped
and restored whole."""

Containers = Annotated[tuple[ContainerName, ...], Field(min_length=1, max_length=16)]


class RunBy(StrEnum):
    """Who runs the containers that move."""

    KUBELET = "Kubelet"
    PODMAN = "Podman"
    """One container: its name and ID stand for those of a pod, the same at both ends."""


class _PodTask(Model):
    """What both sides must know of the pod."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an error is answered and logged; the key must not be

    migration: MigrationRef
    run_by: RunBy = RunBy.KUBELET
    pod_name: PodmanName
    containers: Containers
    """Those that move, in the pod's order: the first one's checkpoint holds what they share."""
    order: Annotated[tuple[ContainerName, ...], Field(max_length=64)] = ()
    """All containers of the pod but init containers that end, in the order in which the kubelet starts them: native
    sidecars first. Empty stands for `containers`."""
    post_copy: bool = False
    """Large memory stays in the frozen processes and moves after the commit: the target cannot do without the source
    until all of it has come."""
    pre_copy: bool = False
    """Large memory is copied while its processes run, and what has changed since when they are frozen."""

    @property
    def all_containers(self) -> tuple[ContainerName, ...]:
        return self.order or self.containers

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.containers != tuple(name for name in self.all_containers if name in self.containers):
            raise ValueError("containers must be some of order, once each and in that order")
        return self

    @model_validator(mode="after")
    def _before_or_after(self) -> Self:
        if self.post_copy and self.pre_copy:
            raise ValueError("memory is copied either before or after")
        return self


class StoredRef(Model):
    """A checkpoint that lies complete in a store; it was kept earlier, by another migration."""

    uid: Uid
    """Under which it lies there; what it is sealed for."""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
    """Of its sealed manifest: no other one is accepted."""


class Successor(Model):
    """The pod that a StatefulSet creates under the source pod's name when that is gone; its UID is not known before."""

    source_pod_uid: Uid
    """Of the pod that has the name now."""
    revision: LabelValue
    """Which `controller-revision-hash` it must have."""


class TargetTask(_PodTask):
    """What a target is asked for, without secrets: this is what the journal keeps."""

    pod_uid: Uid | None = None
    successor: Successor | None = None
    """In place of `podUID`: the pod of that name that comes later, marked for this migration, on this node."""
    source_node: DnsName | None = None
    """Whose agent sends the checkpoint. Absent: nobody does, and there is no source that could go on."""
    stored: StoredRef | None = None
    """In place of a source: the checkpoint that this agent fetches by itself."""
    freeze_budget_seconds: Annotated[int, Field(ge=1, le=3600)]
    tcp_close: bool = True
    init: Annotated[tuple[ContainerName, ...], Field(max_length=64)] = ()
    """The pod's init containers that end. They have run at the source: here each is one that does nothing."""
    generated: Annotated[tuple[ContainerName, ...], Field(max_length=64)] = ()
    """Those of `init` that the operator added to the target pod: they do nothing in later sandboxes either."""
    late_gate: ContainerName | None = None
    """The one of `generated` that does not end before the copy is complete; absent: there is no late gate."""

    @property
    def sealed_for(self) -> str:
        """The UID that the checkpoint's keys are derived for."""
        return self.stored.uid if self.stored else self.migration.uid

    @model_validator(mode="after")
    def _from_somewhere(self) -> Self:
        if (self.source_node is None) == (self.stored is None):
            raise ValueError("either sourceNode or stored must be given")
        if self.post_copy and self.source_node is None:
            raise ValueError("postCopy needs a source")
        return self

    @model_validator(mode="after")
    def _one_pod(self) -> Self:
        if (self.pod_uid is None) == (self.successor is None):
            raise ValueError("either podUID or successor must be given")
        if self.successor is not None and self.source_node is None:
            raise ValueError("a successor needs a source")
        return self

    @model_validator(mode="after")
    def _init_is_apart(self) -> Self:
        late = () if self.late_gate is None else (self.late_gate,)
        if not set(late) <= set(self.generated) <= set(self.init) <= set(self.init) - set(self.all_containers):
            raise ValueError("lateGate must be one of generated, generated some of init, and init none of order")
        return self


class TargetRequest(TargetTask):
    """PUT /v1/migrations/{uid}/target: expect this migration's checkpoint for this pod."""

    shipping: Shipping
    expected_bytes: Bytes = 0
    """What the checkpoint is expected to take, with a margin; only the first request's counts."""

    @property
    def task(self) -> TargetTask:
        return TargetTask.model_validate(self.model_dump(exclude={"shipping", "expected_bytes"}))


class Thaw(StrEnum):
    """When a frozen source may go on."""

    DECIDED = "Decided"
    """When it is decided that it is the one that goes on: never beside its copy."""
    DUMPED = "Dumped"
    """As soon as its checkpoint is complete on its node, whatever becomes of that: it waits for nobody, and is never
    ended."""


class SourceTask(_PodTask):
    """What a source is asked for, without secrets: this is what the journal keeps."""

    pod_uid: Uid
    target_node: DnsName | None = None
    """Whose agent the checkpoint is sent to. Absent: nobody's; it stays in its store, and the source goes on."""
    thaw: Thaw = Thaw.DECIDED
    freeze_budget_seconds: Annotated[int, Field(ge=1, le=3600)]
    refuse_connections: bool = False
    """Go back when the frozen pod has TCP connections with others."""
    same_name: bool = False
    """The target pod can be created only when this one is gone: on Commit this one is ended and deleted at once."""

    @property
    def taking(self) -> bool:
        """Whether a checkpoint is taken, and that is all."""
        return self.target_node is None

    @model_validator(mode="after")
    def _memory_stays_with_the_frozen(self) -> Self:
        if self.post_copy and self.thaw is not Thaw.DECIDED:
            raise ValueError("with postCopy the source must stand still until its memory has moved")
        return self

    @model_validator(mode="after")
    def _somebody_lets_it_go_on(self) -> Self:
        alone = self.migration.kind is RefKind.CONTAINER_CHECKPOINT
        if self.taking != alone or (self.taking and self.thaw is not Thaw.DUMPED):
            raise ValueError(
                "a ContainerCheckpoint has no targetNode and thaw Dumped; a ContainerMigration has a target"
            )
        if self.same_name and self.thaw is not Thaw.DECIDED:
            raise ValueError("who gives his name away does not go on")
        return self


class SourceRequest(SourceTask):
    """PUT /v1/migrations/{uid}/source: freeze this pod, checkpoint the containers that move, send them to that node."""

    shipping: Shipping
    expected_bytes: Bytes = 0
    """As in `TargetRequest`."""

    @property
    def task(self) -> SourceTask:
        return SourceTask.model_validate(self.model_dump(exclude={"shipping", "expected_bytes"}))


class SourceState(StrEnum):
    """How far the source side is; in this order, Thawed, Released and Lost being ends."""

    ACCEPTED = "Accepted"
    FENCED = "Fenced"
    FROZEN = "Frozen"
    DUMPED = "Dumped"
    SENT = "Sent"
    THAWED = "Thawed"
    """The containers run again, no fence, no drop. With `Thaw.DUMPED` they may do so before: see `thawedAt`."""
    RELEASED = "Released"
    """Every task was killed while frozen; the pod is to be deleted, or, with `sameName`, it is."""
    LOST = "Lost"
    """The containers died while frozen, not by this migration; unfenced."""


class TargetState(StrEnum):
    """How far the target side is; Resumed, Returned and Destroyed being ends."""

    PREPARED = "Prepared"
    """The ticket lies there; the gate has not been reached."""
    AT_GATE = "AtGate"
    RECEIVING = "Receiving"
    RECEIVED = "Received"
    """Every digest matched."""
    RESTORING = "Restoring"
    HELD = "Held"
    RESUMING = "Resuming"
    """Ticket `resuming` is on disk; the outcome is being written."""
    RESUMED = "Resumed"
    RETURNED = "Returned"
    DESTROYED = "Destroyed"
    """The ticket is destroyed and nothing is held: this node will never resume the migration."""


class Failure(Model):
    """Why a side cannot go on; the operator (or the source's agent) will propose Abort."""

    reason: Reason
    message: Message
    """What failed, on which node, why (the tool's own last lines), what to do."""


class Files(Model):
    """Where a migration's files lie on a node."""

    on_disk: bool = False
    """False: in memory, on the tmpfs of /run."""
    why: Message = ""
    """Why they lie on the disk, for an admin."""


class Connections(Model):
    """The connected TCP sockets of a pod."""

    within: Annotated[int, Field(ge=0)] = 0
    """Those whose connections have both ends on the pod's loopback."""
    outside: Annotated[int, Field(ge=0)] = 0

    @property
    def stay(self) -> bool:
        """Whether they move with the pod: CRIU keeps all or none, and none with the outside can be kept."""
        return self.within > 0 and not self.outside


class SourceReport(Model):
    """The source side as its agent sees it now."""

    state: SourceState
    settled: bool = False
    """Thawed, released or lost: nothing of this migration acts on this node any more."""
    fenced: bool = False
    frozen: bool = False
    """Paused, or stopped by death, with the fence up."""
    alive: bool = True
    """The containers still exist; a frozen source may be killed by others."""
    lending: bool = False
    """With `postCopy`: the target may still need memory of the frozen processes."""
    memory_bytes: Bytes = 0
    """With `postCopy`: what stays in the processes, about."""
    memory_sent: Bytes = 0
    """What the target has fetched of it since this life of the agent began."""
    freeze_budget_left_seconds: float | None = None
    bytes_total: Bytes | None = None
    """Of the checkpoint; an estimate that grows until the dump is complete."""
    bytes_sent: Bytes = 0
    """Those that the target has, or that are on their way to it."""
    chunks_sent: Annotated[int, Field(ge=0)] = 0
    """Over all connections of this life of the agent."""
    chunks_resumed: Annotated[int, Field(ge=0)] = 0
    """Those that the latest connection found at the target already."""
    connections: Connections | None = None
    """Known when the dump is complete."""
    files: Files = Files()
    frozen_at: Time | None = None
    dumped_at: Time | None = None
    sent_at: Time | None = None
    thawed_at: Time | None = None
    """When the containers went on here."""
    failure: Failure | None = None


class TargetReport(Model):
    """The target side as its agent sees it now."""

    state: TargetState
    settled: bool = False
    """Resumed with the outcome written, returned with the outcome written, or destroyed."""
    gate_age_seconds: float | None = None
    """Since the `create` that waits at the gate began; absent when nobody waits."""
    at_late_gate: bool = False
    """The late gate waits for the copy: image, volumes and network are ready, and its age does not matter."""
    pod_uid: Uid | None = None
    """The pod that has the ticket; of a successor it is known when that has come, and may become another one."""
    bytes_received: Bytes = 0
    bytes_total: Bytes | None = None
    """Of a checkpoint that is fetched from a store; of one that is sent the source knows it."""
    began_at: Time | None = None
    """When this life of the agent began to fetch it."""
    files: Files = Files()
    received_at: Time | None = None
    held_at: Time | None = None
    resumed_at: Time | None = None
    filling: bool = False
    """It runs, and its memory is still being filled in."""
    filled_at: Time | None = None
    memory_lost: Message | None = None
    """With `postCopy`: the source's memory was lost before all of it had come, so the container was killed, and why."""
    failure: Failure | None = None
    trouble: Message = ""
    """What went wrong last, also after the commit, and is tried again."""


class MigrationReport(Model):
    """GET /v1/migrations/{uid}: both sides; a node is normally only one of them."""

    uid: Uid
    revision: Annotated[int, Field(ge=0)]
    """Grows with every change, and over restarts of the agent."""
    source: SourceReport | None = None
    target: TargetReport | None = None


class ContainerFacts(Model):
    """One running container of a pod."""

    name: ContainerName
    container_id: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
    memory_bytes: Bytes
    """What a checkpoint of its memory is expected to take."""
    runtime: str
    """`runc`."""


class PodFacts(Model):
    """GET /v1/pods/{podUID}: what the preflight needs from the node."""

    pod_uid: Uid
    containers: tuple[ContainerFacts, ...]
    shared_bytes: Bytes = 0
    """What its emptyDir volumes and /dev/shm are expected to take in a checkpoint."""
    connections: Connections | None = None
    """Absent: an agent that does not count them."""
    migration: Uid | None = None
    """The migration that holds the pod in this node's journal, if any."""


class ErrorBody(Model):
    """The body of every answer with status >= 400."""

    message: Message
