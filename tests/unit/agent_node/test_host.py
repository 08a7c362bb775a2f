from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from migration_agent.host import (
    CommandFailed,
    Host,
    boottime_ns,
    is_isolated,
    isolation_script,
    last_lines,
    wait_for_exit,
)


def test_output_and_input_are_text() -> None:
    done = Host().run(["sh", "-c", "cat; echo problem >&2"], timeout=10, input="hello")
    assert (done.stdout, done.stderr, done.returncode) == ("hello", "problem\n", 0)


def test_environment_is_minimal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "secret")
    done = Host().run(["env"], timeout=10, env={"CRIU_CONFIG_FILE": "/x"})
    names = {line.partition("=")[0] for line in done.stdout.splitlines()}
    assert "CRIU_CONFIG_FILE" in names
    assert "SOME_TOKEN" not in names


def test_failure_says_the_command_its_code_and_its_last_lines() -> None:
    with pytest.raises(CommandFailed) as caught:
        Host().run(["sh", "-c", "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3"], timeout=10)
    assert caught.value.returncode == 3
    assert "ended with 3: line 3; line 4; line 5; line 6; line 7" in str(caught.value)


def test_missing_command_is_a_command_failed() -> None:
    with pytest.raises(CommandFailed, match="could not be started"):
        Host().run(["/does/not/exist"], timeout=10)


def test_timeout_kills_the_children_too(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    with pytest.raises(CommandFailed, match="killed after 1 s"):
        Host().run(["sh", "-c", f"sleep 1000 & echo $! > {note}; wait"], timeout=1)
    child = int(note.read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < deadline, "the child of a command that was killed still lives"
        time.sleep(0.01)


def test_paths_are_below_the_root(tmp_path: Path) -> None:
    host = Host(tmp_path)
    assert host.path("/run/x") == tmp_path / "run/x"
    assert host.host_file("/etc/containerd") == tmp_path / "proc/1/root/etc/containerd"


def test_process_start_survives_strange_command_names(tmp_path: Path) -> None:
    stat = tmp_path / "proc/7/stat"
    stat.parent.mkdir(parents=True)
    rest = " ".join(str(field) for field in range(3, 53))
    stat.write_text(f"7 (a) b (c) {rest}")
    host = Host(tmp_path)
    assert host.process_start(7) == 22
    assert host.process_start(8) is None


def test_process_start_of_this_process_is_in_the_past() -> None:
    start = Host().process_start(os.getpid())
    assert start is not None
    assert 0 < start / os.sysconf("SC_CLK_TCK") < boottime_ns() / 1e9


def test_boot_id_is_read(tmp_path: Path) -> None:
    file = tmp_path / "proc/sys/kernel/random/boot_id"
    file.parent.mkdir(parents=True)
    file.write_text("5a6c\n")
    assert Host(tmp_path).boot_id() == "5a6c"


def test_wait_for_exit_waits_for_all() -> None:
    processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    pidfds = [os.pidfd_open(process.pid) for process in processes]
    try:
        processes[0].kill()
        assert not wait_for_exit(pidfds, 0.05)
        signal.pidfd_send_signal(pidfds[1], signal.SIGKILL)
        assert wait_for_exit(pidfds, 10)
    finally:
        for process, pidfd in zip(processes, pidfds, strict=True):
            process.kill()
            process.wait()
            os.close(pidfd)


@pytest.mark.parametrize("group", ["", "container-migration"], ids=["first", "again"])
@pytest.mark.parametrize("hierarchies", [["memory", "freezer"], [""]], ids=["v1", "v2"])
def test_isolation_moves_into_an_own_cgroup_of_each_hierarchy(
    tmp_path: Path, hierarchies: list[str], group: str
) -> None:
    for hierarchy in hierarchies:
        (tmp_path / hierarchy / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / hierarchy / "cgroup.procs").touch()
    if hierarchies == [""]:
        (tmp_path / "cgroup.controllers").touch()
        (tmp_path / "other.slice").mkdir()
    script = isolation_script(str(tmp_path))
    done = Host().run(["sh", "-c", script, "sh", "sh", "-c", "echo $$ $0 $1", "a b", "c"], timeout=10)
    pid, _, arguments = done.stdout.strip().partition(" ")
    assert arguments == "a b c"
    for hierarchy in hierarchies:
        assert (tmp_path / hierarchy / "container-migration/cgroup.procs").read_text().strip() == pid
    assert not (tmp_path / "other.slice/container-migration").exists()


def test_isolation_that_fails_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "memory").write_text("not a directory")
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/container-migration").write_text("in the way")
    (tmp_path / "cpu/cgroup.procs").mkdir()
    done = Host().run(["sh", "-c", isolation_script(str(tmp_path)), "sh", "echo", "went on"], timeout=10)
    assert (done.stdout, done.stderr) == ("went on\n", "")


@pytest.mark.parametrize(
    ("own", "isolated"),
    [
        ("0::/container-migration\n", True),
        ("0::/kubepods/pod1/abc\n", False),
        ("4:memory:/container-migration\n3:cpuset:/\n0::/\n", True),
        ("4:memory:/kubepods/pod1\n3:cpu,cpuacct:/container-migration\n0::/container-migration\n", False),
        ("", False),
    ],
)
def test_isolation_is_about_memory(own: str, isolated: bool) -> None:
    assert is_isolated(own) is isolated


def test_last_lines_is_one_bounded_line() -> None:
    assert last_lines("a\n\n b \nc\n", 2) == "b; c"
    assert len(last_lines("x" * 5000)) == 1000


def test_a_processs_status_says_who_traces_it_and_which_pid_it_has_in_its_container(tmp_path: Path) -> None:
    host = Host(tmp_path)
    for pid, tracer, pids in ((7, 9, "7\t1"), (8, 0, "8\t12"), (9, 0, "9")):
        (tmp_path / f"proc/{pid}").mkdir(parents=True)
        (tmp_path / f"proc/{pid}/status").write_text(f"Name:\tx\nTracerPid:\t{tracer}\nNSpid:\t{pids}\n")
    assert [host.tracer(pid) for pid in (7, 8, 99)] == [9, None, None]
    assert [host.pid_in_namespace_of(7, pid) for pid in (7, 8, 9, 99)] == [1, 12, None, None]
