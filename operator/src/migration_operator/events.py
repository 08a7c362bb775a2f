"""The few events that `kubectl describe` shows: what an admin wants to be told, not every step. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from migration_api.conditions import Condition, ConditionType, Reason
from migration_api.migration import MigrationStatus
from migration_operator.step import STEPS


@dataclass(frozen=True)
class Event:
    """One event; `reason` is a documented constant."""

    reason: str
    message: str
    warning: bool


def events(old: MigrationStatus, new: MigrationStatus) -> list[Event]:
    """Return what there is to tell about the change from `old` to `new`."""
    told: list[Event] = []
    if cause := _given_up(new, old):
        told.append(Event(cause.reason, cause.message, warning=True))
    stalled = _found(new, ConditionType.STALLED)
    if stalled and stalled.status == "True" != _verdict(old, ConditionType.STALLED) and not _ended(new):
        told.append(Event(stalled.reason, stalled.message, warning=True))
    if _verdict(new, ConditionType.COMMITTED) == "True" != _verdict(old, ConditionType.COMMITTED):
        target = new.target
        message = f"the container goes on in pod {target.pod_name} on node {target.node_name}"
        told.append(Event(Reason.COMMITTED.value, message, warning=False))
    end = _found(new, ConditionType.SUCCEEDED)
    if end is not None and _ended(new) and _verdict(old, ConditionType.SUCCEEDED) != end.status:
        told.append(Event(end.reason, end.message, warning=end.status == "False"))
    return told


def _given_up(new: MigrationStatus, old: MigrationStatus) -> Condition | None:
    """Return the step that was not passed, with the cause in CRIU's or the kubelet's own words, when that is news.

    What the preflight finds is told once, at the end.
    """
    failed = next((c for c in new.conditions if c.type in STEPS and c.status == "False"), None)
    if failed is None or failed.reason == Reason.PREFLIGHT_FAILED or _verdict(old, failed.type) == "False":
        return None
    return failed


def _ended(status: MigrationStatus) -> bool:
    return _verdict(status, ConditionType.SUCCEEDED) != "Unknown"


def _found(status: MigrationStatus, type_: str) -> Condition | None:
    return next((c for c in status.conditions if c.type == type_), None)


def _verdict(status: MigrationStatus, type_: str) -> str:
    found = _found(status, type_)
    return found.status if found else "Unknown"
