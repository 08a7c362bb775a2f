"""Podman's own containers move as the first version of this project moved them, and never run twice."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint
from migration_api.preflight_reasons import PreflightReason as Why
from support import machine
from support.archives import checkpointctl
from support.cluster import SYSTEM, Kubectl, able, condition, wait_for
from support.migration import WORKLOAD
from support.podmans import COUNTER, Podmans
from support.stores import Folder
from support.testbed import Testbed

pytestmark = [pytest.mark.testbed, pytest.mark.usefixtures("clean_nodes")]


@pytest.fixture(scope="module")
def podman_in_nodes(testbed: Testbed) -> None:
    """Podman in every node; its packages are outside the cluster's network."""
    Testbed(testbed.name, machine.machines_network())("add", "podman", timeout=600)


@pytest.fixture
def podmans(kubectl: Kubectl, nodes: tuple[str, str], podman_in_nodes: None) -> Iterator[Podmans]:
    del podman_in_nodes
    it = Podmans(kubectl, *nodes)
    it.clear()
    it.load()
    yield it
    it.clear()


def test_a_container_goes_on_from_its_memory_and_runs_only_there(podmans: Podmans) -> None:
    """There and back."""
    container_id = podmans.run()
    for turn in range(2):
        before = podmans.counting(podmans.source)
        podmans.move()
        status = podmans.succeeded()["status"]
        assert podmans.counting(podmans.target) > before
        podmans.runs_only_at(podmans.target)
        assert status["source"] == {"nodeName": podmans.source, "podUID": container_id}
        assert (status["decision"], status["target"]["outcome"]) == ("Commit", "Resumed")
        assert float(status["timings"]["freezeSeconds"]) > 0
        podmans.forget()
        if turn == 0:
            podmans = Podmans(podmans.kubectl, podmans.target, podmans.source)


def test_redis_goes_on_with_its_data(podmans: Podmans) -> None:
    podmans.run(script="exec redis-server --save ''")
    wait_for("redis", lambda: "PONG" in podmans.exec(podmans.source, "redis-cli", "ping"), seconds=20)
    podmans.exec(podmans.source, "redis-cli", "debug", "populate", "100000", "key", "100")
    digest = podmans.exec(podmans.source, "redis-cli", "debug", "digest").strip()
    podmans.move()
    podmans.succeeded()
    assert podmans.exec(podmans.target, "redis-cli", "debug", "digest").strip() == digest
    podmans.runs_only_at(podmans.target)


def test_it_is_allowed_only_in_the_operators_namespace(podmans: Podmans, namespace: str) -> None:
    podmans.run()
    podmans.kubectl.apply(podmans.migration("", namespace))
    assert Why.PODMAN_NAMESPACE in podmans.refusal(namespace)
    podmans.counting(podmans.source)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"podName": "redis"}, "exactly one of podName, checkpointName and podman"),
        ({"target": {}}, "with podman the target is target.nodeName and nothing else"),
        ({"target": {"nodeName": "b", "podName": "new"}}, "with podman the target is target.nodeName and nothing else"),
        ({"containers": ["main"]}, "with podman there is no podUID, containers, retain or strategy but StopAndCopy"),
        ({"strategy": "PostCopy"}, "with podman there is no podUID, containers, retain or strategy but StopAndCopy"),
        ({"strategy": "PreCopy"}, "with podman there is no podUID, containers, retain or strategy but StopAndCopy"),
        ({"podman": {"nodeName": "a", "container": "--all"}}, "should match"),
    ],
)
def test_i8_what_does_not_fit_a_container_of_podmans_is_refused_by_the_api_server(
    kubectl: Kubectl, nodes: tuple[str, str], spec: dict[str, object], words: str
) -> None:
    it = Podmans(kubectl, *nodes).migration("", SYSTEM, **spec)
    refused = kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(it), check=False)
    assert refused.returncode != 0
    assert words in refused.stderr


