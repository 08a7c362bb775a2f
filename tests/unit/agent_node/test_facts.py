from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from unittest.mock import create_autospec

import pytest

from migration_agent.facts import kernel_features, node_facts, pod_facts, problems
from migration_agent.room import Room
from migration_agent.runtime.containerd import Containerd
from migration_agent.runtime.interface import Container, Runtime
from migration_api.node import NodeFacts
from migration_api.wire import Connections
from support.fake_host import Call, FakeHost, fails, write

CONFIGURATION = """
version = 3
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.migratable]
  pod_annotations = ["containermigration.io/*"]
  options.BinaryName = "/opt/container-migration/bin/runc-migratable"
"""


def healthy(call: Call) -> str:
    match call.argv:
        case ("criu", "--version"):
            return "Version: 4.2.1\n"
        case ("criu", "check"):
            return "Looks good.\n"
        case ("containerd", "--version"):
            return "containerd github.com/containerd/containerd/v2 v2.4.2 0123456789\n"
        case ("runc", "--version"):
            return "runc version 1.3.6\ncommit: v1.3.6-0-g0\nspec: 1.2.1\n"
        case _:
            raise AssertionError(call.argv)


@pytest.fixture
def host(tmp_path: Path) -> FakeHost:
    write(tmp_path / "proc/cpuinfo", "processor\t: 0\nflags\t\t: sse2 fpu avx\n\nprocessor\t: 1\nflags\t\t: other\n")
    write(tmp_path / "proc/1/root/etc/containerd/config.toml", CONFIGURATION)
    write(tmp_path / "opt/container-migration/bin/runc-migratable", "").chmod(0o755)
    (tmp_path / "run/container-migration").mkdir(parents=True)
    (tmp_path / "run/containerd").mkdir()
    return FakeHost(tmp_path, answer=healthy)


def with_room(facts: NodeFacts) -> NodeFacts:
    """Tests do not depend on how full the disk is that they run on."""
    return facts.model_copy(update={"run_bytes_free": 1 << 30})


def test_a_healthy_node(host: FakeHost) -> None:
    facts = node_facts(host, room=Room(memory=7, disk=9))
    assert (facts.run_bytes_free, facts.disk_bytes_free) == (7, 9)
    assert facts.cpu_flags == ("avx", "fpu", "sse2")
    assert facts.criu_version == "4.2.1"
    assert facts.runtime is not None
    assert (facts.runtime.version, facts.runtime.oci_version) == ("2.4.2", "1.3.6")
    assert facts.runtime.handler_registered
    assert problems(with_room(facts), host) == ()


def test_features_of_the_kernel_are_those_that_criu_finds(host: FakeHost) -> None:
    def answer(call: Call) -> str:
        assert call.argv[:3] == ("criu", "check", "--feature")
        if call.argv[3] == "timens":
            raise fails(call, "timens is not supported")
        return ""

    host.answer = answer
    features = kernel_features(host)
    assert "userns" in features
    assert "timens" not in features
    host.answer = healthy
    assert node_facts(host, features).kernel_features == features


def answer_with(changed: dict[str, str]) -> Callable[[Call], str]:
    def answer(call: Call) -> str:
        key = "_".join(call.argv).replace("--", "")
        if key not in changed:
            return healthy(call)
        if changed[key].startswith("FAIL"):
            raise fails(call, changed[key].removeprefix("FAIL "))
        return changed[key]

    return answer


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"criu_version": "FAIL no such file"},
            "CRIU does not run on the node: `criu --version` ended with 1: no such",
        ),
        ({"criu_version": "Version: 4.1.1"}, "CRIU 4.1.1 is too old, 4.2 is needed"),
        ({"criu_version": "strange"}, "CRIU of an unknown version is too old"),
        ({"criu_check": "FAIL Error: no kcmp"}, "what `criu check` names): Error: no kcmp"),
        ({"runc_version": "FAIL not found"}, "runc was not found"),
    ],
)
def test_a_tool_that_is_missing_or_too_old_is_one_problem(
    host: FakeHost, changed: dict[str, str], message: str
) -> None:
    host.answer = answer_with(changed)
    (sentence,) = problems(with_room(node_facts(host)), host)
    assert message in sentence


def test_newer_criu_is_good_enough(host: FakeHost) -> None:
    for version in ("4.2", "4.10", "5.0.1"):
        facts = with_room(node_facts(host)).model_copy(update={"criu_version": version})
        assert problems(facts, host) == ()


def test_a_full_run_a_missing_interposer_and_handler_are_all_named(host: FakeHost) -> None:
    (host.root / "opt/container-migration/bin/runc-migratable").chmod(0o644)
    (host.root / "opt/container-migration/bin/runc-migratable").unlink()
    (host.root / "proc/1/root/etc/containerd/config.toml").write_text("version = 3")
    facts = node_facts(host).model_copy(update={"run_bytes_free": 3 << 20})
    assert facts.runtime is not None
    assert not facts.runtime.handler_registered
    handler, interposer, room = problems(facts, host)
    assert "handler migratable is not in" in handler
    assert "runc-migratable is not installed" in interposer
    assert "Only 3 MiB are free" in room


def test_a_node_without_containerd(host: FakeHost) -> None:
    (host.root / "run/containerd").rmdir()
    facts = with_room(node_facts(host))
    assert facts.runtime is None
    (sentence,) = problems(facts, host)
    assert "No containerd was found" in sentence


UID = "0d9b5d4e-6a60-4a53-9a86-6a4d9a1d0a11"


def runtime_with(*containers: Container) -> Runtime:
    def of_pod(pod_uid: str) -> tuple[Container, ...]:
        return tuple(container for container in containers if container.pod_uid == pod_uid)

    runtime = create_autospec(Containerd, instance=True)
    runtime.containers.side_effect = of_pod
    runtime.connections.return_value = Connections(within=1, outside=2)
    return runtime


def test_a_pod_that_is_not_here_has_no_facts() -> None:
    assert pod_facts(runtime_with(), UID, None) is None


def test_pod_facts_name_containers_and_the_migration_that_holds_the_pod() -> None:
    runtime = runtime_with(Container("app", "abc", UID, 7, 70, Path("/bundle"), 4096, "runc"))
    facts = pod_facts(runtime, UID, UID)
    assert facts is not None
    assert facts.migration == UID
    assert facts.connections == Connections(within=1, outside=2)
    assert [(c.name, c.container_id, c.memory_bytes, c.runtime) for c in facts.containers] == [
        ("app", "abc", 4096, "runc")
    ]
