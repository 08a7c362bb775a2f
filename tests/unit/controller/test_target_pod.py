from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from migration_api.names import ANNOTATION_MIGRATION, ANNOTATION_PLACEMENT, LABEL_MIGRATION
from migration_operator.pods import Pod
from migration_operator.target_pod import name_for, pinned_image, target_pod
from support.controller import SOURCE, UID, manifest, migration

DIGEST = "sha256:" + 64 * "a"
SUFFIX = name_for(migration(), "x", None).removeprefix("x-")

RICH = manifest(
    metadata={
        "labels": {"app": "redis"},
        "annotations": {"team": "shop", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
        "resourceVersion": "12",
        "creationTimestamp": "2026-05-04T11:00:00Z",
        "ownerReferences": [{"kind": "Node", "name": "n"}],
        "managedFields": [{}],
    },
    spec={
        "hostname": "keep-me",
        "priority": 0,
        "preemptionPolicy": "PreemptLowerPriority",
        "serviceAccountName": "default",
        "someFieldOfTomorrow": {"kept": True},
        "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
        "nodeSelector": {"disk": "fast"},
        "containers": [
            {
                "name": "main",
                "image": "redis:7",
                "imagePullPolicy": "IfNotPresent",
                "lifecycle": {"postStart": {"exec": {}}, "preStop": {"exec": {}}},
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/redis"},
                    {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"},
                ],
            }
        ],
        "volumes": [
            {"name": "config", "configMap": {"name": "redis"}},
            {"name": "kube-api-access-x7k2p", "projected": {}},
        ],
    },
    status={
        "containerStatuses": [
            {"name": "main", "state": {"running": {}}, "imageID": f"docker.io/library/redis@{DIGEST}"},
        ]
    },
)


def test_golden() -> None:
    before = copy.deepcopy(RICH)
    made = target_pod(Pod(RICH), migration(spec={"target": {"nodeName": "node-b"}}), "redis-new", excluded={SOURCE})
    placement = made["metadata"]["annotations"].pop(ANNOTATION_PLACEMENT)
    assert json.loads(placement) == {"nodeSelector": {"disk": "fast"}}
    assert made == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "redis-new",
            "namespace": "shop",
            "labels": {"app": "redis", LABEL_MIGRATION: UID},
            "annotations": {"team": "shop", ANNOTATION_MIGRATION: UID},
        },
        "spec": {
            "hostname": "keep-me",
            "runtimeClassName": "migratable",
            "serviceAccountName": "default",
            "someFieldOfTomorrow": {"kept": True},
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"}],
            "nodeSelector": {"disk": "fast"},
            "affinity": pinned_to([{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]),
            "containers": [
                {
                    "name": "main",
                    "image": f"docker.io/library/redis@{DIGEST}",
                    "imagePullPolicy": "IfNotPresent",
                    "lifecycle": {"preStop": {"exec": {}}},
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/redis"}],
                }
            ],
            "volumes": [{"name": "config", "configMap": {"name": "redis"}}],
        },
    }
    assert before == RICH, "the source pod's manifest must not be changed"


def pinned_to(fields: list[dict[str, Any]]) -> dict[str, Any]:
    terms = [{"matchFields": fields}]
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}}


def test_what_the_scheduler_and_the_kubelet_look_at_is_as_it_was() -> None:
    container = {
        "name": "main",
        "image": "redis:7",
        "imagePullPolicy": "Never",
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": {"runAsUser": 999, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True},
        "livenessProbe": {"tcpSocket": {"port": 6379}, "failureThreshold": 6},
        "env": [{"name": "A", "value": "b"}],
    }
    kept = {
        "serviceAccountName": "redis",
        "securityContext": {"fsGroup": 999, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "config", "configMap": {"name": "redis"}}],
        "priorityClassName": "high",
        "terminationGracePeriodSeconds": 7,
        "dnsPolicy": "ClusterFirst",
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["db"]}],
    }
    source = Pod(manifest(spec={**kept, "containers": [container]}))
    made = target_pod(source, migration(), "redis-moved", excluded=[SOURCE])["spec"]
    assert made["containers"] == [container]
    assert {key: made[key] for key in kept} == kept


