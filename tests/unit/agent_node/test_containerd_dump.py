from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from migration_agent.checkpoint.post_dump import Answer, PostDumpBroker
from migration_agent.runtime.containerd import Containerd
from migration_agent.runtime.interface import ContainerStatus, Dump, RuntimeFailure
from support.fake_host import Call, FakeHost, fails, write
from support.fake_runc import BUNDLES, FakeRunc, the_one


@dataclass
class Dumping:
    """A paused container with an upper directory, to be dumped."""

    containerd: Containerd
    host: FakeHost
    runc: FakeRunc
    broker: PostDumpBroker
    dump: Dump

    def hook(self) -> Answer:
        return self.broker.arrived("migration", "app")

    def run(self, while_frozen: Callable[[], None] | None = None) -> Call:
        self.containerd.prepare(self.dump)
        self.containerd.dump(self.dump, file_locks=True, while_frozen=while_frozen)
        return next(call for call in self.host.calls if "checkpoint" in call.argv)


CONFIGURATION = "/run/container-migration/criu/abc.conf"


@pytest.fixture
def criu_config() -> str:
    """The container's annotation `org.criu.config`; tests give it another value by a parameter."""
    return ""


@pytest.fixture
def dumping(
    containerd: Containerd, host: FakeHost, broker: PostDumpBroker, add: Callable[..., None], criu_config: str
) -> Dumping:
    add("abc", annotations={"org.criu.config": criu_config} if criu_config else {})
    upper = "/var/lib/containerd/snapshots/1/fs"
    write(host.host_file(upper) / "file", "changed")
    write(
        host.root / "proc/1/mountinfo",
        f"1 2 0:1 / /{BUNDLES}/abc/rootfs rw - overlay overlay rw,upperdir={upper},workdir=/w\n",
    )
    for name in ("tmp", "srv/deeper", "no single\nword"):
        (host.root / "proc/100/root" / name).mkdir(parents=True)
    (host.root / "proc/100/root/bin").symlink_to("usr/bin")
    container = the_one(containerd)
    containerd.pause(container)
    dump = Dump(container, host.root / "run/container-migration/images/migration/app", "migration")
    assert isinstance(host.answer, FakeRunc)
    runc = host.answer
    dumping = Dumping(containerd, host, runc, broker, dump)

    def checkpoint(_: Call) -> None:
        assert dumping.hook() is Answer.DONE

    runc.on_checkpoint = checkpoint
    return dumping


def test_dump_checkpoints_and_copies_the_changes_in_its_hook(dumping: Dumping) -> None:
    frozen: list[str] = []
    call = dumping.run(lambda: frozen.append("called"))
    directory = dumping.dump.directory
    assert list(call.argv) == [
        *("runc", "--root", "/run/containerd/runc/k8s.io", "--systemd-cgroup", "checkpoint"),
        *("--image-path", f"{directory}/images", "--work-path", f"{directory}/work"),
        *("--leave-running", "--tcp-established", "--tcp-skip-in-flight", "--link-remap", "--file-locks"),
        *("--manage-cgroups-mode", "ignore", "abc"),
    ]
    assert call.env == {"CRIU_CONFIG_FILE": CONFIGURATION}
    assert frozen == ["called"]
    assert (directory / "rootfs-diff.tar").stat().st_size > 0
    assert json.loads((directory / "hook.json").read_text()) == {
        "socket": "/run/container-migration/agent.sock",
        "migration": "migration",
        "container": "app",
    }


