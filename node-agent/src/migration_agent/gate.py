"""The gate: where interposers and hooks of target containers connect and wait (docs/protocol.md, section 4).

An open connection is the live fact. Everything here runs in the event loop; nothing is decided here but whether a hook
belongs to a restore that was allowed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal, Protocol

from pydantic import Field, TypeAdapter, ValidationError

from migration_agent.processes import Processes, ProcessRef
from migration_api.base import Model
from migration_api.migration import ContainerName, Uid

log = logging.getLogger(__name__)

LINE_BYTES = 64 * 1024
CREATE_NS = 110 * 10**9
"""How long after the beginning of `create` gate and hook give up by themselves, in nanoseconds."""

_HELLO_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")

Text = Annotated[str, Field(max_length=LINE_BYTES)]
ContainerId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class GateHello(Model):
    """An interposer at the gate."""

    role: Literal["gate"]
    pod_uid: Uid = Field(alias="podUID")
    migration: Annotated[str, Field(max_length=64)] = ""
    container: ContainerName
    container_id: ContainerId = Field(alias="containerID")
    deadline_boottime_ns: int


class HookAction(StrEnum):
    """When CRIU calls its action script."""

    POST_RESTORE = "post-restore"
    PRE_RESUME = "pre-resume"
    POST_DUMP = "post-dump"


class HookHello(Model):
    """A hook; of a dump only `migration` and `container` are there."""

    role: Literal["hook"]
    action: HookAction
    pod_uid: Uid | None = Field(default=None, alias="podUID")
    migration: Annotated[str, Field(max_length=64)] = ""
    container: ContainerName
    container_id: ContainerId | None = Field(default=None, alias="containerID")
    init_pid: Annotated[int, Field(gt=0)] | None = Field(default=None, alias="initPID")


class GateEvent(Model):
    """What an interposer says after it was allowed to restore."""

    event: Literal["failed", "restored"]
    message: Text = ""


_HELLO: TypeAdapter[GateHello | HookHello] = TypeAdapter(Annotated[GateHello | HookHello, Field(discriminator="role")])


class NotRoot(Exception):
    """The peer of the socket must not talk to the agent."""


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
    restoring: bool = False
    """`restore` was answered."""

    @property
    def key(self) -> tuple[str, str]:
        return self.hello.pod_uid, self.hello.container

    async def restore(self, image_dir: Path, options: tuple[str, ...]) -> None:
        """Let it restore, once."""
        self.restoring = True
        await self.link.say(action="restore", imageDir=str(image_dir), options=list(options))

    async def refuse(self, message: str) -> None:
        await self.link.say(action="refuse", message=message[:30000])

    async def pass_(self) -> None:
        await self.link.say(action="pass")


@dataclass
class Hook:
    """A complete tree that has not run an instruction, held as long as this lives."""

    gate: Gate
    link: Link
    init: ProcessRef
    resume_sent: bool = False

    async def resume(self) -> None:
        self.resume_sent = True
        await self.link.say(action="resume")

    async def kill(self, message: str) -> None:
        await self.link.say(action="kill", message=message[:30000])


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

    def gate(self, pod_uid: str, container: str) -> Gate | None:
        """Return the interposer that creates this container and lives."""
        gate = self._gates.get((pod_uid, container))
        return gate if gate is not None and gate.link.alive() else None

    def hook(self, pod_uid: str, container: str) -> Hook | None:
        """Return the hook that holds this container's tree: hook, interposer and both connections live."""
        hook = self._hooks.get((pod_uid, container))
        return hook if hook is not None and hook.link.alive() and hook.gate.link.alive() else None

    def connected(self, pod_uid: str, container: str) -> bool:
        """Say whether anybody is connected for this container, alive or not quite dead."""
        return (pod_uid, container) in self._gates or (pod_uid, container) in self._hooks

    def all(self) -> tuple[Gate, ...]:
        return tuple(self._gates.values())

    def add_gate(self, gate: Gate) -> bool:
        """Admit an interposer unless another one of the same container still lives: there is one claimant."""
        older = self._gates.get(gate.key)
        if older is not None and older.link.alive() and older.link.process != gate.link.process:
            return False
        self._gates[gate.key] = gate
        return True

    def add_hook(self, hook: Hook) -> None:
        self._hooks[hook.gate.key] = hook

    def remove(self, it: Gate | Hook) -> None:
        """Forget a connection that was lost."""
        if isinstance(it, Gate) and self._gates.get(it.key) is it:
            del self._gates[it.key]
        if isinstance(it, Hook) and self._hooks.get(it.gate.key) is it:
            del self._hooks[it.gate.key]


