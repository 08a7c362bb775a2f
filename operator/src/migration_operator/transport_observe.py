"""Reads what a checkpoint's way depends on: the Secret or claim, and what nodes find in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from migration_api.base import now
from migration_api.shipping import StoreAccess
from migration_api.transport import Transport
from migration_operator.agents import Agents
from migration_operator.kube import Kube
from migration_operator.mounting import claim_facts, mount_points
from migration_operator.mounts import Owner, to_try
from migration_operator.node_checks import unfit
from migration_operator.observation import NodeView, Observation, agent_trouble
from migration_operator.shipping import NoAccess, secret_facts, store_access
from migration_operator.store_probe import try_store
from migration_operator.transport_checks import setting_problems
from migration_operator.transport_facts import MountPoint, StoreAnswer, TransportFacts, TransportRules


async def transport_facts(
    kube: Kube,
    agents: Agents,
    owner: Owner,
    facts: TransportFacts,
    *,
    source: NodeView | None,
    targets: Sequence[NodeView],
    origin: NodeView | None = None,
) -> TransportFacts:
    """Return the facts with what is known of the Secret or claim, and of the store when nothing else stands against it.

    Args:
        kube: the API server.
        agents: the nodes' agents; those that cannot be asked are left out.
        owner: for whom a claim is mounted.
        facts: what is known already.
        source: the node that puts and removes.
        targets: the nodes that fetch.
        origin: what a node must be like to become the target; absent: the source.
    """
    transport = facts.transport
    facts = replace(
        facts,
        secret=await secret_facts(kube, owner.namespace, transport),
        claim=await claim_facts(kube, owner.namespace, transport),
    )
    if source is None or source.agent is None or agent_trouble(source.agent, now()) or any(setting_problems(facts)):
        return facts
    able = [t for t in targets if t.agent and t.name != source.name and not agent_trouble(t.agent, now())]
    points: dict[str, MountPoint] = {}
    if transport.claim is not None:
        fit = [node for node in able if not unfit(origin or source, node, now())]
        points = {point.node: point for point in await mount_points(kube, owner, transport.claim)}
        names = to_try((node.name for node in fit), points)
        wanted = tuple(points.get(name, MountPoint(name)) for name in (source.name, *names))
        facts = replace(facts, mounts=wanted, untried=len(fit) - len(names))
        if any(point.pending for point in wanted) or not wanted[0].ready:
            return facts  # all are tried at once, when they are there
        able = [node for node in fit if node.name in names and points[node.name].ready]
    try:
        found = await _tried(kube, agents, owner.namespace, facts, first=source, rest=able)
    except NoAccess:
        return facts  # it has changed since: the next look says how
    return replace(facts, source=found[0], targets=found[1:]) if found else facts


async def without_the_store(
    kube: Kube, agents: Agents, transport: Transport, o: Observation, nodes: Sequence[NodeView]
) -> set[str]:
    """Return the names of those nodes that cannot use the migration's store; the scheduler must not pick them.

    Raises:
        NoAccess: nobody can.
    """
    source = o.source_agent.node if o.source_agent else None
    able = [node for node in nodes if node.agent and not agent_trouble(node.agent, o.now)]
    lacking = set[str]()
    if transport.claim is not None:
        mounted = {mount.node for mount in o.mounts if mount.ready}
        lacking = {node.name for node in nodes if node.name not in mounted}
        able = [node for node in able if node.name in mounted]
    first = source or next(iter(able), None)
    if first is None:
        return lacking
    facts = TransportFacts(transport, TransportRules(), mounts=o.mounts)
    rest = [node for node in able if node is not first]
    found = await _tried(kube, agents, o.migration.metadata.namespace, facts, first=first, rest=rest)
    return lacking | {it.node for it in found if it.report.problem and (source is None or it.node != source.name)}


async def _tried(
    kube: Kube, agents: Agents, namespace: str, facts: TransportFacts, *, first: NodeView, rest: Sequence[NodeView]
) -> tuple[StoreAnswer, ...]:
    """Return what the nodes found, the first one first; nothing when the transport has no store."""
    mounts = {mount.node: mount.pod_uid for mount in facts.mounts if mount.ready}
    access: dict[str, StoreAccess] = {}
    for node in (first, *rest):
        found = await store_access(kube, namespace, facts.transport, mounts.get(node.name))
        if found is None:
            return ()
        access[node.name] = found
    if first.agent is None:
        return ()
    answer, others = await try_store(agents, access.__getitem__, first.agent, [n.agent for n in rest if n.agent])
    return answer, *others
