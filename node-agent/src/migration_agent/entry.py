"""One migration of this node, and what was told of it last."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from migration_agent.source import SourceSide
from migration_agent.target import TargetSide
from migration_api.wire import MigrationReport


@dataclass
class Entry:
    """Both of its sides, most have one."""

    revision: int
    source: SourceSide | None = None
    target: TargetSide | None = None
    told: MigrationReport | None = None
    """The latest report without what changes by mere time; a change of it is news."""
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def sides(self) -> tuple[SourceSide | TargetSide, ...]:
        return tuple(side for side in (self.source, self.target) if side is not None)

    @property
    def settled(self) -> bool:
        return all(side.record.settled for side in self.sides)

    def is_news(self, report: MigrationReport) -> bool:
        """Say whether something but mere time has changed since the last report, and keep it."""
        last, self.told = self.told, _timeless(report)
        return self.told != last

    def tell(self, revision: int) -> None:
        """Wake all who wait for news."""
        self.revision = revision
        self.news.set()
        self.news = asyncio.Event()


def _timeless(report: MigrationReport) -> MigrationReport:
    source, target = report.source, report.target
    return report.model_copy(
        update={
            "revision": 0,
            "source": source and source.model_copy(update={"freeze_budget_left_seconds": None}),
            "target": target
            and target.model_copy(update={"gate_age_seconds": 0.0 if target.gate_age_seconds is not None else None}),
        }
    )
