"""How long a container stands still when it moves: `make bench`, on the cluster that KUBECONFIG names.

Every method moves the same workload between the same two nodes, in turn, repetition after repetition: podman's own
commands, bare runc, bare runc with lazy pages, and this project with each strategy. A method that fails is recorded as
failed and measured again in the next repetition. Writes docs/benchmarks/freeze.json, .md and .svg after every size. The
nodes must have the same wall clock, as those of a kind cluster do: they are containers on one machine.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console

from bench.freeze.ends import End, namespace, two_ends
from bench.freeze.measure import Case, figures, kept_memory, too_little_memory, touch
from bench.freeze.method import Method, MoveFailed
from bench.freeze.ours import Ours
from bench.freeze.plot import plot
from bench.freeze.podman import Podman
from bench.freeze.report import Machine, Run, table
from bench.freeze.runc import Runc
from bench.freeze.runc_lazy import RuncLazy
from migration_api.migration import Strategy
from support.cluster import Kubectl, workers

REPORT = Path(__file__).parents[3] / "docs/benchmarks"
METHODS = ("podman", "runc", "runc-lazy", "ours")
SIZES = "64,256,1024,4096"

console = Console(highlight=False, soft_wrap=True)


def chosen(names: list[str], source: End, target: End) -> list[Method]:
    """Return the methods of those names; `ours` is each strategy."""
    made: list[Method] = []
    for name in names:
        if name == "ours":
            made += [Ours(source, target, strategy.value) for strategy in Strategy]
        else:
            made.append({"podman": Podman, "runc": Runc, "runc-lazy": RuncLazy}[name](source, target))
    return made


@dataclass
class Bench:
    """A run as it goes."""

    source: End
    methods: list[Method]
    repetitions: int
    output: Path
    load: float = field(default_factory=lambda: os.getloadavg()[0])
    versions: dict[str, str] = field(default_factory=dict[str, str])
    unprepared: dict[str, str] = field(default_factory=dict[str, str])
    cases: list[Case] = field(default_factory=list[Case])

    def prepare(self) -> None:
        """Prepare all methods; one that cannot be prepared fails in every repetition."""
        self.versions["containerd"] = self.source.run("containerd --version").split()[2].removeprefix("v")
        for method in self.methods:
            try:
                method.prepare()
                self.versions |= method.versions()
            except (AssertionError, MoveFailed) as error:
                self.unprepared[method.name] = f"could not be prepared: {error}"
                console.print(f"{method.name}: {self.unprepared[method.name]}", markup=False)

    def measure(self, mebibytes: int) -> Run:
        """Measure one size with all methods in turn; write the report after each repetition."""
        run = self.report()
        for repetition in range(1, self.repetitions + 1):
            for method in self.methods:
                case = Case(mebibytes, method.name, repetition)
                self._measure(method, case)
                self.cases.append(case)
                console.print(f"{mebibytes} MiB, {repetition}, {method.name}: {told(case)}", markup=False)
            run = self.report()
            write(run, self.output)
        return run

    def report(self) -> Run:
        """Return what there is so far."""
        load = (self.load, os.getloadavg()[0])
        return Run(Machine.here(), self.versions, self.repetitions, load, list(self.cases))

    def _measure(self, method: Method, case: Case) -> None:
        case.failed = self.unprepared.get(method.name)
        case.skipped = too_little_memory(case.mebibytes, self.source.counters().availableBytes)
        if case.failed or case.skipped:
            return
        touch(self.source.counters().freeBytes)
        try:
            case.figures = figures(method.move(case.mebibytes))
        except (MoveFailed, ValueError) as error:
            case.failed = str(error)


def told(case: Case) -> str:
    """Return one case in a line."""
    if not case.figures:
        return case.failed or case.skipped or ""
    names = ("stallMilliseconds", "writerStallMilliseconds", "totalSeconds", "requestsFirstSecond", "writesLost")
    return ", ".join(f"{name} {case.figures[name]}" for name in names)


def write(run: Run, directory: Path) -> None:
    """Write the report."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "freeze.json").write_text(json.dumps(run.kept(), indent=2) + "\n")
    (directory / "freeze.md").write_text(table(run))
    (directory / "freeze.svg").write_text(plot(run.cases))


def interrupted(number: int, _: FrameType | None) -> None:
    """Let a signal end the run as an exception does, so that all is cleaned up."""
    sys.exit(128 + number)


def main() -> int:
    """Measure and write the report; the exit code says whether all went well and nothing was lost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default=SIZES, help="MiB of data in redis (%(default)s)")
    parser.add_argument("--methods", default=",".join(METHODS), help="(%(default)s)")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--output", type=Path, default=REPORT, help="the report's directory")
    options = parser.parse_args()
    names: list[str] = options.methods.split(",")
    if unknown := set(names) - set(METHODS):
        parser.error(f"unknown methods: {', '.join(sorted(unknown))}")
    signal.signal(signal.SIGTERM, interrupted)
    kubectl = Kubectl()
    nodes = workers(kubectl)
    with kept_memory(), namespace(kubectl), two_ends(kubectl, nodes[0], nodes[1]) as (source, target):
        bench = Bench(source, chosen(names, source, target), options.repetitions, options.output)
        bench.prepare()
        for size in options.sizes.split(","):
            bench.measure(int(size))
    console.print(table(bench.report()), markup=False)
    return int(not all(case.good for case in bench.cases))


if __name__ == "__main__":
    sys.exit(main())
