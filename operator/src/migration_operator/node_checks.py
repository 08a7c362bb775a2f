"""What keeps a node from being source or target, and two nodes from being source and target of one container."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from migration_api.preflight_reasons import PreflightReason as Why
from migration_operator.observation import NodeView, agent_trouble

_NAMES_SHOWN = 10
"""Of missing features: a message stays readable."""


@dataclass(frozen=True)
class Problem:
    """One thing that stands against the migration: a documented constant, and what was found."""

    reason: Why
    what: str

    @property
    def message(self) -> str:
        """What was found, and what to do about it."""
        return f"{self.reason}: {self.what}; {self.reason.remedy}."


def node_problems(node: NodeView, role: str, now: datetime, *, must_schedule: bool) -> Iterator[Problem]:
    """Find what keeps this node from taking part; `role` as in "the source"."""
    if not node.ready:
        yield Problem(Why.NODE_NOT_READY, f"{role} node {node.name} is not Ready")
    elif must_schedule and not node.schedulable:
        yield Problem(Why.NODE_NOT_READY, f"{role} node {node.name} is cordoned")
    if trouble := agent_trouble(node.agent, now):
        yield Problem(Why.NODE_NOT_CAPABLE, f"{role} node {node.name} cannot take part: {trouble}")


def unfit(source: NodeView, target: NodeView, now: datetime) -> str:
    """Return why the scheduler may not pick `target` for what runs on `source`; empty when it may."""
    found = (*node_problems(target, "the", now, must_schedule=True), *mismatches(source, target))
    return "; ".join(problem.what for problem in found)


def mismatches(source: NodeView | None, target: NodeView | None) -> tuple[Problem, ...]:
    """Return why what was checkpointed on one node could not be restored on the other."""
    return tuple(_mismatches(source, target)) if source and target else ()


def _mismatches(source: NodeView, target: NodeView) -> Iterator[Problem]:
    here, there = source.facts, target.facts
    if here is None or there is None:
        return
    if here.architecture != there.architecture:
        yield Problem(Why.CPU_MISMATCH, f"{target.name} is {there.architecture}, {source.name} is {here.architecture}")
    elif missing := _missing(here.cpu_flags, there.cpu_flags):
        yield Problem(Why.CPU_MISMATCH, f"the CPU of {target.name} lacks what the CPU of {source.name} has: {missing}")
    if missing := _missing(here.kernel_features, there.kernel_features):
        kernels = f"{there.kernel_version} of {target.name} lacks what {here.kernel_version} of {source.name} has"
        yield Problem(Why.KERNEL_MISMATCH, f"the kernel {kernels}: {missing}")
    if here.criu_version != there.criu_version:
        versions = f"{target.name} has CRIU {there.criu_version}, {source.name} has {here.criu_version}"
        yield Problem(Why.CRIU_MISMATCH, versions)


def _missing(here: tuple[str, ...], there: tuple[str, ...]) -> str:
    missing = sorted(set(here) - set(there))
    more = f" and {len(missing) - _NAMES_SHOWN} more" if len(missing) > _NAMES_SHOWN else ""
    return ", ".join(missing[:_NAMES_SHOWN]) + more
