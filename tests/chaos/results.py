"""What became of the matrix's cells, kept in a file: so a matrix that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from chaos.cells import Cell
from chaos.trial import HEADER, Outcome, row

BEGIN, END = "<!-- matrix -->\n", "<!-- end of the matrix -->\n"


@dataclass
class Results:
    """One line of JSON for each cell that was taken; of a cell taken again the last one counts."""

    file: Path
    rows: dict[str, str] = field(default_factory=dict[str, str])
    """By cell: its line of the table."""
    faulty: set[str] = field(default_factory=set[str])

    @classmethod
    def load(cls, file: Path) -> Results:
        """Return what is in the file, which need not exist; a line that was cut off is none."""
        it = cls(file)
        for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else ():
            if line.endswith("\n"):
                known = json.loads(line)
                it._note(known["cell"], known["row"], faulty=known["faulty"])
        return it

    def add(self, outcome: Outcome) -> str:
        """Keep an outcome and return its line of the table."""
        line, faulty = row(outcome), bool(outcome.faults)
        self._note(str(outcome.cell), line, faulty=faulty)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": str(outcome.cell), "row": line, "faulty": faulty}) + "\n")
        return line

    def missing(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return those that were not taken yet, or that had a fault."""
        return [cell for cell in cells if str(cell) not in self.rows or str(cell) in self.faulty]

    def table(self, cells: Iterable[Cell]) -> str:
        """Return what was taken of these cells, in their order, as a table under a sentence that says how many."""
        every = list(cells)
        taken = [str(cell) for cell in every if str(cell) in self.rows]
        bad = len(self.faulty.intersection(taken))
        head = f"{len(taken)} of {len(every)} cells were run, {bad} of them with faults.\n\n{HEADER}"
        return head + "".join(self.rows[cell] for cell in taken)

    def write(self, page: Path, cells: Iterable[Cell]) -> None:
        """Put the table into a page, between its two marks."""
        head, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        page.write_text(head + BEGIN + self.table(cells) + END + tail, encoding="utf-8")

    def _note(self, cell: str, line: str, *, faulty: bool) -> None:
        self.rows[cell] = line
        (self.faulty.add if faulty else self.faulty.discard)(cell)
