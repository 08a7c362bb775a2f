"""The gate's Unix socket with scripted interposers and hooks."""

# fakes have the signatures of what they stand for

from __future__ import annotations

import asyncio
import json
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from migration_agent.gate import Gate, Gates, Hook
from migration_agent.gate_messages import LINE_BYTES, GateEvent
from migration_agent.gate_server import GateServer
from migration_agent.host import Host
from migration_agent.lineup import Place
from migration_agent.ports import ApiUnreachable, PodState
from migration_agent.processes import Processes
from migration_agent.strays import Strays
from migration_agent.target import TargetSide
from support.agent import TARGET_POD
from support.node import until


@dataclass
class Listener:
    """Writes down what happens."""

    arrivals: list[Gate] = field(default_factory=list[Gate])
    hooks: list[Hook] = field(default_factory=list[Hook])
    events: list[GateEvent] = field(default_factory=list[GateEvent])
    moves: int = 0

    async def arrived(self, gate: Gate) -> None:
        self.arrivals.append(gate)

    async def held(self, hook: Hook) -> None:
        hook.journalled = True
        self.hooks.append(hook)

    async def reported(self, gate: Gate, event: GateEvent) -> None:
        self.events.append(event)

    def moved(self, pod_uid: str) -> None:
        self.moves += 1


@dataclass
class Client:
    """One connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def say(self, **message: Any) -> None:
        self.writer.write(json.dumps(message).encode() + b"\n")
        await self.writer.drain()

    async def hear(self) -> dict[str, Any] | None:
        async with asyncio.timeout(10):
            line = await self.reader.readline()
        return json.loads(line) if line else None

    def close(self) -> None:
        self.writer.close()


class Room:
    """A gate server and its clients; all of them are this process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gates, self.listener = Gates(), Listener()
        self.dumps: list[tuple[str, str]] = []
        processes = Processes(Host().process_start)
        self.server = GateServer(path, self.gates, self.listener, processes, self.post_dump)
        self.clients: list[Client] = []
        self.tree = subprocess.Popen(["sleep", "1000"])

    async def post_dump(self, migration: str, container: str) -> bool:
        self.dumps.append((migration, container))
        return container == "main"

    async def connect(self) -> Client:
        client = Client(*await asyncio.open_unix_connection(str(self.path), limit=LINE_BYTES))
        self.clients.append(client)
        return client

    async def gate(self, container_id: str = "c1", *, keeper: bool = False) -> Client:
        client = await self.connect()
        deadline = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**11
        await client.say(
            role="gate",
            podUID=TARGET_POD,
            namespace="default",
            pod="redis-moved",
            container="main",
            containerID=container_id,
            sandboxID="sandbox-1",
            keeper=keeper,
            deadlineBoottimeNs=deadline,
            unknown="ignored",
        )
        return client

    async def hook(self, container_id: str = "c1", init_pid: int | None = None) -> Client:
        client = await self.connect()
        await client.say(
            role="hook",
            action="post-restore",
            podUID=TARGET_POD,
            container="main",
            containerID=container_id,
            initPID=init_pid or self.tree.pid,
        )
        return client

    async def allowed(self) -> Client:
        """Return a gate that was told to restore."""
        client = await self.gate()
        await until("the gate is reached", lambda: self.gates.gate(TARGET_POD, "main"))
        gate = self.gates.gate(TARGET_POD, "main")
        assert gate is not None
        await gate.restore(Path("/images"), ("tcp-close", "file-locks"))
        expected = {"action": "restore", "imageDir": "/images", "options": ["tcp-close", "file-locks"]}
        assert await client.hear() == expected
        return client


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    it = Room(tmp_path / "agent.sock")
    it.path.touch()  # an earlier agent left one behind
    await it.server.start()
    yield it
    await it.server.stop()
    for client in it.clients:
        client.close()
    it.tree.kill()
    await asyncio.to_thread(it.tree.wait)


async def test_only_root_may_open_the_socket(room: Room) -> None:
    assert stat.S_IMODE(room.path.stat().st_mode) == 0o600


@dataclass
class Pods:
    """The API server, as far as pods go."""

    state: PodState | None = PodState.LIVE
    asked: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])

    async def __call__(self, namespace: str, name: str, uid: str) -> PodState:
        self.asked.append((namespace, name, uid))
        if self.state is None:
            raise ApiUnreachable("away")
        return self.state


