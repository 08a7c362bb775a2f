"""What the operator does next for a ContainerCheckpoint, as one pure function; its protocol is small.

Kept by a migration: the operator has described it, and the agents have left it in its store. It is looked at there and
marked as one that stays; only then it is Ready. Deleted: what is stored goes first, and then the object, which never
waits for ever for a store that is gone.

Taken from a running pod: the agent on its node freezes, dumps, lets it go on and copies, all by itself; then it is
kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Literal

from migration_api.checkpoint import CheckpointStatus, ContainerCheckpoint
from migration_api.checkpoint_reasons import CheckpointCondition, CheckpointReason
from migration_api.conditions import condition
from migration_api.names import CHECKPOINT_FINALIZER
from migration_api.wire import SourceReport
from migration_operator.observation import AgentView
from migration_operator.pods import Pod

HOPELESS_SECONDS = 10.0
"""For how long it is tried to remove what cannot be removed unless somebody does something."""


class CheckpointAction(StrEnum):
    """All that can be done; each can be repeated at any time."""

    ADOPT = "Adopt"
    """Add our finalizer, before anything is touched."""
    MOUNT = "Mount"
    """Start the pod that mounts a claim on the pod's node."""
    BEGIN = "Begin"
    """Make the key, and write down what is taken."""
    TAKE = "Take"
    """Tell the agent on the pod's node."""
    WAIT = "Wait"
    """Nothing, until something changes."""
    FAIL = "Fail"
    """Write down that it is not taken; the agent reads it, and lets the pod go on."""
    FORGET = "Forget"
    """Let the agent remove what it keeps."""
    REST = "Rest"
    """Nothing, until the object changes."""
    KEEP = "Keep"
    """Let an agent see whether it is complete, and mark it in its store."""
    REMOVE = "Remove"
    """Let an agent remove what is stored; when that is done, let the object go."""
    GIVE_UP = "GiveUp"
    """Say where it lies, and let the object go."""


@dataclass(frozen=True)
class Trouble:
    """Why the last attempt did not succeed.

    Attributes:
        passing: time may help.
    """

    reason: CheckpointReason
    message: str
    passing: bool = True


@dataclass(frozen=True)
class CheckpointObservation:
    """Everything that the next step may depend on.

    Attributes:
        pod: what it is taken from; only before it has begun.
        objection: everything that stands against it, before it has begun; None when nobody has looked.
        to_mount: where a claim is still to be mounted before anybody can say what stands against it.
        agent: the agent on the pod's node, once it has begun.
        refusal: the agent's refusal of the last request.
        trouble: of the last attempt in this life of the operator.
        removal_seconds: how long it is tried to remove what is stored.
    """

    now: datetime
    checkpoint: ContainerCheckpoint
    pod: Pod | None = None
    objection: str | None = None
    to_mount: tuple[str, ...] = ()
    agent: AgentView | None = None
    refusal: str = ""
    trouble: Trouble | None = None
    removal_seconds: float = 120.0

    @property
    def source(self) -> SourceReport | None:
        return self.agent.report.source if self.agent and self.agent.report else None


def needs_nothing(checkpoint: ContainerCheckpoint) -> bool:
    """Return whether nothing is left to do for it until it changes; what an agent keeps of it is not known here."""
    if checkpoint.deleting:
        return CHECKPOINT_FINALIZER not in checkpoint.metadata.finalizers
    return ready_status(checkpoint) != "Unknown" or (
        checkpoint.spec.migration is not None and checkpoint.status.uid is None
    )


