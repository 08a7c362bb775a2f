from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from migration_api.preflight_reasons import PreflightReason as R
from migration_api.wire import Connections
from migration_operator.estimates import FREEZE_BASE_SECONDS, FREEZE_STEP_SECONDS, freeze_estimate
from migration_operator.observation import PreflightFacts
from migration_operator.preflight import problems
from support.controller import (
    FACTS,
    MEBIBYTE,
    NOW,
    SOURCE,
    SOURCE_UID,
    TARGET,
    UID,
    begun,
    migration,
    migration_node,
    node,
    pod_facts,
    preflight_facts,
    ready,
    source_pod,
    target_pod,
)


def found(facts: PreflightFacts, **of: Any) -> list[tuple[str, str]]:
    return [(p.reason, p.message) for p in problems(migration(**of), facts, NOW)]


def test_nothing_stands_against_a_plain_pod() -> None:
    assert found(preflight_facts()) == []
    assert found(preflight_facts(target=node(TARGET)), spec={"target": {"nodeName": TARGET}}) == []


def test_a_pod_that_was_moved_once_can_move_again() -> None:
    assert found(preflight_facts(pod=source_pod(spec={"runtimeClassName": "migratable"}))) == []


def test_volumes_that_hold_configuration_move() -> None:
    kinds = ("configMap", "secret", "projected", "downwardAPI")
    pod = source_pod(spec={"volumes": [{"name": kind.lower(), kind: {}} for kind in kinds]})
    assert found(preflight_facts(pod=pod)) == []


