"""Takes a checkpoint of a running pod: what stands against it, what is written down, and what its node's agent is told.

Each act can be repeated at any time: the key is made once, and the agent takes one checkpoint for one UID.
"""

from __future__ import annotations

import base64
import os
from dataclasses import replace

from migration_api.base import now
from migration_api.checkpoint import CheckpointStatus, ContainerCheckpoint
from migration_api.migration import ContainerMigration, MigrationSpec
from migration_api.shipping import KEY_BYTES, Shipping, Stays
from migration_api.wire import MigrationRef, RefKind, SourceRequest, Thaw
from migration_operator.agents import Agents
from migration_operator.checkpoint_plan import CheckpointObservation, ready_status
from migration_operator.checkpoints import described
from migration_operator.estimates import room_needed
from migration_operator.freeze_budget import effective_freeze_budget
from migration_operator.kube import Kube
from migration_operator.mounting import mount_points
from migration_operator.mounts import Owner
from migration_operator.observation import AgentView, PreflightFacts
from migration_operator.observe import agent_view, claims_of, node_of, pod_facts_of
from migration_operator.pods import Pod
from migration_operator.preflight import taking_problems
from migration_operator.rules import Rules
from migration_operator.shipping import NoAccess, make_key, store_access, stored_key
from migration_operator.transport_facts import TransportFacts
from migration_operator.transport_observe import transport_facts


def ref_of(checkpoint: ContainerCheckpoint) -> MigrationRef:
    """Return by what agents know it."""
    metadata = checkpoint.metadata
    return MigrationRef(
        namespace=metadata.namespace, name=metadata.name, uid=metadata.uid, kind=RefKind.CONTAINER_CHECKPOINT
    )


async def look(kube: Kube, agents: Agents, rules: Rules, o: CheckpointObservation) -> CheckpointObservation:
    """Return the observation with what the taking depends on."""
    checkpoint, status = o.checkpoint, o.checkpoint.status
    if checkpoint.spec.migration is not None:
        return o
    if status.uid is not None:
        node = status.source.node_name if status.source else None
        o = replace(o, agent=await agent_view(kube, agents, node, checkpoint.uid))
        return replace(o, refusal=o.refusal or await _unmounted(kube, o))
    if checkpoint.deleting:
        return o
    pod = await kube.pod(checkpoint.metadata.namespace, checkpoint.spec.pod_name or "")
    facts = await _facts(kube, agents, rules, checkpoint, pod)
    found = taking_problems(_as_migration(checkpoint), facts, o.now)
    mounts = facts.transport.mounts if facts.transport else ()
    if not found and (facts.agent_problem or any(mount.pending for mount in mounts)):
        return replace(o, to_mount=tuple(m.node for m in mounts if m.missing))  # nobody can say yet
    return replace(o, pod=pod, objection=" ".join(problem.message for problem in found))


async def _unmounted(kube: Kube, o: CheckpointObservation) -> str:
    """Return why it cannot be taken any more; empty when it can, or when all lies in its claim."""
    checkpoint, source = o.checkpoint, o.source
    claim = checkpoint.spec.transport.claim
    taking = ready_status(checkpoint) == "Unknown" and not checkpoint.deleting and o.agent is not None
    if claim is None or o.agent is None or not taking or (source is not None and source.sent_at is not None):
        return ""
    node = o.agent.node.name
    points = [it for it in await mount_points(kube, Owner.of(checkpoint), claim) if it.node == node and not it.gone]
    return "" if points else f"the pod that mounts the claim {claim} on node {node} is gone: somebody deleted it"


async def _mount_uid(kube: Kube, checkpoint: ContainerCheckpoint, node: str) -> str | None:
    claim = checkpoint.spec.transport.claim
    points = await mount_points(kube, Owner.of(checkpoint), claim) if claim else ()
    return next((point.pod_uid for point in points if point.node == node and point.ready), None)


def _as_migration(checkpoint: ContainerCheckpoint) -> ContainerMigration:
    """Return what would move the pod in the same way: the checks of a migration's source are those of a taking."""
    spec = checkpoint.spec
    same = {
        "podName": spec.pod_name,
        "podUID": spec.pod_uid,
        "containers": spec.containers,
        "freezeBudgetSeconds": spec.freeze_budget_seconds,
    }
    wish = MigrationSpec.model_validate({**same, "transport": spec.transport})
    return ContainerMigration(metadata=checkpoint.metadata, spec=wish)


async def _facts(
    kube: Kube, agents: Agents, rules: Rules, checkpoint: ContainerCheckpoint, pod: Pod | None
) -> PreflightFacts:
    if pod is None:
        return PreflightFacts(pod=None)
    source = await node_of(kube, pod.node_name) if pod.node_name else None
    pod_facts, agent_problem = await pod_facts_of(agents, source, pod)
    return PreflightFacts(
        pod=pod,
        source=source,
        pod_facts=pod_facts,
        agent_problem=agent_problem,
        claims=await claims_of(kube, pod),
        transport=await transport_facts(
            kube,
            agents,
            Owner.of(checkpoint),
            TransportFacts(checkpoint.spec.transport, rules.transport),
            source=source,
            targets=(),
        ),
    )


async def begin(kube: Kube, o: CheckpointObservation) -> CheckpointStatus:
    """Make the key and return what is to be written down before anything is touched.

    Raises:
        NoAccess: another Secret has the key's name.
        KubeError: the API server could not be asked, or refuses.
    """
    checkpoint, pod = o.checkpoint, o.pod
    if pod is None:
        raise NoAccess("there is no pod any more")
    secret = await make_key(kube, checkpoint, base64.b64encode(os.urandom(KEY_BYTES)).decode())
    node = await node_of(kube, pod.node_name or "")
    asked = checkpoint.spec.containers
    status = described(
        pod,
        uid=checkpoint.uid,
        key_secret=secret,
        containers=tuple(name for name in pod.order if not asked or name in asked),
        node_name=pod.node_name,
        facts=node.facts,
        taken_at=None,
    )
    return status.model_copy(update={"begun_at": now(), "phase": "Taking", "message": "its node's agent is told"})


async def take(kube: Kube, agents: Agents, checkpoint: ContainerCheckpoint, agent: AgentView) -> None:
    """Tell the agent on the pod's node.

    Raises:
        AgentRefused, AgentUnreachable: it will not, or did not answer.
        NoAccess: key or credentials cannot be had.
    """
    status, node = checkpoint.status, agent.node.agent
    pod = await kube.pod(checkpoint.metadata.namespace, checkpoint.spec.pod_name or "")
    if status.source is None or node is None or pod is None or pod.uid != status.source.pod_uid:
        raise NoAccess("the pod was deleted or replaced before its checkpoint was taken")
    facts = await agents.pod(node, pod.uid)
    mount = await _mount_uid(kube, checkpoint, agent.node.name)
    shipping = Shipping(
        key=await stored_key(kube, checkpoint),
        store=await store_access(kube, checkpoint.metadata.namespace, checkpoint.spec.transport, mount),
        stays=Stays.WHEN_IT_ENDED_WELL,
        bytes_per_second=checkpoint.spec.transport.bytes_per_second,
    )
    request = SourceRequest(
        migration=ref_of(checkpoint),
        pod_name=pod.name,
        pod_uid=pod.uid,
        containers=status.source.containers,
        order=pod.order,
        thaw=Thaw.DUMPED,
        freeze_budget_seconds=effective_freeze_budget(checkpoint.spec.freeze_budget_seconds, pod).whole_seconds,
        shipping=shipping,
        expected_bytes=room_needed(facts) if facts else 0,
    )
    await agents.put_source(node, request)
