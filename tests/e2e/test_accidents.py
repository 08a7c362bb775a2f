"""Accidents that last, in the middle of the freeze: API server, networks, a kubelet, room; and two operators."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator

import pytest

from chaos.cuts import (
    Kind,
    Stage,
    agents_apart,
    api_away,
    source_agent_alone,
    target_agent_alone,
    target_full,
    target_kubelet_away,
)
from chaos.lab import OPERATOR, Lab, laboratory
from chaos.trial import left_in
from chaos.workload import End, Workload
from migration_api.failpoints import Failpoint
from support.cluster import SYSTEM, Kubectl, wait_for
from support.testbed import Testbed

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

API_SECONDS = [float(it) for it in os.environ.get("API_SECONDS", "1,20").split(",")]
"""How long the API server is away; the issue's others, 120 and 300, where there is time."""

LONGER_THAN_THE_BUDGET = 20.0
BUDGET = 8
MEBIBYTES = 24


@pytest.fixture(scope="module")
def lab(kubectl: Kubectl) -> Iterator[Lab]:
    with laboratory(kubectl) as it:
        yield it


@pytest.fixture(scope="module")
def workload(lab: Lab) -> Workload:
    it = Workload(lab, "counter", MEBIBYTES)
    it.start(lab.nodes[0])
    return it


@pytest.fixture
def stage(lab: Lab, workload: Workload, testbed: Testbed) -> Iterator[Stage]:
    lab.heal()
    yield Stage(lab, testbed, workload.node, lab.other(workload.node))
    lab.disarm()
    workload.lab.kubectl("delete", "cmig", "--all", "-n", lab.namespace, "--timeout=60s", timeout=70)


def cut_at(stage: Stage, workload: Workload, kind: Kind, point: Failpoint, seconds: float) -> End:
    """Migrate; when the failpoint is reached cut something off for so long; return the end."""
    lab = stage.lab
    spot = lab.spot(point, stage.source, stage.target)
    assert spot
    lab.arm(spot, point, "hang")
    workload.apply("move", freezeBudgetSeconds=BUDGET)
    wait_for(f"{point} is reached", lambda: lab.hit(spot, point), seconds=60)
    cuts = kind(stage)
    with stage.cut(*cuts):
        stage.release(spot.node, point)
        threading.Event().wait(seconds)  # the accident's own length
    end = workload.end("move")
    print(f"{kind.__name__} {seconds:.0f} s at {point}: {end.reason} {end.reasons}: {end.message}")
    return end


def one_copy(lab: Lab, workload: Workload, end: End) -> None:
    assert workload.settle(end) in {"source", "target"}, end
    assert workload.found() == []
    left: list[str] = []
    wait_for("clean nodes", lambda: not left_in(lab, left), seconds=90, every=1)


@pytest.mark.parametrize("seconds", API_SECONDS)
def test_the_api_server_is_away_in_the_freeze(stage: Stage, workload: Workload, seconds: float) -> None:
    end = cut_at(stage, workload, api_away, Failpoint.SOURCE_DUMPING, seconds)
    one_copy(stage.lab, workload, end)


@pytest.mark.parametrize(
    ("kind", "point"),
    [
        (agents_apart, Failpoint.SOURCE_CHUNK),
        (source_agent_alone, Failpoint.SOURCE_DUMPING),
        (target_agent_alone, Failpoint.TARGET_RECEIVED),
        (target_kubelet_away, Failpoint.SOURCE_DUMPING),
    ],
    ids=["agents apart", "source agent alone", "target agent alone", "target kubelet away"],
)
def test_something_is_away_for_longer_than_the_budget(
    stage: Stage, workload: Workload, kind: Kind, point: Failpoint
) -> None:
    end = cut_at(stage, workload, kind, point, LONGER_THAN_THE_BUDGET)
    one_copy(stage.lab, workload, end)


def test_the_target_has_no_room(stage: Stage, workload: Workload) -> None:
    end = cut_at(stage, workload, target_full, Failpoint.SOURCE_PAUSED, LONGER_THAN_THE_BUDGET)
    assert end.reason == "RolledBack"
    one_copy(stage.lab, workload, end)


def test_two_operators_by_mistake(stage: Stage, workload: Workload) -> None:
    kubectl = stage.lab.kubectl
    scale = ("scale", f"deployment/{OPERATOR}", "-n", SYSTEM)
    kubectl(*scale, "--replicas=2")
    try:
        kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", SYSTEM, "--timeout=60s", timeout=70)
        workload.apply("move")
        end = workload.end("move")
        assert end.succeeded, end
        one_copy(stage.lab, workload, end)
    finally:
        kubectl(*scale, "--replicas=1")
