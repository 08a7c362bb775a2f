"""What the source side does next: one pure function from what is known to one step (docs/protocol.md, section 7).

Three rules stand above all: it thaws only on Abort, Returned or the target's promise; it kills only on Resumed, or,
with the object gone, on the target's word; when unsure it stays as it is. A source whose name the target pod gets is
killed on Commit already: by then all of it is on the target's disk.

A source that is apart from its copy, a clone's, has one rule only: nothing of it is ever killed, and it stands still
for nobody. It goes on as soon as its checkpoint is complete, or will not be; the registers decide about the copy alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from migration_agent.ports import PeerState
from migration_agent.seen import Verdict
from migration_api.conditions import Reason
from migration_api.wire import SourceState


class SourceStep(StrEnum):
    """One idempotent act, or none."""

    COPY = "copy"
    """Fence, drop, pause, dump and send; goes on in the background."""
    SEND = "send"
    """Send what an earlier life of the agent has dumped; goes on in the background."""
    ABORT = "abort"
    """Propose Abort and look who won."""
    THAW = "thaw"
    """Let the containers go on: resume, lift drop and fence."""
    WITHDRAW = "withdraw"
    """End without having touched anything."""
    LOSE = "lose"
    """The containers are dead and the target will not go on: lift the fence, so that the kubelet starts afresh."""
    RELEASE = "release"
    """Kill every task while frozen."""
    REFREEZE = "refreeze"
    """Somebody set the containers running: pause them again."""
    LET_GO = "let-go"
    """Apart, and dumped: let the containers go on, while the rest goes on."""
    LEAVE = "leave"
    """Apart, and the containers go on already: end the copy and remove what was kept of it."""
    ASK_PROMISE = "ask-promise"
    """Ask the target to promise never to resume."""
    PAY_ABORT = "pay-abort"
    """Thawed by promise: propose Abort."""
    CLEAR_ABORT = "clear-abort"
    """Thawed by promise, and the registers agree: nothing is owed any more."""
    ACKNOWLEDGE = "acknowledge"
    """Ended, and the object is gone: delete a released pod, tell the target, then forget."""
    WAIT = "wait"


@dataclass(frozen=True)
class SourceObservation:
    """Everything that the step depends on."""

    state: SourceState
    verdict: Verdict
    peer: PeerState | None = None
    """The target's last answer; None when it was not asked or did not answer."""
    wanted: bool = True
    """The object names this node, pod and target, and is neither cancelled nor being deleted."""
    alive: bool = True
    """The containers are the same processes as when they were frozen; True before."""
    running: bool = False
    """A container runs that must be paused, after its dump."""
    working: bool = False
    """The copy goes on in the background."""
    interrupted: bool = False
    """An earlier life of the agent began a dump and did not finish it."""
    expired: bool = False
    """The freeze budget is used up."""
    failed: bool = False
    """The copy failed; the reason is in the journal."""
    owes_abort: bool = False
    apart: bool = False
    """The source goes on by itself as soon as it is dumped."""
    taking: bool = False
    """There is no target: a checkpoint is taken into a store, and nobody decides anything."""
    let_go: bool = False
    """It does so already: what becomes of its containers is no business of this migration."""
    lends: bool = False
    """The target may still need memory of the frozen processes."""
    same_name: bool = False
    """The target pod can come only when this one is gone: Commit ends it."""
    releasing: bool = False
    """It is on its way to be killed: nothing else is possible any more."""


ENDED = frozenset({SourceState.THAWED, SourceState.RELEASED, SourceState.LOST})
_DUMPED = frozenset({SourceState.DUMPED, SourceState.SENT})


def next_source_step(it: SourceObservation) -> SourceStep:  # noqa: PLR0911  # a decision table
    """Return the one step that is right now."""
    if it.state in ENDED:
        return _after_the_end(it)
    if it.taking:
        return _taking(it)
    if it.apart:
        return _apart(it)
    if _gives_its_name(it):
        return SourceStep.RELEASE
    if it.verdict is Verdict.RESUMED or (it.verdict is Verdict.GONE and it.peer is PeerState.RESUMED):
        return _moved_on(it)
    if it.verdict in {Verdict.ABORT, Verdict.RETURNED}:
        return _go_on(it)
    if it.peer is PeerState.DESTROYED:
        return _go_on(it)
    if it.running:
        return SourceStep.REFREEZE
    if it.verdict is Verdict.UNDECIDED:
        return _undecided(it)
    return _unsure(it)


def _gives_its_name(it: SourceObservation) -> bool:
    return it.same_name and (it.releasing or it.verdict is Verdict.COMMIT)


def abort_reason(it: SourceObservation) -> Reason | None:  # noqa: PLR0911  # a decision table
    """Return why an undecided migration must be given up; None when it need not.

    A source that died after all was sent is not given up before its budget: the target has the only copy.
    """
    sent = it.state is SourceState.SENT
    if it.state is SourceState.ACCEPTED:
        return None
    if it.let_go:
        return _reason_without_the_source(it)
    if not it.alive:
        return Reason.SOURCE_LOST if not sent or it.expired else None
    if it.failed:
        return Reason.CHECKPOINT_FAILED
    if _half_dumped(it):
        return Reason.AGENT_RESTARTED
    if it.expired:
        return Reason.FREEZE_BUDGET_EXCEEDED
    return None if it.wanted else Reason.ABORT_REQUESTED


