"""The matrix passes every failpoint that can be passed, CI every accident, and a seed repeats a storm."""

from __future__ import annotations

from chaos.cells import (
    AT_THE_POINT,
    ELSEWHERE,
    KNOWN,
    LONG,
    PAIRWISE,
    WAYS,
    Accident,
    Cell,
    Way,
    interposer_points,
    matrix,
    points,
)
from chaos.storm import Tally, harm
from chaos.trial import Outcome, row
from chaos.workload import End
from migration_api.failpoints import Failpoint


def test_every_failpoint_is_passed_or_it_is_said_why_not() -> None:
    every = {*Failpoint, *interposer_points()}
    assert set(points()) | set(ELSEWHERE) == every
    assert set(ELSEWHERE) <= every
    assert set(WAYS) <= every
    assert {cell.point for cell in matrix()} == set(points())


def test_each_cell_is_there_once() -> None:
    cells = list(matrix())
    assert len(cells) == len(set(cells))
    assert {cell.accident for cell in cells} == set(Accident)
    assert len([cell for cell in cells if cell.accident in AT_THE_POINT]) == 2 * len(points())


def test_ci_takes_every_accident_and_every_part() -> None:
    assert {cell.accident for cell in PAIRWISE} == set(Accident) - {Accident.SOURCE_POD} - LONG
    assert {cell.point.split(".")[0] for cell in PAIRWISE} == {"operator", "source", "target", "interposer", "hook"}
    assert {cell.point for cell in PAIRWISE} <= set(points())


def test_the_way_to_a_failpoint() -> None:
    assert Cell(Failpoint.SOURCE_PAUSED, Accident.DIES).way is Way.FORWARD
    assert Cell(Failpoint.SOURCE_THAW, Accident.DIES).way is Way.BACK
    assert Cell("hook.recorded", Accident.DIES).way is Way.FORWARD


def test_a_seed_repeats_a_storm() -> None:
    first = [harm("a", number) for number in range(300)]
    assert first == [harm("a", number) for number in range(300)]
    assert first != [harm("b", number) for number in range(300)]
    assert len({it.point for it in first}) > 30
    assert {it.accident for it in first} >= {Accident.OPERATOR, Accident.SOURCE_AGENT, Accident.TARGET_KUBELET}


def test_a_tally_is_honest() -> None:
    tally = Tally()
    assert tally.count(End(True, "Succeeded", "", ("Done",)))
    assert tally.count(End(False, "RolledBack", "", ("Aborted",)))
    assert not tally.count(End(False, "SourceLost", "", ()))
    assert tally.good
    assert tally.last_line(3) == "3 migrations, 1 succeeded, 1 rolled back, 0 doubled, 0 lost, 0 leftovers"
    tally.doubled.append("7")
    assert not tally.good
    assert "1 doubled" in tally.last_line(3)


def test_a_row_has_what_the_admin_sees_and_every_fault() -> None:
    cell = Cell("hook.recorded", Accident.CRIU)
    outcome = Outcome(cell, ended="source", reason="RolledBack", seconds=3.25, gap=1.0, faults=["doubled 7 | 8"])
    assert row(outcome) == "| `hook.recorded` | CRIU killed | RolledBack | source | 3.2 | 1.0 s | doubled 7 / 8 |\n"


def test_what_is_known_is_no_harm_of_a_storm_and_only_there() -> None:
    assert set(KNOWN) <= set(matrix())
    points_killed = {it.point for it in (harm("a", number) for number in range(5000)) if it.deed == "kill"}
    assert points_killed == set(points()) - {cell.point for cell in KNOWN if cell.accident is Accident.DIES}


def test_no_cell_deletes_the_moved_container_itself() -> None:
    """At the source the target cannot be kept from committing: there it would be a race."""
    cells = [cell for cell in (*matrix(), *PAIRWISE) if cell.accident is Accident.TARGET_POD]
    assert {cell.point for cell in cells} <= {
        Failpoint.OPERATOR_RECORD_TARGET,
        Failpoint.SOURCE_FENCED,
        Failpoint.SOURCE_DUMPING,
        Failpoint.TARGET_RECEIVED,
        "hook.recorded",
    }