def test_s1_one_archive_with_images_and_state_travels(podmans: Podmans, folder: Folder, tmp_path: Path) -> None:
    """The real checkpointctl reads what lies at the target before it is restored."""
    container_id = podmans.run()
    podmans.counting(podmans.source)
    podmans.points.arm(podmans.target, Failpoint.TARGET_PODMAN_RESTORES, "hang")
    podmans.move()
    podmans.points.reached(podmans.target, Failpoint.TARGET_PODMAN_RESTORES)
    where = "/run/container-migration/images/*/container/images/podman.tar"
    modes = podmans.shell(podmans.target, f"stat -c '%a %U' {where}").split()
    podmans.shell(podmans.target, f"cp {where} {folder.on_nodes}/archive.tar")
    podmans.points.clear()
    podmans.succeeded()
    assert modes == ["600", "root"], "memory images are secrets"
    archive = tmp_path / "archive.tar"
    archive.write_bytes((folder.path / "archive.tar").read_bytes())
    [inspected] = json.loads(checkpointctl("inspect", "--all", "--format", "json", archive))
    assert inspected["container_name"] == "counter"
    assert container_id[:12] in json.dumps(inspected)
    assert inspected["process_tree"]["command"] == "bash"


def test_s2_containers_with_volumes_or_dependencies_are_refused_by_name(podmans: Podmans) -> None:
    podmans.run("--volume", "data:/data", name="with-volume")
    podmans.move("with-volume")
    message = podmans.refusal()
    assert f"{Why.PODMAN_VOLUMES}: the Podman container with-volume has the volumes data" in message
    podmans.run("--volumes-from", "with-volume", name="dependent")
    podmans.move("dependent")
    assert f"{Why.PODMAN_VOLUMES}: the Podman container dependent has the volumes data" in podmans.refusal()
    for options, why in (
        (("--restart", "always"), Why.PODMAN_STARTED_AGAIN),
        (("--label", "PODMAN_SYSTEMD_UNIT=x.service"), Why.PODMAN_STARTED_AGAIN),
        (("--rm",), Why.PODMAN_REMOVED),
        (("--cgroups", "disabled"), Why.PODMAN_NO_CGROUP),
    ):
        name = f"refused-{secrets.token_hex(3)}"
        podmans.run(*options, name=name)
        podmans.move(name)
        assert why in podmans.refusal()
        assert podmans.status(podmans.source, name) == "running"
    podmans.move("none-such")
    assert Why.PODMAN_CONTAINER_NOT_FOUND in podmans.refusal()
    podmans.on(podmans.source, "pause", "dependent")
    podmans.move("dependent")
    assert Why.PODMAN_CONTAINER_NOT_RUNNING in podmans.refusal()


def test_s3_the_container_is_rebuilt_from_the_archives_configuration(podmans: Podmans) -> None:
    options = ("--env", "GREETING=hello", "--hostname", "here", "--label", "team=shop", "--workdir", "/var")
    container_id = podmans.run(*options, "--cap-drop", "all", "--tmpfs", "/scratch")
    podmans.exec(podmans.source, "sh", "-c", "echo kept > /scratch/file; rm /etc/motd; echo changed > /etc/issue")
    kept = "{{.Id}} {{.Name}} {{.Config.Env}} {{.Config.Hostname}} {{.Config.Labels}} {{.Args}} {{.HostConfig.CapDrop}}"
    before = podmans.on(podmans.source, "container", "inspect", "--format", kept, "counter")
    podmans.move()
    podmans.succeeded()
    assert podmans.on(podmans.target, "container", "inspect", "--format", kept, "counter") == before
    assert before.startswith(container_id)
    script = "cat /scratch/file /etc/issue; test -e /etc/motd || echo gone; readlink /proc/1/cwd; hostname"
    assert podmans.exec(podmans.target, "sh", "-c", script).split() == ["kept", "changed", "gone", "/var", "here"]


