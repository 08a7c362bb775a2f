"""A matrix that was stopped goes on where it was, and its page says how much was run."""

from __future__ import annotations

from pathlib import Path

from chaos.cells import Accident, Cell
from chaos.results import BEGIN, END, Results
from chaos.trial import Outcome

GOOD, BAD, LATER = Cell("a.b", Accident.DIES), Cell("a.b", Accident.FAILS), Cell("c.d", Accident.CANCEL)
ALL = [GOOD, BAD, LATER]


def test_what_was_taken_is_not_taken_again_but_a_fault_is(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "results.jsonl"
    results = Results.load(file)
    assert results.missing(ALL) == ALL
    results.add(Outcome(GOOD, ended="target"))
    results.add(Outcome(BAD, faults=["lost 7"]))
    assert Results.load(file).missing(ALL) == [BAD, LATER]
    results.add(Outcome(BAD, ended="source"))
    assert Results.load(file).missing(ALL) == [LATER]


def test_a_line_that_was_cut_off_counts_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    Results.load(file).add(Outcome(GOOD))
    with file.open("a", encoding="utf-8") as out:
        out.write('{"cell": "a.b')
    assert Results.load(file).missing(ALL) == [BAD, LATER]


def test_the_page_says_how_much_was_run_and_keeps_the_rest(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}old\n{END}after\n", encoding="utf-8")
    results = Results.load(tmp_path / "results.jsonl")
    results.add(Outcome(BAD, faults=["lost 7"]))
    results.write(page, ALL)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}1 of 3 cells were run, 1 of them with faults.\n")
    assert "| `a.b` | it fails |" in text
    assert "old" not in text
    assert text.endswith(f"{END}after\n")
