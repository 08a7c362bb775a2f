"""What the operator writes into the status: conditions, phase, message, progress, timings. Pure.

The operator is the only writer of these fields, so they are computed from what is observed, keeping what was true once.
Registers and identities are none of this module's business.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from math import ceil
from typing import Literal

from migration_api.conditions import Condition, ConditionType, Reason, condition
from migration_api.migration import Decision, MigrationStatus, Outcome, Progress, Timings
from migration_api.wire import Connections, SourceState
from migration_operator.endings import cause
from migration_operator.estimates import expected_freeze
from migration_operator.observation import Observation
from migration_operator.pods import Json, mapping
from migration_operator.step import STEPS, Action, Step

OWNED = ("observed_generation", "phase", "message", "progress", "timings", "conditions")
"""The fields of the status that this module writes."""

_MESSAGE_LENGTH = 4096
_Verdict = tuple[Literal["True", "False", "Unknown"], Reason, str]


def report(o: Observation, step: Step) -> MigrationStatus:
    """Return the status as it should be while `step` is being taken."""
    old = o.migration.status
    timings = _timings(o, step)
    return old.model_copy(
        update={
            "observed_generation": o.migration.metadata.generation,
            "phase": _phase(step),
            "message": step.message[:_MESSAGE_LENGTH],
            "progress": _progress(o),
            "timings": timings,
            "conditions": _conditions(o, step),
        }
    )


def patch(old: MigrationStatus, new: MigrationStatus) -> Json:
    """Return the merge patch of the status from `old` to `new`: only the fields that differ; conditions as a whole."""
    before, after = old.dump(), new.dump()
    names = [MigrationStatus.model_fields[name].alias or name for name in OWNED]
    changed = [name for name in names if name in after and after[name] != before.get(name)]
    return {name: _replacing(before.get(name), after[name]) for name in changed}


def _replacing(old: object, new: object) -> object:
    """Return what a merge patch makes `new` of `old`: what is not known any more must be removed by name."""
    gone = dict.fromkeys(mapping(old).keys() - mapping(new).keys())
    return {**gone, **mapping(new)} if mapping(new) else new


def _phase(step: Step) -> str:
    if step.stalled:
        return "Stalled"
    failed = {Reason.PREFLIGHT_FAILED, Reason.SOURCE_LOST, Reason.NOT_RESTORED, Reason.MEMORY_LOST, Reason.TARGET_LOST}
    if step.action is Action.FINISH and step.reason in failed:
        return "Failed"
    if step.action is Action.PROPOSE_ABORT:
        return Reason.ROLLING_BACK.value
    return step.reason.value


def _progress(o: Observation) -> Progress:
    """Keep what is known when an agent has forgotten it; the rate changes only with the bytes."""
    old, source, target = o.migration.status.progress, o.source, o.target
    known = source.bytes_total if source else target.bytes_total if target else None
    total = known if known is not None else old.bytes_total
    done = max(target.bytes_received if target else 0, old.bytes_done or 0) or None
    began = source.frozen_at if source else target.began_at if target else None
    rate, left = old.bytes_per_second, None
    if done is not None and began is not None and done != old.bytes_done:
        seconds = ((target and target.received_at) or o.now) - began
        rate = int(done / max(seconds.total_seconds(), 0.001))
    if done is not None and total is not None and rate and done < total:
        left = ceil((total - done) / rate)
    return Progress(
        bytes_total=total,
        bytes_done=done,
        bytes_per_second=rate,
        seconds_left=left,
        chunks_sent=source.chunks_sent or old.chunks_sent if source else old.chunks_sent,
        chunks_resumed=source.chunks_resumed or old.chunks_resumed if source else old.chunks_resumed,
    )


def _timings(o: Observation, step: Step) -> Timings:
    """Keep what is known: an agent that was restarted or has forgotten the migration takes nothing back."""
    old, source, target = o.migration.status.timings, o.source, o.target
    back = o.decision is Decision.ABORT or o.outcome is Outcome.RETURNED
    thawed_at = old.thawed_at or (source.thawed_at if o.clone and source else None)
    here = source.thawed_at if source and not o.clone else None
    went_on = here if back else target.resumed_at if target else None
    frozen_at = old.frozen_at or (source.frozen_at if source else None)
    resumed_at = old.resumed_at or went_on
    expected = expected_freeze(o.migration, o.preflight) if o.preflight else None
    return Timings(
        started_at=old.started_at or o.now,
        admitted_at=old.admitted_at or (o.now if o.place is not None and o.place.granted else None),
        prepared_at=old.prepared_at or _at_the_gate(o),
        frozen_at=frozen_at,
        dumped_at=old.dumped_at or (source.dumped_at if source else None),
        thawed_at=thawed_at,
        transferred_at=old.transferred_at or (target.received_at if target else None),
        restored_at=old.restored_at or (target.held_at if target else None),
        resumed_at=resumed_at,
        filled_at=old.filled_at or (target.filled_at if target else None),
        completed_at=old.completed_at or (o.now if step.action is Action.FINISH else None),
        freeze_estimate_seconds=old.freeze_estimate_seconds if expected is None else f"{expected:.1f}",
        freeze_seconds=_between(frozen_at, thawed_at if o.clone else resumed_at),
    )


def _at_the_gate(o: Observation) -> datetime | None:
    if o.target and o.target.at_late_gate:
        return o.now
    age = o.target.gate_age_seconds if o.target else None
    if o.same_name:
        return o.now if o.source is not None else None  # its pin is in force
    return None if age is None else o.now - timedelta(seconds=age)


def _between(frozen_at: datetime | None, resumed_at: datetime | None) -> str | None:
    """The clocks of two nodes may differ by more than a short freeze: never less than nothing."""
    if frozen_at is None or resumed_at is None:
        return None
    return f"{max(0.0, (resumed_at - frozen_at).total_seconds()):.3f}"


def _conditions(o: Observation, step: Step) -> tuple[Condition, ...]:
    old = o.migration.status.conditions
    verdicts: dict[ConditionType, _Verdict] = {**_step_verdicts(o, step), **_summary(step)}
    return tuple(
        condition(
            old,
            type_,
            status,
            reason,
            message[:_MESSAGE_LENGTH],
            generation=o.migration.metadata.generation,
            at=o.now,
        )
        for type_, (status, reason, message) in verdicts.items()
    )


def _summary(step: Step) -> dict[ConditionType, _Verdict]:
    """Succeeded for `kubectl wait`; Reconciling and Stalled as kstatus reads them, so that GitOps tools understand.

    Never both True: kstatus takes the first that it meets.
    """
    reason, message = step.reason, step.message
    if step.action is not Action.FINISH:
        return {
            ConditionType.SUCCEEDED: ("Unknown", reason, message),
            ConditionType.RECONCILING: ("False" if step.stalled else "True", reason, message),
            ConditionType.STALLED: ("True" if step.stalled else "False", reason, message if step.stalled else ""),
        }
    succeeded = reason is Reason.SUCCEEDED
    return {
        ConditionType.SUCCEEDED: ("True" if succeeded else "False", reason, message),
        ConditionType.RECONCILING: ("False", reason, "the migration has ended"),
        ConditionType.STALLED: ("False" if succeeded else "True", reason, "" if succeeded else message),
    }


def _step_verdicts(o: Observation, step: Step) -> dict[ConditionType, _Verdict]:
    """What was passed stays passed. When it is given up, the first step that was not passed says why."""
    passed = _passed(o, step)
    proposing = step.action is Action.PROPOSE_ABORT
    given_up = proposing or o.decision is Decision.ABORT or o.outcome is Outcome.RETURNED
    why: tuple[Reason, str] = (step.reason, step.message) if proposing else cause(o)
    verdicts: dict[ConditionType, _Verdict] = {}
    first = True
    for type_ in STEPS:
        if type_ is ConditionType.MEMORY_MOVED and not o.post_copy:
            continue
        if type_ in passed:
            left = o.clone and type_ is ConditionType.SOURCE_RELEASED
            reason = Reason.LEFT_RUNNING if left else Reason.DONE
            verdicts[type_] = ("True", reason, _NOTES[type_](o) if type_ in _NOTES else "")
        elif given_up:
            verdicts[type_] = ("False", *why) if first else ("False", Reason.NOT_REACHED, "the migration was given up")
            first = False
        else:
            verdicts[type_] = ("Unknown", step.reason, step.message) if first else ("Unknown", Reason.PENDING, "")
            first = False
    if given_up and o.source is not None and o.source.state is SourceState.LOST:
        # The agent is about to forget it: it must stand here before.
        verdicts[ConditionType.SOURCE_RELEASED] = ("False", Reason.SOURCE_LOST, "the source died while it was frozen")
    if o.memory_lost:
        verdicts[ConditionType.MEMORY_MOVED] = ("False", Reason.MEMORY_LOST, o.memory_lost)
    return verdicts


def _noted(o: Observation, type_: ConditionType) -> str:
    """Return what a condition says already: agents forget in the end, conditions do not."""
    old = next((c for c in o.migration.status.conditions if c.type == type_), None)
    return old.message if old is not None and old.status == "True" else ""


def _files(o: Observation) -> str:
    """Say where a checkpoint's files lie on a disk: they leave traces there."""
    found = {o.migration.status.source.node_name: o.source, o.migration.status.target.node_name: o.target}
    notes = [f"Node {node}: {side.files.why}." for node, side in found.items() if side and side.files.on_disk]
    known = _noted(o, ConditionType.TARGET_PREPARED)
    return " ".join([*([known] if known else []), *(note for note in notes if note not in known)])


