"""Reads everything that a migration depends on, afresh. What does not answer is a fact, not an exception."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from migration_api.base import now
from migration_api.migration import ContainerMigration, Decision
from migration_api.names import OUT_OF_SERVICE
from migration_api.node import MigrationNode
from migration_api.wire import Failure, MigrationRef, PodFacts
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.estimates import freeze_estimate
from migration_operator.kube import Kube
from migration_operator.mounting import mount_points
from migration_operator.mounts import Owner
from migration_operator.observation import (
    AgentView,
    NodeView,
    Observation,
    Place,
    PreflightFacts,
    agent_trouble,
    is_finished,
)
from migration_operator.owners import revision_of
from migration_operator.podman_facts import podman_preflight_facts
from migration_operator.pods import Json, Pod, mapping, mappings
from migration_operator.restore_facts import checkpoint_of, restore_facts
from migration_operator.rules import Rules
from migration_operator.successors import volumes_of, with_a_node, with_its_pin
from migration_operator.target_pod import name_for
from migration_operator.transport_facts import MountPoint, TransportFacts
from migration_operator.transport_observe import transport_facts


async def observe(
    kube: Kube,
    agents: Agents,
    ref: MigrationRef,
    *,
    refusal: Failure | None,
    rules: Rules,
    place: Place | None,
    cleared: str | None = None,
) -> Observation | None:
    """Return what there is now; None when there is no such migration any more.

    Args:
        kube: the API server.
        agents: the nodes' agents.
        ref: the migration.
        refusal: the refusal of the last request.
        cleared: as in the observation.
        rules: what the chart's values say.
        place: whether it is its turn. While it waits for it nothing else is looked at: the preflight is repeated then.

    Raises:
        KubeError: the API server did not answer; without it nothing can be decided.
    """
    migration = await kube.migration(ref.namespace, ref.name)
    if migration is None or migration.metadata.uid != ref.uid:
        return None
    if is_finished(migration):
        return Observation(now(), migration)
    if migration.begun:
        begun = await _begun(kube, agents, migration, refusal)
        mounts = await _mounts(kube, migration, begun.claim)
        begun = replace(begun, late=await _late(agents, begun, rules), mounts=mounts, cleared=cleared)
        return await with_its_pin(kube, begun)
    if migration.status.decision is Decision.ABORT:
        claim = rules.transport.transport(migration).claim or ("of a checkpoint" if migration.restores else None)
        return Observation(now(), migration, mounts=await _mounts(kube, migration, claim))
    if place is not None and not place.granted:
        return Observation(now(), migration, place=place)
    facts = await _preflight(kube, agents, migration, rules)
    return Observation(now(), migration, preflight=facts, place=place, refusal=refusal)


async def _mounts(kube: Kube, migration: ContainerMigration, claim: str | None) -> tuple[MountPoint, ...]:
    return await mount_points(kube, Owner.of(migration), claim) if claim else ()


async def _begun(kube: Kube, agents: Agents, migration: ContainerMigration, refusal: Failure | None) -> Observation:
    namespace, status = migration.metadata.namespace, migration.status
    source_pod, target_pod, source_agent, target_agent, checkpoint = await asyncio.gather(
        _pod(kube, namespace, migration.spec.pod_name),
        _pod(kube, namespace, status.target.pod_name),
        agent_view(kube, agents, status.source.node_name, migration.metadata.uid),
        agent_view(kube, agents, status.target.node_name, migration.metadata.uid),
        checkpoint_of(kube, migration),
    )
    ours = (
        target_pod is not None
        and target_pod.migration == migration.metadata.uid
        and (migration.same_name or status.target.pod_uid in (None, target_pod.uid))
    )
    return Observation(
        now(),
        migration,
        source_pod=source_pod if source_pod and source_pod.uid == status.source.pod_uid else None,
        target_pod=target_pod if ours else None,
        target_name_taken=target_pod is not None and not ours,
        source_agent=source_agent,
        target_agent=target_agent,
        refusal=refusal,
        checkpoint=checkpoint,
    )


async def _pod(kube: Kube, namespace: str, name: str | None) -> Pod | None:
    return await kube.pod(namespace, name) if name else None


async def _late(agents: Agents, o: Observation, rules: Rules) -> bool | None:
    """Ask the source's agent how much there is to copy, when the target pod is about to be created."""
    if o.migration.restores:
        return True  # nobody stands still meanwhile, and a start with all of it here is never too long
    status = o.migration.status
    if status.target.pod_uid or status.decision or o.target_pod or o.source_pod is None or o.source_agent is None:
        return False
    if o.same_name:
        return False  # its containers begin to start when all of it is there
    facts, _ = await pod_facts_of(agents, o.source_agent.node, o.source_pod)
    if facts is None:
        return None
    estimate = freeze_estimate(o.migration, o.source_pod, facts, rules.transport.transport(o.migration))
    return o.pre_copy or estimate > rules.late_gate_seconds


