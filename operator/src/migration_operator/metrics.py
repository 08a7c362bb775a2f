"""What Prometheus is told of migrations: how they end, how long they and their freezes take, which go on.

Counters count what this operator saw end; what goes on is read from the objects as they are at the time of the scrape.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import datetime

import prometheus_client as prometheus
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from migration_api.base import now
from migration_api.conditions import ConditionType
from migration_api.migration import ContainerMigration, MigrationStatus, Timings
from migration_operator.observation import is_finished

PORT = 8081

FREEZE_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60)
_PHASE_BUCKETS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600)
_PHASES = (
    ("queue", "started_at", "admitted_at"),
    ("prepare", "admitted_at", "prepared_at"),
    ("freeze", "prepared_at", "frozen_at"),
    ("dump", "frozen_at", "dumped_at"),
    ("transfer", "dumped_at", "transferred_at"),
    ("restore", "transferred_at", "restored_at"),
    ("commit", "restored_at", "resumed_at"),
    ("release", "resumed_at", "completed_at"),
    ("all", "started_at", "completed_at"),
)
"""Name, beginning and end, as fields of the timings."""


def phase_seconds(timings: Timings) -> dict[str, float]:
    """Return how long each phase took, as far as both its ends are known; clocks of nodes may differ: never below 0."""
    spans = ((name, getattr(timings, begin), getattr(timings, end)) for name, begin, end in _PHASES)
    return {name: max(0.0, (end - begin).total_seconds()) for name, begin, end in spans if begin and end}


class Metrics(Collector):
    """One per process; `registry` is what is served."""

    def __init__(self) -> None:
        self.registry = prometheus.CollectorRegistry()
        prefix, of = "container_migration", self.registry
        self._ended = prometheus.Counter(f"{prefix}_migrations", "Migrations that ended.", ["result"], registry=of)
        self._freeze = prometheus.Histogram(
            f"{prefix}_freeze_seconds",
            "How long containers stood still.",
            ["result"],
            buckets=FREEZE_BUCKETS,
            registry=of,
        )
        self._phases = prometheus.Histogram(
            f"{prefix}_phase_seconds",
            "How long each phase of a migration took.",
            ["phase"],
            buckets=_PHASE_BUCKETS,
            registry=of,
        )
        self._bytes = prometheus.Counter(f"{prefix}_bytes", "Bytes that arrived verified at targets.", registry=of)
        self._active: dict[str, tuple[str, datetime]] = {}
        self.registry.register(self)
        prometheus.ProcessCollector(registry=of)

    def serve(self, port: int = PORT) -> None:
        """Answer scrapes on all addresses, in a thread; there is nothing secret in them."""
        prometheus.start_http_server(port, registry=self.registry)

    def notice(self, migration: ContainerMigration, *, deleted: bool) -> None:
        """Take the object as it is now."""
        created = migration.metadata.creation_timestamp
        if deleted or created is None or is_finished(migration):
            self._active.pop(migration.metadata.uid, None)
        else:
            self._active[migration.metadata.uid] = (migration.status.phase or "Pending", created)

    def ended(self, status: MigrationStatus) -> None:
        """Count a migration that has just ended with this status."""
        result = next((c.reason for c in status.conditions if c.type == ConditionType.SUCCEEDED), "Unknown")
        self._ended.labels(result).inc()
        if status.timings.freeze_seconds is not None:
            self._freeze.labels(result).observe(float(status.timings.freeze_seconds))
        # A refusal takes no time worth a histogram: nothing was done.
        begun = status.source.pod_uid is not None or status.source.checkpoint_uid is not None
        for phase, seconds in phase_seconds(status.timings).items() if begun else ():
            self._phases.labels(phase).observe(seconds)
        self._bytes.inc(status.progress.bytes_done or 0)

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Return what goes on; called in the scrape's thread."""
        active = list(self._active.values())
        by_phase = GaugeMetricFamily(
            "container_migration_active", "Migrations that have not ended, by phase.", labels=["phase"]
        )
        for phase, count in Counter(phase for phase, _ in active).items():
            by_phase.add_metric([phase], count)
        yield by_phase
        oldest = max((now() - created).total_seconds() for _, created in active) if active else 0.0
        yield GaugeMetricFamily(
            "container_migration_oldest_active_seconds",
            "Age of the oldest migration that has not ended; 0 without any.",
            value=max(0.0, oldest),
        )