POD_TABLE: list[tuple[R, dict[str, Any], str]] = [
    (R.POD_NOT_RUNNING, {"metadata": {"deletionTimestamp": "2026-05-04T12:00:00Z"}}, "being deleted"),
    (R.POD_NOT_RUNNING, {"status": {"phase": "Failed", "reason": "Evicted"}}, "Evicted"),
    (
        R.POD_NOT_RUNNING,
        {
            "status": {
                "containerStatuses": [
                    {"name": "main", "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}
                ]
            }
        },
        "CrashLoopBackOff: back-off",
    ),
    (
        R.POD_OWNED,
        {"metadata": {"ownerReferences": [{"kind": "ReplicaSet", "name": "web-1", "controller": True}]}},
        "ReplicaSet web-1, which no Deployment owns",
    ),
    *(
        (R.POD_OWNED, {"metadata": {"ownerReferences": [{"kind": kind, "name": "it", "controller": True}]}}, words)
        for kind, words in (
            ("StatefulSet", "StatefulSet it, but has not the labels by which that knows it"),
            ("DaemonSet", "DaemonSet it, which runs its own pod on every node"),
            ("Job", "Job it, which would take the end of the source pod for a failure"),
            ("Node", "Node it, as a static pod"),
            ("Rollout", "Rollout it, which would start a replacement"),
        )
    ),
    (
        R.PRIVILEGED_INIT_CONTAINER,
        {"spec": {"initContainers": [{"name": "mesh", "securityContext": {"privileged": True}}]}},
        "init container mesh is privileged",
    ),
    (
        R.PRIVILEGED_INIT_CONTAINER,
        {
            "spec": {
                "initContainers": [{"name": "mesh", "securityContext": {"capabilities": {"add": ["CAP_NET_ADMIN"]}}}]
            }
        },
        "init container mesh has the capability NET_ADMIN",
    ),
    (R.EPHEMERAL_CONTAINERS, {"spec": {"ephemeralContainers": [{"name": "debug"}]}}, "ephemeral containers (debug)"),
    (R.HOST_NAMESPACE, {"spec": {"hostNetwork": True, "hostPID": True}}, "hostNetwork, hostPID"),
    (R.HOST_NAMESPACE, {"spec": {"hostIPC": True}}, "sets hostIPC"),
    (R.SHARED_PID_NAMESPACE, {"spec": {"shareProcessNamespace": True}}, "shareProcessNamespace"),
    (
        R.VOLUME_CANNOT_MOVE,
        {"spec": {"volumes": [{"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}}]}},
        "huge (emptyDir)",
    ),
    (
        R.VOLUME_CANNOT_MOVE,
        {"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}},
        "data is the claim data (not bound)",
    ),
    (
        R.HOSTS_FILE_MOUNTED,
        {"spec": {"containers": [{"name": "main", "volumeMounts": [{"name": "h", "mountPath": "/etc/hosts/"}]}]}},
        "/etc/hosts",
    ),
    (R.RUNTIME_CLASS, {"spec": {"runtimeClassName": "gvisor"}}, "gvisor"),
]


@pytest.mark.parametrize(("reason", "changes", "words"), POD_TABLE, ids=[f"{r}-{w[:12]}" for r, _, w in POD_TABLE])
def test_a_pod_that_cannot_move(reason: R, changes: dict[str, Any], words: str) -> None:
    [(got, message)] = found(preflight_facts(pod=source_pod(**changes)))
    assert got == reason
    assert words in message


NO_AVX2 = FACTS.model_copy(update={"cpu_flags": ("avx", "sse")})
OTHER_CRIU = FACTS.model_copy(update={"criu_version": "4.3"})
ARM = FACTS.model_copy(update={"architecture": "aarch64"})
OLD_KERNEL = FACTS.model_copy(update={"kernel_version": "5.4.0", "kernel_features": ("userns",)})
FULL = FACTS.model_copy(update={"run_bytes_free": 10 * MEBIBYTE})
STALE = migration_node(TARGET, heartbeat_time=NOW - timedelta(seconds=91))
UNREADY = migration_node(TARGET, conditions=(ready("False", "the handler is missing"),))

NODE_TABLE: list[tuple[R, dict[str, Any], str]] = [
    (R.TARGET_NODE_NOT_FOUND, {"target": node(TARGET, exists=False)}, "there is no node node-b"),
    (R.NODE_NOT_READY, {"target": node(TARGET, ready=False)}, "node-b is not Ready"),
    (R.NODE_NOT_READY, {"target": node(TARGET, schedulable=False)}, "node-b is cordoned"),
    (R.NODE_NOT_READY, {"source": node(SOURCE, ready=False)}, "node-a is not Ready"),
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, agent=None)}, "node-b cannot take part: it has no MigrationNode"),
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, agent=STALE)}, "reported last at 11:58:29 UTC"),
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, agent=UNREADY)}, "the handler is missing"),
    (R.CPU_MISMATCH, {"target": node(TARGET, NO_AVX2)}, "lacks what the CPU of node-a has: avx2"),
    (R.CPU_MISMATCH, {"target": node(TARGET, ARM)}, "node-b is aarch64, node-a is x86_64"),
    (
        R.KERNEL_MISMATCH,
        {"target": node(TARGET, OLD_KERNEL)},
        "of node-b lacks what 6.12.0 of node-a has: timens",
    ),
    (R.CRIU_MISMATCH, {"target": node(TARGET, OTHER_CRIU)}, "node-b has CRIU 4.3, node-a has 4.2"),
    (R.NO_ROOM, {"target": node(TARGET, FULL)}, "/run/container-migration/images of node node-b has 10 MiB left"),
    (R.NO_ROOM, {"source": node(SOURCE, FULL)}, "/run/container-migration/images of node node-a has 10 MiB left"),
]


@pytest.mark.parametrize(("reason", "changes", "words"), NODE_TABLE, ids=[w for _, _, w in NODE_TABLE])
def test_a_node_that_cannot_take_part(reason: R, changes: dict[str, Any], words: str) -> None:
    facts = preflight_facts(**{"target": node(TARGET), **changes})
    [(got, message)] = found(facts, spec={"target": {"nodeName": TARGET}})
    assert got == reason
    assert words in message


def test_a_target_that_can_more_is_fine() -> None:
    features = {"cpu_flags": (*FACTS.cpu_flags, "avx512f"), "kernel_features": (*FACTS.kernel_features, "openat2")}
    more = FACTS.model_copy(update=features)
    assert found(preflight_facts(target=node(TARGET, more)), spec={"target": {"nodeName": TARGET}}) == []


