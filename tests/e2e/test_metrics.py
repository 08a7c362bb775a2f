"""Operator and agents are scraped on the cluster, after a migration that succeeded and one that was refused."""

from __future__ import annotations

import time

from support.cluster import SYSTEM, Kubectl, agents, wait_for
from support.migration import Migrations
from support.workloads import counter

P = "container_migration"


def scraped(kubectl: Kubectl, pod: str, port: int) -> dict[str, float]:
    text = kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:{port}/proxy/metrics").stdout
    pairs = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def of_operator(kubectl: Kubectl) -> dict[str, float]:
    component = "app.kubernetes.io/component=operator"
    [pod] = kubectl.list("pods", SYSTEM, labels=component, fields="status.phase=Running")
    return scraped(kubectl, pod["metadata"]["name"], 8081)


def test_what_prometheus_sees(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> None:
    source, target = nodes

    def of_agent(node: str) -> dict[str, float]:
        return scraped(kubectl, agents(kubectl)[node], 9445)

    operator, sender, receiver = of_operator(kubectl), of_agent(source), of_agent(target)
    migrations.run_pod(counter("counter", migrations.namespace, source))
    migrations.start("move", "counter", target={"nodeName": target})
    done = migrations.succeeded("move")
    migrations.start("refused", "nobody")
    migrations.finished("refused")

    def grown(name: str) -> float:
        return of_operator(kubectl).get(f"{P}_{name}", 0) - operator.get(f"{P}_{name}", 0)

    wait_for("the end to be counted", lambda: grown('migrations_total{result="PreflightFailed"}') == 1, seconds=20)
    assert grown('migrations_total{result="Succeeded"}') == 1
    assert grown('freeze_seconds_count{result="Succeeded"}') == 1
    assert (
        abs(grown('freeze_seconds_sum{result="Succeeded"}') - float(done["status"]["timings"]["freezeSeconds"])) < 0.01
    )
    for phase in ("prepare", "dump", "transfer", "restore", "commit", "all"):
        assert grown(f'phase_seconds_count{{phase="{phase}"}}') == 1, phase
    moved = done["status"]["progress"]["bytesDone"]
    assert grown("bytes_total") == moved > 0
    assert of_operator(kubectl)[f"{P}_oldest_active_seconds"] == 0

    assert of_agent(source)[f"{P}_agent_sent_bytes_total"] - sender[f"{P}_agent_sent_bytes_total"] == moved
    assert of_agent(target)[f"{P}_agent_received_bytes_total"] - receiver[f"{P}_agent_received_bytes_total"] == moved
    for node in nodes:
        assert of_agent(node)[f"{P}_agent_frozen_containers"] == 0
        assert of_agent(node)[f"{P}_agent_certificate_expiry_timestamp_seconds"] > time.time() + 29 * 86400