def _closing(o: Observation) -> str:
    """Say which connections the move costs."""
    if o.migration.restores:
        taken = o.checkpoint.status.created_at if o.checkpoint else None
        when = f" It is of {taken:%Y-%m-%d %H:%M:%S} UTC." if taken else ""
        return _noted(o, ConditionType.CHECKPOINTED) or f"There is no source: {o.migration.subject} is used.{when}"
    if o.source is None or o.source.connections is None:
        return _noted(o, ConditionType.CHECKPOINTED)
    found = o.source.connections
    if o.clone:
        return _staying(found)
    if not found.outside:
        return ""
    both = " Those within the pod are closed, too: they can stay only when it has no others." if found.within else ""
    return f"{found.outside} TCP connections with others are closed when it goes on at the target.{both}"


def _staying(found: Connections) -> str:
    """Say which connections a clone does not have."""
    if not found.outside:
        return "The source goes on."
    both = (
        " Those within the pod are closed there, too: they can stay only when it has no others." if found.within else ""
    )
    return (
        f"The source goes on. {found.outside} TCP connections with others stay with it; the clone's are closed.{both}"
    )


def _left_alone(o: Observation) -> str:
    if o.migration.restores:
        return "There was no source."
    if not o.clone:
        return ""
    subject = o.migration.subject
    return f"{subject[0].upper()}{subject[1:]} goes on since its checkpoint was complete; nothing of it was ended."