def test_without_a_node_every_excluded_one_is_forbidden() -> None:
    """The API server allows one value in each requirement on metadata.name."""
    made = target_pod(Pod(manifest()), migration(), "redis-new", excluded={"node-c", SOURCE})
    assert made["spec"]["affinity"] == pinned_to(
        [
            {"key": "metadata.name", "operator": "NotIn", "values": ["node-a"]},
            {"key": "metadata.name", "operator": "NotIn", "values": ["node-c"]},
        ]
    )
    assert "nodeSelector" not in made["spec"]
    assert "nodeName" not in made["spec"]


def test_busy_nodes_are_avoided_when_others_fit() -> None:
    own = {"weight": 1, "preference": {"matchExpressions": [{"key": "disk", "operator": "Exists"}]}}
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    source = Pod(manifest(spec={"affinity": {"nodeAffinity": {preferred: [own]}}}))
    made = target_pod(source, migration(), "redis-new", excluded={SOURCE}, avoided={"node-d", "node-c"})
    quiet = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in ("node-c", "node-d")]
    assert made["spec"]["affinity"]["nodeAffinity"][preferred] == [
        own,
        {"weight": 100, "preference": {"matchFields": quiet}},
    ]
    again = target_pod(Pod(made), migration(), "redis-new", excluded={SOURCE})
    assert again["spec"]["affinity"]["nodeAffinity"][preferred] == [own], "the next move has its own busy nodes"
    named = target_pod(source, migration(spec={"target": {"nodeName": "node-c"}}), "x", excluded=(), avoided={"node-d"})
    assert named["spec"]["affinity"]["nodeAffinity"][preferred] == [own]


def test_the_pin_joins_every_alternative_of_the_pod_s_own_affinity() -> None:
    zone = [{"key": "zone", "operator": "In", "values": ["a"]}]
    disk = [{"key": "disk", "operator": "Exists"}]
    terms = [{"matchExpressions": zone}, {"matchExpressions": disk}]
    own: dict[str, Any] = {
        "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}},
        "podAntiAffinity": {"kept": []},
    }
    made = target_pod(
        Pod(manifest(spec={"affinity": own})),
        migration(spec={"target": {"nodeName": "node-b", "nodeSelector": {"gpu": "no"}}}),
        "redis-new",
        excluded={SOURCE},
    )
    affinity = made["spec"]["affinity"]
    pin = [{"key": "metadata.name", "operator": "In", "values": ["node-b"]}]
    assert affinity["podAntiAffinity"] == {"kept": []}
    assert affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"] == [
        {"matchExpressions": zone, "matchFields": pin},
        {"matchExpressions": disk, "matchFields": pin},
    ]
    assert made["spec"]["nodeSelector"] == {"gpu": "no"}


def test_there_and_back_again_three_times_neither_name_nor_constraints_grow() -> None:
    pod = Pod(manifest(spec={"nodeSelector": {"disk": "fast"}}))
    for journey in range(6):
        there = f"node-{journey % 2}"
        of = migration(
            uid=f"uid-{journey}", spec={"target": {"nodeName": there, "nodeSelector": {"journey": str(journey)}}}
        )
        name = name_for(of, pod.name, pod.migration)
        made = target_pod(pod, of, name, excluded={"elsewhere"})
        assert made["spec"]["affinity"] == pinned_to([{"key": "metadata.name", "operator": "In", "values": [there]}])
        assert made["spec"]["nodeSelector"] == {"disk": "fast", "journey": str(journey)}
        assert len(name) == len("redis-") + 8
        # What the RuntimeClass's admission adds must not stay either.
        made["spec"]["nodeSelector"]["containermigration.io/target"] = "true"
        pod = Pod({**made, "status": {"phase": "Running"}})