def test_whoever_stands_still_is_seen_without_runc_and_nobody_else(
    dumping: Dumping, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_pidfd = os.pidfd_open

    def own(pid: int, flags: int = 0) -> int:  # the test's pids are no processes
        return open_pidfd(os.getpid(), flags)

    monkeypatch.setattr(os, "pidfd_open", own)
    host, container = dumping.host, dumping.dump.container
    write(host.root / f"proc/{container.init_pid}/cgroup", "7:freezer:/kubelet/abc\n")
    state = host.root / "proc/1/root/sys/fs/cgroup/freezer/kubelet/abc/freezer.state"
    write(state, "FROZEN\n")
    host.calls.clear()
    assert dumping.containerd.status(container) is ContainerStatus.PAUSED
    assert host.calls == []
    for frozen, it in (("THAWED\n", container), ("FROZEN\n", replace(container, init_start=container.init_start + 1))):
        write(state, frozen)
        dumping.containerd.status(it)
        assert [call.argv[0] for call in host.calls] == ["runc"], "runc says what it is"
        host.calls.clear()


def test_dump_leaves_nothing_that_others_can_read(dumping: Dumping) -> None:
    dumping.run()
    root = dumping.host.root / "run/container-migration"
    modes = {stat.S_IMODE(path.stat().st_mode) for path in root.rglob("*")}
    assert modes <= {0o700, 0o600, 0o755}
    for private in ("images/migration/app", "images/migration/app/images", "criu"):
        assert stat.S_IMODE((root / private).stat().st_mode) == 0o700


def test_a_dump_describes_itself(dumping: Dumping) -> None:
    config = dumping.host.root / BUNDLES / "abc/config.json"
    spec = json.loads(config.read_text())
    spec["annotations"]["io.kubernetes.cri.image-name"] = "registry.example/app:1"
    spec["process"] = {"args": ["app"]}
    config.write_text(json.dumps(spec))
    checkpoint = dumping.runc.on_checkpoint

    def with_statistics(call: Call) -> None:
        checkpoint(call)
        write(dumping.dump.directory / "work/stats-dump", "statistics")

    dumping.runc.on_checkpoint = with_statistics
    dumping.run()
    directory = dumping.dump.directory
    assert json.loads((directory / "spec.dump").read_text()) == spec
    described = json.loads((directory / "config.dump").read_text())
    assert (
        described.items()
        >= {
            "id": "abc",
            "name": "app",
            "rootfsImageName": "registry.example/app:1",
            "runtime": "runc",
            "createdTime": "1970-01-12T13:46:40+00:00",
            "restored": False,
        }.items()
    )
    assert (directory / "stats-dump").read_text() == "statistics"
    modes = {stat.S_IMODE((directory / name).stat().st_mode) for name in ("spec.dump", "config.dump", "stats-dump")}
    assert modes == {0o600}


def test_criu_is_told_by_a_file_written_anew(dumping: Dumping) -> None:
    file = write(dumping.host.path(CONFIGURATION), "tcp-close\n")
    dumping.run()
    assert file.read_text().splitlines() == [
        "action-script /opt/container-migration/bin/runc-migratable",
        "network-lock skip",
        "ghost-limit 256M",
        "irmap-scan-path /srv",
        "irmap-scan-path /tmp",
    ]


@pytest.mark.parametrize("criu_config", [CONFIGURATION])
def test_a_restored_container_names_the_file_itself(dumping: Dumping) -> None:
    assert dumping.run().env == {}
    assert dumping.host.path(CONFIGURATION).exists()


@pytest.mark.parametrize(
    "criu_config", ["/etc/evil.conf", "/run/container-migration/criu/other.conf", CONFIGURATION + "/"]
)
def test_a_foreign_criu_configuration_is_refused(dumping: Dumping) -> None:
    with pytest.raises(RuntimeFailure, match=r"annotation org\.criu\.config"):
        dumping.run()
    assert not [call for call in dumping.host.calls if "checkpoint" in call.argv]


def test_a_container_of_another_runtime_is_not_dumped(dumping: Dumping) -> None:
    options = dumping.host.root / BUNDLES / "abc/options.json"
    options.write_text('{"binary_name": "/usr/bin/crun"}')
    with pytest.raises(RuntimeFailure, match="only runc can migrate"):
        dumping.run()


def test_a_failed_dump_says_what_criu_said_and_stays_paused(dumping: Dumping) -> None:
    def checkpoint(call: Call) -> None:
        log = "(00.1) fine\n" + "".join(f"(00.{n}) Error (criu/x.c:{n}): reason {n}\n" for n in range(5))
        write(dumping.dump.directory / "work/dump.log", log)
        dumping.runc.status["abc"] = "running"
        raise fails(call, "criu failed: type NOTIFY errno 0")

    dumping.runc.on_checkpoint = checkpoint
    with pytest.raises(RuntimeFailure) as caught:
        dumping.run()
    message = str(caught.value)
    assert message.startswith("the checkpoint of container app failed: ")
    assert [f"reason {n}" in message for n in range(5)] == [False, False, True, True, True]
    assert dumping.runc.status["abc"] == "paused"


@pytest.mark.parametrize(
    ("line", "means"),
    [
        (
            "Error (criu/sk-unix.c:881): unix: Can't dump half of stream unix connection. name: /x",
            "a Unix socket in it",
        ),
        (
            "Error (criu/sk-unix.c:1): unix: External socket is used. Consider using --ext-unix-sk",
            "a Unix socket in it",
        ),
        (
            "Error (criu/files-reg.c:1031): Can't dump ghost file /tmp/#1 of 9 size, increase limit",
            "larger than 256 MiB",
        ),
        ("Error (criu/fsnotify.c:284): fsnotify: Can't dump that handle", "watches (inotify"),
        (
            "Error (compel/src/lib/infect-rpc.c:44): Message reply from daemon is trimmed (0/28)",
            "io_uring,",
        ),
        (
            "Error (criu/files-ext.c:96): Can't dump file 3 of that type [600] (unknown anon_inode:[io_uring])",
            "io_uring,",
        ),
        ("Error (criu/files-ext.c:96): Can't dump file 3 of that type [20600] (chr 10:229)", "a device or another"),
        ("Error (criu/files-reg.c:1790): Can't lookup mount=119 for fd=2 path=/x", "not mounted in the container"),
    ],
)
def test_what_criu_says_is_said_in_a_sentence_first(dumping: Dumping, line: str, means: str) -> None:
    def checkpoint(call: Call) -> None:
        write(dumping.dump.directory / "work/dump.log", f"(00.1) {line}\n(00.2) Error (criu/x.c:1): Dumping FAILED.\n")
        raise fails(call, "criu failed")

    dumping.runc.on_checkpoint = checkpoint
    with pytest.raises(RuntimeFailure) as caught:
        dumping.run()
    message = str(caught.value)
    assert means in message.partition(" (CRIU: ")[0]
    assert line in message.partition(" (CRIU: ")[2]
    assert "Dumping FAILED" in message


def test_a_failed_dump_without_a_log_says_what_runc_said(dumping: Dumping) -> None:
    def checkpoint(call: Call) -> None:
        raise fails(call, "criu: executable file not found in $PATH")

    dumping.runc.on_checkpoint = checkpoint
    with pytest.raises(RuntimeFailure, match="executable file not found"):
        dumping.run()


def test_what_fails_in_the_hook_is_the_reason(dumping: Dumping) -> None:
    def checkpoint(call: Call) -> None:
        assert dumping.hook() is Answer.FAIL
        write(dumping.dump.directory / "work/dump.log", "Error (criu/action-scripts.c:1): one script failed\n")
        raise fails(call, "criu failed")

    def full() -> None:
        raise OSError("the volume is full")

    dumping.runc.on_checkpoint = checkpoint
    with pytest.raises(RuntimeFailure, match="the volume is full"):
        dumping.run(full)


def test_a_dump_without_its_hook_is_no_dump(dumping: Dumping) -> None:
    dumping.runc.on_checkpoint = lambda _: None
    with pytest.raises(RuntimeFailure, match="did not run its hook"):
        dumping.run()


def test_a_second_dump_starts_from_nothing(dumping: Dumping) -> None:
    write(dumping.dump.directory / "images/left-over.img", "old")
    dumping.run()
    assert not (dumping.dump.directory / "images/left-over.img").exists()
