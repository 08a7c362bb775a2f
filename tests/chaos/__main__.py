"""`make chaos` and `make chaos-matrix`: on the cluster that KUBECONFIG names, with this checkout deployed."""

from __future__ import annotations

import argparse
import secrets
import statistics
import sys
from pathlib import Path

from chaos.cells import PAIRWISE, Cell, matrix
from chaos.laboratory import laboratory
from chaos.results import Results
from chaos.storm import Storm, Tally
from chaos.trial import Trial
from chaos.workload import Workload
from support.cluster import Kubectl

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "chaos.md"
STORIES = ROOT / "build" / "chaos"
"""What the cluster had to say about each cell with faults."""


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


def cells(chosen: list[Cell], results: Results) -> int:
    """Take those of these cells that the page has not, and return the exit code."""
    left = results.missing(chosen)
    print(f"{len(chosen)} cells, {len(chosen) - len(left)} of them taken before ({results.page})", flush=True)
    bad = 0
    with laboratory(Kubectl()) as lab:
        trial = Trial(lab, Workload(lab, "counter"))
        for cell in left:
            outcome = trial.run(cell)
            print(results.add(outcome), end="", flush=True)
            if outcome.faults:
                bad += 1
                STORIES.mkdir(parents=True, exist_ok=True)
                file = STORIES / f"{cell.point}-{cell.accident.name}.log".lower()
                file.write_text("\n".join(outcome.faults) + "\n" + outcome.story, encoding="utf-8")
                print(f"what was seen then: {file}", flush=True)
    print(f"{len(left)} cells, {bad} with faults")
    return 1 if bad else 0


def every() -> list[Cell]:
    """Return all cells of the matrix, first those that CI takes."""
    return list(dict.fromkeys((*PAIRWISE, *matrix())))


def main() -> int:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("what", choices=["storm", "matrix"])
    parser.add_argument("--number", type=int, default=200, help="how many migrations (default: %(default)s)")
    parser.add_argument("--seed", default="", help="repeat what happened with this seed; default: another each time")
    parser.add_argument("--jobs", type=int, default=4, help="how many at a time (default: %(default)s)")
    parser.add_argument("--pairwise", action="store_true", help="of the matrix only what CI takes")
    parser.add_argument("--points", default="", help="of the matrix only failpoints that begin so, by commas")
    parser.add_argument("--accidents", default="", help="of the matrix only accidents with names that begin so")
    parser.add_argument("--again", action="store_true", help="take cells of the matrix again that were taken before")
    it = parser.parse_args()
    if it.what == "storm":
        return storm(it.number, it.seed or secrets.token_hex(4), it.jobs)
    points, accidents = (tuple(text.split(",")) for text in (it.points, it.accidents.upper()))
    among = PAIRWISE if it.pairwise else every()
    chosen = [cell for cell in among if cell.point.startswith(points) and cell.accident.name.startswith(accidents)]
    return cells(chosen, Results.load(PAGE, every(), again=chosen if it.again else ()))


if __name__ == "__main__":
    sys.exit(main())
