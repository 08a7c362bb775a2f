"""What the target side does next: one pure function from what is known to one step (docs/protocol.md, section 7).

The ticket on disk decides: `resuming` always becomes Resumed, `destroyed` never runs. Commit is proposed only while
everything is held, and nothing is resumed without Commit.
"""

from __future__ import annotations

from dataclasses import dataclass

from migration_agent.ports import Comer, PodState
from migration_agent.seen import Verdict
from migration_agent.succession_plan import next_successor_step
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.wire import TargetState


@dataclass(frozen=True)
class TargetObservation:
    """Everything that the step depends on."""

    state: TargetState
    verdict: Verdict
    ticket: TicketState
    settled: bool = False
    acknowledged: bool = False
    """The source's agent knows the end."""
    ours: bool = True
    """The object names this node, this pod and that source."""
    received: bool = False
    """The checkpoint lies here, complete and verified, and was received in this boot."""
    fetch: bool = False
    """The checkpoint is to be fetched from a store, and is neither here nor on its way."""
    gate: bool = False
    """An interposer waits at the gate, and those of the containers before it are held."""
    late: bool = False
    """Somebody waits at the late gate."""
    called: bool = False
    """The source is about to stand still."""
    restoring: bool = False
    """A tree is being made, or on its way to run: its interposer lives."""
    held: bool = False
    """All trees are held, in one sandbox: the hooks' connections are open, hooks and trees live."""
    filling: bool = False
    """Its memory is still being filled in."""
    borrows: bool = False
    """The source's processes stay for the sake of their memory; it was not said yet that they need not."""
    resume_sent: bool = False
    """These very hooks were told to resume."""
    accompanied: bool = True
    """The containers that are left out are created and wait for the commit."""
    losing: bool = False
    """A tree was lost while others are held or being made, or somebody came whose turn it cannot be."""
    clear: bool = True
    """No process of an earlier restore lives but those that hold the other containers, and nothing is received."""
    dead: bool = True
    """No process of any restore lives, nobody is connected, and no copy is being received."""
    pod: PodState = PodState.LIVE
    promise_asked: bool = False
    """The source asked for the promise: it cannot reach the registers, or they are gone."""
    waited: bool = False
    """Committed, and nothing was held for the length of the freeze budget; for a successor: it is gone for so long."""
    failed: bool = False
    """Cannot go on; the reason is in the journal."""
    successor: bool = False
    """The pod comes only when the source has given it its name; the rest is about such a one alone."""
    proposed: bool = False
    """Commit was proposed: it may stand in the register, or still arrive there."""
    bound: bool = False
    """A pod has the ticket."""
    comer: Comer = Comer.NOBODY
    """Who has the name, while no pod has the ticket."""


def next_target_step(it: TargetObservation) -> TargetStep:  # noqa: PLR0911  # a decision table
    """Return the one step that is right now."""
    if it.settled:
        return _after_the_end(it)
    if it.ticket is TicketState.RESUMING:
        return _resuming(it)
    if it.successor and (step := next_successor_step(it)) is not None:
        return step
    if it.ticket is TicketState.DESTROYED:
        return _destroyed(it)
    if it.verdict in {Verdict.ABORT, Verdict.RETURNED, Verdict.GONE}:
        return TargetStep.DESTROY
    if it.ticket is TicketState.NONE:
        return TargetStep.MAKE_TICKET if it.verdict is not Verdict.RESUMED else TargetStep.WAIT
    if it.verdict is Verdict.COMMIT:
        return _committed(it)
    if it.verdict is Verdict.RESUMED:
        return TargetStep.WAIT  # contradicts the ticket: only a hook that renamed it makes us write that
    return _pending(it)


def _pending(it: TargetObservation) -> TargetStep:
    """Return the step before the decision is known."""
    if it.promise_asked:
        return TargetStep.DESTROY
    if it.losing:
        return TargetStep.LOSE
    if it.failed:
        return TargetStep.REFUSE if it.gate else TargetStep.WAIT
    if it.held:
        complete = it.ours and it.received and it.accompanied
        may_commit = it.verdict is Verdict.UNDECIDED and complete and it.pod is PodState.LIVE
        return TargetStep.COMMIT if may_commit else TargetStep.WAIT
    return _restore(it)


def _committed(it: TargetObservation) -> TargetStep:
    hopeless = it.pod is PodState.GONE or not it.received
    if it.held and not it.losing and it.ours and it.pod is not PodState.GONE:
        return TargetStep.WAIT if it.resume_sent else TargetStep.RESUME
    if hopeless:
        return TargetStep.RETURN_ANYWAY
    if it.losing:
        return TargetStep.LOSE
    if it.waited:
        return TargetStep.RETURN_IF_INTACT
    return _restore(it)


def _restore(it: TargetObservation) -> TargetStep:
    if it.fetch:
        return TargetStep.FETCH
    if it.late and (it.received or it.called):
        return TargetStep.OPEN
    ready = it.gate and it.received and it.clear and not it.restoring
    return TargetStep.RESTORE if ready else TargetStep.WAIT


def _resuming(it: TargetObservation) -> TargetStep:
    if it.verdict is Verdict.RETURNED:  # an admin declared this node out of service, and the source goes on
        return TargetStep.END_RETURNED if it.dead else TargetStep.GIVE_UP
    if it.verdict in {Verdict.RESUMED, Verdict.GONE}:
        if it.restoring or it.filling:  # CRIU or the pager still uses the images, or the source's memory
            return TargetStep.WAIT
        return TargetStep.MEMORY_MOVED if it.borrows else TargetStep.END_RESUMED
    return TargetStep.WRITE_RESUMED if it.verdict is Verdict.COMMIT else TargetStep.WAIT


def _destroyed(it: TargetObservation) -> TargetStep:
    """Return the step on the way back; undecided is waited for, since a Commit that was on its way may still arrive."""
    if not it.dead:
        return TargetStep.CLEAR
    if it.state not in {TargetState.DESTROYED, TargetState.RETURNED}:
        return TargetStep.PROMISE
    if it.verdict is Verdict.COMMIT:
        return TargetStep.WRITE_RETURNED
    if it.verdict is Verdict.RETURNED:
        return TargetStep.END_RETURNED
    return TargetStep.END_DESTROYED if it.verdict in {Verdict.ABORT, Verdict.GONE} else TargetStep.WAIT


def _after_the_end(it: TargetObservation) -> TargetStep:
    """Forget when the object is gone; a word `resumed` only when the source has said that it knows."""
    if it.verdict is not Verdict.GONE:
        return TargetStep.WAIT
    owed = it.state is TargetState.RESUMED and not it.acknowledged
    return TargetStep.WAIT if owed else TargetStep.FORGET
