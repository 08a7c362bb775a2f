"""Brings what happens at the gate to the target side that it belongs to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from migration_agent.gate import Gate, Hook
from migration_agent.gate_messages import GateEvent
from migration_agent.target import TargetSide
from migration_agent.ticket import Tickets, TicketState


@dataclass(frozen=True)
class GateDesk:
    """Implements `gate.GateListener`."""

    tickets: Tickets
    target_of: Callable[[str], TargetSide | None]
    """By pod UID."""
    expecting: Callable[[str], TargetSide | None]
    """By migration: one that waits for its pod."""

    async def arrived(self, gate: Gate) -> None:
        """Answer a gate whose ticket is used up; let the others wait, for their migration or their deadline."""
        ticket = await asyncio.to_thread(self.tickets.state, gate.hello.pod_uid)
        target = self.target_of(gate.hello.pod_uid)
        if ticket is TicketState.RESUMING:
            await gate.pass_()
        elif ticket is TicketState.DESTROYED:
            await gate.refuse("this pod's migration was given up; the pod will not start")
        elif target is not None and gate.hello.migration not in {"", target.ref.uid}:
            await gate.refuse(f"the pod is annotated for migration {gate.hello.migration}, but expected for another")
        elif target is not None:
            await target.arrived()
        elif (expecting := self.expecting(gate.hello.migration)) is not None:
            expecting.poke()  # what the pod says of itself is no more than a reason to look

    async def held(self, hook: Hook) -> None:
        """Let the target journal the held tree."""
        target = self.target_of(hook.gate.hello.pod_uid)
        if target is not None:
            await target.held(hook)

    async def reported(self, gate: Gate, event: GateEvent) -> None:
        """Let the target note how the restore ended."""
        target = self.target_of(gate.hello.pod_uid)
        if target is not None:
            await target.reported(gate, event)

    def moved(self, pod_uid: str) -> None:
        """Let the target look again."""
        target = self.target_of(pod_uid)
        if target is not None:
            target.poke()
