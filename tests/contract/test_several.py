"""Two agents and a pod of two containers: together or not at all, whoever dies in between."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from migration_agent.lineup import Place
from migration_agent.runtime.interface import ContainerStatus
from migration_agent.ticket import TicketState
from migration_api.migration import Decision
from migration_api.wire import SourceState, TargetState
from support import interposer
from support.agent import MIGRATION, SECOND, TARGET_POD, source_request, target_request
from support.node import until
from support.pair import Pair, exit_code

BOTH = ("main", "side")


class Pod(Pair):
    """A pair of nodes and a pod of two containers, of which `main` returns early from its `create`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.a.containers.names = BOTH

    async def begin_both(self) -> None:
        """Prepare the target up to the first gate, then tell the source."""
        await self.b.migrations.put_target(target_request(containers=BOTH))
        self.b.create(container="main")
        await until("the gate is reached", lambda: self.target.state is TargetState.AT_GATE)
        await self.a.migrations.put_source(source_request(containers=BOTH))

    async def main_held(self) -> None:
        assert await exit_code(self.b.children[-1]) == 0, "create of all but the last returns early"
        assert self.place("main") is Place.HELD
        assert not self.b.ran

    def place(self, container: str) -> Place:
        return self.b.gates.place(TARGET_POD, container)

    def keeper(self, container: str) -> int:
        """Return the pid of who holds an early returned container."""
        gate = self.b.gates.gate(TARGET_POD, container)
        assert gate is not None
        return gate.link.process.pid

    async def settled(self) -> None:
        await until("both are settled", lambda: self.source.settled and self.target.settled)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    async with Pod(tmp_path) as it:
        yield it


async def test_both_are_held_before_the_commit_and_run_after_it(pod: Pod) -> None:
    pod.b.registers.reachable = False
    await pod.begin_both()
    await pod.main_held()
    assert pod.target.state is TargetState.RESTORING
    pod.b.create(container="side")
    await until("all are held", lambda: pod.target.state is TargetState.HELD)
    assert pod.cluster.writes == []
    assert not pod.b.ran
    pod.b.registers.reachable = True
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    assert pod.b.ran == BOTH
    assert await exit_code(pod.b.children[-1]) == 0
    assert (pod.source.state, pod.target.state) == (SourceState.RELEASED, TargetState.RESUMED)


@pytest.mark.parametrize(("attached", "owner"), [((), "main"), (("main",), "main"), (("side",), "side")])
async def test_system_v_objects_are_sent_once_with_who_uses_them(
    pod: Pod, attached: tuple[str, ...], owner: str
) -> None:
    pod.a.containers.attached = attached
    pod.b.registers.reachable = False
    await pod.begin_both()
    await pod.main_held()
    images = pod.b.layout.images(MIGRATION)
    assert [path.parent.parent.name for path in images.glob("*/images/ipcns-shm-*.img")] == [owner]


async def test_i2_system_v_memory_attached_by_two_containers_cannot_move(pod: Pod) -> None:
    pod.a.containers.attached = BOTH
    await pod.begin_both()
    await until("both are given up", lambda: pod.source.settled and pod.cluster.decision is Decision.ABORT)
    assert pod.source.failure is not None
    assert "System V" in pod.source.failure.message
    assert pod.a.containers.status_ is ContainerStatus.RUNNING
    assert "dump" not in pod.a.containers.log


async def test_no_commit_while_one_is_missing(pod: Pod) -> None:
    await pod.begin_both()
    await pod.main_held()
    for _ in range(3):
        await pod.b.migrations.settle(MIGRATION)
    assert pod.cluster.writes == []


@pytest.mark.parametrize("victim", ["keeper", "hook", "tree"])
@pytest.mark.parametrize("lost", BOTH)
async def test_i1_losing_one_before_the_commit_loses_all_and_nothing_ran(pod: Pod, lost: str, victim: str) -> None:
    pod.b.registers.reachable = False
    await pod.begin_both()
    await pod.main_held()
    side = pod.b.create(container="side")
    await until("all are held", lambda: pod.target.state is TargetState.HELD)
    hook = pod.b.gates.hook(TARGET_POD, lost)
    assert hook is not None
    process = {"keeper": hook.gate.link.process, "hook": hook.link.process, "tree": hook.init}[victim]
    os.kill(process.pid, signal.SIGKILL)
    await until("it is dead", lambda: not pod.b.processes.alive(process))
    pod.b.registers.reachable = True
    if victim != "tree":  # this fake hook does not watch its tree; the agent does not commit over a dead one
        assert await exit_code(side) != 0
    for _ in range(2):
        await pod.b.migrations.settle(MIGRATION)
    assert pod.cluster.writes == [], "I1: nothing is committed over a tree that is dead"
    pod.cluster.decide(Decision.ABORT)  # the operator's part, or the budget's
    await pod.settled()
    assert not pod.b.ran
    assert pod.a.containers.status_ is ContainerStatus.RUNNING
    assert (pod.source.state, pod.target.state) == (SourceState.THAWED, TargetState.DESTROYED)


async def test_i4_the_agent_restarts_while_one_has_returned_early(pod: Pod) -> None:
    """Its tree dies with the connection; the kubelet sees it end and begins again: both are restored."""
    await pod.begin_both()
    await pod.main_held()
    keeper = pod.keeper("main")
    await pod.b.stop()
    await until("the keeper is gone", lambda: not Path(f"/proc/{keeper}").exists())
    assert pod.b.ticket is TicketState.PENDING
    await pod.b.start()
    pod.b.create(container="main")
    await pod.main_held()
    pod.b.create(container="side")
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    assert pod.b.ran == BOTH


