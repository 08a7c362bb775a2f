"""Reads what a restore from a checkpoint depends on. What does not answer is a fact, not an exception."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from migration_api.base import now
from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration
from migration_operator.agents import Agents
from migration_operator.kube import Kube
from migration_operator.mounts import Owner
from migration_operator.node_checks import unfit
from migration_operator.observation import NodeView, PreflightFacts, agent_trouble, origin_view, stored_pod
from migration_operator.shipping import NoAccess, stored_key
from migration_operator.target_pod import name_for
from migration_operator.transport_facts import TransportFacts, TransportRules
from migration_operator.transport_observe import transport_facts


async def checkpoint_of(kube: Kube, migration: ContainerMigration) -> ContainerCheckpoint | None:
    """Return the checkpoint that a migration restores from; once it has begun, that very one or None."""
    if migration.spec.checkpoint_name is None:
        return None
    found = await kube.checkpoint(migration.metadata.namespace, migration.spec.checkpoint_name)
    begun_with = migration.status.source.checkpoint_uid
    return found if found and begun_with in (None, found.metadata.uid) else None


async def restore_facts(
    kube: Kube,
    agents: Agents,
    migration: ContainerMigration,
    rules: TransportRules,
    *,
    target: NodeView | None,
    candidates: tuple[NodeView, ...],
) -> PreflightFacts:
    """Return what the preflight of a restore looks at."""
    checkpoint = await checkpoint_of(kube, migration)
    if checkpoint is None:
        return PreflightFacts(pod=None)
    pod, name, holder = stored_pod(checkpoint), "", None
    if pod is not None:
        name = name_for(migration, pod.name, pod.migration)
        holder = await kube.pod(migration.metadata.namespace, name)
    key_trouble, transport = await asyncio.gather(
        _key_trouble(kube, checkpoint),
        _transport(
            kube,
            agents,
            Owner.of(migration),
            checkpoint=checkpoint,
            rules=rules,
            nodes=(target,) if target else candidates,
        ),
    )
    return PreflightFacts(
        pod=pod,
        source=origin_view(checkpoint),
        target=target,
        candidates=candidates,
        target_name=name,
        name_holder=holder if holder and holder.migration != migration.metadata.uid else None,
        transport=transport,
        checkpoint=checkpoint,
        key_trouble=key_trouble,
    )


async def _key_trouble(kube: Kube, checkpoint: ContainerCheckpoint) -> str:
    try:
        await stored_key(kube, checkpoint)
    except NoAccess as problem:
        return str(problem)
    return ""


async def _transport(
    kube: Kube,
    agents: Agents,
    owner: Owner,
    *,
    checkpoint: ContainerCheckpoint,
    rules: TransportRules,
    nodes: Sequence[NodeView],
) -> TransportFacts:
    """Any of the nodes may put what the others fetch: the one that the checkpoint was taken on may be gone."""
    facts = TransportFacts(checkpoint.spec.transport, rules)
    able = [node for node in nodes if node.agent and not agent_trouble(node.agent, now())]
    origin, first = origin_view(checkpoint), None
    if facts.transport.claim is not None:  # each costs a pod: only those that may become the target
        able = [node for node in able if not unfit(origin, node, now())]
    if able:
        first = able[0]
    return await transport_facts(kube, agents, owner, facts, source=first, targets=able[1:], origin=origin)