def test_a_placement_that_was_broken_by_hand_is_ignored() -> None:
    annotations = {ANNOTATION_MIGRATION: "earlier", ANNOTATION_PLACEMENT: "{not json"}
    pod = Pod(manifest(metadata={"annotations": annotations}, spec={"nodeSelector": {"disk": "fast"}}))
    assert target_pod(pod, migration(), "n", excluded={SOURCE})["spec"]["nodeSelector"] == {"disk": "fast"}


def test_names() -> None:
    assert name_for(migration(spec={"target": {"podName": "asked"}}), "redis", None) == "asked"
    assert name_for(migration(), "redis", None) == f"redis-{SUFFIX}"
    long = name_for(migration(), "a" * 53 + "." + "b" * 60, None)
    assert len(long) <= 63
    assert long == "a" * 53 + f"-{SUFFIX}"
    assert name_for(migration(uid="another"), "redis", None) != f"redis-{SUFFIX}"


def test_only_the_suffix_of_the_earlier_migration_is_replaced() -> None:
    assert name_for(migration(), "redis-12345678", "earlier") == f"redis-12345678-{SUFFIX}"
    assert name_for(migration(uid="later"), f"redis-{SUFFIX}", UID).count("-") == 1


@pytest.mark.parametrize(
    ("image", "image_id", "policy", "expected"),
    [
        ("redis:7", f"docker.io/library/redis@{DIGEST}", "IfNotPresent", f"docker.io/library/redis@{DIGEST}"),
        (
            "redis:7",
            f"docker-pullable://docker.io/library/redis@{DIGEST}",
            "Always",
            f"docker.io/library/redis@{DIGEST}",
        ),
        ("me/app", f"docker.io/me/app@{DIGEST}", "Always", f"docker.io/me/app@{DIGEST}"),
        ("r.example:5000/app:1", f"r.example:5000/app@{DIGEST}", "Always", f"r.example:5000/app@{DIGEST}"),
        ("redis:7", DIGEST, "IfNotPresent", "redis:7"),
        ("redis:7", f"docker.io/library/import-2026-05-04@{DIGEST}", "IfNotPresent", "redis:7"),
        ("localhost/app:dev", f"localhost/app@{DIGEST}", "Never", "localhost/app:dev"),
        ("redis:7", "", "IfNotPresent", "redis:7"),
    ],
)
def test_images_are_pinned_only_when_a_registry_can_name_them(
    image: str, image_id: str, policy: str, expected: str
) -> None:
    assert pinned_image(image, image_id, policy) == expected


def test_init_containers_stay_as_they_are_but_for_what_was_injected_and_the_tag() -> None:
    token = {"name": "kube-api-access-x7k2p", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}
    data = {"name": "data", "mountPath": "/data"}
    prepare: dict[str, Any] = {
        "name": "prepare",
        "image": "tool:1",
        "volumeMounts": [data, token],
        "resources": {"limits": {"cpu": "1"}},
    }
    side: dict[str, Any] = {
        "name": "side",
        "image": "tool:1",
        "restartPolicy": "Always",
        "lifecycle": {"postStart": {"exec": {}}},
    }
    volumes: list[dict[str, Any]] = [
        {"name": "data", "emptyDir": {}},
        {"name": "kube-api-access-x7k2p", "projected": {}},
    ]
    statuses = [{"name": name, "imageID": f"docker.io/library/tool@{DIGEST}"} for name in ("prepare", "side")]
    source = manifest(
        spec={"initContainers": [prepare, side], "volumes": volumes}, status={"initContainerStatuses": statuses}
    )
    made = target_pod(Pod(source), migration(spec={"containers": ["main"]}), "n", excluded=[SOURCE])["spec"]
    image = f"docker.io/library/tool@{DIGEST}"
    assert made["initContainers"] == [
        {**prepare, "image": image, "volumeMounts": [data]},
        {"name": "side", "image": image, "restartPolicy": "Always", "volumeMounts": []},
    ]