async def test_i4_a_deleted_pod_that_the_agent_was_not_told_of_is_turned_away(room: Room) -> None:
    client = await room.gate()
    await until("the gate is reached", lambda: room.gates.gate(TARGET_POD, "main"))
    pods = Pods()
    strays = Strays(room.gates, lambda _: None, pods)
    await strays.look()
    pods.state = None
    with pytest.raises(ApiUnreachable):
        await strays.look()
    gate = room.gates.gate(TARGET_POD, "main")
    assert gate is not None
    assert not gate.answered, "it is not known to be deleted"
    pods.state = PodState.GONE
    await strays.look()
    assert pods.asked == [("default", "redis-moved", TARGET_POD)] * 3
    said = await client.hear() or {}
    assert (said["action"], said["message"]) == ("refuse", "the pod is deleted, and its migration has not begun here")
    await strays.look()
    assert len(pods.asked) == 3, "a gate that was answered is nobody's business any more"


async def test_a_deleted_pod_that_the_agent_was_told_of_is_its_migrations_business(room: Room) -> None:
    await room.gate()
    await until("the gate is reached", lambda: room.gates.gate(TARGET_POD, "main"))
    told = cast("TargetSide", object())
    answers: list[TargetSide | None] = [told, None, told]
    pods = Pods(PodState.GONE)
    strays = Strays(room.gates, lambda _: answers.pop(0), pods)
    await strays.look()
    assert not pods.asked
    await strays.look()  # told while the API server was asked
    gate = room.gates.gate(TARGET_POD, "main")
    assert gate is not None
    assert not gate.answered


async def test_held_is_a_live_fact(room: Room) -> None:
    gate = await room.allowed()
    hook = await room.hook()
    await until("it is held", lambda: room.gates.hook(TARGET_POD, "main"))
    held = room.gates.hook(TARGET_POD, "main")
    assert held is not None
    assert held.init.pid == room.tree.pid
    gate.close()
    await until("the loss of the interposer is noticed", lambda: not room.gates.hook(TARGET_POD, "main"))
    await held.kill("lost")
    assert (await hook.hear() or {})["action"] == "kill"
    assert room.listener.moves > 0


async def test_resume_and_the_end_of_the_restore(room: Room) -> None:
    gate = await room.allowed()
    hook = await room.hook()
    await until("it is held", lambda: room.listener.hooks)
    await room.listener.hooks[0].resume()
    assert await hook.hear() == {"action": "resume"}
    await gate.say(event="restored")
    await until("the end is reported", lambda: room.listener.events)
    assert room.listener.events[0].event == "restored"


async def test_i1_a_hook_without_an_allowed_restore_is_killed(room: Room) -> None:
    assert (await (await room.hook()).hear() or {})["action"] == "kill"
    await room.gate()
    await until("the gate is reached", lambda: room.gates.gate(TARGET_POD, "main"))
    assert (await (await room.hook()).hear() or {})["action"] == "kill", "the gate was not told to restore"
    assert room.gates.hook(TARGET_POD, "main") is None


async def test_i1_a_hook_of_another_create_or_a_second_one_is_killed(room: Room) -> None:
    await room.allowed()
    assert (await (await room.hook("c2")).hear() or {})["action"] == "kill"
    assert (await (await room.hook(init_pid=2**22 + 1)).hear() or {})["action"] == "kill"
    await room.hook()
    await until("it is held", lambda: room.gates.hook(TARGET_POD, "main"))
    assert (await (await room.hook()).hear() or {})["action"] == "kill"
    assert room.gates.hook(TARGET_POD, "main") is not None


async def test_i1_a_second_create_is_refused_while_the_older_lives(room: Room) -> None:
    await room.gate()
    await until("the gate is reached", lambda: room.gates.gate(TARGET_POD, "main"))
    script = (
        "import json,socket,sys\n"
        "s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(json.dumps({'role':'gate','podUID':sys.argv[2],'container':'main','containerID':'c2',"
        "'deadlineBoottimeNs':1}).encode()+b'\\n')\n"
        "print(s.makefile().readline())"
    )
    argv = [sys.executable, "-I", "-c", script, str(room.path), TARGET_POD]
    other = await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, check=True, timeout=20)
    assert "still alive" in other.stdout
    gate = room.gates.gate(TARGET_POD, "main")
    assert gate is not None
    assert gate.hello.container_id == "c1"


