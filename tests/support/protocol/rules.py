"""What of the protocol a test can break on purpose. The default is the real code and the real rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from migration_agent.source_plan import SourceObservation, SourceStep, next_source_step
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from migration_operator.observation import Observation
from migration_operator.plan import plan
from migration_operator.step import Step


@dataclass(frozen=True)
class Rules:
    """Who decides how. Every flag is true in the real protocol."""

    plan: Callable[[Observation], Step] = plan
    source_step: Callable[[SourceObservation], SourceStep] = next_source_step
    target_step: Callable[[TargetObservation], TargetStep] = next_target_step
    registers_are_write_once: bool = True
    fence_holds: bool = True
    """The kubelet starts nothing of a fenced pod."""
    answers_are_read: bool = True
    """Who proposes a decision learns from the answer who won; else it believes that it has won."""
    resuming_is_kept: bool = True
    """What is `resuming` is never destroyed."""
    only_pending_resumes: bool = True
    """The hook's rename works for `pending` alone, so once."""
    destroyed_is_refused: bool = True
    """The interposer starts nothing on a destroyed ticket."""
    marked_waits: bool = True
    """The interposer starts nothing without a ticket, also when no agent answers."""
    hooks_watch: bool = True
    """A hook kills its tree when its interposer is dead or the ticket is not pending."""
    promises_are_kept: bool = True
    """The target's agent says `destroyed` only with the ticket destroyed and the trees dead."""
    words_are_journalled: bool = True
    """What was promised or learned is on disk before anything is built on it."""
    pins: bool = True
    """What a StatefulSet creates under a name that moves is marked and sent to the target node."""
    release_only_frozen: bool = True
    """The source's tasks are killed while frozen, and stay behind the fence."""
