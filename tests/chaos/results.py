"""What became of the matrix's cells, kept in a table of a page: a matrix that was stopped goes on where it was."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from chaos.cells import Accident, Cell
from chaos.trial import HEADER, NO_FAULT, Outcome, row

BEGIN, END = "<!-- matrix -->\n", "<!-- end of the matrix -->\n"
_ROW = re.compile(r"^\| `(?P<point>[^`]+)` \| (?P<accident>[^|]+) \|.*\| (?P<faults>[^|]*) \|\n$")


@dataclass
class Results:
    """The cells that were taken, of a cell taken again the last time; the page has them all after each one."""

    page: Path
    every: tuple[Cell, ...]
    """The order of the table; what is no cell of it any more goes."""
    rows: dict[Cell, str]
    faulty: set[Cell]

    @classmethod
    def load(cls, page: Path, every: Iterable[Cell], *, again: Iterable[Cell] = ()) -> Results:
        """Return what a page with the two marks has in its table, but those that are to be taken `again`."""
        it = cls(page, tuple(every), {}, set())
        table = page.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
        anew = frozenset(again)
        for line in table.splitlines(keepends=True):
            if (match := _ROW.match(line)) and match["accident"] in set(Accident):
                cell = Cell(match["point"], Accident(match["accident"]))
                if cell in anew:
                    continue
                it._note(cell, line, faulty=not match["faults"].startswith(NO_FAULT))
        return it

    def add(self, outcome: Outcome) -> str:
        """Keep an outcome, and return its line of the table."""
        line = row(outcome)
        self._note(outcome.cell, line, faulty=bool(outcome.faults))
        head, _, rest = self.page.read_text(encoding="utf-8").partition(BEGIN)
        tail = rest.partition(END)[2]
        self.page.write_text(head + BEGIN + self._table() + END + tail, encoding="utf-8")
        return line

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return those that were not taken yet, or that had a fault."""
        return [cell for cell in cells if cell not in self.rows or cell in self.faulty]

    def _table(self) -> str:
        """Return the rows in their order, under a sentence that says how many they are."""
        taken = [cell for cell in self.every if cell in self.rows]
        bad = len(self.faulty.intersection(taken))
        head = f"{len(taken)} of {len(self.every)} cells were run, {bad} of them with faults.\n\n{HEADER}"
        return head + "".join(self.rows[cell] for cell in taken)

    def _note(self, cell: Cell, line: str, *, faulty: bool) -> None:
        self.rows[cell] = line
        (self.faulty.add if faulty else self.faulty.discard)(cell)
