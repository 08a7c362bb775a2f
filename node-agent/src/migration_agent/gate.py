"""Who is connected at the gate, how far each is, and what can be said to it (docs/protocol.md, section 4).

An open connection is the live fact. Everything here runs in the event loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from migration_agent.gate_messages import (
    GateEvent,
    GateHello,
)
from migration_agent.lineup import Place
from migration_agent.processes import ProcessRef


@dataclass
class Link:
    """One open connection and the process at its other end."""

    writer: asyncio.StreamWriter
    process: ProcessRef
    pidfd: int
    open: bool = True

    def alive(self) -> bool:
        """Say whether the connection is open and the very process lives: a child may have inherited the socket."""
        if not self.open or self.writer.is_closing():
            return False
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    async def say(self, **message: object) -> None:
        """Send one line; a connection that is lost is no error, its end is noticed by its reader."""
        with suppress(OSError):
            self.writer.write(json.dumps(message).encode() + b"\n")
            await self.writer.drain()

    def close(self) -> None:
        if self.open:
            self.open = False
            self.writer.close()
            os.close(self.pidfd)


@dataclass
class Gate:
    """An interposer that creates one container and waits, or restores."""

    hello: GateHello
    link: Link
    answered: bool = False
    """It was told something; it waits no more."""
    kept: bool = False
    """It was told `keep`: its keeper takes its place."""
    restoring: bool = False
    """`restore` was answered."""
    released: bool = False
    """Its hook was told to resume."""

    @property
    def key(self) -> tuple[str, str]:
        return self.hello.pod_uid, self.hello.container

    async def restore(self, image_dir: Path, options: tuple[str, ...]) -> None:
        """Let it restore, once."""
        self.answered = self.restoring = True
        await self.link.say(action="restore", imageDir=str(image_dir), options=list(options))

    async def keep(self) -> None:
        """Let it return from `create` as soon as its tree is held, and leave a keeper behind."""
        self.answered = self.kept = True
        await self.link.say(action="keep")

    async def start_afresh(self, *, last: bool) -> None:
        """Let it create its container; the container's `start` waits for the commit, blocking if it is the last."""
        self.answered = True
        await self.link.say(action="fresh", last=last)

    async def do_nothing(self, *, late: bool) -> None:
        """Let it create its container with a program that does nothing; with `late` its `start` waits for `go`."""
        self.answered = True
        await self.link.say(action="noop", late=late)

    async def refuse(self, message: str) -> None:
        self.answered = True
        await self.link.say(action="refuse", message=message[:30000])

    async def pass_(self) -> None:
        self.answered = True
        await self.link.say(action="pass")


@dataclass
class Hook:
    """A complete tree that has not run an instruction, held as long as this lives."""

    gate: Gate
    link: Link
    init: ProcessRef
    journalled: bool = False
    """Its processes are in the journal: only now it counts as held."""
    resume_sent: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.gate.key

    async def counted(self) -> None:
        """Let a keeper know that its tree is held, as the journal says: its `create` may return."""
        if self.gate.hello.keeper:
            await self.gate.link.say(action="held", initPID=self.init.pid)

    async def resume(self) -> None:
        self.resume_sent = self.gate.released = True
        await self.link.say(action="resume")

    async def kill(self, message: str) -> None:
        await self.link.say(action="kill", message=message[:30000])


@dataclass
class Waiting:
    """A hook at pre-resume that waits for those of the pod's other containers."""

    gate: Gate
    link: Link

    @property
    def key(self) -> tuple[str, str]:
        return self.gate.key

    async def kill(self, message: str) -> None:
        """Call it back; it obeys unless the ticket is `resuming` already."""
        await self.link.say(action="kill", message=message[:30000])


@dataclass
class Starter:
    """The `start` of a container that is left out and waits for the commit, or of the late gate."""

    key: tuple[str, str]
    link: Link
    called: bool = False
    """It was told to go on."""

    async def go(self) -> None:
        """Open the late gate; others do not listen."""
        self.called = True
        await self.link.say(action="go")


