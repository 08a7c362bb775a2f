"""Reads what a checkpoint's way depends on: the Secret, and what nodes find in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from migration_api.base import now
from migration_operator.agents import Agents
from migration_operator.kube import Kube
from migration_operator.observation import NodeView, agent_trouble
from migration_operator.shipping import NoAccess, secret_facts, store_access
from migration_operator.store_probe import try_store
from migration_operator.transport_checks import setting_problems
from migration_operator.transport_facts import TransportFacts


async def transport_facts(
    kube: Kube,
    agents: Agents,
    namespace: str,
    facts: TransportFacts,
    *,
    source: NodeView | None,
    targets: Sequence[NodeView],
) -> TransportFacts:
    """Return the facts with what is known of the Secret, and of the store when nothing else stands against trying it.

    `source` puts and removes, `targets` fetch; nodes whose agent cannot be asked are left out.
    """
    facts = replace(facts, secret=await secret_facts(kube, namespace, facts.transport))
    if source is None or source.agent is None or agent_trouble(source.agent, now()) or any(setting_problems(facts)):
        return facts
    try:
        access = await store_access(kube, namespace, facts.transport)
    except NoAccess:
        return facts  # it has changed since: the next look says how
    if access is None:
        return facts
    able = [t.agent for t in targets if t.agent and t.name != source.name and not agent_trouble(t.agent, now())]
    answer, found = await try_store(agents, access, source.agent, able)
    return replace(facts, source=answer, targets=found)
