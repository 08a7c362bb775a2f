"""The tasks to be killed are real processes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest

from migration_agent.runtime.containerd import Containerd
from support.fake_host import FakeHost
from support.fake_runc import FakeRunc, the_one


@dataclass
class Frozen:
    """Real processes that are stopped, as the tasks of a paused container; `runc resume` continues them."""

    processes: list[subprocess.Popen[bytes]]

    def thaw(self) -> None:
        for process in self.processes:
            process.send_signal(signal.SIGCONT)


@pytest.fixture
def frozen(runc: FakeRunc, add: Callable[..., None]) -> Generator[Frozen]:
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    add("abc", status="running", pid=processes[0].pid)
    runc.pids["abc"] = [process.pid for process in processes]
    frozen = Frozen(processes)
    runc.on_resume = frozen.thaw
    yield frozen
    for process in processes:
        process.kill()
        process.wait()


def test_every_task_dies_by_the_signal(containerd: Containerd, runc: FakeRunc, frozen: Frozen) -> None:
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    containerd.kill_frozen(container)
    assert [process.wait(10) for process in frozen.processes] == [-signal.SIGKILL] * 3


def test_the_signal_is_sent_before_the_thaw(containerd: Containerd, runc: FakeRunc, frozen: Frozen) -> None:
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    ended_before_thaw: list[int | None] = []
    runc.on_resume = lambda: ended_before_thaw.extend(process.wait(10) for process in frozen.processes)
    containerd.kill_frozen(container)
    assert ended_before_thaw == [-signal.SIGKILL] * 3


def test_a_running_container_is_paused_first(
    containerd: Containerd, host: FakeHost, runc: FakeRunc, frozen: Frozen
) -> None:
    container = the_one(containerd)
    host.calls.clear()
    containerd.kill_frozen(container)
    verbs = [call.argv[4] for call in host.calls]
    assert verbs.index("pause") < verbs.index("ps") < verbs.index("resume")
    assert [process.wait(10) for process in frozen.processes] == [-signal.SIGKILL] * 3


def test_killing_what_has_ended_is_done(containerd: Containerd, runc: FakeRunc, frozen: Frozen) -> None:
    container = the_one(containerd)
    del runc.status["abc"]
    containerd.kill_frozen(container)
    assert all(process.poll() is None for process in frozen.processes), "no pid is touched that runc does not list"
