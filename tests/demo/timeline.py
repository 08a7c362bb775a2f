"""A migration as it goes: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from support.cluster import Manifest, condition

STEPS = {
    "PreflightPassed": "nothing stands against it",
    "TargetPrepared": "the target pod waits at the gate",
    "Checkpointed": "the source is frozen and dumped",
    "Transferred": "the checkpoint is on the target node",
    "Restored": "restored, and held before its first instruction",
    "Committed": "decided: it goes on at the target",
    "SourceReleased": "the source was ended while frozen",
}
"""The conditions in their order, in words."""

MEBIBYTE = 1024 * 1024


class Timeline:
    """Shows the steps as their conditions become true; use it as a context manager and call `show` often."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=10) if console.is_terminal else None
        self._began = time.monotonic()
        self._passed: dict[str, float] = {}
        self._migration: Manifest | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.update(self._table(), refresh=True)
            self._live.stop()

    def show(self, migration: Manifest | None) -> None:
        """Take the migration as it is now."""
        self._migration = migration
        for step, words in STEPS.items():
            if step not in self._passed and condition(migration, step).get("status") == "True":
                self._passed[step] = time.monotonic() - self._began
                if not self._live:
                    self._console.print(f"  {self._passed[step]:6.2f} s  {step:16} {words}")
        if self._live:
            self._live.update(self._table())

    def _table(self) -> Group:
        table = Table(box=None, show_header=False, padding=(0, 1))
        current = True
        for step, words in STEPS.items():
            verdict = condition(self._migration, step)
            if step in self._passed:
                row = (Text("✔", "green"), Text(f"{self._passed[step]:6.2f} s"), Text(step), Text(words, "dim"))
            elif verdict.get("status") == "False":
                row = (Text("✘", "red"), Text(""), Text(step), Text(str(verdict.get("message")), "red"))
            elif current:
                row = (
                    Text("▸", "yellow"),
                    Text(f"{self._elapsed():6.2f} s", "yellow"),
                    Text(step, "bold"),
                    Text(words),
                )
                current = False
            else:
                row = (Text("·", "dim"), Text(""), Text(step, "dim"), Text(words, "dim"))
            table.add_row(*row)
        return Group(table, self._progress())

    def _elapsed(self) -> float:
        return time.monotonic() - self._began

    def _progress(self) -> Group | Text:
        progress: dict[str, int] = (self._migration or {}).get("status", {}).get("progress", {})
        total, done = progress.get("bytesTotal", 0), progress.get("bytesDone", 0)
        if not total:
            return Text("")
        numbers = Text(f"   {done / MEBIBYTE:.0f} of {total / MEBIBYTE:.0f} MiB")
        return Group(ProgressBar(total=total, completed=min(done, total), width=60), numbers)
