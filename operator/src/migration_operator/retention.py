"""Which checkpoints have been kept for long enough. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from migration_api.checkpoint import ContainerCheckpoint, Retention
from migration_operator.checkpoint_plan import ready_status


def surplus(
    checkpoints: Iterable[ContainerCheckpoint], default: Retention, now: datetime
) -> list[tuple[ContainerCheckpoint, str]]:
    """Return those that are to be deleted, each with why.

    Only complete ones count, and only complete ones go. Each is measured by its own retention against the newer ones
    of its series.
    """
    series: dict[tuple[str, str], list[ContainerCheckpoint]] = {}
    for checkpoint in checkpoints:
        if not checkpoint.deleting and ready_status(checkpoint) == "True":
            key = checkpoint.metadata.namespace, checkpoint.status.series or checkpoint.metadata.name
            series.setdefault(key, []).append(checkpoint)
    found: list[tuple[ContainerCheckpoint, str]] = []
    for members in series.values():
        total = 0
        for place, it in enumerate(sorted(members, key=lambda c: _taken(c, now), reverse=True)):
            total += it.status.size_bytes or 0
            if why := _too_much(it, effective(it.spec.retention, default), place, total, now):
                found.append((it, why))
    return found


def effective(own: Retention, default: Retention) -> Retention:
    """Return what holds for a checkpoint: its own word, else the chart's."""
    return Retention(
        count=own.count or default.count,
        age_seconds=own.age_seconds or default.age_seconds,
        total_bytes=own.total_bytes or default.total_bytes,
    )


def _too_much(it: ContainerCheckpoint, limit: Retention, place: int, total: int, now: datetime) -> str:
    if limit.count is not None and place >= limit.count:
        return f"there are {place} newer ones of its series, and {limit.count} are kept"
    if limit.age_seconds is not None and now - _taken(it, now) > timedelta(seconds=limit.age_seconds):
        return f"it is older than {limit.age_seconds} s"
    if limit.total_bytes is not None and place and total > limit.total_bytes:
        return f"with the newer ones of its series it has {total} bytes, and {limit.total_bytes} are kept"
    return ""


def _taken(checkpoint: ContainerCheckpoint, now: datetime) -> datetime:
    return checkpoint.status.created_at or checkpoint.metadata.creation_timestamp or now