def test_s4_the_image_must_be_on_the_destination(podmans: Podmans) -> None:
    podmans.run()
    podmans.on(podmans.target, "rmi", WORKLOAD)
    podmans.move()
    assert f"node {podmans.target} has none of that name" in podmans.refusal()
    podmans.counting(podmans.source)
    podmans.load()
    podmans.move()
    podmans.succeeded()
    podmans.counting(podmans.target)


def test_s5_the_source_can_be_left_running(podmans: Podmans) -> None:
    """Its files take long to read: what it writes must not be in the copy when it is not in the copy's memory."""
    podmans.run(script=f"touch /numbers; head -c 300M /dev/urandom > /ballast; {COUNTER}")
    before = podmans.counting(podmans.source)
    podmans.move(leaveSourceRunning=True)
    done = podmans.succeeded()
    assert condition(done, "SourceReleased")["reason"] == Reason.LEFT_RUNNING
    assert podmans.counting(podmans.source) > before
    assert podmans.counting(podmans.target) > before
    assert podmans.status(podmans.source) == podmans.status(podmans.target) == "running"
    format_ = "{{.StaticDir}}/checkpoint"
    kept = podmans.on(podmans.source, "container", "inspect", "--format", format_, "counter").strip()
    assert "none" in podmans.shell(podmans.source, f"[ -e {kept} ] || echo none"), "a memory image stays"


def test_s6_a_damaged_archive_is_refused_before_the_commit(podmans: Podmans) -> None:
    podmans.run()
    podmans.counting(podmans.source)
    podmans.points.arm(podmans.source, Failpoint.SOURCE_DUMPED, "hang")
    podmans.move()
    podmans.points.reached(podmans.source, Failpoint.SOURCE_DUMPED)
    where = "/run/container-migration/images/*/container/images/podman.tar"
    podmans.shell(podmans.source, f"tar --delete -f {where} checkpoint/inventory.img")
    podmans.points.clear()
    done = podmans.finished()
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    assert done["status"]["decision"] == "Abort"
    podmans.counting(podmans.source)
    podmans.runs_only_at(podmans.source)


def test_s7_a_busy_name_on_the_target_is_refused(podmans: Podmans) -> None:
    podmans.run()
    other = podmans.run(node=podmans.target)
    podmans.move()
    assert f"{Why.PODMAN_NAME_TAKEN}: node {podmans.target} has a Podman container counter" in podmans.refusal()
    inspected = podmans.on(podmans.target, "container", "inspect", "--format", "{{.Id}} {{.State.Status}}", "counter")
    assert inspected.split() == [other, "running"], "what runs there was touched"
    podmans.counting(podmans.source)


def test_s8_a_container_in_anothers_network_namespace_is_refused(podmans: Podmans) -> None:
    podmans.run(name="owner")
    command = ("run", "--detach", "--name", "counter", "--network", "container:owner", WORKLOAD, "sleep", "1000")
    podmans.on(podmans.source, *command)
    podmans.move()
    assert f"{Why.PODMAN_DEPENDENCIES}: the Podman container counter depends on container" in podmans.refusal()


def test_s9_bind_mounts_are_recreated_with_their_options(podmans: Podmans, folder: Folder) -> None:
    own = f"/run/bound-{secrets.token_hex(3)}"
    podmans.shell(podmans.source, f"mkdir {own}")
    podmans.run("--volume", f"{folder.on_nodes}:/shared:ro", "--volume", f"{own}:/own")
    (folder.path / "file").write_text("from both nodes")
    podmans.move()
    assert f"{Why.PODMAN_BIND_MISSING}: node {podmans.target} lacks {own}" in podmans.refusal()
    podmans.shell(podmans.target, f"mkdir {own}")
    podmans.move()
    podmans.succeeded()
    assert podmans.exec(podmans.target, "cat", "/shared/file") == "from both nodes"
    mounts = podmans.exec(podmans.target, "cat", "/proc/self/mounts").splitlines()
    [shared] = [line.split() for line in mounts if " /shared " in line]
    [bound] = [line.split() for line in mounts if " /own " in line]
    assert "ro" in shared[3].split(",")
    assert "rw" in bound[3].split(",")
    for node in (podmans.source, podmans.target):
        podmans.shell(node, f"rm -rf {own}")


