"""What the demo measured, and whether it was true."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from support.cluster import Manifest, condition

MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Result:
    """What the demo measured."""

    migration: Manifest
    keys_before: int
    keys_after: int
    acknowledged: int
    lost: int
    wrong: int
    longest_gap: float
    pods_left: tuple[str, ...]

    @property
    def claims(self) -> dict[str, bool]:
        """Each claim, and whether it holds: together they say that the container moved with everything, once."""
        target = self.migration["status"].get("target", {}).get("podName")
        return {
            "the migration succeeded": condition(self.migration, "Succeeded").get("status") == "True",
            f"all {self.keys_before} keys are there": self.keys_before == self.keys_after > 0,
            f"none of {self.acknowledged} acknowledged writes is lost or wrong": (
                self.acknowledged > 0 and self.lost == self.wrong == 0
            ),
            "there is one copy, on the target": self.pods_left == (target,),
        }

    @property
    def true(self) -> bool:
        """Whether every claim holds."""
        return all(self.claims.values())


def seconds_between(timings: dict[str, str], first: str, last: str) -> str:
    """Return the time between two of the status' timings, or a dash when one is missing."""
    if first not in timings or last not in timings:
        return "-"
    moments = [datetime.fromisoformat(timings[name]) for name in (first, last)]
    return f"{max(0.0, (moments[1] - moments[0]).total_seconds()):.2f} s"


def show(result: Result, console: Console) -> None:
    """Print what was measured and whether it was true."""
    status = result.migration["status"]
    timings = status.get("timings", {})
    source, target = status.get("source", {}).get("nodeName", "?"), status.get("target", {}).get("nodeName", "?")
    table = Table(show_header=False, box=None, padding=(0, 2))
    rows = (
        ("from, to", f"{source} → {target}"),
        ("pod", f"redis → {', '.join(result.pods_left)}"),
        ("memory and files moved", f"{status.get('progress', {}).get('bytesDone', 0) / MEBIBYTE:.1f} MiB"),
        ("prepared, while it ran", seconds_between(timings, "startedAt", "preparedAt")),
        ("stood still", f"{timings.get('freezeSeconds', '-')} s"),
        ("  dump", seconds_between(timings, "frozenAt", "dumpedAt")),
        ("  transfer", seconds_between(timings, "dumpedAt", "transferredAt")),
        ("  restore", seconds_between(timings, "transferredAt", "restoredAt")),
        ("  commit and resume", seconds_between(timings, "restoredAt", "resumedAt")),
        ("client's longest gap", f"{result.longest_gap:.2f} s"),
        ("in all", seconds_between(timings, "startedAt", "completedAt")),
        ("keys before, after", f"{result.keys_before}, {result.keys_after}"),
        ("writes acknowledged, lost, wrong", f"{result.acknowledged}, {result.lost}, {result.wrong}"),
    )
    for row in rows:
        table.add_row(*row)
    console.print(Panel(table, title="report", expand=False))
    for claim, holds in result.claims.items():
        console.print(f"  {'[green]✔ true' if holds else '[bold red]✘ NOT TRUE'}[/]  {claim}")
