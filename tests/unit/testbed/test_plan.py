from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from kind.testbed.places import Cluster, recorded
from kind.testbed.plan import PRIVATE, Plan, read


def test_a_plan_is_read_as_it_was_saved(tmp_path: Path) -> None:
    plan = Plan(workers=3, engine="podman", engine_host="unix:///socket", image="an/image", config="12", why="so")
    plan.save(tmp_path / "plan.json")
    assert read(tmp_path / "plan.json") == plan
    assert read(tmp_path / "plan.json") != replace(plan, config="13")


def test_a_cluster_of_another_version_of_the_test_bed_has_no_plan(tmp_path: Path) -> None:
    for number, text in enumerate(('{"workers": 2, "colour": "blue"}', "", "[]", '"text"')):
        (tmp_path / f"{number}.json").write_text(text)
        assert read(tmp_path / f"{number}.json") is None, text
    assert read(tmp_path / "none.json") is None


def test_why_an_image_was_chosen_makes_no_other_cluster() -> None:
    assert Plan(why="one") == Plan(why="another")
    assert Plan(why="one").differences(Plan(why="another")) == ""


def test_differences_are_named() -> None:
    assert Plan(workers=2).differences(Plan(workers=3)) == "workers: 3 instead of 2"


def test_nodes_have_the_names_that_kind_gives_them() -> None:
    names = Cluster("x", Plan(workers=3)).nodes
    assert names == ("x-control-plane", "x-worker", "x-worker2", "x-worker3")
    assert Cluster("x", Plan(workers=1)).workers == ("x-worker",)


def test_a_cluster_that_is_not_there_has_the_default_plan() -> None:
    cluster = recorded("no-such-cluster")
    assert cluster.plan == Plan()
    assert cluster.plan.engine == PRIVATE