class GateListener(Protocol):
    """What the agent does with what happens here."""

    async def arrived(self, gate: Gate) -> None:
        """An interposer waits at the gate."""
        ...

    async def held(self, hook: Hook) -> None:
        """A tree is held."""
        ...

    async def reported(self, gate: Gate, event: GateEvent) -> None:
        """A restore ended."""
        ...

    def moved(self, pod_uid: str) -> None:
        """A connection of this pod was lost, or its ticket was renamed."""
        ...


@dataclass
class Gates:
    """Who is connected now, by pod UID and container."""

    _gates: dict[tuple[str, str], Gate] = field(default_factory=dict[tuple[str, str], Gate])
    _hooks: dict[tuple[str, str], Hook] = field(default_factory=dict[tuple[str, str], Hook])
    _barrier: dict[tuple[str, str], Waiting] = field(default_factory=dict[tuple[str, str], Waiting])
    _starters: dict[tuple[str, str], Starter] = field(default_factory=dict[tuple[str, str], Starter])

    def gate(self, pod_uid: str, container: str) -> Gate | None:
        """Return the interposer that creates this container and lives."""
        gate = self._gates.get((pod_uid, container))
        return gate if gate is not None and gate.link.alive() else None

    def hook(self, pod_uid: str, container: str) -> Hook | None:
        """Return the hook that holds this container's tree: hook, interposer and both connections live."""
        hook = self._hooks.get((pod_uid, container))
        return hook if hook is not None and hook.link.alive() and hook.gate.link.alive() else None

    def waiting(self, pod_uid: str, container: str) -> Waiting | None:
        """Return the hook of this container that waits at pre-resume."""
        return self._barrier.get((pod_uid, container))

    def starter(self, pod_uid: str, container: str) -> Starter | None:
        """Return who waits to start this container, which is created."""
        starter = self._starters.get((pod_uid, container))
        return starter if starter is not None and starter.link.alive() and not starter.called else None

    def place(self, pod_uid: str, container: str) -> Place:
        """Return how far this container is."""
        gate, hook = self.gate(pod_uid, container), self.hook(pod_uid, container)
        if gate is None or gate.kept:
            return Place.ABSENT
        if hook is not None and hook.journalled:
            return Place.HELD
        if gate.released:
            return Place.RELEASED
        if gate.restoring:
            return Place.RESTORING
        return Place.ABSENT if gate.answered else Place.WAITING

    def connected(self, pod_uid: str) -> bool:
        """Say whether anybody is connected for this pod, alive or not quite dead."""
        return any(uid == pod_uid for they in (self._gates, self._hooks, self._barrier) for uid, _ in they)

    def of_pod(self, pod_uid: str) -> tuple[Gate, ...]:
        return tuple(gate for gate in self._gates.values() if gate.hello.pod_uid == pod_uid)

    async def refuse_pod(self, pod_uid: str, message: str) -> None:
        """Refuse everybody who waits for this pod."""
        for gate in self.of_pod(pod_uid):
            if not gate.answered:
                await gate.refuse(message)

    def all(self) -> tuple[Gate, ...]:
        return tuple(self._gates.values())

    def add_gate(self, gate: Gate) -> bool:
        """Admit an interposer unless another one of the same container still lives: there is one claimant."""
        older = self._gates.get(gate.key)
        replaced = older is None or (older.kept and gate.hello.keeper) or older.link.process == gate.link.process
        if older is not None and not replaced and older.link.alive():
            return False
        self._gates[gate.key] = gate
        return True

    def add_hook(self, hook: Hook) -> None:
        self._hooks[hook.key] = hook

    def add_waiting(self, hook: Waiting) -> None:
        self._barrier[hook.key] = hook

    def add_starter(self, starter: Starter) -> None:
        self._starters[starter.key] = starter

    def remove(self, it: Gate | Hook | Waiting | Starter) -> None:
        """Forget a connection that was lost."""
        for they in (self._gates, self._hooks, self._barrier, self._starters):
            if they.get(it.key) is it:
                del they[it.key]
