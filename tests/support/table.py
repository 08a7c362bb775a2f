"""The table of docs/workloads.md: each row is written by the test that has just shown it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from support.cluster import Manifest

HEAD = ("workload", "what moved", "checkpoint", "freeze", "result")


@dataclass
class Table:
    """Rows by workload."""

    rows: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    def add(self, workload: str, moved: str, migration: Manifest, result: str) -> None:
        """Add what a test has shown of a finished migration."""
        status = migration["status"]
        mebibytes = int(status["progress"]["bytesTotal"]) / 2**20
        freeze = f"{float(status['timings']['freezeSeconds']):.1f} s"
        self.rows[workload] = (workload, moved, f"{mebibytes:.0f} MiB", freeze, result)

    def refused(self, workload: str, why: str) -> None:
        """Add what a test has shown to be refused."""
        self.rows[workload] = (workload, "nothing", "-", "-", f"refused: {why}")

    def write(self, path: Path) -> None:
        """Replace the rows of the workloads that were tested, and leave everything else in the file as it is."""
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(_line(HEAD))
        old = [line for line in rest.splitlines() if line.startswith("| ")]
        after = "\n".join(line for line in rest.splitlines() if not line.startswith("|")).strip()
        rows = {line.split(" | ")[0].removeprefix("| "): line for line in old}
        rows |= {name: _line(row) for name, row in self.rows.items()}
        table = "\n".join((_line(HEAD), "|---" * len(HEAD) + "|", *rows.values()))
        path.write_text(f"{before}{table}\n{after and f'{chr(10)}{after}{chr(10)}'}", encoding="utf-8")


def _line(row: tuple[str, ...]) -> str:
    return f"| {' | '.join(row)} |"
