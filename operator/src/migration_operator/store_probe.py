"""Asks nodes to try a store before anything is touched: one puts, the others fetch, what was put is removed."""

from __future__ import annotations

import asyncio
import logging
import secrets
import uuid
from collections.abc import Callable, Sequence

from migration_api.node import MigrationNode
from migration_api.shipping import ProbeProblem, ProbeReport, ProbeStep, StoreAccess, StoreProbe
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.transport_facts import StoreAnswer

log = logging.getLogger(__name__)


async def try_store(
    agents: Agents, access: Callable[[str], StoreAccess], source: MigrationNode, targets: Sequence[MigrationNode]
) -> tuple[StoreAnswer, tuple[StoreAnswer, ...]]:
    """Return what the source's node found, and what the others did: they are asked only when the source's node can.

    `access`: what opens the store, by the name of the node.

    The probe has a UID of its own, so that nothing of any migration is touched, whenever a late request arrives.
    """
    uid, content = str(uuid.uuid4()), secrets.token_hex(32)

    async def ask(node: MigrationNode, step: ProbeStep) -> StoreAnswer:
        probe = StoreProbe(uid=uid, step=step, content=content, store=access(node.metadata.name))
        try:
            report = await agents.probe(node, probe)
        except (AgentUnreachable, AgentRefused) as problem:
            report = ProbeReport(problem=ProbeProblem.UNUSABLE, message=f"its agent could not try the store: {problem}")
        return StoreAnswer(node.metadata.name, report)

    found: tuple[StoreAnswer, ...] = ()
    answer = await ask(source, ProbeStep.WRITE)
    if answer.report.problem is None:
        found = tuple(await asyncio.gather(*(ask(node, ProbeStep.READ) for node in targets)))
        removed = await ask(source, ProbeStep.REMOVE)
        answer = removed if removed.report.problem else answer
    return answer, found
