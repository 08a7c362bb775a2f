from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from migration_agent.runtime.containerd import Containerd
from migration_agent.runtime.interface import ContainerStatus, RuntimeFailure
from support.fake_host import Call, FakeHost, fails, write
from support.fake_runc import BUNDLES, POD, FakeRunc, the_one


def test_a_pods_containers_are_found_by_their_bundles(containerd: Containerd, add: Callable[..., None]) -> None:
    add("sandbox", name="", pid=1)
    add("first", name="b", age=20)
    add("second", name="a", age=10, pid=101)
    add("foreign", pod="another")
    found = containerd.containers(POD)
    assert [(c.name, c.container_id, c.init_pid, c.init_start, c.runtime) for c in found] == [
        ("b", "first", 100, 22, "runc"),
        ("a", "second", 101, 22, "runc"),
    ]
    assert found[0].bundle == Path("/") / BUNDLES / "first"


def test_of_a_restarted_container_the_newest_counts(containerd: Containerd, add: Callable[..., None]) -> None:
    add("old", age=100, status="stopped")
    add("new", age=50)
    assert the_one(containerd).container_id == "new"


def test_containers_that_have_ended_are_no_containers(
    containerd: Containerd, runc: FakeRunc, add: Callable[..., None]
) -> None:
    add("ended", status="stopped")
    add("forgotten", name="other")
    del runc.status["forgotten"]
    assert containerd.containers(POD) == ()
    assert containerd.containers("") == ()


def test_a_broken_bundle_does_not_hide_the_others(
    containerd: Containerd, host: FakeHost, add: Callable[..., None]
) -> None:
    add("good")
    write(host.root / BUNDLES / "broken/config.json", "{")
    write(host.root / BUNDLES / "strange/config.json", "[]")
    write(host.root / BUNDLES / "strange/options.json", "{}")
    write(host.root / BUNDLES / "huge/config.json", " " * (9 << 20))
    assert the_one(containerd).container_id == "good"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["runc", "--root", "/run/containerd/runc/k8s.io"]),
        ({"systemd_cgroup": True}, ["runc", "--root", "/run/containerd/runc/k8s.io", "--systemd-cgroup"]),
        ({"binary_name": "/usr/sbin/runc", "root": "/run/r"}, ["/usr/sbin/runc", "--root", "/run/r/k8s.io"]),
        (
            {"binary_name": "/opt/container-migration/bin/runc-migratable"},
            ["runc", "--root", "/run/containerd/runc/k8s.io"],
        ),
    ],
)
def test_runc_is_called_as_the_shim_calls_it(
    containerd: Containerd, host: FakeHost, add: Callable[..., None], options: dict[str, object], expected: list[str]
) -> None:
    add("abc", options=options or {"unknown": 1})
    container = the_one(containerd)
    assert container.runtime == "runc"
    assert list(host.calls[0].argv) == [*expected, "state", "abc"]


def test_memory_is_what_a_checkpoint_holds(
    containerd: Containerd, host: FakeHost, runc: FakeRunc, add: Callable[..., None]
) -> None:
    add("abc")
    runc.pids["abc"] = [100, 101, 102]
    rollup = (
        "00400000-7ff0 ---p 00000000 00:00 0 [rollup]\nRss: 900 kB\nPss_Shmem: 5 kB\nAnonymous: 30 kB\nSwap: 2 kB\n"
    )
    write(host.root / "proc/100/smaps_rollup", rollup)
    write(host.root / "proc/101/smaps_rollup", rollup)
    assert the_one(containerd).memory_bytes == 2 * 37 * 1024


def test_the_network_is_entered_through_the_newest_sandbox(containerd: Containerd, add: Callable[..., None]) -> None:
    assert containerd.network_pid(POD) is None
    add("old", name="", age=10, pid=7, status="stopped")
    add("new", name="", age=5, pid=8)
    add("app", pid=9)
    assert containerd.network_pid(POD) == 8


def test_a_dead_sandbox_has_no_network(containerd: Containerd, add: Callable[..., None]) -> None:
    add("sandbox", name="", status="stopped")
    assert containerd.network_pid(POD) is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("created", ContainerStatus.RUNNING),
        ("running", ContainerStatus.RUNNING),
        ("paused", ContainerStatus.PAUSED),
        ("stopped", ContainerStatus.STOPPED),
    ],
)
def test_status(
    containerd: Containerd, runc: FakeRunc, add: Callable[..., None], status: str, expected: ContainerStatus
) -> None:
    add("abc")
    container = the_one(containerd)
    runc.status["abc"] = status
    assert containerd.status(container) is expected


def test_a_container_that_runc_forgot_is_stopped(
    containerd: Containerd, runc: FakeRunc, add: Callable[..., None]
) -> None:
    add("abc")
    container = the_one(containerd)
    del runc.status["abc"]
    assert containerd.status(container) is ContainerStatus.STOPPED
    containerd.resume(container)
    with pytest.raises(RuntimeFailure, match="it has ended"):
        containerd.pause(container)


def test_an_unreadable_bundle_is_not_taken_for_a_stopped_container(
    containerd: Containerd, host: FakeHost, add: Callable[..., None]
) -> None:
    add("abc")
    container = the_one(containerd)
    write(host.root / BUNDLES / "abc/config.json", "{")
    with pytest.raises(RuntimeFailure, match="could not be read"):
        containerd.status(container)


@pytest.mark.parametrize("answer", ["", "[]", '{"status": "undead", "pid": 1}'])
def test_a_state_that_is_not_understood_is_a_failure(
    containerd: Containerd, host: FakeHost, add: Callable[..., None], answer: str
) -> None:
    add("abc")
    container = the_one(containerd)
    host.answer = lambda _: answer
    with pytest.raises(RuntimeFailure, match="not understood"):
        containerd.status(container)


def test_pausing_and_resuming_can_be_repeated(containerd: Containerd, runc: FakeRunc, add: Callable[..., None]) -> None:
    add("abc")
    container = the_one(containerd)
    containerd.pause(container)
    containerd.pause(container)
    assert runc.status["abc"] == "paused"
    containerd.resume(container)
    containerd.resume(container)
    assert runc.status["abc"] == "running"


@pytest.mark.parametrize(("misses", "message"), [(4, ""), (5, "unable to freeze"), (1, "no space left on device")])
def test_a_task_that_the_freezer_misses_is_caught_at_another_attempt(
    containerd: Containerd, runc: FakeRunc, add: Callable[..., None], misses: int, message: str
) -> None:
    add("abc")
    said = iter([message or "unable to freeze"] * misses)

    def miss(call: Call) -> None:
        if reason := next(said, ""):
            raise fails(call, f'level=error msg="{reason}"')

    runc.on_pause = miss
    if not message:
        containerd.pause(the_one(containerd))
        assert runc.status["abc"] == "paused"
        return
    with pytest.raises(RuntimeFailure, match=message):
        containerd.pause(the_one(containerd))
    assert next(said, None) is None, "it was tried as often as makes sense"
    assert runc.status["abc"] == "running"


def test_a_resume_that_fails_is_a_failure_while_the_container_is_paused(
    containerd: Containerd, runc: FakeRunc, host: FakeHost, add: Callable[..., None]
) -> None:
    add("abc")
    container = the_one(containerd)
    containerd.pause(container)

    def broken() -> None:
        raise fails(host.calls[-1], "freezer: device busy")

    runc.on_resume = broken
    with pytest.raises(RuntimeFailure, match="device busy"):
        containerd.resume(container)
