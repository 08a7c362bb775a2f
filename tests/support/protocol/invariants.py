"""I1 to I4 (docs/protocol.md), as sentences about a state, about what changed, and about the end."""

from __future__ import annotations

from migration_api.conditions import Reason
from support.protocol.world import World


def broken(before: World, after: World) -> str:  # noqa: PLR0911  # a sentence for each
    """Return what must never be, in words; empty when all is well."""
    if after.broken:
        return after.broken
    if after.clone and after.runs and (after.container == "paused" or after.fence):
        return "the clone runs while its source stands still"
    if after.source_runs and after.runs and not after.clone and not _two_by_force(after):
        return "I1: source and target can run at once"
    if after.ghost == "runs" and (after.source_runs or after.runs == "restored"):
        return "I1: two pods of one name run with one memory"
    if after.runs == "restored" and after.ticket != "resuming":
        return "I3: the target runs without the ticket"
    its = after.runs and (not after.same or after.t_bound == after.pod)
    promised = after.t_state in {"Destroyed", "Returned"} and not (after.outcome == "Returned" and not its)
    ticket = own_ticket(after)
    if promised and ticket in {"pending", "resuming"}:
        return "the target promised never to resume, and its ticket is not destroyed"
    return _memory(after) or _registers(before, after) or _pods(before, after) or _ending(before, after)


def _memory(after: World) -> str:
    needed = after.filling and after.container != "paused" and not (after.excused or after.meddled)
    return "I2: the source ends before its memory has moved" if needed else ""


def _registers(before: World, after: World) -> str:
    if before.decision and after.decision != before.decision:
        return "the decision changed"
    if before.outcome and after.outcome != before.outcome:
        return "the outcome changed"
    return ""


def _pods(before: World, after: World) -> str:
    by_us = before.source_pod == "running" and after.source_pod == "deleting" and after.meddled == before.meddled
    if by_us and after.clone:
        return "I2: a clone's source is deleted"
    at_once = before.source_pod == "running" and after.source_pod == "" and after.meddled == before.meddled
    if after.same and at_once and not by_somebody(before, after) and not (after.t_entries or after.runs):
        return "I2: the source pod gives its name away, and the checkpoint is not complete at the target"
    if by_us and after.runs == "" and after.ticket not in {"resuming", "none"}:
        return "I2: the source pod is deleted and nothing runs at the target"
    return ""


def _ending(before: World, after: World) -> str:
    """The last word that an admin reads must be true when it is written."""
    if before.finished or not after.finished or before.s_silent or before.t_silent:
        return ""
    if after.finished == Reason.SUCCEEDED and after.retain and not after.kept:
        return "Succeeded, and the checkpoint that was to stay has no ContainerCheckpoint"
    if after.finished == Reason.SUCCEEDED:
        there = after.clone or not after.source_pod
        return "" if after.outcome == "Resumed" and there else "Succeeded, and the source pod is there"
    if after.finished == Reason.MEMORY_LOST:
        died = after.excused or after.meddled
        return "" if after.outcome == "Resumed" and died else "MemoryLost, and nobody died"
    if after.outcome == "Resumed":
        return f"{after.finished}, though the target resumed"
    return ""


def left_over(w: World) -> str:
    """Return what stands against the end, in words; empty when the migration has ended and left nothing behind."""
    found = [
        (w.exists, "the object is there"),
        (w.s_state != "", "the source agent keeps a journal"),
        (w.t_state != "", "the target agent keeps a journal"),
        (w.t_entries, "memory images lie on the target node"),
        (bool(w.create or w.tree or w.orphan) and not _never_told(w), "an interposer or a tree is there"),
        (w.fence and w.source_pod != "", "the source is fenced"),
        (w.source_pod == "deleting" or w.target_pod == "deleting", "a pod is being deleted"),
        (w.ticket != "none" and not w.target_pod, "a ticket is there"),
        (bool(w.target_pod) and not w.runs and not _never_told(w), "a target pod is there that never runs"),
        (w.old_ticket != "none" or w.ghost != "", "something of an earlier pod is there"),
        (not w.source_runs and not w.runs and _must_run(w), "I4: nothing runs"),
        (not w.source_runs and bool(w.source_pod), "the source pod does not run"),
        (_lost(w), "I2: it runs, but without its memory"),
    ]
    return ", ".join(words for wrong, words in found if wrong)


def _nothing_restored(w: World) -> bool:
    """Without a source nothing runs when the restore was given up, and nobody was told otherwise."""
    return w.restore and (w.finished != Reason.SUCCEEDED or w.excused)


def _never_told(w: World) -> bool:
    """No agent ever heard of the pod: it stands at the gate until somebody deletes it (docs/verification.md)."""
    return not w.exists and w.ticket == "none"


def _must_run(w: World) -> bool:
    """A StatefulSet makes another pod of what somebody has deleted."""
    return w.same or not (w.meddled or _nothing_restored(w))


def own_ticket(w: World) -> str:
    """Return the ticket as the target's agent sees it: of its pod; before one has come it is the journal."""
    if not w.same:
        return w.ticket
    if not w.t_bound:
        promised = w.t_state in {"Destroyed", "Returned"}
        return "destroyed" if w.t_destroyed or promised or not w.t_state else "pending"
    return w.ticket if w.t_bound == w.pod else w.old_ticket


def _two_by_force(w: World) -> bool:
    """A source that was deleted by force, and what its StatefulSet starts afresh: as without any migration."""
    return w.same and w.meddled and not w.source_pod and w.runs == "cold"


def by_somebody(before: World, after: World) -> bool:
    return after.accidents < before.accidents


def _lost(w: World) -> bool:
    """With PostCopy whoever deletes the source's pod before its memory has moved takes that away."""
    excused = w.excused or ((w.post_copy or w.same) and w.meddled)
    return not excused and (w.container == "cold" or w.runs == "cold")
