"""What the operator can do next, as values: the vocabulary that `plan`, `status` and `act` share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from migration_api.conditions import ConditionType, Reason

STEPS = (
    ConditionType.PREFLIGHT_PASSED,
    ConditionType.TARGET_PREPARED,
    ConditionType.CHECKPOINTED,
    ConditionType.TRANSFERRED,
    ConditionType.RESTORED,
    ConditionType.COMMITTED,
    ConditionType.MEMORY_MOVED,
    ConditionType.SOURCE_RELEASED,
)
"""The conditions that a migration passes, in order; MemoryMoved only with PostCopy."""


class Action(StrEnum):
    """All that the operator can do; `act` has one function for each, idempotent by the migration's UID."""

    REST = "Rest"
    """Nothing, for ever."""
    WAIT = "Wait"
    """Nothing, until something changes."""
    LET_GO = "LetGo"
    """Remove our finalizer."""
    QUEUE = "Queue"
    """Take a place among those that want to run."""
    MOUNT = "Mount"
    """Start the pods that mount a claim."""
    ADOPT = "Adopt"
    """Add our finalizer."""
    BEGIN = "Begin"
    """Write down, once, which pod is moved and the name of the new one."""
    CREATE_TARGET = "CreateTarget"
    RECORD_TARGET = "RecordTarget"
    """Write down, once, which pod may resume, and its node."""
    PREPARE_TARGET = "PrepareTarget"
    """Tell the target's agent."""
    CHECKPOINT = "Checkpoint"
    """Tell the source's agent."""
    PROPOSE_ABORT = "ProposeAbort"
    """Write Abort, unless something else is decided already."""
    SETTLE = "Settle"
    """Ask the agents that have not settled to look at the registers now."""
    RETURN = "Return"
    """Write Returned for a target node that an admin has declared out of service."""
    DELETE_TARGET = "DeleteTarget"
    KEEP = "Keep"
    """Make the ContainerCheckpoint that the migration is to leave."""
    HAND_OVER = "HandOver"
    """Let the source's ReplicaSet have the target pod for its own, and take the source for the one too many."""
    DELETE_SOURCE = "DeleteSource"
    FORGET = "Forget"
    """Let the agents remove what they keep."""
    CLEAR = "Clear"
    """Let an agent remove what lies in a claim."""
    UNMOUNT = "Unmount"
    """Remove the pods that mount a claim."""
    FINISH = "Finish"
    """Let the object go and write the end into its status."""


@dataclass(frozen=True)
class Step:
    """What to do next; `reason` is a documented constant, `message` a sentence for an admin.

    Attributes:
        stalled: nothing goes on until an admin or a dead machine does something.
    """

    action: Action
    reason: Reason
    message: str
    stalled: bool = False