def _reason_without_the_source(it: SourceObservation) -> Reason | None:
    if it.failed:
        return Reason.CHECKPOINT_FAILED
    return None if it.wanted else Reason.ABORT_REQUESTED


def _apart(it: SourceObservation) -> SourceStep:
    """Return the step of a source that its copy does not concern.

    Before the dump is complete the object may still call it off; no copy can be committed yet, so nobody's word is
    needed to go on.
    """
    if it.let_go:
        return _without_the_source(it)
    if it.state in _DUMPED:
        return SourceStep.WAIT if it.working else SourceStep.LET_GO
    if it.verdict is Verdict.UNDECIDED:
        return _undecided(it)
    if it.verdict in {Verdict.UNREACHABLE, Verdict.COMMIT}:
        stuck = it.expired or it.failed or not it.alive or _half_dumped(it)
        return _go_on(it) if stuck and it.state is not SourceState.ACCEPTED else SourceStep.WAIT
    return _go_on(it)


def _taking(it: SourceObservation) -> SourceStep:
    """Return the step when nobody waits for the checkpoint but its store.

    No register is asked for a decision, so nobody's word is needed to go on; the object only says whether it is wanted.
    """
    unwanted = it.verdict is Verdict.GONE or not it.wanted
    if it.let_go:
        ended = it.state is SourceState.SENT or it.failed or unwanted
        return SourceStep.LEAVE if ended else _send(it)
    if it.state in _DUMPED:
        return SourceStep.WAIT if it.working else SourceStep.LET_GO
    if it.state is SourceState.ACCEPTED:
        if it.working:
            return SourceStep.WAIT
        if it.failed or unwanted:
            return SourceStep.WITHDRAW
        return SourceStep.COPY if it.verdict is Verdict.UNDECIDED else SourceStep.WAIT
    stuck = it.expired or it.failed or not it.alive or _half_dumped(it) or unwanted
    return _go_on(it) if stuck else SourceStep.WAIT


def _without_the_source(it: SourceObservation) -> SourceStep:
    """Only the copy is left: it is sent, or given up."""
    if it.verdict in {Verdict.ABORT, Verdict.RETURNED, Verdict.RESUMED, Verdict.GONE}:
        return SourceStep.LEAVE
    if it.verdict is Verdict.UNDECIDED and abort_reason(it):
        return SourceStep.ABORT
    return SourceStep.WAIT if it.verdict is Verdict.COMMIT or it.failed else _send(it)


def _moved_on(it: SourceObservation) -> SourceStep:
    """Return the step when the copy runs: nothing here may run again, and what it still needs must stay."""
    if it.running and it.lends:
        return SourceStep.REFREEZE
    return SourceStep.WAIT if it.lends else SourceStep.RELEASE


def _undecided(it: SourceObservation) -> SourceStep:
    if it.state is SourceState.ACCEPTED:
        if it.working:
            return SourceStep.WAIT
        if it.failed:
            return SourceStep.ABORT
        return SourceStep.COPY if it.wanted else SourceStep.WITHDRAW
    return SourceStep.ABORT if abort_reason(it) else _send(it)


def _half_dumped(it: SourceObservation) -> bool:
    return it.interrupted and it.state not in _DUMPED


def _send(it: SourceObservation) -> SourceStep:
    """Go on sending after a restart: the checkpoint is complete on this node and the budget is not used up."""
    return SourceStep.SEND if it.state is SourceState.DUMPED and not it.working else SourceStep.WAIT


def _unsure(it: SourceObservation) -> SourceStep:
    """Return the step while the registers say Commit without an outcome, are out of reach, or have vanished."""
    if it.state is SourceState.ACCEPTED:
        return SourceStep.WITHDRAW if it.verdict is Verdict.GONE and not it.working else SourceStep.WAIT
    if it.verdict is Verdict.GONE:
        return SourceStep.ASK_PROMISE
    if it.verdict is Verdict.UNREACHABLE:
        return SourceStep.ASK_PROMISE if it.expired or it.failed or _half_dumped(it) else _send(it)
    return SourceStep.WAIT


def _go_on(it: SourceObservation) -> SourceStep:
    if it.state is SourceState.ACCEPTED and not it.working:
        return SourceStep.WITHDRAW
    return SourceStep.THAW if it.alive else SourceStep.LOSE


def _after_the_end(it: SourceObservation) -> SourceStep:
    if it.owes_abort:
        if it.verdict is Verdict.UNDECIDED:
            return SourceStep.PAY_ABORT
        settled = it.verdict in {Verdict.ABORT, Verdict.RETURNED, Verdict.GONE}
        if settled or (it.apart and it.verdict in {Verdict.COMMIT, Verdict.RESUMED}):
            return SourceStep.CLEAR_ABORT
        return SourceStep.WAIT  # Commit came late: the target will write Returned
    return SourceStep.ACKNOWLEDGE if it.verdict is Verdict.GONE else SourceStep.WAIT