async def test_i4_the_agent_restarts_while_both_are_held(pod: Pod) -> None:
    pod.b.registers.reachable = False
    await pod.begin_both()
    await pod.main_held()
    side = pod.b.create(container="side")
    await until("all are held", lambda: pod.target.state is TargetState.HELD)
    await pod.b.stop()
    assert await exit_code(side) != 0
    await pod.b.start()
    pod.b.registers.reachable = True
    pod.b.create(container="main")
    await pod.main_held()
    pod.b.create(container="side")
    await pod.settled()
    assert pod.b.ran == BOTH


async def test_i3_who_comes_before_its_turn_is_sent_away(pod: Pod) -> None:
    """After a loss the kubelet may try the later container first: it would wait for one that is not started."""
    await pod.begin_both()
    await pod.main_held()
    os.kill(pod.keeper("main"), signal.SIGKILL)
    await until("main is lost", lambda: pod.place("main") is Place.ABSENT)
    assert await exit_code(pod.b.create(container="side")) == 1
    pod.b.create(container="main")
    await pod.main_held()
    pod.b.create(container="side")
    await pod.settled()
    assert pod.b.ran == BOTH


@pytest.mark.parametrize("lost", BOTH)
async def test_i2_after_the_commit_one_that_dies_before_the_rename_calls_all_back(pod: Pod, lost: str) -> None:
    def how(name: str) -> str:
        return interposer.DIES_BEFORE_RENAME if name == lost else interposer.NORMAL

    await pod.b.migrations.put_target(target_request(containers=BOTH))
    pod.b.create(how("main"), container="main")
    await until("the gate is reached", lambda: pod.target.state is TargetState.AT_GATE)
    await pod.a.migrations.put_source(source_request(containers=BOTH))
    await pod.main_held()
    side = pod.b.create(how("side"), container="side")
    assert await exit_code(side) == 1
    assert pod.cluster.writes == ["Commit"]
    assert not pod.b.ran
    assert pod.b.ticket is TicketState.PENDING
    await until("all of it is dead", lambda: not pod.b.gates.connected(TARGET_POD))
    pod.b.create(container="main")
    await pod.main_held()
    pod.b.create(container="side")
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    assert pod.b.ran == BOTH


async def test_i4_after_the_commit_all_is_returned_when_not_all_are_held_again(pod: Pod) -> None:
    await pod.b.migrations.put_target(target_request(containers=BOTH))
    pod.b.create(container="main")
    await until("the gate is reached", lambda: pod.target.state is TargetState.AT_GATE)
    await pod.a.migrations.put_source(source_request(containers=BOTH))
    await pod.main_held()
    assert await exit_code(pod.b.create(interposer.DIES_BEFORE_RENAME, container="side")) == 1
    await until("all of it is dead", lambda: not pod.b.gates.connected(TARGET_POD))
    pod.b.create(container="main")
    await pod.main_held()
    pod.b.clock.now_ns += 31 * SECOND
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Returned"]
    assert not pod.b.ran
    assert pod.a.containers.status_ is ContainerStatus.RUNNING


@pytest.mark.parametrize("order", [("left", "main"), ("main", "left")], ids=["first", "last"])
async def test_i3_a_left_out_container_starts_after_the_commit_and_is_waited_for(
    pod: Pod, order: tuple[str, ...]
) -> None:
    pod.a.containers.names = order
    await pod.b.migrations.put_target(target_request(order=order))
    if order[0] == "left":
        assert await exit_code(pod.b.create(container="left")) == 0, "it returns early"
    pod.b.create(container="main")
    await until("the gate is reached", lambda: pod.target.state is TargetState.AT_GATE)
    await pod.a.migrations.put_source(source_request(order=order))
    if order[-1] == "left":
        await pod.main_held()
        for _ in range(3):
            await pod.b.migrations.settle(MIGRATION)
        assert pod.cluster.writes == [], "the pod could not run as a whole"
        pod.b.create(container="left")
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    assert pod.b.ran == ("main",)
    await until("it starts", lambda: pod.b.started == ("left",))


async def test_i3_a_left_out_container_never_starts_after_an_abort(pod: Pod) -> None:
    order = ("left", "main", "last")
    pod.a.containers.names = order
    await pod.b.migrations.put_target(target_request(order=order))
    assert await exit_code(pod.b.create(container="left")) == 0
    pod.b.create(container="main")
    await until("the gate is reached", lambda: pod.target.state is TargetState.AT_GATE)
    await pod.a.migrations.put_source(source_request(order=order))
    await pod.main_held()
    pod.cluster.decide(Decision.ABORT)
    last = pod.b.create(container="last")
    await pod.settled()
    assert await exit_code(last) == 1
    assert pod.b.started == ()
    assert not pod.b.ran


async def test_i3_a_container_that_is_not_of_the_pod_is_refused(pod: Pod) -> None:
    await pod.begin_both()
    stranger: subprocess.Popen[bytes] = pod.b.create(container="stranger")
    assert await exit_code(stranger) == 1
    assert pod.place("main") is not Place.ABSENT
