"""The effective freeze budget: a network liveness probe must never kill a frozen source."""

from __future__ import annotations

from typing import Any

import pytest

from migration_operator.freeze_budget import effective_freeze_budget
from support.controller import source_pod

HTTP: dict[str, Any] = {"httpGet": {"path": "/", "port": 80}}
TCP: dict[str, Any] = {"tcpSocket": {"port": 80}}
GRPC: dict[str, Any] = {"grpc": {"port": 80}}
EXEC: dict[str, Any] = {"exec": {"command": ["true"]}}


def seconds(*probes: dict[str, Any], spec: int = 30) -> float:
    containers = [{"name": f"c{i}", "livenessProbe": probe} for i, probe in enumerate(probes)]
    return effective_freeze_budget(spec, source_pod(spec={"containers": containers})).seconds


@pytest.mark.parametrize("probe", [HTTP, TCP, GRPC])
def test_network_probes_count_with_the_api_servers_defaults(probe: dict[str, Any]) -> None:
    assert seconds(probe) == 2 * 10 - 1 - 2


def test_exec_probes_do_not_count() -> None:
    assert seconds({**EXEC, "periodSeconds": 1, "failureThreshold": 1}) == 30


def test_other_probes_than_liveness_do_not_kill() -> None:
    pod = source_pod(spec={"containers": [{"name": "main", "readinessProbe": {**HTTP, "periodSeconds": 1}}]})
    assert effective_freeze_budget(30, pod).seconds == 30


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        ({"periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 1}, 7),
        ({"periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 4}, 4),
        ({"periodSeconds": 1, "failureThreshold": 3, "timeoutSeconds": 1}, 0),
        ({"periodSeconds": 60, "failureThreshold": 1}, 0),
        ({"periodSeconds": 60, "failureThreshold": 3}, 30),
    ],
)
def test_the_budget_ends_before_the_last_failure(probe: dict[str, Any], expected: float) -> None:
    assert seconds({**HTTP, **probe}) == expected


def test_the_strictest_of_all_containers_counts_and_says_so() -> None:
    sidecar = {"name": "proxy", "restartPolicy": "Always", "livenessProbe": {**TCP, "periodSeconds": 3}}
    done = {"name": "before", "livenessProbe": {**TCP, "periodSeconds": 1}}
    container = {"name": "main", "livenessProbe": HTTP}
    budget = effective_freeze_budget(
        30, source_pod(spec={"containers": [container], "initContainers": [done, sidecar]})
    )
    assert budget.seconds == 2 * 3 - 1 - 2
    assert budget.limited_by.startswith("the liveness probe of container proxy")
    assert effective_freeze_budget(2, source_pod(spec={"containers": [container]})).limited_by.startswith("spec.")


def test_agents_are_told_whole_seconds_never_more_than_there_are() -> None:
    probe = {**HTTP, "periodSeconds": 5, "timeoutSeconds": 1}
    budget = effective_freeze_budget(30, source_pod(spec={"containers": [{"name": "m", "livenessProbe": probe}]}))
    assert (budget.seconds, budget.whole_seconds) == (7.0, 7)
    assert effective_freeze_budget(1, source_pod()).whole_seconds == 1
