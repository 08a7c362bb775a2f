"""`make chaos` and `make chaos-matrix`: on the cluster that KUBECONFIG names, with this checkout deployed."""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
from pathlib import Path

from chaos.cells import PAIRWISE, Cell, matrix
from chaos.lab import laboratory
from chaos.storm import Storm, Tally
from chaos.trial import HEADER, Trial, row
from chaos.workload import Workload
from support.cluster import Kubectl

PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"
BEGIN, END = "<!-- matrix -->\n", "<!-- end of the matrix -->\n"


def storm(number: int, seed: str, jobs: int) -> int:
    """Run so many migrations, and return the exit code."""
    print(f"seed {seed}, {number} migrations, {jobs} at a time", flush=True)
    with laboratory(Kubectl()) as lab:
        tally = Storm(lab, seed, number, jobs, say=lambda line: print(line, flush=True)).run()
    show(tally)
    print(f"seed {seed}")
    print(tally.last_line(number))
    return 0 if tally.good and tally.succeeded + tally.rolled_back == number else 1


def show(tally: Tally) -> None:
    """Print what must not be, and statistics."""
    for title, what in (
        ("did not end as it must", tally.unended),
        ("doubled", tally.doubled),
        ("lost", tally.lost),
        ("left over", tally.leftovers),
    ):
        for it in what:
            print(f"{title}: {it}")
    for reasons, count in tally.reasons.most_common():
        print(f"{count:5} {reasons}")
    if tally.seconds:
        ordered = sorted(tally.seconds)
        print(f"seconds to the end: median {statistics.median(ordered):.1f}, longest {ordered[-1]:.1f}")


def cells(chosen: list[Cell], *, write: bool) -> int:
    """Take these cells, and return the exit code."""
    rows: list[str] = []
    bad = 0
    with laboratory(Kubectl()) as lab:
        trial = Trial(lab, Workload(lab, "counter"))
        for cell in chosen:
            outcome = trial.run(cell)
            bad += bool(outcome.faults)
            rows.append(row(outcome))
            print(rows[-1], end="", flush=True)
    if write:
        head, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        _, _, tail = rest.partition(END)
        PAGE.write_text(head + BEGIN + HEADER + "".join(rows) + END + tail, encoding="utf-8")
    print(f"{len(rows)} cells, {bad} with faults")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("what", choices=["storm", "matrix"])
    parser.add_argument("--number", type=int, default=200, help="how many migrations (default: %(default)s)")
    parser.add_argument("--seed", default="", help="repeat what happened with this seed; default: another each time")
    parser.add_argument("--jobs", type=int, default=4, help="how many at a time (default: %(default)s)")
    parser.add_argument("--pairwise", action="store_true", help="of the matrix only what CI takes")
    parser.add_argument("--points", default="", help="of the matrix only failpoints that begin so, by commas")
    parser.add_argument("--write", action="store_true", help="write the matrix into docs/chaos.md")
    it = parser.parse_args()
    if it.what == "storm":
        return storm(it.number, it.seed or secrets.token_hex(4), it.jobs)
    begin = tuple(it.points.split(","))
    chosen = [cell for cell in (PAIRWISE if it.pairwise else matrix()) if cell.point.startswith(begin)]
    return cells(chosen, write=it.write)


if __name__ == "__main__":
    sys.exit(main())
