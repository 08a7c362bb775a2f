"""The tasks to be killed are real processes."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Generator
from dataclasses import dataclass

import pytest

from migration_agent.runtime.containerd import Containerd
from migration_agent.runtime.interface import RuntimeFailure
from support.fake_host import FakeHost, write
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


def share_pid_namespace(host: FakeHost, name: str, processes: list[subprocess.Popen[bytes]]) -> None:
    namespace = write(host.root / f"namespaces/{name}", "")
    for process in processes:
        link = host.root / f"proc/{process.pid}/ns/pid"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(namespace)


def test_i1_tasks_that_runc_does_not_list_die_all_the_same(
    containerd: Containerd, host: FakeHost, runc: FakeRunc, frozen: Frozen
) -> None:
    """With cgroup v1 runc lists the `devices` hierarchy, and systemd may have moved the tasks elsewhere in it."""
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    runc.listed["abc"] = []
    share_pid_namespace(host, "of-the-container", frozen.processes)
    ended_before_thaw: list[int | None] = []
    runc.on_resume = lambda: ended_before_thaw.extend(process.wait(10) for process in frozen.processes)
    containerd.kill_frozen(container)
    assert ended_before_thaw == [-signal.SIGKILL] * 3


def test_i1_a_container_whose_first_process_is_not_found_stays_frozen(
    containerd: Containerd, runc: FakeRunc, frozen: Frozen
) -> None:
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    runc.listed["abc"] = []
    with pytest.raises(RuntimeFailure, match="not among the tasks"):
        containerd.kill_frozen(container)
    assert runc.status["abc"] == "paused"
    assert all(process.poll() is None for process in frozen.processes)


def test_what_is_left_frozen_of_a_dead_container_is_thawed(
    containerd: Containerd, host: FakeHost, runc: FakeRunc, frozen: Frozen
) -> None:
    """With cgroup v1 a frozen group outlives its tasks; runc calls that paused, and containerd cannot delete it."""
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    runc.listed["abc"] = []
    (host.root / f"proc/{container.init_pid}/stat").unlink()
    containerd.kill_frozen(container)
    assert runc.status["abc"] == "running"


def test_a_pid_that_is_another_process_by_now_leads_to_nobody(
    containerd: Containerd, host: FakeHost, runc: FakeRunc, frozen: Frozen
) -> None:
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    runc.listed["abc"] = []
    share_pid_namespace(host, "of-another-container", frozen.processes)
    later = f"{container.init_pid} (x) " + " ".join(str(i) for i in range(4, 54))
    write(host.root / f"proc/{container.init_pid}/stat", later)
    containerd.kill_frozen(container)
    assert all(process.poll() is None for process in frozen.processes)


def test_the_hosts_own_pid_namespace_is_nobodys_container(
    containerd: Containerd, host: FakeHost, runc: FakeRunc, frozen: Frozen
) -> None:
    """A pod with hostPID shares it with the whole node."""
    container = the_one(containerd)
    runc.status["abc"] = "paused"
    runc.listed["abc"] = [frozen.processes[0].pid]
    share_pid_namespace(host, "of-the-node", frozen.processes)
    (host.root / "proc/1/ns").mkdir(parents=True)
    (host.root / "proc/1/ns/pid").symlink_to(host.root / "namespaces/of-the-node")
    containerd.kill_frozen(container)
    assert frozen.processes[0].wait(10) == -signal.SIGKILL
    assert [process.poll() for process in frozen.processes[1:]] == [None, None]


def test_killing_what_has_ended_is_done(containerd: Containerd, runc: FakeRunc, frozen: Frozen) -> None:
    container = the_one(containerd)
    del runc.status["abc"]
    containerd.kill_frozen(container)
    assert all(process.poll() is None for process in frozen.processes), "no pid is touched that runc does not list"
