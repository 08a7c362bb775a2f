"""The report: what is kept as JSON, and the table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.freeze.measure import MEBIBYTE, Case, Spread, ratio, spread

BASELINES = ("podman", "runc", "runc-lazy")
HEAD = (
    "method",
    "stall, ms",
    *(f"of {name}" for name in BASELINES),
    "writer's stall, ms",
    "in all, s",
    "MiB sent",
    "processor, s",
    "agent's peak, MiB",
    "lost",
    "requests/s before",
    "1st second",
    "10th",
    "runs",
)
INTRODUCTION = """\
# How long a container stands still

`make bench`: medians, with the least and the greatest, of {repetitions} repetitions, in each all methods in turn, on
the same two nodes. What moves is redis with random values and a light writer. The stall is the longest gap of a clock
in the moved process that ticks every millisecond. A share is the median of each repetition's own. What the columns
mean, and what they do not, is in [benchmarks.md](../benchmarks.md).

{machine}; kernel {kernel}; {versions}. Load average {before:.1f} before and {after:.1f} after.
"""


@dataclass(frozen=True)
class Machine:
    """Where it was measured."""

    processor: str
    cores: int
    memory_bytes: int
    kernel: str

    @classmethod
    def here(cls) -> Machine:
        models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        model = models[0].split(":")[1].strip() if models else platform.machine()
        return cls(model, os.cpu_count() or 1, memory, platform.release())

    def __str__(self) -> str:
        return f"{self.processor}, {self.cores} cores, {self.memory_bytes / (1 << 30):.0f} GiB"


@dataclass(frozen=True)
class Run:
    """A run of the benchmark."""

    machine: Machine
    versions: dict[str, str]
    repetitions: int
    load: tuple[float, float]
    cases: list[Case]

    def kept(self) -> dict[str, Any]:
        """Return what is kept as JSON."""
        machine = {
            "processor": self.machine.processor,
            "cores": self.machine.cores,
            "memoryBytes": self.machine.memory_bytes,
            "kernel": self.machine.kernel,
        }
        return {
            "machine": machine,
            "versions": self.versions,
            "repetitions": self.repetitions,
            "load": list(self.load),
            "cases": [case.told() for case in self.cases],
        }


def sizes(cases: Iterable[Case]) -> list[tuple[int, dict[str, list[Case]]]]:
    """Return the cases by size, and those of a size by method, in their order."""
    found: list[tuple[int, dict[str, list[Case]]]] = []
    for size, some in groupby(sorted(cases, key=lambda case: case.mebibytes), lambda case: case.mebibytes):
        by_method: dict[str, list[Case]] = {}
        for case in some:
            by_method.setdefault(case.method, []).append(case)
        found.append((size, by_method))
    return found


def shown(it: Spread | None, digits: int = 0, unit: float = 1) -> str:
    """Return a spread as a cell; least and greatest only where they differ."""
    if it is None:
        return "-"
    median, least, greatest = (f"{value / unit:.{digits}f}" for value in (it.median, it.least, it.greatest))
    return median if least == greatest else f"{median} ({least}-{greatest})"


def row(method: str, by_method: dict[str, list[Case]]) -> str:
    """Return one method's row."""
    cases = by_method[method]
    done = sum(bool(case.figures) for case in cases)
    shares = [None if name == method else ratio(cases, by_method.get(name, [])) for name in BASELINES]
    cells = [
        method,
        shown(spread(cases, "stallMilliseconds")),
        *("-" if share is None else f"{share:.2f}" for share in shares),
        shown(spread(cases, "writerStallMilliseconds")),
        shown(spread(cases, "totalSeconds"), 1),
        shown(spread(cases, "sentBytes"), 0, MEBIBYTE),
        shown(spread(cases, "processorSeconds"), 1),
        shown(spread(cases, "agentsPeakBytes"), 0, MEBIBYTE),
        str(sum(case.figures["writesLost"] + case.figures["valuesWrong"] for case in cases if case.figures))
        if done
        else "-",
        *(shown(spread(cases, f"requests{when}")) for when in ("Before", "FirstSecond", "TenthSecond")),
        f"{done} of {len(cases)}",
    ]
    return f"| {' | '.join(cells)} |"


def reason(case: Case, why: str) -> str:
    """Return why a case has no figures, in a line."""
    what = "failed" if case.failed else "left out"
    return f"- {case.method}, repetition {case.repetition}: {what}: {' '.join(why.split())}"


def table(run: Run) -> str:
    """Return the whole report."""
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    lines = INTRODUCTION.format(
        repetitions=run.repetitions,
        machine=run.machine,
        kernel=run.machine.kernel,
        versions=versions,
        before=run.load[0],
        after=run.load[1],
    ).splitlines()
    for size, by_method in sizes(run.cases):
        lines += ["", f"## {size} MiB", "", f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
        lines += [row(method, by_method) for method in by_method]
        whys = ((case, case.failed or case.skipped) for case in run.cases if case.mebibytes == size)
        reasons = {reason(case, why) for case, why in whys if why}
        lines += ["", *sorted(reasons)] if reasons else []
    return "\n".join([*lines, ""])