def test_s10_the_content_of_shared_memory_moves(podmans: Podmans) -> None:
    podmans.run()
    podmans.exec(podmans.source, "sh", "-c", "echo shared > /dev/shm/file")
    podmans.move()
    podmans.succeeded()
    assert podmans.exec(podmans.target, "cat", "/dev/shm/file").strip() == "shared"


def test_i1_i2_a_restore_that_fails_goes_back_to_the_source(podmans: Podmans) -> None:
    """After the commit, with the image taken away in between."""
    podmans.run()
    before = podmans.counting(podmans.source)
    podmans.points.arm(podmans.target, Failpoint.TARGET_PODMAN_RESTORES, "hang")
    podmans.move(freezeBudgetSeconds=45)
    podmans.points.reached(podmans.target, Failpoint.TARGET_PODMAN_RESTORES)
    podmans.shell(podmans.target, f"podman rmi {WORKLOAD} >/dev/null")
    podmans.points.clear()
    done = podmans.finished()
    assert done["status"]["target"]["outcome"] == "Returned"
    assert "Podman could not restore" in done["status"]["target"]["message"]
    assert condition(done, "Succeeded")["reason"] == Reason.ROLLED_BACK
    assert podmans.counting(podmans.source) > before
    podmans.runs_only_at(podmans.source)


@pytest.mark.parametrize(
    ("point", "where", "decided"),
    [
        (Failpoint.SOURCE_DUMPED, "source", "Abort"),
        (Failpoint.TARGET_PODMAN_RESTORES, "target", "Commit"),
        pytest.param(Failpoint.SOURCE_SENT, "source", "Commit", marks=pytest.mark.thorough),
        pytest.param(Failpoint.SOURCE_RELEASED, "source", "Commit", marks=pytest.mark.thorough),
        pytest.param(Failpoint.TARGET_COMMITTED, "target", "Commit", marks=pytest.mark.thorough),
        pytest.param(Failpoint.TARGET_PODMAN_RESTORED, "target", "Commit", marks=pytest.mark.thorough),
    ],
)
def test_i4_an_agent_that_is_killed_in_the_middle_goes_on(
    podmans: Podmans, point: Failpoint, where: str, decided: str
) -> None:
    podmans.run()
    before = podmans.counting(podmans.source)
    node = podmans.source if where == "source" else podmans.target
    podmans.points.arm(node, point, "kill")
    podmans.move()
    done = podmans.finished()
    able(podmans.kubectl)
    assert done["status"]["decision"] == decided
    goes_on_at = podmans.target if decided == "Commit" else podmans.source
    assert podmans.counting(goes_on_at) > before
    podmans.runs_only_at(goes_on_at)


def test_i2_what_is_cancelled_while_it_is_stopped_goes_on(podmans: Podmans) -> None:
    podmans.run()
    before = podmans.counting(podmans.source)
    podmans.points.arm(podmans.source, Failpoint.SOURCE_SENT, "hang")
    podmans.points.arm(podmans.target, Failpoint.TARGET_COMMIT, "hang")
    podmans.move()
    podmans.points.reached(podmans.target, Failpoint.TARGET_COMMIT)
    assert podmans.status(podmans.source) == "exited"
    podmans.kubectl("patch", "cmig", "podman-move", "-n", SYSTEM, "--type=merge", "-p", '{"spec":{"cancel":true}}')
    decided = "jsonpath={.status.decision}=Abort"
    podmans.kubectl("wait", "cmig/podman-move", "-n", SYSTEM, f"--for={decided}", "--timeout=30s")
    podmans.points.clear()
    assert condition(podmans.finished(), "Succeeded")["reason"] == Reason.ROLLED_BACK
    assert podmans.counting(podmans.source) > before
    podmans.runs_only_at(podmans.source)
