"""The matrix's table: what was taken counts, what had a fault is taken again, and the page is what it was else."""

from __future__ import annotations

from pathlib import Path

import pytest

from chaos.cells import Accident, Cell
from chaos.results import BEGIN, END, Results
from chaos.trial import Outcome

GOOD, BAD, LATER = (Cell(point, Accident.DIES) for point in ("source.dump", "source.fenced", "target.hold"))
ALL = [GOOD, BAD, LATER]


@pytest.fixture
def page(tmp_path: Path) -> Path:
    it = tmp_path / "page.md"
    it.write_text(f"# Head\n{BEGIN}old\n{END}tail\n", encoding="utf-8")
    return it


def bad() -> Outcome:
    return Outcome(BAD, faults=["doubled 7 | 8\nthere"])


def test_what_was_taken_is_not_taken_again_unless_it_had_a_fault(page: Path) -> None:
    results = Results.load(page, ALL)
    assert results.missing(ALL) == ALL
    results.add(Outcome(GOOD))
    results.add(bad())
    assert Results.load(page, ALL).missing(ALL) == [BAD, LATER]
    results.add(Outcome(BAD, known=["doubled 9"]))
    assert Results.load(page, ALL).missing(ALL) == [LATER]


def test_what_is_to_be_taken_again_is_and_the_rest_stays(page: Path) -> None:
    before = Results.load(page, ALL)
    for cell in (GOOD, LATER):
        before.add(Outcome(cell))
    after = Results.load(page, ALL, again=[GOOD])
    assert after.missing(ALL) == [GOOD, BAD]
    after.add(Outcome(GOOD))
    assert Results.load(page, ALL).missing(ALL) == [BAD]


def test_what_is_no_cell_any_more_goes(page: Path) -> None:
    Results.load(page, ALL).add(Outcome(GOOD))
    Results.load(page, [BAD, LATER]).add(bad())
    assert "source.dump" not in page.read_text(encoding="utf-8")


def test_the_page_gets_the_table_and_keeps_the_rest(page: Path) -> None:
    results = Results.load(page, ALL)
    results.add(bad())
    results.add(Outcome(GOOD))
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Head\n")
    assert text.endswith(f"{END}tail\n")
    assert "2 of 3 cells were run, 1 of them with faults." in text
    assert "old" not in text
    assert text.index("source.dump") < text.index("doubled 7 / 8 there")
