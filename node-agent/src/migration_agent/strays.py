"""Pods at the gate that no operator has told this agent of (docs/protocol.md, section 4).

The kubelet ends no pod while a `create` of it waits, so one that is deleted before its agent was told would stay for as
long as a gate lasts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from migration_agent.gate import Gate, Gates
from migration_agent.ports import ApiUnreachable, PodState
from migration_agent.target import TargetSide

log = logging.getLogger(__name__)

SECONDS = 3.0
"""Between two looks; the API server is asked only while such a pod waits."""


@dataclass(frozen=True)
class Strays:
    """Looks after them."""

    gates: Gates
    target_of: Callable[[str], TargetSide | None]
    """By pod UID."""
    pod: Callable[[str, str, str], Awaitable[PodState]]
    """By namespace, name and UID."""

    async def run(self) -> None:
        """Look again and again."""
        while True:
            try:
                await self.look()
            except ApiUnreachable as error:
                log.info("whether pods at the gate are to go is not known: %s", error)
            await asyncio.sleep(SECONDS)

    async def look(self) -> None:
        """Refuse those that are to go; a pod that the agent is told of meanwhile is its migration's business.

        Raises:
            ApiUnreachable: some were not asked for.
        """
        for gate in self.gates.all():
            hello = gate.hello
            if hello.namespace is None or hello.pod is None or not self._strays(gate):
                continue
            state = await self.pod(hello.namespace, hello.pod, hello.pod_uid)
            if state is PodState.GONE and self._strays(gate):
                log.info("pod %s: container %s is turned away: the pod is to go", hello.pod_uid, hello.container)
                await gate.refuse("the pod is deleted, and its migration has not begun here")

    def _strays(self, gate: Gate) -> bool:
        return not gate.answered and self.target_of(gate.hello.pod_uid) is None