_NOTES = {
    ConditionType.TARGET_PREPARED: _files,
    ConditionType.CHECKPOINTED: _closing,
    ConditionType.SOURCE_RELEASED: _left_alone,
}
"""What is said of steps that are passed."""


def _passed(o: Observation, step: Step) -> set[ConditionType]:
    """Return the steps that are passed; whoever has passed a step has passed all before it."""
    known = {c.type for c in o.migration.status.conditions if c.status == "True"}
    last = max((i for i, type_ in enumerate(STEPS) if type_ in known), default=-1)
    last = max(last, _reached_index(o, step))
    passed: set[ConditionType] = set(STEPS[: last + 1])
    restored = o.outcome is Outcome.RESUMED or ConditionType.RESTORED in known or (o.target and o.target.held_at)
    return passed if restored or not o.same_name else passed - {ConditionType.RESTORED}


def _reached_index(o: Observation, step: Step) -> int:
    if step.action is Action.FINISH and step.reason in {Reason.SUCCEEDED, Reason.MEMORY_LOST}:
        return STEPS.index(ConditionType.SOURCE_RELEASED)
    if o.post_copy and o.target is not None and o.target.filled_at is not None:
        return STEPS.index(ConditionType.MEMORY_MOVED)
    if o.decision is Decision.COMMIT:
        return STEPS.index(ConditionType.COMMITTED)
    target, source = o.target, o.source
    reached = -1
    if o.begun:
        reached = STEPS.index(ConditionType.PREFLIGHT_PASSED)
    pinned = o.same_name and source is not None
    if target and (_at_the_gate(o) or target.received_at is not None or pinned):
        reached = STEPS.index(ConditionType.TARGET_PREPARED)
    if source and source.dumped_at is not None:
        reached = STEPS.index(ConditionType.CHECKPOINTED)
    if target and target.received_at is not None:
        reached = STEPS.index(ConditionType.TRANSFERRED)
    if target and target.held_at is not None:
        reached = STEPS.index(ConditionType.RESTORED)
    return reached
