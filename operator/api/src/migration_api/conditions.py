"""Condition types and reasons of a ContainerMigration, with what each means and what to do: their one home.

They follow the Kubernetes API conventions: conditions are observations; a reason is a documented constant in
CamelCase; the message is a sentence for an admin. Every condition is set at the first visit. docs/conditions.md is
generated from this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import Field

from migration_api.base import Model, Time, now


class _Text(str):
    """The text of a constant, with what explains it."""

    __slots__ = ("meaning", "remedy")
    meaning: str
    remedy: str


def explained(text: str, meaning: str, remedy: str = "") -> str:
    """Return a constant's text; its type is that of its members' values, as the type checker wants them."""
    value = _Text(text)
    value.meaning, value.remedy = meaning, remedy
    return value


class Explained(StrEnum):
    """Constants that each have what they mean and, where somebody can do something, what to do."""

    meaning: str
    """One sentence."""
    remedy: str
    """What to do; empty when there is nothing to do."""

    def __new__(cls, value: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = str(value)
        if not isinstance(value, _Text):
            raise TypeError(f"{value} is not explained")
        member.meaning, member.remedy = value.meaning, value.remedy
        return member


class ConditionType(Explained):
    """The conditions, in the order in which a migration passes them; `meaning`: what it says when it is True."""

    PREFLIGHT_PASSED = explained("PreflightPassed", "Nothing stands against the migration.")
    TARGET_PREPARED = explained(
        "TargetPrepared", "The target pod waits at the gate; image, volumes and network are ready."
    )
    CHECKPOINTED = explained(
        "Checkpointed",
        "The source is frozen and its checkpoint is complete; with `leaveSourceRunning` it goes on again.",
    )
    TRANSFERRED = explained("Transferred", "The checkpoint is on the target node, and every digest matched.")
    RESTORED = explained("Restored", "The target holds the restored container, which has not run one instruction.")
    COMMITTED = explained("Committed", "It is decided that the container goes on at the target.")
    MEMORY_MOVED = explained(
        "MemoryMoved",
        "Only with `strategy: PostCopy`: all memory is on the target node; the source's node is not needed any more.",
    )
    SOURCE_RELEASED = explained(
        "SourceReleased",
        "The source was ended while it was still frozen; with the reason `LeftRunning` it was left alone.",
    )
    SUCCEEDED = explained(
        "Succeeded", "The migration has ended well; Unknown until it ends, False when it ended otherwise."
    )
    RECONCILING = explained("Reconciling", "The migration goes on (read by kstatus).")
    STALLED = explained("Stalled", "The migration has failed, or waits for an admin (read by kstatus).")


class Reason(Explained):
    """Why a condition is as it is. Those of the preflight are in `preflight_reasons`."""

    PENDING = explained("Pending", "This step has not begun.")
    IN_PROGRESS = explained("InProgress", "This step is being taken.")
    DONE = explained("Done", "This step is complete.")
    NOT_REACHED = explained("NotReached", "The migration ended before this step.")
    PREFLIGHT_FAILED = explained(
        "PreflightFailed",
        "The pod cannot be moved; the message lists everything that stands against it. Nothing was touched.",
        "Do what the message says, then create a new ContainerMigration.",
    )
    QUEUED = explained(
        "Queued",
        "Nothing stands against the migration, and it waits for its turn; the message says for what.",
        "Wait, or raise the chart's values `parallelMigrations` when the nodes have room for more at once.",
    )
    PREPARING_TARGET = explained("PreparingTarget", "The target pod is being scheduled and started up to the gate.")
    CHECKPOINTING = explained("Checkpointing", "The source is frozen and being copied.")
    TRANSFERRING = explained("Transferring", "The checkpoint is on its way to the target node.")
    RESTORING = explained(
        "Restoring",
        "The target node restores the container and will commit when it is complete and held.",
    )
    COMMITTED = explained(
        "Committed", "The target's agent has written Commit; the container will run on the target node."
    )
    RELEASING_SOURCE = explained(
        "ReleasingSource",
        "The container runs on the target node; the frozen source pod is being deleted.",
    )
    FILLING_MEMORY = explained(
        "FillingMemory",
        "The container runs at the target; its service is slower until the rest of its memory is filled in from the "
        "checkpoint there.",
        "Wait: a few seconds for each GiB.",
    )
    MOVING_MEMORY = explained(
        "MovingMemory",
        "The container runs at the target; its service is slower until the rest of its memory has come from the frozen "
        "source, whose node must live until then.",
        "Wait: a few seconds for each GiB. While the source's node is out of reach, whoever needs that memory waits. "
        "When it is lost for good, delete the target pod (docs/rescue.md, 7).",
    )
    MEMORY_LOST = explained(
        "MemoryLost",
        "After the commit the source died before all memory had come, so the container started afresh at the target.",
        "The message says what died. Where that must not happen use the strategy StopAndCopy.",
    )
    LEFT_RUNNING = explained(
        "LeftRunning",
        "`spec.leaveSourceRunning` is set: the source goes on since its checkpoint was complete, with its connections, "
        "and nothing of it was ended or deleted.",
    )
    ROLLING_BACK = explained("RollingBack", "The migration was given up before it was committed; the source goes on.")
    SUCCEEDED = explained(
        "Succeeded",
        "The container runs on the target node with its state; the source pod is gone, or, with `leaveSourceRunning`, "
        "goes on too.",
    )
    ROLLED_BACK = explained(
        "RolledBack",
        "The source runs on as if nothing had happened; the message says why.",
        "Remove the cause that the message names, then create a new ContainerMigration.",
    )
    NOT_RESTORED = explained(
        "NotRestored",
        "No pod was restored from the checkpoint, which is as it was; the message says why.",
        "Remove the cause that the message names, then create a new ContainerMigration.",
    )
    SOURCE_LOST = explained(
        "SourceLost",
        "The source container or pod died before the decision, not by this migration.",
        "Look at the pod's own events; its controller or kubelet starts it afresh as after any crash.",
    )
    ABORT_REQUESTED = explained("AbortRequested", "The migration was deleted or `spec.cancel` was set.")
    DEADLINE_EXCEEDED = explained(
        "DeadlineExceeded",
        "`spec.deadlineSeconds` passed before the decision.",
        "The message says where it stood; remove that cause, or allow more time.",
    )
    FREEZE_BUDGET_EXCEEDED = explained(
        "FreezeBudgetExceeded",
        "The source stood still for the whole freeze budget without a decision, and was let go on.",
        "Raise `spec.freezeBudgetSeconds`, and `failureThreshold` of network liveness probes with it.",
    )
    CHECKPOINT_FAILED = explained(
        "CheckpointFailed",
        "The source could not be checkpointed; the message has the last lines of CRIU or the runtime.",
        "Read CRIU's words in the message: they name the file, socket or device that cannot be dumped.",
    )
    TRANSFER_FAILED = explained(
        "TransferFailed",
        "The checkpoint did not arrive complete and verified.",
        "Check that pods on both nodes reach each other on port 9444, that volume or bucket can be used from both, and "
        "that the target has room in memory (/run/container-migration/images) or on its disk.",
    )
    RESTORE_FAILED = explained(
        "RestoreFailed",
        "The target could not restore; the message has the last lines of CRIU or the runtime.",
        "Read CRIU's words in the message: they name what the target node lacks.",
    )
    AGENT_RESTARTED = explained(
        "AgentRestarted",
        "The source's agent was restarted in the middle of the dump, for example by an upgrade; the source went on.",
        "Create a new ContainerMigration when the agents are ready again.",
    )
    TARGET_FAILED = explained(
        "TargetFailed",
        "The target pod failed, was deleted or cannot start; the message says what kubelet or scheduler reported.",
        "Remove that cause, or choose another node.",
    )
    TARGET_RETURNED = explained(
        "TargetReturned",
        "After the commit the target could not go on; its agent handed the container back to the source.",
        "The message says why; try another node.",
    )
    AGENT_UNREACHABLE = explained(
        "AgentUnreachable",
        "A node's agent does not answer; the migration waits for it.",
        "Bring the agent's pod on that node back; docs/rescue.md says what to do when it will not come back.",
    )
    TARGET_LOST = explained(
        "TargetLost",
        "After the commit, and after the source pod had given its name away, the checkpoint was lost with the target "
        "node or its disk, or another pod got the name; the message says which.",
        "The pod's controller starts it afresh, as after any death of a node.",
    )
    TARGET_LOST_AFTER_COMMIT = explained(
        "TargetLostAfterCommit",
        "The target node stopped answering after the commit. The source stays frozen until that is known not to run; a "
        "source that gave its name away is gone.",
        "Bring the node or its agent back. When the machine is certainly off and stays off, give the node the taint "
        "`node.kubernetes.io/out-of-service`: the source goes on then (docs/rescue.md, 6).",
    )


class Condition(Model):
    """One observation, as in metav1.Condition."""

    type: Annotated[str, Field(max_length=316)]
    """The aspect that is observed, in CamelCase."""
    status: Literal["True", "False", "Unknown"]
    """Whether the aspect holds."""
    observed_generation: Annotated[int, Field(ge=0, json_schema_extra={"format": "int64"})]
    """The `metadata.generation` that was looked at."""
    last_transition_time: Time
    """When `status` changed last."""
    reason: Annotated[str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
    """Why, as a documented constant in CamelCase."""
    message: Annotated[str, Field(max_length=32768)]
    """A sentence for an admin."""


def condition(
    old: Iterable[Condition],
    type_: str,
    status: Literal["True", "False", "Unknown"],
    reason: str,
    message: str,
    *,
    generation: int,
    at: datetime | None = None,
) -> Condition:
    """Return the condition `type_`; `last_transition_time` is kept from `old` when the status did not change."""
    before = next((c for c in old if c.type == type_), None)
    kept = before is not None and before.status == status
    return Condition(
        type=type_,
        status=status,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and kept else at or now(),
        reason=reason,
        message=message,
    )
