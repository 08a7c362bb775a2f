"""What a move comes to: pure functions over what was measured."""

from __future__ import annotations

import mmap
import statistics
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.freeze.method import NAME, Findings, Outcome

MILLISECOND, SECOND = 1_000_000, 1_000_000_000
MEBIBYTE = 1 << 20

NEEDED_COPIES = 4.2
"""Images on two nodes, the source and the copy, and what redis needs beyond its data."""
NEEDED_BESIDE = 1 << 30

_REPORTED_ORDER = Path("/sys/module/page_reporting/parameters/page_reporting_order")
"""Free blocks of so many pages, as a power of two, are given back (the kernel's mm/page_reporting.c)."""
_NO_ORDER = "11"
"""Larger than all blocks."""
_ORDER_BEFORE = Path(f"/run/{NAME}-page-reporting-order")


@dataclass(frozen=True)
class Gap:
    """A time in which nothing happened, in nanoseconds."""

    began: int
    ended: int

    @property
    def milliseconds(self) -> float:
        return round((self.ended - self.began) / MILLISECOND, 1)


def longest(gaps: Iterable[tuple[int, int]], since: int) -> Gap | None:
    """Return the longest gap that ended after that moment; None when there is none."""
    after = [Gap(began, ended) for began, ended in gaps if ended > since]
    return max(after, key=lambda gap: gap.ended - gap.began, default=None)


@dataclass
class Case:
    """One repetition of one method at one size; without figures when it failed or was left out."""

    mebibytes: int
    method: str
    repetition: int
    failed: str | None = None
    skipped: str | None = None
    figures: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def good(self) -> bool:
        """Whether nothing failed and nothing was lost."""
        return not (self.failed or self.figures.get("writesLost") or self.figures.get("valuesWrong"))

    def told(self) -> dict[str, Any]:
        """Return it as it is kept."""
        words = {"mebibytes": self.mebibytes, "method": self.method, "repetition": self.repetition}
        return {**words, "failed": self.failed, "skipped": self.skipped, **self.figures}


def figures(outcome: Outcome) -> dict[str, Any]:
    """Return what is kept of a move.

    Raises:
        ValueError: the workload did not stand still although it was moved.
    """
    findings, command = outcome.findings, outcome.marks["command"]
    stall, writer = longest(findings.gaps, command), longest(findings.writerGaps, command)
    if stall is None or writer is None:
        raise ValueError("the workload saw no gap: its clock is not the nodes'")
    steps = {name: round((at - command) / MILLISECOND, 1) for name, at in outcome.marks.items() if name != "command"}
    return {
        "stallMilliseconds": stall.milliseconds,
        "stallBeganMilliseconds": round((stall.began - command) / MILLISECOND, 1),
        "writerStallMilliseconds": writer.milliseconds,
        "clientStallMilliseconds": None,
        "totalSeconds": round((findings.movedAt - command) / SECOND, 3),
        "stepsMilliseconds": steps,
        "sentBytes": outcome.sent_bytes,
        "processorSeconds": round(outcome.processor_seconds, 2),
        "agentsPeakBytes": outcome.agents_peak_bytes,
        "writesAcknowledged": findings.acknowledged,
        "writesLost": lost(findings),
        "valuesWrong": findings.wrong,
        "valuesChecked": findings.checked,
        "requestsBefore": findings.requestsBefore,
        "requestsFirstSecond": findings.requestsFirst,
        "requestsTenthSecond": findings.requestsTenth,
        "redisResidentBytes": findings.residentBytes,
        "timings": outcome.timings,
    }


def lost(findings: Findings) -> int:
    """Return how many acknowledged writes redis does not have."""
    return findings.acknowledged - findings.found


def too_little_memory(mebibytes: int, available: int) -> str | None:
    """Return why that size cannot be measured on this machine, or None when it can."""
    needed = int(NEEDED_COPIES * mebibytes * MEBIBYTE) + NEEDED_BESIDE
    if available >= needed:
        return None
    return f"{needed / MEBIBYTE:.0f} MiB of memory are needed, {available / MEBIBYTE:.0f} MiB are available"


@contextmanager
def kept_memory() -> Generator[None]:
    """Keep the guest's free memory from being given back to the hypervisor, where the kernel does that.

    The first write to a page that was given back costs ten times what it costs otherwise (measured: 3 to 4 s per GiB
    instead of 0.4), as on no machine of its own; and what was freed is given back after two seconds.
    """
    try:
        before = (_ORDER_BEFORE if _ORDER_BEFORE.exists() else _REPORTED_ORDER).read_text(encoding="ascii")
        _ORDER_BEFORE.write_text(before, encoding="ascii")  # for the next run, if this one is killed
        _REPORTED_ORDER.write_text(_NO_ORDER, encoding="ascii")
    except OSError:  # there is no hypervisor that takes any
        yield
        return
    try:
        yield
    finally:
        _REPORTED_ORDER.write_text(before, encoding="ascii")
        _ORDER_BEFORE.unlink()


def touch(free: int) -> None:
    """Write to every page of so many bytes of free memory, and give them back: from now on the guest has them."""
    whole = max(free - NEEDED_BESIDE, MEBIBYTE) // MEBIBYTE * MEBIBYTE
    with mmap.mmap(-1, whole) as memory:
        memory[:: mmap.PAGESIZE] = b"\1" * (whole // mmap.PAGESIZE)


@dataclass(frozen=True)
class Spread:
    """The median of some values, with the least and the greatest."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """Return it, or None of no values."""
        known = sorted(values)
        return cls(statistics.median(known), known[0], known[-1]) if known else None


def spread(cases: Iterable[Case], figure: str) -> Spread | None:
    """Return the spread of one figure over the cases that have it."""
    return Spread.of(case.figures[figure] for case in cases if case.figures.get(figure) is not None)


def ratio(ours: Iterable[Case], theirs: Iterable[Case], figure: str = "stallMilliseconds") -> float | None:
    """Return the median of each repetition's own ratio: a machine may be busier in one than in another."""
    other = {case.repetition: case.figures[figure] for case in theirs if case.figures}
    shares = [
        case.figures[figure] / other[case.repetition] for case in ours if case.figures and other.get(case.repetition)
    ]
    return statistics.median(shares) if shares else None
