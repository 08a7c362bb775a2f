from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from migration_api.conditions import PreflightReason as R
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
        "ReplicaSet web-1",
    ),
    (R.INIT_CONTAINERS, {"spec": {"initContainers": [{"name": "before"}]}}, "init containers (before)"),
    (R.EPHEMERAL_CONTAINERS, {"spec": {"ephemeralContainers": [{"name": "debug"}]}}, "ephemeral containers (debug)"),
    (R.HOST_NAMESPACE, {"spec": {"hostNetwork": True, "hostPID": True}}, "hostNetwork, hostPID"),
    (R.HOST_NAMESPACE, {"spec": {"hostIPC": True, "shareProcessNamespace": True}}, "hostIPC, shareProcessNamespace"),
    (
        R.VOLUME_CANNOT_MOVE,
        {"spec": {"volumes": [{"name": "huge", "emptyDir": {"medium": "HugePages-2Mi"}}]}},
        "huge (emptyDir)",
    ),
    (
        R.VOLUME_CANNOT_MOVE,
        {"spec": {"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]}},
        "data (persistentVolumeClaim)",
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
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, NO_AVX2)}, "lacks what the CPU of node-a has: avx2"),
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, OTHER_CRIU)}, "node-b has CRIU 4.3, node-a has 4.2"),
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, ARM)}, "node-b is aarch64, node-a is x86_64"),
    (R.NODE_NOT_CAPABLE, {"target": node(TARGET, FULL)}, "/run of node node-b has 10 MiB left"),
    (R.NODE_NOT_CAPABLE, {"source": node(SOURCE, FULL)}, "/run of node node-a has 10 MiB left"),
]


@pytest.mark.parametrize(("reason", "changes", "words"), NODE_TABLE, ids=[w for _, _, w in NODE_TABLE])
def test_a_node_that_cannot_take_part(reason: R, changes: dict[str, Any], words: str) -> None:
    facts = preflight_facts(**{"target": node(TARGET), **changes})
    [(got, message)] = found(facts, spec={"target": {"nodeName": TARGET}})
    assert got == reason
    assert words in message


def test_a_target_with_more_cpu_features_is_fine() -> None:
    more = FACTS.model_copy(update={"cpu_flags": (*FACTS.cpu_flags, "avx512f")})
    assert found(preflight_facts(target=node(TARGET, more)), spec={"target": {"nodeName": TARGET}}) == []


def test_the_target_is_the_source() -> None:
    [(reason, message)] = found(preflight_facts(target=node(SOURCE)), spec={"target": {"nodeName": SOURCE}})
    assert (reason, message) == (R.TARGET_IS_SOURCE, "pod redis already runs on node-a")


def test_without_a_name_one_other_node_must_suit() -> None:
    assert found(preflight_facts(candidates=(node(SOURCE), node("node-c", ready=False), node(TARGET)))) == []
    [(reason, message)] = found(preflight_facts(candidates=(node(SOURCE), node(TARGET, NO_AVX2))))
    assert reason == R.NODE_NOT_CAPABLE
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
    [(2900, 30, None), (2901, 30, "30 s (spec"), (5900, 600, None), (5901, 600, "60 s, the most")],
)
def test_the_freeze_is_estimated(mebibytes: int, budget: int, words: str | None) -> None:
    got = found(preflight_facts(pod_facts=pod_facts(mebibytes)), spec={"freezeBudgetSeconds": budget})
    assert [r for r, _ in got] == ([R.FREEZE_TOO_LONG] if words else [])
    assert words is None or words in got[0][1]


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
        R.SEVERAL_CONTAINERS,
        R.HOST_NAMESPACE,
        R.VOLUME_CANNOT_MOVE,
        R.TARGET_IS_SOURCE,
    ]
