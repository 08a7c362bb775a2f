"""The plot: the stall by size, one line for each method."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.freeze.measure import Case, Spread, spread
from bench.freeze.report import sizes


def stalls(cases: list[Case]) -> dict[str, dict[int, Spread]]:
    """Return the stall of each method at each size where it was measured."""
    found: dict[str, dict[int, Spread]] = {}
    for size, by_method in sizes(cases):
        for method, some in by_method.items():
            if it := spread(some, "stallMilliseconds"):
                found.setdefault(method, {})[size] = it
    return found


def plot(cases: list[Case]) -> str:
    """Return an SVG, which is the same for the same figures."""
    figure: Any = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for method, points in stalls(cases).items():
        medians = [it.median for it in points.values()]
        below = [it.median - it.least for it in points.values()]
        above = [it.greatest - it.median for it in points.values()]
        axes.errorbar(list(points), medians, yerr=[below, above], marker="o", capsize=3, label=method)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({case.mebibytes for case in cases})
    axes.set_xticks(ticks, [f"{size} MiB" if size < 1024 else f"{size / 1024:g} GiB" for size in ticks])
    axes.set_xlabel("data in redis")
    axes.set_ylabel("the process stood still, ms")
    axes.grid(visible=True, which="both", alpha=0.3)
    axes.legend()
    out = io.StringIO()
    settings: Any = mpl  # whose own types are not complete
    with settings.rc_context({"svg.hashsalt": "freeze", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
