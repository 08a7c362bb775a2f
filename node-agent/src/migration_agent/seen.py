"""What an agent sees of a migration in the API: the two write-once registers and the identities."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.checkpoint_reasons import CheckpointCondition
from migration_api.migration import ContainerMigration, Decision, Outcome


class Verdict(StrEnum):
    """All that the registers can say, or that they could not be read."""

    UNREACHABLE = "unreachable"
    """The API server did not answer, or did not allow it: nothing is known."""
    GONE = "gone"
    """There is no such object, or another one under that name."""
    UNDECIDED = "undecided"
    ABORT = "abort"
    COMMIT = "commit"
    """Committed, without an outcome."""
    RESUMED = "resumed"
    RETURNED = "returned"


@dataclass(frozen=True)
class Seen:
    """One live reading of a ContainerMigration."""

    decision: Decision | None = None
    outcome: Outcome | None = None
    source_node: str | None = None
    source_pod_uid: str | None = None
    target_node: str | None = None
    target_pod_uid: str | None = None
    given_up: bool = False
    """`spec.cancel` is set or the object is being deleted."""


@dataclass(frozen=True)
class Gone:
    """There is no object of that UID under that name."""


def seen(migration: ContainerMigration) -> Seen:
    """Return the part of the object that agents act on."""
    status = migration.status
    return Seen(
        decision=status.decision,
        outcome=status.target.outcome,
        source_node=status.source.node_name,
        source_pod_uid=status.source.pod_uid,
        target_node=status.target.node_name,
        target_pod_uid=status.target.pod_uid,
        given_up=migration.spec.cancel or migration.metadata.deletion_timestamp is not None,
    )


def seen_checkpoint(checkpoint: ContainerCheckpoint) -> Seen:
    """Return the same of the taking of a checkpoint: nothing is decided; it is given up when the operator says so."""
    source = checkpoint.status.source
    refused = any(c.type == CheckpointCondition.READY and c.status == "False" for c in checkpoint.status.conditions)
    return Seen(
        source_node=source.node_name if source else None,
        source_pod_uid=source.pod_uid if source else None,
        given_up=refused or checkpoint.deleting,
    )


def verdict(reading: Seen | Gone | None) -> Verdict:
    """Return what a reading says; None stands for a reading that failed."""
    if reading is None:
        return Verdict.UNREACHABLE
    if isinstance(reading, Gone):
        return Verdict.GONE
    if reading.decision is Decision.ABORT:
        return Verdict.ABORT
    if reading.decision is None:
        return Verdict.UNDECIDED
    if reading.outcome is Outcome.RESUMED:
        return Verdict.RESUMED
    return Verdict.RETURNED if reading.outcome is Outcome.RETURNED else Verdict.COMMIT


FINAL = frozenset({Verdict.ABORT, Verdict.RESUMED, Verdict.RETURNED})
"""No later reading says anything else, unless the object is gone."""


def remembered(before: Verdict, now: Verdict) -> Verdict:
    """Return what is known after another reading.

    Registers are write-once: a failed reading takes nothing away, and what was final stays so when the object vanishes.
    """
    if before in FINAL and now in {Verdict.UNREACHABLE, Verdict.GONE}:
        return before
    if before in {Verdict.COMMIT, Verdict.GONE} and now is Verdict.UNREACHABLE:
        return before
    return now
