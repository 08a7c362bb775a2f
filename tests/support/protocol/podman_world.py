"""One migration of a Podman container, as small as it can be: registers, two nodes, and commands that outlive agents.

As in `world`: what is on a disk, in the API or in Podman's keeping survives its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from migration_agent.source_plan import SourceObservation, SourceStep, next_source_step
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from support.protocol.world import reading


@dataclass(frozen=True)
class Rules:
    """What a test can break on purpose."""

    source_step: Callable[[SourceObservation], SourceStep] = next_source_step
    target_step: Callable[[TargetObservation], TargetStep] = next_target_step
    source_waits: bool = True
    """The source's agent does nothing, and says nothing, while a command of an earlier life works."""
    target_waits: bool = True
    looks_for_the_dead: bool = True
    """The target's promise needs that nothing is there."""


class World(NamedTuple):
    """One state; `""` stands for none."""

    exists: bool = True
    decision: str = ""
    outcome: str = ""
    cancelled: bool = False
    source_api: bool = True
    target_api: bool = True
    peers: bool = True
    # --- the source node: Podman
    here: str = "running"
    """`running`, `kept` (stopped, with a whole checkpoint), `paused`, `dead`, or none: removed."""
    s_command: str = ""
    """`checkpoint`, `restore` or `rm`: under way."""
    # --- its agent: journal
    s_state: str = ""
    s_failed: bool = False
    s_word: bool = False
    s_owes_abort: bool = False
    s_late: bool = False
    # --- memory
    s_up: bool = True
    s_interrupted: bool = False
    s_known: str = "unreachable"
    s_wanted: bool = True
    s_alive: bool = True
    s_peer: str = ""
    s_copy: str = ""
    s_stop: bool = False
    s_plan: tuple[str, ...] = ()
    # --- the target node: Podman, and the ticket
    there: str = ""
    """`created` (a restore failed), `runs`, `ended`, or none."""
    t_command: str = ""
    """`restore` or `rm`."""
    ticket: str = "none"
    buried: bool = False
    # --- its agent: journal
    t_state: str = ""
    t_settled: bool = False
    t_acked: bool = False
    t_entries: bool = False
    t_restores: bool = False
    t_old_boot: bool = False
    # --- memory
    t_up: bool = True
    t_known: str = "unreachable"
    t_asked: bool = False
    t_waited: bool = False
    t_plan: tuple[str, ...] = ()
    # --- history
    excused: bool = False
    """A machine or the container died by itself: memory may be lost."""
    accidents: int = 0

    @property
    def registers(self) -> str:
        return reading(self.exists, self.decision, self.outcome)


Edge = tuple[str, World]
Edges = Iterator[Edge]


def decide(w: World, value: str) -> World:
    return w._replace(decision=value) if w.exists and not w.decision else w


def conclude(w: World, value: str) -> World:
    allowed = w.exists and w.decision == "Commit" and not w.outcome
    return w._replace(outcome=value) if allowed else w


def podmans(w: World) -> Edges:
    """A command ends, whoever began it."""
    match w.s_command:
        case "checkpoint":
            yield "the checkpoint is made", w._replace(s_command="", here="kept" if w.here == "running" else w.here)
            if w.accidents:
                yield "CRIU cannot dump", w._replace(s_command="", accidents=w.accidents - 1, s_failed=True)
        case "restore":
            yield "the source is restored", w._replace(s_command="", here="running" if w.here == "kept" else w.here)
        case "rm":
            yield "the source is removed", w._replace(s_command="", here="")
        case _:
            pass
    match w.t_command:
        case "restore":
            yield "the target is restored", w._replace(t_command="", there=w.there or "runs")
            if w.accidents:
                failed = w._replace(t_command="", there=w.there or "created", accidents=w.accidents - 1)
                yield "the restore fails", failed
        case "rm":
            yield "what is at the target is removed", w._replace(t_command="", there="")
        case _:
            pass
