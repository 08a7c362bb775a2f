"""What the freeze benchmark makes of what it measured."""

from __future__ import annotations

import pytest

from bench.freeze.measure import Case, Gap, Spread, figures, longest, lost, ratio, spread, too_little_memory
from bench.freeze.method import Findings, Outcome
from bench.freeze.report import Machine, Run, shown, table

SECOND = 1_000_000_000
MEBIBYTE = 1 << 20


def findings(*gaps: tuple[int, int], acknowledged: int = 10, found: int = 10) -> Findings:
    return Findings(
        movedAt=4 * SECOND,
        gaps=list(gaps),
        writerGaps=list(gaps),
        acknowledged=acknowledged,
        found=found,
        wrong=0,
        checked=2000,
        requestsBefore=20000.0,
        requestsFirst=1000.0,
        requestsTenth=19000.0,
        residentBytes=MEBIBYTE,
    )


def case(method: str, repetition: int, stall: float | None, failed: str | None = None) -> Case:
    values = {
        **figures(Outcome({"command": 0}, findings((3 * SECOND, 4 * SECOND)), MEBIBYTE, 1.5)),
        "stallMilliseconds": stall,
    }
    return Case(64, method, repetition, failed, figures={} if stall is None else values)


def test_the_stall_is_the_longest_gap_after_the_command() -> None:
    assert longest([(0, 90), (100, 130), (140, 150)], since=95) == Gap(100, 130)
    assert longest([(0, 90)], since=95) is None


def test_a_move_comes_to_figures_counted_from_the_command() -> None:
    marks = {"command": 2 * SECOND, "dumped": 3 * SECOND}
    it = figures(Outcome(marks, findings((0, SECOND), (3 * SECOND, 4 * SECOND)), MEBIBYTE, 1.5))
    assert it["stallMilliseconds"] == it["writerStallMilliseconds"] == 1000
    assert it["stallBeganMilliseconds"] == it["stepsMilliseconds"]["dumped"] == 1000
    assert it["totalSeconds"] == 2
    assert it["clientStallMilliseconds"] is None


def test_a_move_without_a_gap_is_none() -> None:
    with pytest.raises(ValueError, match="saw no gap"):
        figures(Outcome({"command": 5 * SECOND}, findings((3 * SECOND, 4 * SECOND)), MEBIBYTE, 1.5))


def test_a_write_is_lost_when_it_was_acknowledged_and_is_not_there() -> None:
    assert lost(findings(acknowledged=12, found=10)) == 2


def test_a_ratio_is_the_median_of_the_repetitions_in_which_both_worked() -> None:
    ours = [case("ours", 1, 200), case("ours", 2, 900), case("ours", 3, 300), case("ours", 4, None, "why")]
    theirs = [case("runc", 1, 400), case("runc", 2, 1000), case("runc", 3, None, "why"), case("runc", 4, 100)]
    assert ratio(ours, theirs) == pytest.approx((0.5 + 0.9) / 2)
    assert ratio(ours, []) is None


def test_a_spread_leaves_out_what_failed() -> None:
    it = spread([case("runc", 1, 3), case("runc", 2, None, "why"), case("runc", 3, 1)], "stallMilliseconds")
    assert it == Spread(2, 1, 3)
    assert shown(it) == "2 (1-3)"
    assert shown(None) == "-"


def test_a_size_that_does_not_fit_is_left_out_with_a_reason() -> None:
    assert too_little_memory(64, 4 << 30) is None
    assert too_little_memory(4096, 4 << 30) == "18227 MiB of memory are needed, 4096 MiB are available"


def test_the_table_tells_of_what_failed_and_why() -> None:
    cases = [case("podman", 1, 800), case("ours", 1, 200), case("runc", 1, None, "no such\ncommand")]
    text = table(Run(Machine("a processor", 2, 24 << 30, "6.18"), {"runc": "1.3.6"}, 1, (0.1, 2.0), cases))
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines() if line.startswith("| ")}
    assert rows["ours"].startswith("| ours | 200 | 0.25 | - | - |")
    assert rows["runc"].endswith("| 0 of 1 |")
    assert "- runc, repetition 1: failed: no such command" in text
    assert "a processor, 2 cores, 24 GiB; kernel 6.18; runc 1.3.6" in text