class GateServer:
    """The Unix socket; only root may talk to it."""

    def __init__(
        self,
        path: Path,
        gates: Gates,
        listener: GateListener,
        processes: Processes,
        post_dump: Callable[[str, str], Awaitable[bool]],
    ) -> None:
        """`post_dump`: by migration and container; what the dump's hook is answered: True is `done`."""
        self._path = path
        self._gates = gates
        self._listener = listener
        self._processes = processes
        self._post_dump = post_dump
        self._server: asyncio.Server | None = None
        self._clients: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket that an earlier agent left behind is replaced."""
        self._path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._accept, path=str(self._path), limit=LINE_BYTES)
        self._path.chmod(0o600)

    async def stop(self) -> None:
        """Close everything; hooks then kill their trees, gates come back to the next agent."""
        if self._server is not None:
            self._server.close()
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = asyncio.create_task(self._serve(reader, writer))
        self._clients.add(client)
        client.add_done_callback(self._clients.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link: Link | None = None
        try:
            link = self._link(writer)
            async with asyncio.timeout(_HELLO_SECONDS):
                hello = _HELLO.validate_json(await reader.readline())
            if isinstance(hello, GateHello):
                await self._serve_gate(Gate(hello, link), reader)
            else:
                await self._serve_hook(hello, link, reader)
        except (NotRoot, ValidationError, ValueError, TimeoutError) as error:
            log.warning("a connection to %s is closed: %s", self._path, error)
        except OSError as error:
            log.info("a connection to %s was lost: %s", self._path, error)
        finally:
            if link is not None:
                link.close()
            writer.close()

    def _link(self, writer: asyncio.StreamWriter) -> Link:
        """Find out who is at the other end.

        Raises:
            NotRoot: somebody who must not be, or who is gone already.
        """
        connection = writer.get_extra_info("socket")
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid != 0:
            raise NotRoot(f"process {pid} of user {uid} is not root")
        process = self._processes.ref(pid)
        if process is None:
            raise NotRoot(f"process {pid} is gone, or in a PID namespace that is not the host's")
        return Link(writer, process, os.pidfd_open(pid))

    async def _serve_gate(self, gate: Gate, reader: asyncio.StreamReader) -> None:
        hello = gate.hello
        if not self._gates.add_gate(gate):
            log.warning("pod %s: a second create of container %s is refused", hello.pod_uid, hello.container)
            await gate.refuse("an older create of this container is still alive")
            return
        log.info("pod %s: container %s is at the gate", hello.pod_uid, hello.container)
        try:
            await self._listener.arrived(gate)
            while line := await reader.readline():
                await self._listener.reported(gate, GateEvent.model_validate_json(line))
        finally:
            self._gates.remove(gate)
            self._listener.moved(hello.pod_uid)

    async def _serve_hook(self, hello: HookHello, link: Link, reader: asyncio.StreamReader) -> None:
        match hello.action:
            case HookAction.POST_DUMP:
                done = await self._post_dump(hello.migration, hello.container)
                await link.say(action="done" if done else "fail")
            case HookAction.PRE_RESUME:
                log.info("pod %s: container %s is about to run", hello.pod_uid, hello.container)
                self._listener.moved(hello.pod_uid or "")
            case HookAction.POST_RESTORE:
                await self._hold(hello, link, reader)

    async def _hold(self, hello: HookHello, link: Link, reader: asyncio.StreamReader) -> None:
        hook = self._hook(hello, link)
        if hook is None:
            log.warning("pod %s: a held tree without an allowed restore is killed", hello.pod_uid)
            await link.say(action="kill", message="the agent knows nothing of this restore")
            return
        self._gates.add_hook(hook)
        try:
            await self._listener.held(hook)
            await reader.readline()  # it says nothing more; this is the end of the connection
        finally:
            self._gates.remove(hook)
            self._listener.moved(hook.gate.hello.pod_uid)

    def _hook(self, hello: HookHello, link: Link) -> Hook | None:
        """Return the hook when it belongs to a restore that this life of the agent allowed, and is the first."""
        if hello.pod_uid is None or hello.init_pid is None:
            return None
        gate = self._gates.gate(hello.pod_uid, hello.container)
        init = self._processes.ref(hello.init_pid)
        if gate is None or init is None or not gate.restoring or gate.hello.container_id != hello.container_id:
            return None
        if self._gates.hook(hello.pod_uid, hello.container) is not None:
            return None
        return Hook(gate, link, init)
