"""Labels the nodes that can take part, so that target pods land nowhere else (the RuntimeClass selects the label)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from datetime import datetime

from migration_api.base import now
from migration_api.names import LABEL_TARGET_NODE
from migration_api.node import MigrationNode
from migration_operator.kube import Kube, KubeError
from migration_operator.observation import agent_trouble
from migration_operator.pods import Json, mapping

log = logging.getLogger(__name__)

PERIOD_SECONDS = 15.0
"""A heartbeat that stops makes no event: it has to be looked for."""

BREATH_SECONDS = 3.0
"""The shortest time between two looks: each agent's heartbeat is an event."""


def changes(nodes: Iterable[Json], agents: Iterable[MigrationNode], at: datetime) -> dict[str, bool]:
    """Return the nodes whose label is not as it should be, with what it should be."""
    able = {agent.metadata.name for agent in agents if not agent_trouble(agent, at)}
    found: dict[str, bool] = {}
    for node in nodes:
        metadata = mapping(node.get("metadata"))
        name = str(metadata.get("name", ""))
        label = mapping(metadata.get("labels")).get(LABEL_TARGET_NODE)
        if (name in able and label != "true") or (name not in able and label is not None):
            found[name] = name in able
    return found


class NodeLabels:
    """Keeps the labels as they should be, until it is cancelled."""

    def __init__(self, kube: Kube) -> None:
        self.turned_at = asyncio.get_running_loop().time()
        """When it looked last, by the loop's clock."""
        self._kube = kube
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """Look again soon: a MigrationNode changed."""
        self._wake.set()

    async def run(self) -> None:
        while True:
            self.turned_at = asyncio.get_running_loop().time()
            self._wake.clear()
            try:
                await self._turn()
            except KubeError as problem:
                log.warning("the labels of nodes were not checked: %s", problem)
            except Exception:
                log.exception("the labels of nodes were not checked")
            await asyncio.sleep(BREATH_SECONDS)
            try:
                async with asyncio.timeout(PERIOD_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _turn(self) -> None:
        nodes, agents = await asyncio.gather(self._kube.nodes(), self._kube.migration_nodes())
        for name, target in changes(nodes, agents, now()).items():
            await self._kube.mark_node(name, target=target)
            log.info("node %s %s", name, "can take part in migrations" if target else "cannot take part any more")