async def agent_view(kube: Kube, agents: Agents, name: str | None, uid: str) -> AgentView | None:
    """Return what the agent on that node says about the migration; None as long as the node is not known."""
    if name is None:
        return None
    node = await node_of(kube, name)
    if node.agent is None:
        return AgentView(node, problem="there is no MigrationNode of that name")
    try:
        return AgentView(node, report=await agents.report(node.agent, uid))
    except (AgentUnreachable, AgentRefused) as problem:
        return AgentView(node, problem=str(problem))


async def node_of(kube: Kube, name: str) -> NodeView:
    """Return the node of that name, whether or not it exists."""
    raw, agent = await asyncio.gather(kube.node(name), kube.migration_node(name))
    return node_view(name, raw, agent)


def node_view(name: str, raw: Json | None, agent: MigrationNode | None) -> NodeView:
    """Return the node as the API server's JSON and its agent describe it."""
    conditions = mappings(mapping((raw or {}).get("status")).get("conditions"))
    spec = mapping((raw or {}).get("spec"))
    return NodeView(
        name=name,
        exists=raw is not None,
        ready=any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions),
        schedulable=raw is not None and not spec.get("unschedulable"),
        out_of_service=any(taint.get("key") == OUT_OF_SERVICE for taint in mappings(spec.get("taints"))),
        agent=agent,
        labels=mapping(mapping((raw or {}).get("metadata")).get("labels")),
        taints=tuple(mappings(spec.get("taints"))),
    )


async def _preflight(kube: Kube, agents: Agents, migration: ContainerMigration, all_rules: Rules) -> PreflightFacts:
    namespace, spec, rules = migration.metadata.namespace, migration.spec, all_rules.transport
    asked = spec.target.node_name
    if spec.podman is not None:
        source = await node_of(kube, spec.podman.node_name)
        target = await node_of(kube, asked) if asked else None
        allowed = namespace == all_rules.namespace
        return await podman_preflight_facts(
            kube, agents, migration, rules, source=source, target=target, allowed=allowed
        )
    if migration.restores:
        target = await node_of(kube, asked) if asked else None
        candidates = () if asked else await _candidates(kube)
        return await restore_facts(kube, agents, migration, rules, target=target, candidates=candidates)
    pod = await _pod(kube, namespace, spec.pod_name)
    if pod is None:
        return PreflightFacts(pod=None)
    stays = revision_of(pod) is not None and not spec.leave_source_running and spec.target.pod_name in (None, pod.name)
    name = pod.name if stays else name_for(migration, pod.name, pod.migration)
    holder, all_migrations = await asyncio.gather(kube.pod(namespace, name), kube.migrations(namespace))
    source = await node_of(kube, pod.node_name) if pod.node_name else None
    pod_facts, agent_problem = await pod_facts_of(agents, source, pod)
    target = await node_of(kube, asked) if asked else None
    candidates = () if asked else await _candidates(kube)
    transport = TransportFacts(rules.transport(migration), rules)
    facts = PreflightFacts(
        pod=pod,
        source=source,
        target=target,
        candidates=candidates,
        target_name=name,
        name_holder=holder if holder and not stays and holder.migration != migration.metadata.uid else None,
        rivals=tuple(
            m
            for m in all_migrations
            if m.spec.pod_name == pod.name and m.metadata.uid != migration.metadata.uid and not is_finished(m)
        ),
        pod_facts=pod_facts,
        agent_problem=agent_problem,
        claims=await claims_of(kube, pod),
        volumes=await volumes_of(kube, pod) if stays else {},
    )
    facts = with_a_node(migration, facts, now())
    targets = (facts.target,) if facts.target else candidates
    found = await transport_facts(kube, agents, Owner.of(migration), transport, source=source, targets=targets)
    return replace(facts, transport=found)


async def claims_of(kube: Kube, pod: Pod) -> dict[str, frozenset[str]]:
    """Return the access modes of the claims that a pod uses; a claim that is not there has none."""
    names = sorted(set(pod.claims.values()))
    found = await asyncio.gather(*(kube.claim(pod.namespace, name) for name in names))
    return {
        name: frozenset(str(mode) for mode in mapping((claim or {}).get("status")).get("accessModes") or ())
        for name, claim in zip(names, found, strict=True)
    }


async def pod_facts_of(agents: Agents, source: NodeView | None, pod: Pod) -> tuple[PodFacts | None, str]:
    """Return what the source's agent finds, or why it was not asked or did not answer."""
    if source is None or source.agent is None:
        return None, "there is no agent to ask"
    if trouble := agent_trouble(source.agent, now()):
        return None, trouble
    try:
        return await agents.pod(source.agent, pod.uid), ""
    except (AgentUnreachable, AgentRefused) as problem:
        return None, str(problem)


async def _candidates(kube: Kube) -> tuple[NodeView, ...]:
    nodes, agents = await asyncio.gather(kube.nodes(), kube.migration_nodes())
    raw = {str(mapping(node.get("metadata")).get("name")): node for node in nodes}
    return tuple(node_view(agent.metadata.name, raw.get(agent.metadata.name), agent) for agent in agents)
