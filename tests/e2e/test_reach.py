"""How far operator and agents reach beyond migrations: no other nodes, no foreign labels. Nothing is changed here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from support.cluster import SYSTEM, Kubectl, Manifest, agents
from support.migration import Migrations, pod
from support.writers import Done, Writers, accepted, all_writers, refused

NOT_ITS_NODE = "only by the agent on the node of that name"
NOT_LABEL = "only labels of a node that begin with"
NOT_NODE = "nothing but labels of a node"


@pytest.fixture(scope="module")
def writers(kubectl: Kubectl, nodes: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Writers:
    return all_writers(kubectl, *nodes, tmp_path_factory.mktemp("kubeconfigs"))


def test_a_migration_node_is_written_by_its_own_agent_alone(
    tmp_path: Path, nodes: tuple[str, str], writers: Writers
) -> None:
    own, other = nodes
    status: Manifest = {"status": {"endpoint": "https://192.0.2.1:9443"}}
    where = ("--subresource=status", "--dry-run=server")
    accepted(writers.source.patch("migrationnode", own, status, *where))
    for who in ("target", "unbound", "admin"):
        refused(writers[who].patch("migrationnode", own, status, *where), NOT_ITS_NODE)
    refused(writers.operator.patch("migrationnode", own, status, *where), "is forbidden: User")
    refused(writers.source.patch("migrationnode", other, status, *where), NOT_ITS_NODE)
    accepted(writers.admin.patch("migrationnode", own, {"metadata": {"labels": {"a": "b"}}}, "--dry-run=server"))
    stranger = tmp_path / "stranger.yaml"
    kind = {"apiVersion": "containermigration.io/v1alpha1", "kind": "MigrationNode"}
    stranger.write_text(yaml.safe_dump(kind | {"metadata": {"name": "no-such-node"}}))
    for who in ("source", "unbound", "admin"):
        done = writers[who]("create", "-f", str(stranger), "--dry-run=server")
        refused(done, NOT_ITS_NODE)


def test_an_agent_deletes_only_pods_of_its_own_node(
    kubectl: Kubectl, namespace: str, nodes: tuple[str, str], writers: Writers
) -> None:
    own, other = (agents(kubectl)[node] for node in nodes)

    def delete(who: str, pod: str, where: str) -> Done:
        return writers[who]("delete", "pod", pod, "-n", where, "--dry-run=server", "--wait=false")

    accepted(delete("source", own, SYSTEM))
    refused(delete("source", other, SYSTEM), "only pods on its own node")
    refused(delete("unbound", own, SYSTEM), "only pods on its own node")
    accepted(delete("operator", other, SYSTEM))
    accepted(delete("admin", other, SYSTEM))

    nowhere: Manifest = {"nodeSelector": {"no-node": "has-this"}, "containers": [{"name": "main", "image": "none"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pending", "namespace": namespace}, "spec": nowhere}
    kubectl.apply(pod)
    refused(delete("source", "pending", namespace), "only pods on its own node")


def labelled(key: str, value: str | None) -> Manifest:
    return {"metadata": {"labels": {key: value}}}


NODE_WRITES: list[tuple[Manifest, str | None]] = [
    (labelled("containermigration.io/target", "false"), None),
    (labelled("containermigration.io/target", None), None),
    (labelled("containermigration.io/anything", "x"), None),
    (labelled("example.org/role", "x"), NOT_LABEL),
    (labelled("kubernetes.io/hostname", "x"), NOT_LABEL),
    (labelled("kubernetes.io/hostname", None), NOT_LABEL),
    ({"metadata": {"annotations": {"containermigration.io/x": "y"}}}, NOT_NODE),
    ({"metadata": {"finalizers": ["example.org/x"]}}, NOT_NODE),
    ({"spec": {"unschedulable": True}}, NOT_NODE),
    ({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}, NOT_NODE),
]


@pytest.mark.parametrize(("patch", "because"), NODE_WRITES, ids=lambda p: json.dumps(p) if isinstance(p, dict) else "")
def test_the_operator_changes_only_its_labels_of_a_node(
    nodes: tuple[str, str], writers: Writers, patch: Manifest, because: str | None
) -> None:
    done = writers.operator.patch("node", nodes[0], patch, "--dry-run=server")
    if because is None:
        accepted(done)
    else:
        refused(done, because)
    accepted(writers.admin.patch("node", nodes[0], patch, "--dry-run=server"))


OWNER = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "nobody", "uid": "0-0", "controller": True}
COST = {"metadata": {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "-1"}}}
NOT_POD, NOT_TARGET = "only what hands it over", "only the pod-template-hash and the owner of a target pod"
POD_WRITES: list[tuple[Manifest, str | None, str | None]] = [
    (COST, None, None),
    (labelled("pod-template-hash", "x"), None, NOT_TARGET),
    ({"metadata": {"ownerReferences": [OWNER]}}, None, NOT_TARGET),
    (labelled("app", "x"), NOT_TARGET, NOT_TARGET),
    (labelled("app", None), NOT_TARGET, NOT_TARGET),
    ({"metadata": {"annotations": {"containermigration.io/migration": "x"}}}, NOT_POD, NOT_POD),
    ({"metadata": {"finalizers": ["example.org/x"]}}, NOT_POD, NOT_POD),
    ({"spec": {"activeDeadlineSeconds": 1}}, NOT_POD, NOT_POD),
]
"""What the operator writes, and whether it may: into a target pod, into any other pod."""


def test_the_operator_changes_of_a_pod_only_what_hands_it_over(
    kubectl: Kubectl, namespace: str, writers: Writers
) -> None:
    for name, more in (("target", {"containermigration.io/migration-uid": "x"}), ("other", {})):
        nowhere = {"nodeSelector": {"no-node": "has-this"}, "containers": [{"name": "main", "image": "none"}]}
        metadata = {"name": name, "namespace": namespace, "labels": {"app": "it", **more}}
        kubectl.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": nowhere})
    for patch, *because in POD_WRITES:
        for name, why in zip(("target", "other"), because, strict=True):
            done = writers.operator.patch("pod", name, patch, "-n", namespace, "--dry-run=server")
            if why is None:
                accepted(done)
            else:
                refused(done, why)


def test_the_operator_deletes_only_migrations_that_have_expired(
    migrations: Migrations, nodes: tuple[str, str], writers: Writers
) -> None:
    """Those with a time to live far away have ended, and the operator could: it is its own business when."""
    migrations.run_pod(pod("it", migrations.namespace, ["sleep", "infinity"], nodes[0]))
    migrations.start("kept", "nobody")
    migrations.start("ended", "nobody", ttlSecondsAfterFinished=86400)
    migrations.start("unfinished", "it", target={"nodeSelector": {"no-node": "a"}}, ttlSecondsAfterFinished=86400)
    for name in ("kept", "ended"):
        migrations.finished(name)

    def delete(who: str, name: str) -> Done:
        return writers[who]("delete", "cmig", name, "-n", migrations.namespace, "--dry-run=server", "--wait=false")

    accepted(delete("operator", "ended"))
    refused(delete("operator", "kept"), "only ContainerMigrations that have ended")
    refused(delete("operator", "unfinished"), "only ContainerMigrations that have ended")
    accepted(delete("admin", "unfinished"))
    refused(delete("source", "ended"), "is forbidden: User")