async def test_an_interposer_that_comes_back_keeps_its_place(room: Room) -> None:
    await room.gate()
    await until("the gate is reached", lambda: room.listener.arrivals)
    await room.gate()
    await until("it came back", lambda: len(room.listener.arrivals) == 2)
    assert room.gates.gate(TARGET_POD, "main") is room.listener.arrivals[1]


@pytest.mark.parametrize(("container", "answer"), [("main", "done"), ("other", "fail")])
async def test_post_dump(room: Room, container: str, answer: str) -> None:
    client = await room.connect()
    await client.say(role="hook", action="post-dump", migration="m1", container=container)
    assert await client.hear() == {"action": answer}
    assert room.dumps == [("m1", container)]


async def pre_resume(room: Room) -> Client:
    client = await room.connect()
    await client.say(role="hook", action="pre-resume", podUID=TARGET_POD, container="main", containerID="c1")
    return client


async def test_pre_resume_is_noticed(room: Room) -> None:
    await pre_resume(room)
    await until("it is noticed", lambda: room.listener.moves)


async def test_i1_a_hook_at_pre_resume_that_was_not_released_is_called_back(room: Room) -> None:
    assert (await (await pre_resume(room)).hear() or {})["action"] == "kill", "nobody knows of it"
    await room.allowed()
    await room.hook()
    await until("it is held", lambda: room.listener.hooks)
    assert (await (await pre_resume(room)).hear() or {})["action"] == "kill", "it was not told to resume"


async def test_a_released_hook_waits_at_the_barrier_and_can_be_called_back(room: Room) -> None:
    await room.allowed()
    hook = await room.hook()
    await until("it is held", lambda: room.listener.hooks)
    assert room.gates.place(TARGET_POD, "main") is Place.HELD
    await room.listener.hooks[0].resume()
    hook.close()
    await until("it is released", lambda: room.gates.place(TARGET_POD, "main") is Place.RELEASED)
    client = await pre_resume(room)
    await until("it waits", lambda: room.gates.waiting(TARGET_POD, "main"))
    waiting = room.gates.waiting(TARGET_POD, "main")
    assert waiting is not None
    await waiting.kill("another one was lost")
    assert await client.hear() == {"action": "kill", "message": "another one was lost"}
    client.close()
    await until("it is gone", lambda: room.gates.waiting(TARGET_POD, "main") is None)


async def test_a_keeper_takes_the_place_of_who_was_told_to_keep(room: Room) -> None:
    create = await room.gate()
    await until("the gate is reached", lambda: room.listener.arrivals)
    await room.listener.arrivals[0].keep()
    assert await create.hear() == {"action": "keep"}
    assert room.gates.place(TARGET_POD, "main") is Place.ABSENT
    keeper = await room.gate(keeper=True)
    await until("the keeper is at the gate", lambda: room.gates.place(TARGET_POD, "main") is Place.WAITING)
    create.close()
    gate = room.gates.gate(TARGET_POD, "main")
    assert gate is not None
    assert gate.hello.sandbox_id == "sandbox-1"
    await gate.restore(Path("/images"), ())
    await keeper.hear()
    await room.hook()
    await until("it is held", lambda: room.listener.hooks)
    await room.listener.hooks[0].counted()
    assert await keeper.hear() == {"action": "held", "initPID": room.tree.pid}


async def test_who_is_left_out_is_there_as_long_as_its_start_waits(room: Room) -> None:
    client = await room.connect()
    await client.say(role="start", podUID=TARGET_POD, container="left", containerID="c9", pid=1)
    await until("it waits", lambda: room.gates.starter(TARGET_POD, "left"))
    assert not room.gates.starter(TARGET_POD, "main")
    client.close()
    await until("it is gone", lambda: not room.gates.starter(TARGET_POD, "left"))


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b'{"role":"king"}\n',
        b'{"role":"gate","podUID":"../../etc","container":"main","containerID":"c","deadlineBoottimeNs":1}\n',
        b"x" * (2 * LINE_BYTES),
    ],
)
async def test_i8_nonsense_closes_the_connection_and_nothing_else(room: Room, line: bytes) -> None:
    client = await room.connect()
    client.writer.write(line)
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            assert await client.reader.read() == b""
    await room.gate()
    await until("others are served", lambda: room.gates.gate(TARGET_POD, "main"))
