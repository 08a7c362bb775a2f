"""The gate's Unix socket: where interposers and hooks of target containers connect (docs/protocol.md, section 4).

Nothing is decided here but whether a hook belongs to a restore that was allowed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError

from migration_agent.gate import Gate, GateListener, Gates, Hook, Link, Starter, Waiting
from migration_agent.gate_messages import (
    HELLO,
    LINE_BYTES,
    GateEvent,
    GateHello,
    Hello,
    HookAction,
    HookHello,
    StartHello,
)
from migration_agent.processes import Processes

log = logging.getLogger(__name__)

_HELLO_SECONDS = 10.0
_CREDENTIALS = struct.Struct("3i")


class NotRoot(Exception):
    """The peer of the socket must not talk to the agent."""


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
                hello = HELLO.validate_json(await reader.readline())
            await self._welcome(hello, link, reader)
        except (NotRoot, ValidationError, ValueError, TimeoutError) as error:
            log.warning("a connection to %s is closed: %s", self._path, error)
        except OSError as error:
            log.info("a connection to %s was lost: %s", self._path, error)
        finally:
            if link is not None:
                link.close()
            writer.close()

    async def _welcome(self, hello: Hello, link: Link, reader: asyncio.StreamReader) -> None:
        match hello:
            case GateHello():
                await self._serve_gate(Gate(hello, link), reader)
            case HookHello():
                await self._serve_hook(hello, link, reader)
            case StartHello():
                starter = Starter((hello.pod_uid, hello.container), link)
                self._gates.add_starter(starter)
                await self._until_gone(starter, hello.pod_uid, reader)

    async def _until_gone(self, it: Waiting | Starter, pod_uid: str, reader: asyncio.StreamReader) -> None:
        """Keep the line to somebody who says nothing more: its end is the end of the connection."""
        try:
            self._listener.moved(pod_uid)
            await reader.readline()
        finally:
            self._gates.remove(it)
            self._listener.moved(pod_uid)

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
                await self._wait(hello, link, reader)
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

    async def _wait(self, hello: HookHello, link: Link, reader: asyncio.StreamReader) -> None:
        """Keep the line to a hook that waits for the others; one that has nobody to wait for hangs up at once."""
        pod_uid = hello.pod_uid or ""
        gate = self._gates.gate(pod_uid, hello.container)
        if gate is None or not gate.released or gate.hello.container_id != hello.container_id:
            await link.say(action="kill", message="the agent knows nothing of this restore")
            self._listener.moved(pod_uid)
            return
        waiting = Waiting(gate, link)
        self._gates.add_waiting(waiting)
        await self._until_gone(waiting, pod_uid, reader)

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
