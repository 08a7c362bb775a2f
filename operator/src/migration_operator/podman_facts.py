"""Reads what the move of a Podman container depends on. What does not answer is a fact, not an exception."""

from __future__ import annotations

import asyncio

from migration_api.base import now
from migration_api.migration import ContainerMigration
from migration_api.podman import PodmanContainerFacts, PodmanFacts, PodmanQuestion
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.kube import Kube
from migration_operator.mounts import Owner
from migration_operator.observation import NodeView, PodmanPair, PreflightFacts, agent_trouble, is_finished
from migration_operator.transport_facts import TransportFacts, TransportRules
from migration_operator.transport_observe import transport_facts


async def podman_preflight_facts(
    kube: Kube,
    agents: Agents,
    migration: ContainerMigration,
    rules: TransportRules,
    *,
    source: NodeView,
    target: NodeView | None,
    allowed: bool,
) -> PreflightFacts:
    """Return what the preflight looks at; `allowed`: the object is in the operator's own namespace."""
    if not allowed or migration.spec.podman is None:
        return PreflightFacts(pod=None, source=source, target=target, podman=PodmanPair(allowed=False))
    pair, everything, transport = await asyncio.gather(
        _pair(agents, source, target, migration.spec.podman.container),
        kube.migrations(migration.metadata.namespace),
        transport_facts(
            kube,
            agents,
            Owner.of(migration),
            TransportFacts(rules.transport(migration), rules),
            source=source,
            targets=(target,) if target else (),
        ),
    )
    uid, container = migration.metadata.uid, pair.container
    others = [it for it in everything if it.metadata.uid != uid and it.spec.podman and not is_finished(it)]
    return PreflightFacts(
        pod=None,
        source=source,
        target=target,
        rivals=tuple(it for it in others if container and _same(it, source.name, container)),
        agent_problem=pair.trouble,
        transport=transport,
        podman=pair,
    )


async def container_of(agents: Agents, node: NodeView, container_id: str) -> PodmanContainerFacts | None:
    """Return the container as its node describes it; None when it is not there, or the node has no agent.

    Raises:
        AgentUnreachable, AgentRefused: nobody can say.
    """
    if node.agent is None:
        return None
    return (await agents.podman(node.agent, PodmanQuestion(container=container_id))).container


async def _pair(agents: Agents, source: NodeView, target: NodeView | None, name: str) -> PodmanPair:
    here, trouble = await _ask(agents, source, PodmanQuestion(container=name))
    container = here.container if here else None
    if container is None or target is None or target.name == source.name:
        return PodmanPair(here=here, trouble=trouble)
    question = PodmanQuestion(container=container.name, image_name=container.image_name, paths=container.binds)
    there, trouble = await _ask(agents, target, question)
    by_id, _ = await _ask(agents, target, PodmanQuestion(container=container.id))
    return PodmanPair(here, there, by_id, trouble)


async def _ask(agents: Agents, node: NodeView, question: PodmanQuestion) -> tuple[PodmanFacts | None, str]:
    if node.agent is None:
        return None, f"there is no agent on node {node.name}"
    if trouble := agent_trouble(node.agent, now()):
        return None, f"node {node.name}: {trouble}"
    try:
        return await agents.podman(node.agent, question), ""
    except (AgentUnreachable, AgentRefused) as problem:
        return None, f"node {node.name}: {problem}"


def _same(other: ContainerMigration, node: str, it: PodmanContainerFacts) -> bool:
    asked = other.spec.podman
    return asked is not None and asked.node_name == node and asked.container in {it.id, it.name}