def test_the_target_is_the_source() -> None:
    [(reason, message)] = found(preflight_facts(target=node(SOURCE)), spec={"target": {"nodeName": SOURCE}})
    assert reason == R.TARGET_IS_SOURCE
    assert message == f"TargetIsSource: pod redis already runs on node-a; {R.TARGET_IS_SOURCE.remedy}."


def test_without_a_name_one_other_node_must_suit() -> None:
    assert found(preflight_facts(candidates=(node(SOURCE), node("node-c", ready=False), node(TARGET)))) == []
    [(reason, message)] = found(preflight_facts(candidates=(node(SOURCE), node(TARGET, NO_AVX2))))
    assert reason == R.NO_SUITABLE_NODE
    assert "node-b: the CPU of node-b lacks" in message
    [(_, message)] = found(preflight_facts(candidates=(node(SOURCE),)))
    assert "there is none with an agent" in message


def test_a_request_that_names_what_is_not_there() -> None:
    assert [r for r, _ in found(preflight_facts(pod=None))] == [R.POD_NOT_FOUND]
    [(reason, message)] = found(preflight_facts(), spec={"podUID": "another"})
    assert reason == R.POD_REPLACED
    assert SOURCE_UID in message
    [(reason, message)] = found(preflight_facts(), spec={"containers": ["nobody"]})
    assert reason == R.CONTAINER_NOT_FOUND
    assert "no container nobody; it has main" in message
    [(reason, message)] = found(preflight_facts(name_holder=target_pod()))
    assert reason == R.TARGET_NAME_TAKEN


def test_of_two_migrations_of_one_pod_the_older_goes_first() -> None:
    older = migration(uid="0", name="older", creation_timestamp=NOW - timedelta(seconds=60))
    younger = migration(uid="1", name="younger", creation_timestamp=NOW)
    same_second = migration(uid="0", name="same", creation_timestamp=NOW - timedelta(seconds=10))
    assert [r for r, _ in found(preflight_facts(rivals=(older,)))] == [R.ALREADY_MIGRATING]
    assert found(preflight_facts(rivals=(younger,))) == []
    assert [r for r, _ in found(preflight_facts(rivals=(same_second,)))] == [R.ALREADY_MIGRATING]


def test_a_younger_migration_that_has_begun_goes_on() -> None:
    younger = migration(uid="1", name="younger", creation_timestamp=NOW, status=begun())
    [(reason, message)] = found(preflight_facts(rivals=(younger,)))
    assert reason == R.ALREADY_MIGRATING
    assert "younger" in message


def test_a_pod_that_the_agent_still_holds() -> None:
    [(reason, message)] = found(preflight_facts(pod_facts=pod_facts(migration="another")))
    assert reason == R.ALREADY_MIGRATING
    assert "another" in message
    assert found(preflight_facts(pod_facts=pod_facts(migration=UID))) == []


@pytest.mark.parametrize(
    ("mebibytes", "budget", "words"),
    [(2900, 30, None), (2901, 30, "30 s (spec"), (18000, 600, None), (18001, 600, "90 s that the kubelet allows")],
)
def test_the_freeze_is_estimated(mebibytes: int, budget: int, words: str | None) -> None:
    roomy = FACTS.model_copy(update={"run_bytes_free": 1 << 40})
    facts = preflight_facts(
        source=node(SOURCE, roomy), candidates=(node(TARGET, roomy),), pod_facts=pod_facts(mebibytes)
    )
    got = found(facts, spec={"freezeBudgetSeconds": budget})
    assert [r for r, _ in got] == ([R.FREEZE_TOO_LONG] if words else [])
    assert words is None or words in got[0][1]


def test_what_does_not_fit_into_memory_may_fit_on_the_disk() -> None:
    full = FACTS.model_copy(update={"run_bytes_free": 10 * MEBIBYTE, "disk_bytes_free": 1 << 40})
    assert found(preflight_facts(source=node(SOURCE, full), candidates=(node(TARGET, full),))) == []
    both = full.model_copy(update={"disk_bytes_free": 20 * MEBIBYTE})
    [(reason, message)] = found(preflight_facts(source=node(SOURCE, both)))
    assert reason == R.NO_ROOM
    assert "has 10 MiB left, and its disk 20 MiB" in message


