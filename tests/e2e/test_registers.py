"""The API server holds every writer to its part: the write-once registers and the admission policies, with real tokens.

The operator is stopped meanwhile: these tests write in its place, with its own account.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from support.cluster import SYSTEM, Kubectl, Manifest, wait_for
from support.migration import migration
from support.writers import OPERATOR, Done, Writers, accepted, all_writers, refused

NAME = "move"


@dataclass(frozen=True)
class Case:
    """One ContainerMigration whose sides are known."""

    writers: Writers
    namespace: str
    source_node: str
    target_node: str

    def write(self, who: str, status: Manifest | None) -> Done:
        where = ("-n", self.namespace, "--subresource=status")
        return self.writers[who].patch("cmig", NAME, {"status": status}, *where)

    def status(self) -> Manifest:
        found = self.writers.admin.kubectl.get("cmig", NAME, self.namespace)
        assert found is not None
        return found.get("status", {})

    def prepare(self, *steps: tuple[str, Manifest]) -> None:
        for who, status in steps:
            accepted(self.write(who, status))


COMMIT: Manifest = {"decision": "Commit"}
ABORT: Manifest = {"decision": "Abort"}
RESUMED: Manifest = {"target": {"outcome": "Resumed"}}
RETURNED: Manifest = {"target": {"outcome": "Returned"}}

COMMITTED = ("target", COMMIT)
NOT_COMMIT = "Commit is written only by the agent of the target node"
NOT_ABORT = "Abort is written only by the operator or by the agent of the source node"
NOT_OUTCOME = "outcome is written only by the agent of the target node"
NOT_TAINTED = "the target node has no taint node.kubernetes.io/out-of-service"
NOT_REPORT = "only the operator writes a ContainerMigration's conditions"
NOT_IDENTITY = "only the operator says which nodes and pods"
NOT_SOURCE = "status.source is written only by"
NOT_TARGET = "status.target is written only by"


@pytest.fixture(scope="module", autouse=True)
def operator_stopped(kubectl: Kubectl) -> Iterator[None]:
    deployment = ("-n", SYSTEM, "deployment", OPERATOR)
    replicas = kubectl("get", *deployment, "-o", "jsonpath={.spec.replicas}").stdout
    kubectl("scale", *deployment, "--replicas=0")
    component = "app.kubernetes.io/component=operator"
    wait_for("the operator to stop", lambda: not kubectl.list("pods", SYSTEM, labels=component), seconds=60)
    yield
    kubectl("scale", *deployment, f"--replicas={replicas}")
    kubectl("wait", *deployment, "--for=condition=Available", "--timeout=90s", timeout=100)


@pytest.fixture(scope="module")
def writers(kubectl: Kubectl, nodes: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Writers:
    return all_writers(kubectl, *nodes, tmp_path_factory.mktemp("kubeconfigs"))


@pytest.fixture
def fresh(kubectl: Kubectl, namespace: str, nodes: tuple[str, str], writers: Writers) -> Case:
    """A ContainerMigration that nobody has looked at yet."""
    kubectl.apply(migration(NAME, namespace, "no-such-pod"))
    return Case(writers, namespace, *nodes)


@pytest.fixture
def case(fresh: Case) -> Case:
    sides: Manifest = {
        "phase": "Copying",
        "source": {"nodeName": fresh.source_node, "podUID": "source-uid"},
        "target": {"nodeName": fresh.target_node, "podUID": "target-uid", "podName": "moved"},
    }
    fresh.prepare(("operator", sides))
    return fresh


def test_policies_are_free_of_type_warnings(kubectl: Kubectl) -> None:
    policies = [p for p in kubectl.list("validatingadmissionpolicies") if p["metadata"]["name"].startswith(SYSTEM)]
    assert len(policies) == 11
    for policy in policies:
        name, generation = policy["metadata"]["name"], policy["metadata"]["generation"]

        def checked(name: str = name, generation: int = generation) -> Manifest | None:
            status = (kubectl.get("validatingadmissionpolicy", name) or {}).get("status", {})
            return status if status.get("observedGeneration") == generation else None

        status = wait_for(f"the type check of {name}", checked, seconds=60)
        assert status["typeChecking"].get("expressionWarnings", []) == [], name


@pytest.mark.parametrize(
    ("who", "decision", "because"),
    [
        ("target", COMMIT, None),
        ("source", COMMIT, NOT_COMMIT),
        ("unbound", COMMIT, NOT_COMMIT),
        ("operator", COMMIT, NOT_COMMIT),
        ("admin", COMMIT, NOT_COMMIT),
        ("source", ABORT, None),
        ("operator", ABORT, None),
        ("target", ABORT, NOT_ABORT),
        ("unbound", ABORT, NOT_ABORT),
        ("admin", ABORT, NOT_ABORT),
    ],
)
def test_who_may_decide(case: Case, who: str, decision: Manifest, because: str | None) -> None:
    done = case.write(who, decision)
    if because is None:
        accepted(done)
        assert case.status()["decision"] == decision["decision"]
    else:
        refused(done, because)
        assert "decision" not in case.status()


def test_no_commit_before_the_target_pod_is_known(fresh: Case) -> None:
    fresh.prepare(("operator", {"target": {"nodeName": fresh.target_node}}))
    refused(fresh.write("target", COMMIT), NOT_COMMIT)


def test_nobody_names_himself_the_target_and_commits(fresh: Case) -> None:
    claim: Manifest = {"target": {"nodeName": fresh.target_node, "podUID": "mine"}}
    refused(fresh.write("target", COMMIT | claim), NOT_COMMIT, NOT_IDENTITY)
    refused(fresh.write("target", claim), NOT_IDENTITY)
    refused(fresh.write("operator", COMMIT | claim), NOT_COMMIT)


@pytest.mark.parametrize(
    ("first", "second"),
    [(COMMITTED, ("source", ABORT)), (("source", ABORT), COMMITTED), (("operator", ABORT), COMMITTED)],
)
def test_the_loser_of_the_race_is_told(case: Case, first: tuple[str, Manifest], second: tuple[str, Manifest]) -> None:
    case.prepare(first)
    refused(case.write(*second), "status.decision is write-once")
    accepted(case.write(*first))  # the winner may repeat itself


@pytest.mark.parametrize("register", [COMMIT, ABORT])
def test_the_decision_cannot_be_taken_back(case: Case, register: Manifest) -> None:
    case.prepare(("target" if register is COMMIT else "source", register))
    refused(case.write("operator", {"decision": None}), "write-once")
    refused(case.write("operator", None), "write-once")
    refused(case.write("target", {"decision": None}), "write-once")


@pytest.mark.parametrize("outcome", [RESUMED, RETURNED])
@pytest.mark.parametrize("who", ["target", "source", "unbound", "operator", "admin"])
def test_who_may_write_the_outcome(case: Case, who: str, outcome: Manifest) -> None:
    case.prepare(COMMITTED)
    done = case.write(who, outcome)
    if who == "operator":  # whom the policy of the status would let write here
        refused(done, *((NOT_OUTCOME, NOT_TAINTED) if outcome is RESUMED else (NOT_TAINTED,)))
        return
    if who != "target":
        refused(done, NOT_OUTCOME, NOT_TARGET)
        return
    accepted(done)
    other = RETURNED if outcome is RESUMED else RESUMED
    refused(case.write("target", other), "status.target.outcome is write-once")
    refused(case.write("target", {"target": {"outcome": None}}), "write-once")


TAINT = "node.kubernetes.io/out-of-service=nodeshutdown:NoSchedule"
"""With another effect than an admin gives it: with NoExecute every pod of the node would have to go."""


@pytest.fixture
def declared(kubectl: Kubectl, nodes: tuple[str, str]) -> Iterator[None]:
    """The target node is out of service, as an admin says."""
    _, target = nodes
    kubectl("taint", "node", target, TAINT)
    yield
    kubectl("taint", "node", target, f"{TAINT}-")


@pytest.mark.usefixtures("declared")
def test_the_operator_returns_what_went_to_a_node_out_of_service(case: Case) -> None:
    refused(case.write("operator", RETURNED), "needs status.decision Commit")
    case.prepare(COMMITTED)
    refused(case.write("operator", RESUMED), NOT_OUTCOME)
    refused(case.write("source", RETURNED), NOT_OUTCOME, NOT_TARGET)
    refused(case.write("admin", RETURNED), NOT_OUTCOME, NOT_TARGET)
    accepted(case.write("operator", RETURNED))
    refused(case.write("target", RESUMED), "status.target.outcome is write-once")


@pytest.mark.usefixtures("declared")
def test_what_is_out_of_service_must_be_the_target_node(
    kubectl: Kubectl, namespace: str, nodes: tuple[str, str], writers: Writers
) -> None:
    source, target = nodes
    kubectl.apply(migration(NAME, namespace, "no-such-pod"))
    other_way = Case(writers, namespace, target, source)
    sides = {"source": {"nodeName": target, "podUID": "a"}, "target": {"nodeName": source, "podUID": "b"}}
    other_way.prepare(("operator", sides))
    accepted(writers["source"].patch("cmig", NAME, {"status": COMMIT}, "-n", namespace, "--subresource=status"))
    refused(other_way.write("operator", RETURNED), NOT_TAINTED)


def test_no_outcome_without_a_commit(case: Case) -> None:
    refused(case.write("target", RESUMED), "needs status.decision Commit")
    refused(case.write("target", COMMIT | RESUMED), NOT_OUTCOME)
    case.prepare(("operator", ABORT))
    refused(case.write("target", RETURNED), "needs status.decision Commit")


CONDITION = {
    "type": "Succeeded",
    "status": "True",
    "observedGeneration": 1,
    "lastTransitionTime": "2026-01-01T00:00:00Z",
    "reason": "Done",
    "message": "",
}
REPORTS: list[Manifest] = [
    {"phase": "Succeeded"},
    {"phase": None},
    {"message": "all is well"},
    {"observedGeneration": 7},
    {"conditions": [CONDITION]},
    {"progress": {"bytesDone": 1}},
    {"timings": {"freezeSeconds": "0.1"}},
]


@pytest.mark.parametrize("status", REPORTS, ids=",".join)
def test_only_the_operator_reports(case: Case, status: Manifest) -> None:
    for who in ("source", "target", "unbound", "admin"):
        refused(case.write(who, status), NOT_REPORT)
    refused(case.write("target", COMMIT | status), NOT_REPORT)
    accepted(case.write("operator", status))


IDENTITIES: list[Manifest] = [
    {"source": {"nodeName": "other"}},
    {"source": {"podUID": "other"}},
    {"target": {"nodeName": "other"}},
    {"target": {"podName": "other"}},
    {"target": {"podUID": "other"}},
]


@pytest.mark.parametrize("status", IDENTITIES, ids=lambda s: "-".join(next(iter(s.values()))))
def test_only_the_operator_names_the_sides_and_only_once(fresh: Case, status: Manifest) -> None:
    for who in ("source", "target", "unbound", "admin"):
        refused(fresh.write(who, status), NOT_IDENTITY)
    accepted(fresh.write("operator", status))
    side, field = next((s, f) for s, fields in status.items() for f in fields)
    refused(fresh.write("operator", {side: {field: "yet-another"}}), "write-once")
    refused(fresh.write("operator", {side: None}), "write-once")


def test_each_agent_explains_itself_on_its_own_side(case: Case) -> None:
    why: Manifest = {"source": {"reason": "FreezeBudgetExceeded", "message": "too slow"}}
    refused(case.write("target", why), NOT_SOURCE)
    refused(case.write("admin", why), NOT_SOURCE)
    accepted(case.write("source", ABORT | why))
    note: Manifest = {"target": {"message": "CRIU said no"}}
    refused(case.write("source", note), NOT_TARGET)
    refused(case.write("unbound", note), NOT_TARGET)
    accepted(case.write("target", note))
    assert case.status()["source"]["nodeName"] == case.source_node


def test_agents_reach_nothing_but_the_status(case: Case) -> None:
    where = ("-n", case.namespace)
    source = case.writers.source
    refused(source.patch("cmig", NAME, {"spec": {"cancel": True}}, *where), "cannot patch resource")
    refused(source("delete", "cmig", NAME, *where), "cannot delete resource")
    metadata = {"metadata": {"labels": {"a": "b"}, "finalizers": ["example.org/x"]}, "spec": {"cancel": True}}
    accepted(source.patch("cmig", NAME, metadata, *where, "--subresource=status"))
    kept = source.kubectl.get("cmig", NAME, case.namespace)
    assert kept is not None
    assert not {"labels", "finalizers"} & set(kept["metadata"])
    assert kept["spec"]["cancel"] is False


def test_an_admin_keeps_his_own_means(case: Case) -> None:
    where = ("-n", case.namespace)
    accepted(case.writers.admin.patch("cmig", NAME, {"spec": {"cancel": True}}, *where))
    accepted(case.writers.operator.patch("cmig", NAME, {"metadata": {"finalizers": ["example.org/x"]}}, *where))
    accepted(case.writers.admin.patch("cmig", NAME, {"metadata": {"finalizers": None}}, *where))
    accepted(case.writers.admin("delete", "cmig", NAME, *where))


def test_a_status_at_creation_is_dropped(kubectl: Kubectl, namespace: str) -> None:
    forged = migration("forged", namespace, "no-such-pod") | {"status": COMMIT | {"phase": "Succeeded"}}
    kubectl("create", "-f", "-", stdin=yaml.safe_dump(forged))
    created = kubectl.get("cmig", "forged", namespace)
    assert created is not None
    assert not {"decision", "phase"} & set(created.get("status", {}))
