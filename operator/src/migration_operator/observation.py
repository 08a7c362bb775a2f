"""What a migration may depend on, read afresh for each step. Values only: nothing here does I/O."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.conditions import ConditionType, Reason
from migration_api.migration import ContainerMigration, Decision, Metadata, Outcome, Strategy
from migration_api.names import FINALIZER
from migration_api.node import MigrationNode, MigrationNodeStatus, NodeFacts
from migration_api.podman import PodmanContainerFacts, PodmanFacts
from migration_api.transport import Transport
from migration_api.wire import Failure, MigrationReport, PodFacts, SourceReport, TargetReport
from migration_operator.owners import revision_of
from migration_operator.pods import Json, Pod, mapping
from migration_operator.transport_facts import MountPoint, TransportFacts

HEARTBEAT_MAX_AGE = timedelta(seconds=90)
"""An agent reports every 20 s: after four missed reports it is taken for dead."""


def agent_trouble(agent: MigrationNode | None, now: datetime) -> str:
    """Return why a node cannot take part, as its agent reports it or fails to; empty when it can."""
    if agent is None:
        return (
            "it has no MigrationNode: no migration agent has ever reported from it (is the DaemonSet scheduled there?)"
        )
    heartbeat = agent.status.heartbeat_time
    if heartbeat is None or now - heartbeat > HEARTBEAT_MAX_AGE:
        last = "has never reported" if heartbeat is None else f"reported last at {heartbeat:%H:%M:%S} UTC"
        return f"its migration agent {last}; look at the agent's pod on that node"
    ready = next((c for c in agent.status.conditions if c.type == "Ready"), None)
    if ready is None or ready.status != "True":
        return f"its migration agent is not ready: {ready.message if ready else 'it has not checked the node yet'}"
    if not agent.status.endpoint or not agent.status.certificate:
        return "its migration agent has not published its endpoint and certificate yet"
    return ""


def is_finished(migration: ContainerMigration) -> bool:
    """Return whether the migration has ended, one way or the other; it never begins again."""
    return any(c.type == ConditionType.SUCCEEDED and c.status != "Unknown" for c in migration.status.conditions)


@dataclass(frozen=True)
class NodeView:
    """A node, and its agent's own report about it.

    Attributes:
        out_of_service: an admin has declared, by the taint for it, that the machine is off and stays off.
    """

    name: str
    exists: bool = False
    ready: bool = False
    schedulable: bool = False
    out_of_service: bool = False
    agent: MigrationNode | None = None
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    taints: tuple[Json, ...] = ()

    @property
    def facts(self) -> NodeFacts | None:
        return self.agent.status.facts if self.agent else None

    def silent(self, now: datetime) -> bool:
        """Return whether the node or its agent is taken for dead: waiting for an answer may take for ever."""
        heartbeat = self.agent.status.heartbeat_time if self.agent else None
        return not (self.exists and self.ready) or heartbeat is None or now - heartbeat > HEARTBEAT_MAX_AGE


@dataclass(frozen=True)
class AgentView:
    """One node's agent as it answered just now.

    Attributes:
        node: the node it runs on.
        problem: why it could not be reached; empty when it answered.
        report: what it knows of this migration; None when it answered that it knows nothing.
    """

    node: NodeView
    problem: str = ""
    report: MigrationReport | None = None

    @property
    def reached(self) -> bool:
        return not self.problem


def origin_view(checkpoint: ContainerCheckpoint) -> NodeView:
    """Return the node that a checkpoint was taken on, as it was then."""
    source = checkpoint.status.source
    name = (source.node_name if source else None) or "the node it was taken on"
    agent = MigrationNode(metadata=Metadata(name=name), status=MigrationNodeStatus(facts=checkpoint.status.node))
    return NodeView(name, exists=True, agent=agent)


def stored_pod(checkpoint: ContainerCheckpoint) -> Pod | None:
    """Return the pod that a checkpoint was taken from, as it was then; None when that was not kept.

    It is in the checkpoint's own namespace, whatever its description says.
    """
    try:
        kept = mapping(json.loads(checkpoint.status.pod or ""))
    except ValueError:
        return None
    metadata = {**mapping(kept.get("metadata")), "namespace": checkpoint.metadata.namespace}
    return Pod({**kept, "metadata": metadata}) if kept else None


@dataclass(frozen=True)
class PodmanPair:
    """What two nodes' Podmans say of a container that is to move.

    Attributes:
        here: the source's; None when it was not asked or did not answer.
        there: the target's, asked for the container's name, image and mounted paths.
        there_by_id: the target's, asked for the container's ID.
        trouble: why one was not reached.
        allowed: the migration is in the operator's own namespace; elsewhere nobody is asked.
    """

    here: PodmanFacts | None = None
    there: PodmanFacts | None = None
    there_by_id: PodmanFacts | None = None
    trouble: str = ""
    allowed: bool = True

    @property
    def container(self) -> PodmanContainerFacts | None:
        """The container, as its own node describes it."""
        return self.here.container if self.here else None


@dataclass(frozen=True)
class PreflightFacts:
    """What the preflight looks at, beyond the migration itself.

    Attributes:
        pod: the pod that `spec.podName` names.
        source: the node it runs on.
        target: the node that `spec.target.nodeName` names.
        candidates: all other nodes with an agent, when the scheduler is to pick.
        name_holder: the pod that has the target pod's name already.
        rivals: unfinished migrations of the same pod, other than this one.
        pod_facts: what the source's agent says about the pod; None when it knows no such pod or was not reached.
        agent_problem: why the source's agent was not reached.
        transport: how the checkpoint is to travel, and what the nodes found when they tried it.
        claims: the access modes of the claims that the pod uses; a claim that is not there has none.
        volumes: the volumes that those are bound to, by the claims' names.
        checkpoint: what is to be restored from; `pod` is its pod then, and `source` its node, both as they were.
        key_trouble: why the checkpoint's key cannot be had.
        podman: what the nodes' Podmans say, when a container of theirs is to move.
    """

    pod: Pod | None
    source: NodeView | None = None
    target: NodeView | None = None
    candidates: tuple[NodeView, ...] = ()
    target_name: str = ""
    name_holder: Pod | None = None
    rivals: tuple[ContainerMigration, ...] = ()
    pod_facts: PodFacts | None = None
    agent_problem: str = ""
    transport: TransportFacts | None = None
    claims: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    volumes: Mapping[str, Json] = field(default_factory=dict[str, Json])
    checkpoint: ContainerCheckpoint | None = None
    key_trouble: str = ""
    podman: PodmanPair | None = None

    @property
    def way(self) -> Transport | None:
        """How the checkpoint is to travel."""
        return self.transport.transport if self.transport else None

    @property
    def revision(self) -> str | None:
        """Of a pod that is to be created again under its own name; None: the target gets a name of its own."""
        same = self.pod is not None and self.checkpoint is None and self.target_name == self.pod.name
        return revision_of(self.pod) if self.pod is not None and same else None


@dataclass(frozen=True)
class Place:
    """Where a migration stands among those that want to run.

    Attributes:
        position: among those that wait, from 1; 0 when it is its turn.
        why: what it waits for; empty when it is its turn.
    """

    position: int = 0
    why: str = ""

    @property
    def granted(self) -> bool:
        return not self.why


@dataclass(frozen=True)
class Observation:
    """Everything that the next step of a migration may depend on.

    Attributes:
        now: when it was read, in UTC.
        migration: the live object; its registers are read by a GET without resourceVersion.
        preflight: only until the migration has begun, that is until `status.source.podUID` is written.
        source_pod: the pod with the UID that the migration began with; None when there is none under that name.
        target_pod: the pod created for this migration; with `status.target.podUID` written only that very pod, unless
            it has its source's name: then any pod of that name that is marked for this migration.
        target_name_taken: another pod has the target pod's name.
        source_agent: absent until the migration has begun.
        target_agent: absent until `status.target.nodeName` is written.
        refusal: an agent's refusal of the last request, which would be refused again.
        late: whether the target pod, which is to be created, needs a late gate; None when the source's agent did not
            say how much there is to copy.
        place: whether it is its turn; None when it has not asked yet.
        checkpoint: what is restored from; None when it is gone, or when a running pod is moved.
        mounts: where pods mount a claim for this migration; not looked at before it has begun or been given up.
        unpinned: why the API server would not pin the pod that gets the source's name; empty when it would, and when
            that does not matter now.
        cleared: whether what lay in the claim was removed: None when nobody has tried in this life of the operator,
            else why it was given up, empty when it was done.
    """

    now: datetime
    migration: ContainerMigration
    preflight: PreflightFacts | None = None
    source_pod: Pod | None = None
    target_pod: Pod | None = None
    target_name_taken: bool = False
    source_agent: AgentView | None = None
    target_agent: AgentView | None = None
    refusal: Failure | None = None
    late: bool | None = False
    place: Place | None = Place()
    checkpoint: ContainerCheckpoint | None = None
    mounts: tuple[MountPoint, ...] = ()
    cleared: str | None = None
    unpinned: str = ""

    @property
    def same_name(self) -> bool:
        """The target pod is created by its controller when the source is gone."""
        return self.migration.same_name

    @property
    def claim(self) -> str | None:
        """The claim that the checkpoint of a migration that has begun travels through."""
        transport = self.migration.status.transport
        return transport.claim if transport else None

    def mount_on(self, node: str | None) -> MountPoint | None:
        """Return where the claim is mounted on that node."""
        return next((mount for mount in self.mounts if mount.node == node), None)

    @property
    def origin_pod(self) -> Pod | None:
        """What the target pod is made from: the source pod, or the one in the checkpoint."""
        if not self.migration.restores:
            return self.source_pod
        return stored_pod(self.checkpoint) if self.checkpoint else None

    @property
    def decision(self) -> Decision | None:
        return self.migration.status.decision

    @property
    def outcome(self) -> Outcome | None:
        return self.migration.status.target.outcome

    @property
    def begun(self) -> bool:
        """From here on something may have been touched."""
        return self.migration.begun

    @property
    def adopted(self) -> bool:
        """The object cannot vanish before this operator lets it go."""
        return FINALIZER in self.migration.metadata.finalizers

    @property
    def clone(self) -> bool:
        """The source is left running."""
        return self.migration.spec.leave_source_running

    @property
    def post_copy(self) -> bool:
        """Memory follows after the commit."""
        return self.migration.spec.strategy is Strategy.POST_COPY

    @property
    def pre_copy(self) -> bool:
        """Memory is copied before the freeze."""
        return self.migration.spec.strategy is Strategy.PRE_COPY

    @property
    def memory_lost(self) -> str:
        """Why not all of it came; remembered in the conditions: agents forget in the end.

        Before the container has resumed nothing is lost: the source may go on while its copy still asks for memory.
        """
        if self.outcome is not Outcome.RESUMED:
            return ""
        lost = self.target.memory_lost if self.target else None
        known = (c.message for c in self.migration.status.conditions if c.reason == Reason.MEMORY_LOST)
        return lost or next(known, "")

    @property
    def let_go(self) -> bool:
        """A clone's source goes on again: what becomes of it is no business of this migration any more."""
        thawed_at = self.migration.status.timings.thawed_at or (self.source.thawed_at if self.source else None)
        return self.clone and thawed_at is not None

    @property
    def finished(self) -> bool:
        return is_finished(self.migration)

    @property
    def source(self) -> SourceReport | None:
        return self.source_agent.report.source if self.source_agent and self.source_agent.report else None

    @property
    def target(self) -> TargetReport | None:
        return self.target_agent.report.target if self.target_agent and self.target_agent.report else None
