"""The operator's metrics: what is counted when a migration ends, and what a scrape says of those that go on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from migration_api.base import now
from migration_api.migration import MigrationStatus, Timings
from migration_operator.metrics import FREEZE_BUCKETS, Metrics, phase_seconds
from support.controller import NOW, begun, migration

P = "container_migration"


def after(seconds: float) -> Any:
    return NOW + timedelta(seconds=seconds)


def ended(result: str, freeze: str | None = None, **timings: Any) -> MigrationStatus:
    condition = {
        "type": "Succeeded",
        "status": "True" if result == "Succeeded" else "False",
        "observedGeneration": 1,
        "lastTransitionTime": NOW,
        "reason": result,
        "message": "",
    }
    return MigrationStatus.model_validate(
        {
            "conditions": [condition],
            "source": {} if result == "PreflightFailed" else {"nodeName": "node-a", "podUID": "a"},
            "progress": {"bytesTotal": 1000, "bytesDone": 1000},
            "timings": {"freezeSeconds": freeze, **timings},
        }
    )


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"{P}_{name}", labels)


def test_ends_are_counted_by_result() -> None:
    metrics = Metrics()
    for result in ("Succeeded", "Succeeded", "RolledBack", "PreflightFailed"):
        metrics.ended(ended(result))
    assert sample(metrics, "migrations_total", result="Succeeded") == 2
    assert sample(metrics, "migrations_total", result="RolledBack") == 1
    assert sample(metrics, "migrations_total", result="PreflightFailed") == 1
    assert sample(metrics, "bytes_total") == 4000


def test_freezes_fall_into_buckets_and_what_never_froze_into_none() -> None:
    metrics = Metrics()
    metrics.ended(ended("Succeeded", "0.700"))
    metrics.ended(ended("PreflightFailed"))
    assert sample(metrics, "freeze_seconds_bucket", result="Succeeded", le="0.5") == 0
    assert sample(metrics, "freeze_seconds_bucket", result="Succeeded", le="1.0") == 1
    assert sample(metrics, "freeze_seconds_count", result="PreflightFailed") is None
    assert (FREEZE_BUCKETS[0], FREEZE_BUCKETS[-1]) == (0.05, 60)


def test_phases_are_the_spans_between_the_timings() -> None:
    timings = Timings(
        started_at=after(0),
        admitted_at=after(1),
        prepared_at=after(2),
        frozen_at=after(2.5),
        dumped_at=after(3),
        transferred_at=after(3.4),
        restored_at=after(3.3),
        completed_at=after(9),
    )
    assert phase_seconds(timings) == {
        "queue": 1,
        "prepare": 1,
        "freeze": 0.5,
        "dump": 0.5,
        "transfer": pytest.approx(0.4),
        "restore": 0,
        "all": 9,
    }
    metrics = Metrics()
    metrics.ended(
        ended("Succeeded", startedAt=after(0), admittedAt=after(0), preparedAt=after(2), completedAt=after(9))
    )
    assert sample(metrics, "phase_seconds_sum", phase="prepare") == 2
    assert sample(metrics, "phase_seconds_sum", phase="all") == 9
    assert sample(metrics, "phase_seconds_count", phase="dump") is None
    metrics.ended(ended("PreflightFailed", startedAt=after(0), completedAt=after(0)))
    assert sample(metrics, "phase_seconds_count", phase="all") == 1, "a refusal has no phases"


def test_what_goes_on_is_told_as_it_is_now() -> None:
    metrics = Metrics()
    assert sample(metrics, "oldest_active_seconds") == 0
    young = migration(uid="1", creation_timestamp=now() - timedelta(seconds=10))
    moving = begun(phase="Checkpointing")
    old = migration(uid="2", creation_timestamp=now() - timedelta(seconds=100), status=moving)
    for each in (young, old):
        metrics.notice(each, deleted=False)
    assert sample(metrics, "active", phase="Pending") == 1
    assert sample(metrics, "active", phase="Checkpointing") == 1
    assert 100 <= (sample(metrics, "oldest_active_seconds") or 0) < 200
    metrics.notice(old, deleted=True)
    metrics.notice(young.model_copy(update={"status": ended("RolledBack")}), deleted=False)
    assert sample(metrics, "active", phase="Checkpointing") is None
    assert sample(metrics, "active", phase="Pending") is None
    assert sample(metrics, "oldest_active_seconds") == 0