def test_what_the_kubelet_passes_within_the_freeze_takes_its_time() -> None:
    """A second for each sidecar and init container from the first that moves."""
    init = [{"name": "before"}, {"name": "side", "restartPolicy": "Always"}, {"name": "after"}]
    running: list[dict[str, Any]] = [{"name": "side", "state": {"running": {}}}]
    pod = source_pod(spec={"initContainers": init}, status={"initContainerStatuses": running})
    all_move, main_moves = migration(), migration(spec={"containers": ["main"]})
    assert freeze_estimate(main_moves, pod, pod_facts(0), None) == FREEZE_BASE_SECONDS
    assert freeze_estimate(all_move, pod, pod_facts(0), None) == FREEZE_BASE_SECONDS + 2 * FREEZE_STEP_SECONDS


def test_a_liveness_probe_limits_the_freeze_and_is_refused_only_when_the_estimate_is_longer() -> None:
    probe = {"httpGet": {"port": 80}, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 1}
    pod = source_pod(spec={"containers": [{"name": "main", "livenessProbe": probe}]})
    assert found(preflight_facts(pod=pod, pod_facts=pod_facts(600))) == []
    [(reason, message)] = found(preflight_facts(pod=pod, pod_facts=pod_facts(601)))
    assert reason == R.FREEZE_TOO_LONG
    assert "budget of 7 s (the liveness probe of container main kills it after 3 failures, one every 5 s)" in message


def test_init_containers_that_leave_nothing_behind_in_the_network_are_fine() -> None:
    context = {"runAsUser": 5, "capabilities": {"drop": ["ALL"], "add": ["CHOWN"]}}
    init = [
        {"name": "plain"},
        {"name": "other", "securityContext": context},
        {"name": "proxy", "restartPolicy": "Always"},
    ]
    ended: list[dict[str, Any]] = [{"name": name, "state": {"terminated": {}}} for name in ("plain", "other")]
    status: dict[str, Any] = {"initContainerStatuses": [*ended, {"name": "proxy", "state": {"running": {}}}]}
    pod = source_pod(spec={"initContainers": init}, status=status)
    assert found(preflight_facts(pod=pod)) == []
    assert found(preflight_facts(pod=pod), spec={"containers": ["proxy"]}) == []
    [(reason, message)] = found(preflight_facts(pod=pod), spec={"containers": ["plain"]})
    assert reason == R.CONTAINER_NOT_FOUND
    assert "no container plain; it has proxy, main" in message
    stopped: dict[str, Any] = {"initContainerStatuses": [{"name": "proxy", "state": {"waiting": {}}}]}
    pod = source_pod(spec={"initContainers": init}, status=stopped)
    assert [r for r, _ in found(preflight_facts(pod=pod))] == [R.POD_NOT_RUNNING]


def test_a_native_sidecar_with_probes() -> None:
    sidecar: dict[str, Any] = {
        "name": "proxy",
        "restartPolicy": "Always",
        "livenessProbe": {"exec": {}},
        "startupProbe": {"exec": {}},
    }
    got = found(preflight_facts(pod=source_pod(spec={"initContainers": [sidecar]})))
    assert (R.SIDECAR_WITH_PROBES, "the sidecar proxy has a startupProbe and a livenessProbe") in [
        (r, m.split(": ", 1)[1].split("; ")[0]) for r, m in got
    ]
    quiet = {**sidecar, "startupProbe": None, "livenessProbe": None}
    got = found(preflight_facts(pod=source_pod(spec={"initContainers": [quiet]})))
    assert R.SIDECAR_WITH_PROBES not in [r for r, _ in got]


