"""What Podman is told and how its answers are read, with the words of Podman 5.4.2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from migration_agent.archive.names import NotTransferable
from migration_agent.archive.whole import demand_whole
from migration_agent.podman_facts import podman_facts
from migration_agent.runtime.interface import RuntimeFailure
from migration_agent.runtime.podman import Podman
from migration_api.podman import PodmanQuestion
from support.archives import CONFIG, file, podman_archive
from support.fake_host import Call, FakeHost, fails, write

ID = "8d6b7460149066a121e86187482db3e3c58aba894953800f4a13054b6228a517"
STATIC = f"/var/lib/containers/storage/overlay-containers/{ID}/userdata"
INSPECTED: dict[str, Any] = {
    "Id": ID,
    "Name": "ctr1",
    "State": {"Status": "running", "Pid": 1339, "ConmonPid": 1337, "RestoredAt": "0001-01-01T00:00:00Z"},
    "Image": "86a79590175d",
    "ImageName": "localhost/workload:dev",
    "Pod": "",
    "StaticDir": STATIC,
    "SizeRw": 10,
    "Mounts": [],
    "Dependencies": [],
    "Config": {"Labels": None, "HealthcheckOnFailureAction": "none"},
    "HostConfig": {
        "NetworkMode": "none",
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "Cgroups": "default",
    },
}
MONITOR = f"/usr/bin/conmon --api-version 1 -c {ID} -u {ID} -r /usr/bin/crun --restore /x --exit-command-arg container"


def inspected(**changes: Any) -> str:
    return json.dumps([{**INSPECTED, **changes}])


def podman(tmp_path: Path, printed: str = "", error: str = "", returncode: int = 125) -> Podman:
    def answer(call: Call) -> str:
        if error:
            raise fails(call, error, returncode)
        return printed

    return Podman(FakeHost(root=tmp_path, answer=answer))


def test_a_container_is_described(tmp_path: Path) -> None:
    it = podman(tmp_path, inspected()).look("ctr1")
    assert it is not None
    assert (it.id, it.name, it.running, it.pid, it.restored, it.checkpoint) == (ID, "ctr1", True, 1339, False, None)
    assert (it.volumes, it.binds, it.dependencies, it.restart_policy, it.systemd_unit) == ((), (), (), "", "")
    assert it.began
    assert it.cgroups
    assert not it.host_network


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"Mounts": [{"Type": "volume", "Name": "data", "Destination": "/data"}]}, "volumes", ("data",)),
        ({"Mounts": [{"Type": "image", "Name": "", "Destination": "/tools"}]}, "volumes", ("/tools",)),
        ({"Mounts": [{"Type": "bind", "Source": "/srv", "Destination": "/srv"}]}, "binds", ("/srv",)),
        ({"Mounts": [{"Type": "tmpfs", "Destination": "/scratch"}]}, "volumes", ()),
        ({"Dependencies": ["a"]}, "dependencies", ("a",)),
        ({"Dependencies": None}, "dependencies", ()),
        ({"HostConfig": {"RestartPolicy": {"Name": "always"}}}, "restart_policy", "always"),
        ({"Config": {"HealthcheckOnFailureAction": "restart"}}, "restart_policy", "health check: restart"),
        ({"Config": {"Labels": {"PODMAN_SYSTEMD_UNIT": "x.service"}}}, "systemd_unit", "x.service"),
        ({"HostConfig": {"AutoRemove": True}}, "auto_remove", True),
        ({"HostConfig": {"Cgroups": "disabled"}}, "cgroups", False),
        ({"HostConfig": {"NetworkMode": "host"}}, "host_network", True),
        ({"State": {"Status": "created", "Pid": 0}}, "began", False),
        ({"State": {"Status": "exited", "Pid": 0, "Restored": True}}, "began", True),
    ],
)
def test_what_stands_against_a_move_is_seen(tmp_path: Path, changes: Any, field: str, value: object) -> None:
    assert getattr(podman(tmp_path, inspected(**changes)).look("ctr1"), field) == value


def test_a_checkpoint_counts_when_its_inventory_is_there(tmp_path: Path) -> None:
    directory = tmp_path / "proc/1/root" / STATIC.lstrip("/") / "checkpoint"
    directory.mkdir(parents=True)
    it = podman(tmp_path, inspected())
    assert (found := it.look(ID)) is not None
    assert found.checkpoint is None
    (directory / "inventory.img").touch()
    assert (found := it.look(ID)) is not None
    assert found.checkpoint == Path(STATIC) / "checkpoint"


def test_no_container_is_no_failure_and_a_part_of_an_id_names_none(tmp_path: Path) -> None:
    assert podman(tmp_path, error='Error: no such container "ctr1"').look("ctr1") is None
    assert podman(tmp_path, inspected()).look(ID[:12]) is None
    with pytest.raises(RuntimeFailure, match="lock"):
        podman(tmp_path, error="acquiring lock 0 for container").look("ctr1")
    with pytest.raises(RuntimeFailure, match="not understood"):
        podman(tmp_path, "{").look("ctr1")


def test_a_node_without_podman_says_so(tmp_path: Path) -> None:
    it = podman(tmp_path, error="podman: not found", returncode=127)
    assert it.trouble() == "Podman is not installed there"
    facts = podman_facts(it, PodmanQuestion(container="ctr1"), lambda _: None)
    assert facts.problem == "Podman is not installed there"
    with pytest.raises(RuntimeFailure, match="not installed"):
        it.look("ctr1")


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (f"podman container checkpoint --export /run/a.tar {ID}", True),
        ("nsenter --target 1 -- sh -c script sh podman container restore --import /run/a.tar --file-locks", True),
        (f"podman container rm --force --time 0 {ID}", True),
        (f"podman container inspect {ID}", False),
        (f"podman container cleanup {ID}", False),
        ("podman container restore --import /run/b.tar", False),
        (MONITOR, False),
    ],
)
def test_commands_that_are_under_way_are_found_by_their_words(tmp_path: Path, argv: str, *, expected: bool) -> None:
    write(tmp_path / "proc/77/cmdline", argv.replace(" ", "\0") + "\0")
    write(tmp_path / "proc/77/status", "Name:\tpodman\nNSpid:\t77\n")
    (tmp_path / "proc/self").mkdir()
    assert podman(tmp_path).under_way(ID, "/run/a.tar") is expected


def test_i8_what_a_process_in_a_container_calls_itself_keeps_nobody_waiting(tmp_path: Path) -> None:
    write(tmp_path / "proc/77/cmdline", f"podman\0container\0restore\0{ID}\0")
    write(tmp_path / "proc/77/status", "Name:\tpodman\nNSpid:\t77\t1\n")
    assert not podman(tmp_path).under_way(ID)


def test_processes_are_found_by_their_cgroup(tmp_path: Path) -> None:
    write(tmp_path / "proc/77/cgroup", f"6:freezer:/libpod_parent/libpod-{ID}\n")
    write(tmp_path / "proc/78/cgroup", "0::/../../machine.slice/libpod-conmon-" + ID)
    write(tmp_path / "proc/79/cgroup", f"0::/../../machine.slice/libpod-{ID}.scope/container\n")
    assert sorted(podman(tmp_path).processes(ID)) == [77, 79]


def test_a_removed_container_leaves_no_cgroups_in_which_the_next_restore_would_fail(tmp_path: Path) -> None:
    hierarchy = tmp_path / "proc/1/root/sys/fs/cgroup/devices/libpod_parent"
    (hierarchy / f"libpod-{ID}/.proxy-crun").mkdir(parents=True)
    (hierarchy / "libpod-other").mkdir()
    (tmp_path / "proc/1/cmdline").touch()
    podman(tmp_path).remove(ID)
    assert [it.name for it in hierarchy.iterdir()] == ["libpod-other"]


def test_criu_s_own_words_are_in_the_failure(tmp_path: Path) -> None:
    log = f"{STATIC}/restore.log"
    write(tmp_path / "proc/1/root" / log.lstrip("/"), "x\n(00.1) Error (criu/image.c): no pages here\n")
    message = f"Error: OCI runtime error: crun: CRIU restoring failed -52. Please check CRIU logfile `{log}`"
    with pytest.raises(RuntimeFailure, match="no pages here"):
        podman(tmp_path, error=message).restore(ID)


def test_an_archive_is_whole_and_of_that_very_container(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(podman_archive())
    demand_whole(path, CONFIG["id"], CONFIG["name"])  # pyright: ignore[reportArgumentType]
    for container_id, name in (("6" * 64, "web"), ("5" * 64, "other")):
        with pytest.raises(NotTransferable, match="another container"):
            demand_whole(path, container_id, name)


@pytest.mark.parametrize("missing", ["checkpoint/inventory.img", "config.dump", "spec.dump"])
def test_s6_an_archive_that_lacks_something_is_refused(tmp_path: Path, missing: str) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(podman_archive(without=(missing,)))
    with pytest.raises(NotTransferable, match=f"no {missing}"):
        demand_whole(path, "5" * 64, "web")


def test_s6_an_archive_that_is_cut_off_or_leads_out_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "archive.tar"
    whole = podman_archive(file("checkpoint/pages-1.img", b"p" * 100_000))
    for count in (512, 5000, len(whole) - 60_000, len(whole) - 10_240):
        path.write_bytes(whole[:count])
        with pytest.raises(NotTransferable):
            demand_whole(path, "5" * 64, "web")
    path.write_bytes(podman_archive(file("../config.dump")))
    with pytest.raises(NotTransferable, match="leads out"):
        demand_whole(path, "5" * 64, "web")


def test_a_question_is_answered(tmp_path: Path) -> None:
    def answer(call: Call) -> str:
        if "criu" in call.argv:
            assert "/opt/container-migration" not in call.env["PATH"], "Podman does not see the agent's CRIU"
            return "Version: 4.2.1\n"
        if "image" in call.argv:
            raise fails(call, "Error: none: image not known", 125)
        return "5.4.2" if "version" in call.argv else inspected(State={"Status": "exited"})

    write(tmp_path / "proc/1/root/srv", "")
    it = Podman(FakeHost(root=tmp_path, answer=answer))
    question = PodmanQuestion(container="ctr1", image_name="none", paths=("/srv", "/gone"))
    facts = podman_facts(it, question, lambda _: "m")
    assert (facts.criu_version, facts.image_id, facts.missing_paths) == ("4.2.1", "", ("/gone",))
    assert facts.container is not None
    assert (facts.container.status, facts.container.changed_bytes, facts.container.migration) == ("exited", 10, "m")
