"""Two agents and a pod with init containers and a late gate: what does nothing, what waits, and for what."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from migration_agent.gate import Starter
from migration_agent.migrations import Conflict
from migration_agent.peer import Refused
from migration_agent.ticket import TicketState
from migration_api.migration import Decision
from migration_api.wire import SourceState, TargetState
from support.agent import MIGRATION, SOURCE_POD, TARGET_POD, source_request, target_request
from support.node import until
from support.pair import Pair, exit_code

INIT: dict[str, Any] = {"init": ("pull", "before", "after", "gate"), "generated": ("pull", "gate")}
LATE: dict[str, Any] = {**INIT, "late_gate": "gate"}


class Pod(Pair):
    """A pair of nodes; the pod has init containers."""

    async def passes(self, container: str) -> None:
        """Let the kubelet run an init container, and see it end at once."""
        assert await exit_code(self.b.create(container=container)) == 0
        await until("it ended", lambda: container in self.b.passed)

    def late_gate(self) -> Starter | None:
        return self.b.gates.starter(TARGET_POD, "gate")

    async def reach_the_late_gate(self) -> None:
        await self.b.migrations.put_target(target_request(**LATE))
        for name in ("pull", "before"):
            await self.passes(name)
        assert await exit_code(self.b.create(container="gate")) == 0, "it is started, for the kubelet"
        await until("the late gate is reached", lambda: self.target.at_late_gate)
        assert self.target.state is TargetState.AT_GATE
        assert "gate" not in self.b.passed

    async def settled(self) -> None:
        await until("both are settled", lambda: self.source.settled and self.target.settled)


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    async with Pod(tmp_path) as it:
        yield it


async def test_init_containers_do_nothing_before_and_within_the_freeze(pod: Pod) -> None:
    await pod.b.migrations.put_target(target_request(**INIT))
    for name in ("pull", "before"):
        await pod.passes(name)
    pod.b.registers.reachable = False
    pod.b.create()
    await until("the gate is reached", lambda: pod.target.gate_age_seconds is not None)
    await pod.a.migrations.put_source(source_request())
    await until("it is held", lambda: pod.target.state is TargetState.HELD)
    await pod.passes("after")  # a sidecar is held while the init container after it is created
    assert pod.target.state is TargetState.HELD
    pod.b.registers.reachable = True
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    ticket = pod.b.tickets.read(TARGET_POD)
    assert ticket is not None
    assert ticket.generated == ("pull", "gate"), "what does nothing for ever is on disk"


async def test_i3_an_init_container_of_a_destroyed_ticket_is_refused(pod: Pod) -> None:
    await pod.b.migrations.put_target(target_request(**INIT))
    pod.cluster.decide(Decision.ABORT)
    await until("it is destroyed", lambda: pod.b.ticket is TicketState.DESTROYED)
    assert await exit_code(pod.b.create(container="before")) == 1
    assert pod.b.passed == ()


async def test_i3_an_init_container_that_nobody_named_is_refused(pod: Pod) -> None:
    await pod.b.migrations.put_target(target_request(**INIT))
    assert await exit_code(pod.b.create(container="injected")) == 1


async def test_i3_before_the_agent_was_told_an_init_container_waits(pod: Pod) -> None:
    child = pod.b.create(container="before")
    await until("it waits", lambda: pod.b.gates.connected(TARGET_POD))
    assert child.poll() is None
    await pod.b.migrations.put_target(target_request(**INIT))
    assert await exit_code(child) == 0


async def test_the_late_gate_opens_when_the_copy_is_complete(pod: Pod) -> None:
    await pod.reach_the_late_gate()
    pod.b.clock.now_ns += 3600 * 10**9  # its age does not matter
    assert pod.target.at_late_gate
    await pod.a.migrations.put_source(source_request())
    await until("the late gate ends", lambda: "gate" in pod.b.passed)
    assert pod.target.received_at is not None, "I2, I6: it opened before all was received and verified"
    assert pod.cluster.writes == []
    pod.b.create()
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    assert pod.b.ran == ("main",)
    assert pod.source.state is SourceState.RELEASED


async def test_the_late_gate_opens_for_a_source_that_is_about_to_stand_still_and_for_nobody_else(pod: Pod) -> None:
    """PreCopy: the kubelet brings the container to the gate before the freeze; the complete copy is restored."""
    await pod.reach_the_late_gate()
    target = pod.b.migrations.target(MIGRATION)
    assert target is not None
    with pytest.raises(Refused, match="the source of this migration is node node-a"):
        target.called("node-c")
    assert "gate" not in pod.b.passed
    assert not target.called("node-a"), "nobody is there yet"
    await until("the late gate ends", lambda: "gate" in pod.b.passed)
    pod.b.create()
    await until("it waits to be restored", lambda: target.called("node-a"))
    assert pod.target.state is TargetState.AT_GATE
    assert pod.cluster.writes == []
    await pod.a.migrations.put_source(source_request())
    await pod.settled()
    assert pod.cluster.writes == ["Commit", "Resumed"]
    assert pod.b.ran == ("main",)


async def test_i2_called_and_then_given_up_the_one_at_the_gate_is_refused(pod: Pod) -> None:
    await pod.reach_the_late_gate()
    target = pod.b.migrations.target(MIGRATION)
    assert target is not None
    target.called("node-a")
    await until("the late gate ends", lambda: "gate" in pod.b.passed)
    child = pod.b.create()
    await until("it waits to be restored", lambda: target.called("node-a"))
    pod.cluster.decide(Decision.ABORT)
    assert await exit_code(child) == 1
    assert not pod.b.ran


async def test_i2_the_late_gate_stays_shut_without_a_copy(pod: Pod) -> None:
    await pod.reach_the_late_gate()
    pod.a.containers.dump_error = "Error (criu/sk-inet.c:200): inet: Connected TCP socket"
    await pod.a.migrations.put_source(source_request())
    await until("it is given up", lambda: pod.cluster.decision is Decision.ABORT)
    await pod.settled()
    assert "gate" not in pod.b.passed
    assert not pod.b.ran
    assert pod.source.state is SourceState.THAWED


async def test_i4_the_agent_restarts_while_the_late_gate_waits(pod: Pod) -> None:
    await pod.reach_the_late_gate()
    await pod.b.stop()
    await pod.b.start()
    await until("the late gate is reached again", lambda: pod.target.at_late_gate)
    assert "gate" not in pod.b.passed
    await pod.a.migrations.put_source(source_request())
    await until("the late gate ends", lambda: "gate" in pod.b.passed)
    pod.b.create()
    await pod.settled()
    assert pod.b.ran == ("main",)


async def test_i5_when_the_one_who_waits_is_killed_the_source_goes_on_within_its_budget(pod: Pod) -> None:
    """Its container will never end: the kubelet does not get to the containers."""
    await pod.reach_the_late_gate()
    waiting = pod.late_gate()
    assert waiting is not None
    os.kill(waiting.link.process.pid, signal.SIGKILL)
    await until("it is gone", lambda: not pod.target.at_late_gate)
    await pod.a.migrations.put_source(source_request())  # it was on its way
    await until("the copy is complete", lambda: pod.target.received_at is not None)
    pod.a.clock.now_ns += 31 * 10**9
    await pod.settled()
    assert pod.cluster.writes == ["Abort"]
    assert pod.source.state is SourceState.THAWED
    assert await pod.a.migrations.holder(SOURCE_POD) is None


async def test_i3_when_the_request_is_refused_nobody_waits_for_the_deadline(pod: Pod) -> None:
    """Nobody would ever answer them: the pod is the target of a migration that this node has promised to forget."""
    pod.b.journal.bury(MIGRATION)
    waiting = [pod.b.create(container=name) for name in ("before", "main")]
    await until("they wait", lambda: len(pod.b.gates.of_pod(TARGET_POD)) == 2)
    with pytest.raises(Conflict, match="promised never"):
        await pod.b.migrations.put_target(target_request(**INIT))
    assert [await exit_code(child) for child in waiting] == [1, 1]
    assert await exit_code(pod.b.create()) == 1, "who comes later is refused by what is on disk"
    assert pod.b.ticket is TicketState.DESTROYED


@pytest.mark.parametrize(
    "init",
    [
        {"init": ("main",)},
        {"init": ("pull",), "generated": ("other",)},
        {"init": ("pull", "gate"), "generated": ("pull",), "late_gate": "gate"},
    ],
)
def test_a_request_that_contradicts_itself_is_refused(init: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="init none of order"):
        target_request(**init)


async def test_a_container_that_is_sent_again_after_the_late_gate_finds_it_open(pod: Pod) -> None:
    """The kubelet may make the sandbox anew within the freeze: then everything comes again."""
    await pod.reach_the_late_gate()
    pod.b.registers.reachable = False
    await pod.a.migrations.put_source(source_request())
    await until("the late gate ends", lambda: "gate" in pod.b.passed)
    ticket = pod.b.layout.ticket(TARGET_POD)
    for name in pod.b.passed:
        (ticket / f"passed.{name}").unlink()
    for name in ("pull", "before", "gate"):
        await pod.passes(name)
    pod.b.registers.reachable = True
    pod.b.create()
    await pod.settled()
    assert pod.b.ran == ("main",)