def test_every_reason_can_be_found_and_says_what_to_do() -> None:
    """The tables of this file find each constant that there is, and each has meaning and remedy."""
    tested = {r for r, _, _ in (*POD_TABLE, *NODE_TABLE)}
    tested |= {R.POD_NOT_FOUND, R.POD_REPLACED, R.CONTAINER_NOT_FOUND, R.TARGET_NAME_TAKEN, R.TARGET_IS_SOURCE}
    tested |= {R.NO_SUITABLE_NODE, R.ALREADY_MIGRATING, R.POST_START_HOOK, R.SIDECAR_WITH_PROBES, R.FREEZE_TOO_LONG}
    tested |= {R.PATH_NOT_ALLOWED, R.ENDPOINT_NOT_ALLOWED, R.STORE_SECRET_NOT_FOUND, R.STORE_SECRET_INVALID}
    tested |= {R.STORE_UNUSABLE, R.STORE_NOT_SHARED}  # these six in test_transport.py
    tested |= {R.CLAIM_NOT_FOUND, R.CLAIM_NOT_SHARED, R.CLAIM_NOT_MOUNTED}  # in test_claim.py
    tested |= {R.POST_COPY_NOT_POSSIBLE, R.PRE_COPY_NOT_POSSIBLE}  # in test_post_copy.py and test_pre_copy.py
    tested |= {R.CONNECTIONS_OPEN, R.SHARED_WRITERS}  # the latter in test_clone.py
    tested |= {R.TARGET_NODE_UNFIT}  # in test_same_name.py
    tested |= {R.CHECKPOINT_NOT_FOUND, R.CHECKPOINT_NOT_READY, R.CHECKPOINT_KEY_UNUSABLE}  # in test_restore.py
    tested |= {reason for reason in R if reason.value.startswith("Podman")}  # in test_podman.py
    assert tested == set(R)
    for reason in R:
        assert reason.meaning.endswith(".")
        assert reason.remedy
        assert not reason.remedy.endswith(".")


def test_a_pod_that_the_agent_does_not_find() -> None:
    assert [r for r, _ in found(preflight_facts(pod_facts=None))] == [R.POD_NOT_RUNNING]


def test_an_agent_that_does_not_answer_is_no_verdict() -> None:
    assert found(preflight_facts(pod_facts=None, agent_problem="timeout")) == []


def test_everything_is_said_at_once() -> None:
    pod = source_pod(
        spec={
            "containers": [{"name": "left", "lifecycle": {"postStart": {}}}, {"name": "main"}],
            "volumes": [{"name": "scratch", "nfs": {}}],
            "hostNetwork": True,
        }
    )
    facts = replace(preflight_facts(pod=pod), target=node(SOURCE))
    got = found(facts, spec={"target": {"nodeName": SOURCE}, "containers": ["main"]})
    assert [r for r, _ in got] == [
        R.POST_START_HOOK,
        R.HOST_NAMESPACE,
        R.VOLUME_CANNOT_MOVE,
        R.TARGET_IS_SOURCE,
    ]


@pytest.mark.parametrize(
    ("modes", "moves"),
    [
        (("ReadWriteOnce",), False),
        (("ReadWriteOncePod",), False),
        ((), False),
        (("ReadWriteMany",), True),
        (("ReadOnlyMany",), True),
        (("ReadWriteOnce", "ReadWriteMany"), True),
    ],
)
def test_a_claim_moves_when_both_nodes_can_mount_it(modes: tuple[str, ...], *, moves: bool) -> None:
    pod = source_pod(spec={"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "shared"}}]})
    found = problems(migration(), preflight_facts(pod=pod, claims={"shared": frozenset(modes)}), NOW)
    assert [problem.reason for problem in found] == ([] if moves else [R.VOLUME_CANNOT_MOVE])
    if not moves:
        assert f"the volume data is the claim shared ({', '.join(modes) or 'not bound'})" in found[0].message


@pytest.mark.parametrize(
    ("policy", "found", "refused"),
    [
        ("Close", Connections(outside=2), False),
        ("Refuse", Connections(outside=2), True),
        ("Refuse", Connections(within=2), False),
        ("Refuse", None, False),
    ],
)
def test_connections_are_refused_when_that_is_asked(policy: str, found: Connections | None, *, refused: bool) -> None:
    facts = preflight_facts(pod_facts=pod_facts().model_copy(update={"connections": found}))
    got = problems(migration(spec={"tcpConnections": policy}), facts, NOW)
    assert [problem.reason for problem in got] == ([R.CONNECTIONS_OPEN] if refused else [])
    if refused:
        assert "has 2 TCP connections with others" in got[0].message
