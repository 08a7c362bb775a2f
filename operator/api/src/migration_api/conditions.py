"""Condition types and reasons of a ContainerMigration, with what each means.

They follow the Kubernetes API conventions: conditions are observations; a reason is a documented constant in
CamelCase; the message is a sentence for an admin. Every condition is set at the first visit.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from migration_api.base import Model, Time, now


class ConditionType(StrEnum):
    """The conditions, in the order in which a migration passes them."""

    PREFLIGHT_PASSED = "PreflightPassed"
    TARGET_PREPARED = "TargetPrepared"
    CHECKPOINTED = "Checkpointed"
    TRANSFERRED = "Transferred"
    RESTORED = "Restored"
    COMMITTED = "Committed"
    SOURCE_RELEASED = "SourceReleased"
    SUCCEEDED = "Succeeded"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"


class Reason(StrEnum):
    """Why a condition is as it is. Those of the preflight are in `PreflightReason`."""

    PENDING = "Pending"
    """This step has not begun."""
    IN_PROGRESS = "InProgress"
    """This step is being taken."""
    DONE = "Done"
    """This step is complete."""
    NOT_REACHED = "NotReached"
    """The migration ended before this step."""
    PREFLIGHT_FAILED = "PreflightFailed"
    """The pod cannot be moved; the message lists everything that stands against it. Nothing was touched."""
    PREPARING_TARGET = "PreparingTarget"
    """The target pod is being scheduled and started up to the gate."""
    CHECKPOINTING = "Checkpointing"
    """The source is frozen and being copied."""
    TRANSFERRING = "Transferring"
    """The checkpoint is on its way to the target node."""
    RESTORING = "Restoring"
    """The target node restores the container and will commit when it is complete and held."""
    COMMITTED = "Committed"
    """The target's agent has written Commit; the container will run on the target node."""
    RELEASING_SOURCE = "ReleasingSource"
    """The container runs on the target node; the frozen source pod is being deleted."""
    ROLLING_BACK = "RollingBack"
    """The migration was given up before it was committed; the source goes on."""
    SUCCEEDED = "Succeeded"
    """The container runs on the target node with its state; the source pod is gone."""
    ROLLED_BACK = "RolledBack"
    """The source runs on as if nothing had happened; the message says why."""
    SOURCE_LOST = "SourceLost"
    """The source container or pod died before the decision, not by this migration."""
    ABORT_REQUESTED = "AbortRequested"
    """The migration was deleted or `spec.cancel` was set."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """`spec.deadlineSeconds` passed before the decision."""
    FREEZE_BUDGET_EXCEEDED = "FreezeBudgetExceeded"
    """The freeze took longer than `spec.freezeBudgetSeconds`."""
    CHECKPOINT_FAILED = "CheckpointFailed"
    """The source could not be checkpointed; the message has the last lines of CRIU or the runtime."""
    TRANSFER_FAILED = "TransferFailed"
    """The checkpoint did not arrive complete and verified."""
    RESTORE_FAILED = "RestoreFailed"
    """The target could not restore; the message has the last lines of CRIU or the runtime."""
    AGENT_RESTARTED = "AgentRestarted"
    """The source's agent was restarted in the middle of the copy."""
    TARGET_FAILED = "TargetFailed"
    """The target pod failed, was deleted or cannot start; the message says what the kubelet or scheduler reported."""
    TARGET_RETURNED = "TargetReturned"
    """After the commit the target could not go on; its agent handed the container back to the source."""
    AGENT_UNREACHABLE = "AgentUnreachable"
    """A node's agent does not answer; the migration waits for it."""
    TARGET_LOST_AFTER_COMMIT = "TargetLostAfterCommit"
    """The target node stopped answering after the commit. The source stays frozen until that is known not to run."""


class PreflightReason(StrEnum):
    """What can stand against a migration before anything is touched."""

    POD_NOT_FOUND = "PodNotFound"
    POD_REPLACED = "PodReplaced"
    POD_NOT_RUNNING = "PodNotRunning"
    POD_OWNED = "PodOwned"
    CONTAINER_NOT_FOUND = "ContainerNotFound"
    SEVERAL_CONTAINERS = "SeveralContainers"
    INIT_CONTAINERS = "InitContainers"
    EPHEMERAL_CONTAINERS = "EphemeralContainers"
    HOST_NAMESPACE = "HostNamespace"
    VOLUME_CANNOT_MOVE = "VolumeCannotMove"
    HOSTS_FILE_MOUNTED = "HostsFileMounted"
    RUNTIME_CLASS = "RuntimeClass"
    ALREADY_MIGRATING = "AlreadyMigrating"
    TARGET_IS_SOURCE = "TargetIsSource"
    TARGET_NODE_NOT_FOUND = "TargetNodeNotFound"
    TARGET_NAME_TAKEN = "TargetNameTaken"
    NODE_NOT_READY = "NodeNotReady"
    NODE_NOT_CAPABLE = "NodeNotCapable"
    FREEZE_TOO_LONG = "FreezeTooLong"


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
    type_: ConditionType,
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
