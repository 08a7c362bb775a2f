"""The few events that `kubectl describe` shows: what an admin wants to be told, not every step. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from migration_api.conditions import ConditionType, Reason
from migration_api.migration import MigrationStatus


@dataclass(frozen=True)
class Event:
    """One event; `reason` is a documented constant."""

    reason: str
    message: str
    warning: bool


def events(old: MigrationStatus, new: MigrationStatus) -> list[Event]:
    """Return what there is to tell about the change from `old` to `new`."""
    told: list[Event] = []
    if _verdict(new, ConditionType.COMMITTED) == "True" != _verdict(old, ConditionType.COMMITTED):
        target = new.target
        message = f"the container goes on in pod {target.pod_name} on node {target.node_name}"
        told.append(Event(Reason.COMMITTED.value, message, warning=False))
    end = next((c for c in new.conditions if c.type == ConditionType.SUCCEEDED and c.status != "Unknown"), None)
    if end is not None and _verdict(old, ConditionType.SUCCEEDED) != end.status:
        told.append(Event(end.reason, end.message, warning=end.status == "False"))
    return told


def _verdict(status: MigrationStatus, type_: ConditionType) -> str:
    return next((c.status for c in status.conditions if c.type == type_), "Unknown")
