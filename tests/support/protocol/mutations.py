"""The protocol, broken on purpose, one rule at a time: what the exploration must find, or it means nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from migration_agent.seen import Verdict
from migration_agent.source_plan import SourceObservation, SourceStep, next_source_step
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_operator.observation import Observation
from migration_operator.plan import plan
from migration_operator.step import Action, Step
from support.protocol import faults
from support.protocol.faults import Faults
from support.protocol.rules import Rules

FROZEN = frozenset({"Fenced", "Frozen", "Dumped", "Sent"})


@dataclass(frozen=True)
class Mutation:
    """A broken rule and what must be found; `accidents` of these `kinds` are enough to show it."""

    name: str
    rules: Rules
    finds: str
    """A part of the sentence that says what is wrong."""
    accidents: int = 1
    kinds: tuple[Faults, ...] = (faults.processes,)
    clone: bool = False
    """Of a migration that leaves its source running."""
    post_copy: bool = False
    """Of a migration whose memory follows after the commit."""
    same: bool = False
    """Of a pod of a StatefulSet, which moves under its own name."""


def _source(change: Callable[[SourceObservation, SourceStep], SourceStep]) -> Rules:
    return Rules(source_step=lambda it: change(it, next_source_step(it)))


def _target(change: Callable[[TargetObservation, TargetStep], TargetStep]) -> Rules:
    return Rules(target_step=lambda it: change(it, next_target_step(it)))


def _thaw_without_reading(it: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.THAW if it.expired and it.state in FROZEN and step is SourceStep.ABORT else step


def _thaw_when_unsure(it: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.THAW if step is SourceStep.ASK_PROMISE else step


def _release_on_commit(it: SourceObservation, step: SourceStep) -> SourceStep:
    committed = it.verdict is Verdict.COMMIT and it.state in FROZEN
    return SourceStep.RELEASE if committed else step


def _never_ask(_: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.WAIT if step is SourceStep.ASK_PROMISE else step


def _never_abort_what_failed(it: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.WAIT if step is SourceStep.ABORT and it.interrupted else step


def _promise_first(it: TargetObservation, step: TargetStep) -> TargetStep:
    """Journal the promise while the ticket is pending: it is destroyed afterwards."""
    pending = it.ticket is TicketState.PENDING and step is TargetStep.DESTROY
    return TargetStep.PROMISE if pending else step


def _resume_undecided(it: TargetObservation, step: TargetStep) -> TargetStep:
    return TargetStep.RESUME if step is TargetStep.COMMIT else step


def _never_return(_: TargetObservation, step: TargetStep) -> TargetStep:
    return TargetStep.WAIT if step in {TargetStep.RETURN_IF_INTACT, TargetStep.RETURN_ANYWAY} else step


def _resumed_by_hope(it: TargetObservation, step: TargetStep) -> TargetStep:
    """Write Resumed when resume was said, not when the ticket says it."""
    said = it.verdict is Verdict.COMMIT and it.ticket is TicketState.PENDING and it.restoring and not it.held
    return TargetStep.WRITE_RESUMED if said else step


def _returned_at_once(it: TargetObservation, step: TargetStep) -> TargetStep:
    """Write Returned while a tree may still be on its way."""
    return TargetStep.WRITE_RETURNED if step is TargetStep.RETURN_IF_INTACT else step


def _delete_source_on_commit(o: Observation) -> Step:
    step = plan(o)
    if o.decision is Decision.COMMIT and o.outcome is None and o.source_pod and not o.source_pod.deleting:
        return replace(step, action=Action.DELETE_SOURCE)
    return step


def _finish_at_once(o: Observation) -> Step:
    """Let the object go on Resumed, without a look at the source."""
    step = plan(o)
    if o.outcome is Outcome.RESUMED and not o.finished and o.adopted:
        return replace(step, action=Action.FINISH, reason=Reason.SUCCEEDED)
    return step


def _release_a_clones_source(it: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.RELEASE if it.verdict is Verdict.RESUMED and step is SourceStep.LEAVE else step


def _wait_for_the_decision(it: SourceObservation, step: SourceStep) -> SourceStep:
    """Treat what an earlier life of the agent has dumped like the source of a move."""
    return next_source_step(replace(it, apart=False)) if step is SourceStep.LET_GO else step


def _never_leave(_: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.WAIT if step is SourceStep.LEAVE else step


def _let_go_what_moves(it: SourceObservation, step: SourceStep) -> SourceStep:
    """Let every source go on as soon as it is dumped."""
    dumped = it.state.value in {"Dumped", "Sent"} and not it.working
    return SourceStep.LET_GO if dumped and not it.let_go else step


def _owe_for_ever(it: SourceObservation, step: SourceStep) -> SourceStep:
    """Wait for Returned when Commit came late, as the source of a move does."""
    return next_source_step(replace(it, apart=False)) if step is SourceStep.CLEAR_ABORT else step


def _delete_a_clones_source(o: Observation) -> Step:
    step = plan(o)
    resumed = o.outcome is Outcome.RESUMED and o.source_pod and not o.source_pod.deleting
    return replace(step, action=Action.DELETE_SOURCE) if o.clone and resumed and not o.finished else step


def _release_what_lends(it: SourceObservation, _: SourceStep) -> SourceStep:
    """Treat a source whose memory is still needed like any other."""
    return next_source_step(replace(it, lends=False))


def _moved_while_filling(it: TargetObservation, step: TargetStep) -> TargetStep:
    """Say that the memory has moved as soon as the container runs."""
    resumed = it.verdict is Verdict.RESUMED and it.ticket is TicketState.RESUMING and not it.settled
    return TargetStep.MEMORY_MOVED if resumed and it.filling and it.borrows else step


def _never_moved(_: TargetObservation, step: TargetStep) -> TargetStep:
    return TargetStep.WAIT if step is TargetStep.MEMORY_MOVED else step


def _commit_before_the_copy(it: TargetObservation, step: TargetStep) -> TargetStep:
    early = it.successor and it.verdict is Verdict.UNDECIDED and not it.received
    return TargetStep.COMMIT if early and it.ticket is TicketState.PENDING else step


def _give_the_name_when_sent(it: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.RELEASE if it.same_name and it.state.value == "Sent" and step is SourceStep.WAIT else step


def _bind_the_next_at_once(it: TargetObservation, step: TargetStep) -> TargetStep:
    """Forget a pod that was deleted, with its ticket pending."""
    return TargetStep.UNBIND if it.bound and step is TargetStep.DESTROY else step


def _promise_what_is_proposed(it: TargetObservation, step: TargetStep) -> TargetStep:
    asked = it.successor and it.promise_asked and it.ticket is TicketState.PENDING and not it.bound
    return TargetStep.DESTROY if asked else step


def _leave_another(o: Observation) -> Step:
    step = plan(o)
    resumed = o.same_name and o.outcome is Outcome.RESUMED and step.action is Action.DELETE_TARGET
    return replace(step, action=Action.FINISH, reason=Reason.SUCCEEDED) if resumed else step


# Four rules keep two trees of one container apart, and any one of them is enough: all are broken here.
TWICE = Rules(
    target_step=lambda it: next_target_step(replace(it, clear=True)), hooks_watch=False, only_pending_resumes=False
)

MUTATIONS = (
    Mutation("thaw without reading the register", _source(_thaw_without_reading), "I1"),
    Mutation("thaw when the register is out of reach", _source(_thaw_when_unsure), "I1", kinds=(faults.networks,)),
    Mutation("the source is released on Commit instead of Resumed", _source(_release_on_commit), "I2"),
    Mutation("the source never asks for the promise", _source(_never_ask), "I4", kinds=(faults.people,)),
    Mutation("a copy that was interrupted is never given up", _source(_never_abort_what_failed), "I4"),
    Mutation("commit by cache: the answer is not read", Rules(answers_are_read=False), "I1"),
    Mutation("resume before the decision", _target(_resume_undecided), "I1"),
    Mutation("promise first, destroy the ticket later", _target(_promise_first), "promised"),
    Mutation("promise without destroying the ticket", Rules(promises_are_kept=False), "I1", kinds=(faults.networks,)),
    Mutation("the target never gives back", _target(_never_return), "I4"),
    Mutation("Resumed is written by hope, not by the ticket", _target(_resumed_by_hope), "I2"),
    Mutation("Returned is written while the tree may run", _target(_returned_at_once), "I1", accidents=0),
    Mutation("no fence", Rules(fence_holds=False), "I", kinds=(faults.machines,)),
    Mutation("a ticket that is used up is destroyed", Rules(resuming_is_kept=False), "I3: the target runs without"),
    Mutation("a ticket is used twice, by two claimants", TWICE, "I1: two trees"),
    Mutation("the interposer ignores `destroyed`", Rules(destroyed_is_refused=False), "I3"),
    Mutation("no ticket is taken for permission", Rules(marked_waits=False), "I3", accidents=0),
    Mutation("the decision can be written twice", Rules(registers_are_write_once=False), "the decision changed"),
    Mutation("the source is unfenced when it is killed", Rules(release_only_frozen=False), "I1", accidents=0),
    Mutation("the operator deletes the source on Commit", Rules(plan=_delete_source_on_commit), "I2", accidents=0),
    Mutation("a clone's source is released", _source(_release_a_clones_source), "I2", accidents=0, clone=True),
    Mutation("a clone's source waits for the decision", _source(_wait_for_the_decision), "stands still", clone=True),
    Mutation("a clone's source never ends its part", _source(_never_leave), "I4", accidents=0, clone=True),
    Mutation("a source that moves is let go like a clone's", _source(_let_go_what_moves), "I1", accidents=0),
    Mutation(
        "a clone's source owes an Abort for ever", _source(_owe_for_ever), "I4", kinds=(faults.networks,), clone=True
    ),
    Mutation(
        "the operator deletes a clone's source", Rules(plan=_delete_a_clones_source), "I2", accidents=0, clone=True
    ),
    Mutation(
        "a source that lends its memory is released",
        _source(_release_what_lends),
        "I2: the source ends",
        accidents=0,
        post_copy=True,
    ),
    Mutation(
        "the memory is said to have moved too early",
        _target(_moved_while_filling),
        "I2: the source ends",
        accidents=0,
        post_copy=True,
    ),
    Mutation("nobody says that the memory has moved", _target(_never_moved), "I4", accidents=0, post_copy=True),
    Mutation("a successor's Commit before the copy", _target(_commit_before_the_copy), "I2: Commit", 0, same=True),
    Mutation("the name is given away before the commit", _source(_give_the_name_when_sent), "I", 0, same=True),
    Mutation(
        "the next pod gets a ticket while the last one has one",
        _target(_bind_the_next_at_once),
        "I1: two pods",
        kinds=(faults.people,),
        same=True,
    ),
    Mutation(
        "a successor's target promises what it may have committed",
        _target(_promise_what_is_proposed),
        "I",
        kinds=(faults.networks,),
        same=True,
    ),
    Mutation("what has the name is not pinned", Rules(pins=False), "I2: it runs, but without", 0, same=True),
    Mutation("a second pod of the name is left", Rules(plan=_leave_another), "I4", kinds=(faults.people,), same=True),
    Mutation("the operator ends at Resumed", Rules(plan=_finish_at_once), "Succeeded, and the source", accidents=0),
)
