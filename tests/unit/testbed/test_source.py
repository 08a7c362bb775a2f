from __future__ import annotations

from pathlib import Path

import pytest

from kind.testbed import kindcluster, requirements, source
from kind.testbed.places import RUN, Cluster
from kind.testbed.plan import PRIVATE, Plan
from kind.testbed.source import Wishes

ENGINE = """\
#!/bin/sh
echo "$0 $*" >> {log}
case "$1" in
    info | version) exit {answers} ;;
    image) exit {has_image} ;;
    run) exit {no_kindnet} ;;
    pull) echo "some words" >&2; echo "{refusal}" >&2; exit {cannot_pull} ;;
esac
"""


class Engines:
    """Commands in a PATH of their own that behave like Docker and Podman."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "log"

    def add(
        self, name: str, *, answers: bool = True, has_image: bool = False, refusal: str = "", kindnet: bool = True
    ) -> None:
        script = ENGINE.format(
            log=self.log,
            answers=int(not answers),
            has_image=int(not has_image),
            no_kindnet=int(not kindnet),
            refusal=refusal,
            cannot_pull=int(bool(refusal)),
        )
        (self.folder / name).write_text(script)
        (self.folder / name).chmod(0o755)

    def calls(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engines:
    def require(**_: object) -> None:
        """This machine may be too small for a cluster, and is not to be changed by a unit test."""

    monkeypatch.setattr(requirements, "require_tools", require)
    monkeypatch.setattr(requirements, "require_for_cluster", require)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.delenv("CONTAINER_HOST", raising=False)
    return Engines(tmp_path)


def choose(
    cluster: Cluster | None = None, *, running: bool = False, containerd: str | None = None, from_packages: bool = False
) -> source.Source:
    wishes = Wishes(2, containerd, from_packages, "an/image:1")
    return source.choose(cluster or Cluster("none"), wishes, running=running)


def test_without_an_engine_everything_comes_from_packages(engines: Engines) -> None:
    assert choose().engine == PRIVATE
    engines.add("docker", answers=False)
    engines.add("podman", answers=False)
    chosen = choose()
    assert chosen.engine == PRIVATE
    assert "answers" in chosen.why


def test_an_engine_that_pulls_is_used(engines: Engines) -> None:
    engines.add("docker", answers=False)
    engines.add("podman")
    chosen = choose()
    assert (chosen.engine, chosen.image) == ("podman", "an/image:1")
    assert "pull --quiet an/image:1" in engines.calls()


def test_an_image_that_is_there_is_not_pulled(engines: Engines) -> None:
    engines.add("docker", has_image=True, refusal="no network")
    assert choose().engine == "docker"
    assert "pull" not in engines.calls()


@pytest.mark.parametrize("kindnet", [True, False])
def test_the_test_bed_connects_the_pods_where_the_node_image_cannot(engines: Engines, kindnet: bool) -> None:
    engines.add("docker", has_image=True, kindnet=kindnet)
    chosen = choose()
    plan = kindcluster.plan("one", Wishes(2), chosen)
    assert plan.kindnet is chosen.kindnet is kindnet
    assert f"disableDefaultCNI: {str(not kindnet).lower()}" in kindcluster.config(Cluster("one", plan))


def test_where_nothing_can_be_pulled_everything_comes_from_packages(engines: Engines) -> None:
    engines.add("docker", refusal="dial tcp: no such host")
    chosen = choose()
    assert chosen.engine == PRIVATE
    assert chosen.why == "docker answers, but cannot pull an/image:1: dial tcp: no such host"


def test_an_engine_is_not_even_asked_when_packages_are_wanted(engines: Engines) -> None:
    engines.add("docker", has_image=True)
    assert choose(from_packages=True).engine == PRIVATE
    assert choose(containerd="2.1").engine == PRIVATE
    assert engines.calls() == ""


def test_a_running_cluster_from_packages_is_not_given_up_for_an_engine(engines: Engines) -> None:
    engines.add("docker", has_image=True)
    there = Cluster("there", Plan(why="nothing could be pulled"))
    assert choose(there, running=True).why == "nothing could be pulled"
    assert choose(there, running=False).engine == "docker"


def test_the_engine_is_where_the_environment_says(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engines.add("docker", has_image=True)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:2375")
    assert choose().engine_host == "tcp://127.0.0.1:2375"


def test_a_clusters_private_engine_is_none_of_this_machine(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    engines.add("docker", has_image=True)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{RUN}/ctrmig/docker.sock")
    assert choose().engine == PRIVATE


def test_kinds_own_image_is_pinned_by_its_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pkg/apis/config/defaults/image.go"
    file.parent.mkdir(parents=True)
    file.write_text('package defaults\n\nconst Image = "kindest/node:v9@sha256:12"\n')

    def module_source(module: str, path: str) -> Path:
        return tmp_path

    monkeypatch.setattr(source.gobuild, "module_source", module_source)
    assert source.kinds_own_image() == "docker.io/kindest/node:v9@sha256:12"