def next_checkpoint_action(o: CheckpointObservation) -> CheckpointAction:
    """Return the one step that is right now."""
    if o.checkpoint.spec.migration is None and (step := _taking(o)) is not None:
        return step
    metadata = o.checkpoint.metadata
    if metadata.deletion_timestamp is not None:
        if CHECKPOINT_FINALIZER not in metadata.finalizers:
            return CheckpointAction.REST
        if o.trouble is None:
            return CheckpointAction.REMOVE
        patience = o.removal_seconds if o.trouble.passing else min(HOPELESS_SECONDS, o.removal_seconds)
        late = o.now - metadata.deletion_timestamp > timedelta(seconds=patience)
        return CheckpointAction.GIVE_UP if late else CheckpointAction.REMOVE
    if o.checkpoint.status.uid is None or ready_status(o.checkpoint) != "Unknown":
        return CheckpointAction.REST
    return CheckpointAction.KEEP


def _taking(o: CheckpointObservation) -> CheckpointAction | None:  # noqa: PLR0911  # a decision table
    """Return the step of taking it from a running pod; None when the agent there has no part in it any more.

    The agent on the pod's node does all of it alone, and lets the pod go on by itself. It is told once; what it has
    done is kept, or given up, before it forgets.
    """
    ended = o.checkpoint.deleting or ready_status(o.checkpoint) != "Unknown"
    if o.checkpoint.status.uid is None:
        return None if ended else _before_it_begins(o)
    if o.agent is not None and not o.agent.reached and not o.agent.node.silent(o.now) and o.agent.node.exists:
        return CheckpointAction.WAIT
    source = o.source
    if ended:
        if source is None:
            return None
        return CheckpointAction.FORGET if source.settled else CheckpointAction.WAIT
    if why_not_taken(o):
        return CheckpointAction.FAIL
    if source is None:
        return CheckpointAction.TAKE
    return None if source.settled else CheckpointAction.WAIT


def _before_it_begins(o: CheckpointObservation) -> CheckpointAction:
    if o.objection or o.refusal:
        return CheckpointAction.FAIL
    if o.objection is None:
        return CheckpointAction.MOUNT if o.to_mount else CheckpointAction.WAIT
    adopted = CHECKPOINT_FINALIZER in o.checkpoint.metadata.finalizers
    return CheckpointAction.BEGIN if adopted else CheckpointAction.ADOPT


def why_not_taken(o: CheckpointObservation) -> str:
    """Return why it is given up, or cannot begin; empty when it goes on."""
    if o.objection or o.refusal:
        return o.objection or o.refusal
    source, begun = o.source, o.checkpoint.status.begun_at
    if source is not None and source.failure is not None:
        return source.failure.message
    if source is not None and source.settled:
        return (
            "" if source.sent_at is not None else f"the agent on its node reports {source.state}, and nothing is taken"
        )
    if begun is not None and o.now - begun > timedelta(seconds=o.checkpoint.spec.deadline_seconds):
        return f"it was not complete within {o.checkpoint.spec.deadline_seconds} s (spec.deadlineSeconds)"
    if o.agent is not None and (not o.agent.node.exists or (not o.agent.reached and o.agent.node.silent(o.now))):
        return f"node {o.agent.node.name} or its agent is away ({o.agent.problem})"
    return ""


def ready_status(checkpoint: ContainerCheckpoint) -> str:
    """Return the status of the condition `Ready`; Unknown until it is written."""
    found = next((c for c in checkpoint.status.conditions if c.type == CheckpointCondition.READY), None)
    return found.status if found else "Unknown"


def with_ready(
    checkpoint: ContainerCheckpoint,
    status: Literal["True", "False", "Unknown"],
    reason: CheckpointReason,
    message: str,
    *,
    at: datetime,
) -> CheckpointStatus:
    """Return the status with this word of `Ready`."""
    old = checkpoint.status
    ready = condition(
        old.conditions,
        CheckpointCondition.READY,
        status,
        reason,
        message[:4096],
        generation=checkpoint.metadata.generation,
        at=at,
    )
    return old.model_copy(
        update={
            "observed_generation": checkpoint.metadata.generation,
            "phase": reason.value if status != "True" else "Ready",
            "message": message[:4096],
            "conditions": (ready,),
        }
    )
