"""The target node goes off for good after the commit: an admin says so, and the source goes on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.lab import RUNC, Lab
from chaos.laboratory import laboratory
from chaos.trial import left_in
from chaos.workload import Workload
from migration_api.failpoints import Failpoint
from support.cluster import SYSTEM, Kubectl, condition, wait_for
from support.testbed import Testbed

pytestmark = [pytest.mark.testbed, pytest.mark.timeout(600)]

TAINT = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
SILENCE_SECONDS = 150
"""The operator takes an agent for dead after 90 s, the control plane a node after 50 s."""

OFF = f"""
systemctl stop kubelet
for id in $({RUNC} list -q); do
  grep -q '"io.kubernetes.cri.sandbox-namespace": *"@NAMESPACE@"' \\
    /run/containerd/io.containerd.runtime.v2.task/k8s.io/$id/config.json && {RUNC} kill $id KILL
done
for id in $({RUNC} list -q); do
  config=/run/containerd/io.containerd.runtime.v2.task/k8s.io/$id/config.json
  grep -q '"io.kubernetes.cri.container-name": *"agent"' $config \\
    && grep -q '"io.kubernetes.cri.sandbox-namespace": *"{SYSTEM}"' $config && {RUNC} kill $id KILL
done
true
"""
"""As far as a node of the test bed can be switched off: no kubelet, no agent, and nothing of ours runs."""


@pytest.fixture(scope="module")
def lab(kubectl: Kubectl) -> Iterator[Lab]:
    with laboratory(kubectl) as it:
        yield it


@pytest.fixture
def workload(lab: Lab) -> Workload:
    it = Workload(lab, "counter")
    it.start(lab.nodes[0])
    return it


@pytest.mark.usefixtures("clean_nodes")
def test_what_was_committed_to_a_node_out_of_service_goes_on_at_the_source(
    kubectl: Kubectl, testbed: Testbed, lab: Lab, workload: Workload
) -> None:
    source, target = lab.nodes
    spot = lab.spot(Failpoint.TARGET_COMMITTED, source, target)
    assert spot
    lab.arm(spot, Failpoint.TARGET_COMMITTED, "hang")
    workload.apply("move")
    lab.hit(spot, Failpoint.TARGET_COMMITTED, seconds=60)

    def on_target(script: str) -> None:
        testbed("node", target, "--", "sh", "-c", script, timeout=60)

    def stalled() -> str | None:
        verdict = condition(workload.get("move"), "Stalled")
        return verdict["message"] if verdict.get("reason") == "TargetLostAfterCommit" else None

    try:
        on_target(OFF.replace("@NAMESPACE@", lab.namespace))
        said = wait_for("the operator to say that the node is lost", stalled, seconds=SILENCE_SECONDS, every=1)
        assert f"kubectl taint node {target} {TAINT}" in said
        it = workload.get("move")
        assert it
        assert (it["status"]["decision"], it["status"]["target"].get("outcome")) == ("Commit", None)
        kubectl("taint", "node", target, TAINT)
        end = workload.end("move", seconds=90)
        assert (end.succeeded, end.reason) == (False, "RolledBack"), end
        assert "declared out of service after the commit" in end.message
        it = workload.get("move")
        assert it
        assert it["status"]["target"]["outcome"] == "Returned"
        assert workload.settle(end) == "source"
        assert workload.found() == []
    finally:
        kubectl("taint", "node", target, f"{TAINT}-", check=False)
        on_target("systemctl start kubelet")
    lab.heal()
    # Each agent keeps its record until the object is gone: the one to tell how it ended, the other to have been told.
    kubectl("delete", "cmig", "move", "-n", lab.namespace, "--timeout=60s", timeout=70)
    left: list[str] = []
    wait_for("clean nodes", lambda: not left_in(lab, left), seconds=150, every=1)
