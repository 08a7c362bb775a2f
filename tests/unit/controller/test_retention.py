"""Which checkpoints have been kept for long enough: by count, age and size, within one series."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from migration_api.checkpoint import ContainerCheckpoint, Retention
from migration_operator.retention import surplus
from support.checkpoints import checkpoint
from support.controller import NOW

DAY = 24 * 3600


def taken(number: int, days: float, **changes: Any) -> ContainerCheckpoint:
    """Return a complete one of 100 bytes that was taken so many days ago."""
    at = NOW - timedelta(days=days)
    return checkpoint(f"c{number}", ready="True", status={"createdAt": at, "sizeBytes": 100}, **changes)


def names(found: list[tuple[ContainerCheckpoint, str]]) -> list[str]:
    return sorted(it.metadata.name for it, _ in found)


THREE = [taken(0, 0), taken(1, 1), taken(2, 2)]


@pytest.mark.parametrize(
    ("limit", "gone"),
    [
        ({}, []),
        ({"count": 3}, []),
        ({"count": 2}, ["c2"]),
        ({"count": 1}, ["c1", "c2"]),
        ({"ageSeconds": DAY + 1}, ["c2"]),
        ({"ageSeconds": 1}, ["c1", "c2"]),
        ({"totalBytes": 300}, []),
        ({"totalBytes": 299}, ["c2"]),
        ({"totalBytes": 1}, ["c1", "c2"]),
    ],
)
def test_what_is_too_much_goes_the_oldest_first(limit: dict[str, int], gone: list[str]) -> None:
    assert names(surplus(reversed(THREE), Retention.model_validate(limit), NOW)) == gone


def test_each_is_measured_by_its_own_word_before_the_charts() -> None:
    forever = taken(2, 2, spec={"retention": {"count": 100}})
    assert names(surplus([taken(0, 0), taken(1, 1), forever], Retention(count=1), NOW)) == ["c1"]


def test_series_and_namespaces_do_not_count_each_other() -> None:
    others = [
        checkpoint("web", ready="True", status={"series": "web", "createdAt": NOW}),
        checkpoint("far", ready="True", namespace="far", status={"createdAt": NOW}),
    ]
    assert surplus([taken(1, 1), *others], Retention(count=1), NOW) == []


@pytest.mark.parametrize("changes", [{"ready": "Unknown"}, {"ready": "False"}, {"deletion_timestamp": NOW}])
def test_only_what_is_complete_counts_and_goes(changes: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"ready": "True", "status": {"createdAt": NOW}, **changes}
    other = checkpoint("other", **fields)
    assert surplus([taken(1, 0.5), other], Retention(count=1), NOW) == []
