"""Tells the cluster every 20 s that this agent lives, what its node is, and what is missing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Literal, Protocol

from migration_agent.ports import ApiUnreachable
from migration_agent.settings import Settings
from migration_api.base import now
from migration_api.conditions import Condition
from migration_api.node import MigrationNode, MigrationNodeStatus, NodeFacts

log = logging.getLogger(__name__)

READY = "Ready"
"""The one condition of a MigrationNode."""

_MESSAGE = 32768


class NodeApi(Protocol):
    """The part of `registers.Api` that is needed here."""

    async def own(self, node: str) -> MigrationNode | None: ...

    async def publish(self, node: str, change: MigrationNodeStatus) -> None: ...


class Publisher:
    """Writes this node's MigrationNode."""

    def __init__(
        self,
        settings: Settings,
        api: NodeApi,
        certificate: Callable[[], str],
        look: Callable[[], tuple[NodeFacts, tuple[str, ...]]],
    ) -> None:
        """`certificate` returns it in PEM, renewed when due; `look` returns facts and problems. Both block."""
        self._settings = settings
        self._api = api
        self._certificate = certificate
        self._look = look

    async def run(self) -> None:
        """Publish for ever; the API server may be away."""
        while True:
            try:
                await self.publish()
            except ApiUnreachable as error:
                log.warning("this node's MigrationNode could not be written: %s", error)
            except Exception:
                log.exception("this node could not be looked at")
            await asyncio.sleep(self._settings.publish_seconds)

    async def publish(self) -> None:
        """Look at the node and write what is there."""
        certificate = await asyncio.to_thread(self._certificate)
        facts, problems = await asyncio.to_thread(self._look)
        before = await self._api.own(self._settings.node)
        generation = before.metadata.generation if before is not None else 1
        old = before.status.conditions if before is not None else ()
        status = MigrationNodeStatus(
            endpoint=f"https://{self._settings.endpoint(self._settings.api_port)}",
            peer_endpoint=self._settings.endpoint(self._settings.peer_port),
            certificate=certificate,
            facts=facts,
            heartbeat_time=now(),
            observed_generation=generation,
            conditions=(ready(old, problems, generation),),
        )
        await self._api.publish(self._settings.node, status)


def ready(old: tuple[Condition, ...], problems: tuple[str, ...], generation: int) -> Condition:
    """Return the condition `Ready`; its message says everything that is missing."""
    status: Literal["True", "False"] = "False" if problems else "True"
    before = next((c for c in old if c.type == READY), None)
    kept = before is not None and before.status == status
    return Condition(
        type=READY,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and kept else now(),
        reason="ProblemsFound" if problems else "AllChecksPassed",
        message=" ".join(problems)[:_MESSAGE] if problems else "This node can be source and target.",
    )
