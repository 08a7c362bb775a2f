"""What a target side does next whose pod comes only when the source has given it its name. Pure.

Nothing can be held before the commit: it says that the checkpoint is complete, verified and on this node's disk. From
then on there is no way back, so whatever fails is tried again, with the next pod of that name when one is deleted. A
ticket is bound to a pod only after the commit; until then no pod of that name gets an answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from migration_agent.ports import Comer, PodState
from migration_agent.seen import Verdict
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.wire import TargetState

if TYPE_CHECKING:
    from migration_agent.target_plan import TargetObservation

_PROMISED = frozenset({TargetState.DESTROYED, TargetState.RETURNED})


def is_committed(it: TargetObservation) -> bool:
    """Return whether the source has given its name away, or is about to, for certain.

    A bound ticket was bound after Commit had been read. With the object gone, a pod that is marked says the same: it
    could be created only when the source pod was gone, and a source thaws only by this node's promise then.
    """
    if it.verdict is Verdict.COMMIT:
        return True
    if it.bound:
        return it.verdict in {Verdict.UNREACHABLE, Verdict.GONE}
    return it.verdict is Verdict.GONE and it.proposed and it.comer is Comer.HERE


def next_successor_step(it: TargetObservation) -> TargetStep | None:
    """Return the step; None: it is that of any target whose ticket is destroyed."""
    if it.ticket is TicketState.DESTROYED:
        return _after_this_pod(it)
    if is_committed(it):
        return _committed(it)
    if it.verdict in {Verdict.ABORT, Verdict.RETURNED}:
        return TargetStep.DESTROY
    if it.verdict is Verdict.GONE:
        return _gone(it)
    if it.promise_asked and not it.proposed:
        return TargetStep.DESTROY
    complete = it.received and it.ours and not it.failed
    return TargetStep.COMMIT if complete and it.verdict is Verdict.UNDECIDED else TargetStep.WAIT


def _after_this_pod(it: TargetObservation) -> TargetStep | None:
    """The next one gets a ticket only when nothing of this one lives."""
    again = it.bound and is_committed(it) and it.received and it.state not in _PROMISED
    if not again:
        return None
    return TargetStep.UNBIND if it.dead else TargetStep.CLEAR


def _gone(it: TargetObservation) -> TargetStep:
    """Nobody will read a decision any more. Who never proposed Commit owes nothing to anybody."""
    if not it.proposed or it.waited:
        return TargetStep.DESTROY
    return TargetStep.RETURN_IF_INTACT


def _committed(it: TargetObservation) -> TargetStep:
    """The only copy is here: it is given up only when it is lost, or when another pod has the name."""
    if not it.received or (not it.bound and it.comer is Comer.ANOTHER):
        return TargetStep.DESTROY
    if not it.bound:
        return TargetStep.BIND if it.comer is Comer.HERE else TargetStep.WAIT
    return _bound(it)


def _bound(it: TargetObservation) -> TargetStep:
    if it.ticket is TicketState.NONE:
        return TargetStep.MAKE_TICKET
    if it.pod is PodState.GONE:
        return TargetStep.DESTROY
    if it.losing:
        return TargetStep.LOSE
    if it.held:
        return TargetStep.WAIT if it.resume_sent else TargetStep.RESUME
    ready = it.gate and it.clear and not it.restoring
    return TargetStep.RESTORE if ready else TargetStep.WAIT
