"""Everything there is in one migration of one container, as small as it can be: API, two nodes, and who acts.

Plain strings and bools, for they are hashed a million times; the values are those of the enums that the real code has.
What is on a disk or in the API survives its process; what is called memory does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from migration_agent.seen import Gone, Seen, Verdict, remembered, verdict
from migration_api.migration import Decision, Outcome

Plan = tuple[str, ...]
"""What a process has decided and not finished: the step, and what it knew when it decided."""


class World(NamedTuple):
    """One state. `""` stands for none everywhere."""

    # --- the API: the object
    exists: bool = True
    decision: str = ""
    outcome: str = ""
    adopted: bool = False
    begun: bool = False
    recorded: bool = False
    cancelled: bool = False
    deleted: bool = False
    cause: str = ""
    lost_noted: bool = False
    memory_lost_noted: bool = False
    finished: str = ""
    retain: bool = False
    """`spec.retain`: the checkpoint is to stay."""
    kept: bool = False
    """The ContainerCheckpoint is made."""
    restore: bool = False
    """`spec.checkpointName`: there is no source."""
    stored: bool = True
    """The ContainerCheckpoint that is restored from is there."""
    late: bool = False
    """`spec.deadlineSeconds` have passed."""
    # --- the API: pods
    source_pod: str = "running"
    """`running`, `deleting` or none."""
    target_pod: str = ""
    """`unscheduled`, `scheduled`, `deleting` or none."""
    flying: tuple[str, ...] = ()
    """Requests whose sender has given up on an answer: each may arrive at any time, or never."""
    # --- who reaches whom
    operator_api: bool = True
    source_api: bool = True
    target_api: bool = True
    peers: bool = True
    # --- the operator: memory
    o_plan: Plan = ()
    o_refused: bool = False
    o_plan2: Plan = ()
    """Of a second operator, by mistake."""
    operators: int = 1
    clone: bool = False
    """`spec.leaveSourceRunning`."""
    post_copy: bool = False
    """`spec.strategy`: the memory stays in the source's processes, and follows after the commit."""
    same: bool = False
    """The target pod gets its source's name: a StatefulSet creates it when the source pod is gone."""
    pod: int = 0
    """Which pod was created under that name last: its number; `ticket` is that one's."""
    old_ticket: str = "none"
    """Of the pod that the target's agent knows, when that is not the last."""
    ghost: str = ""
    """What lives of a pod that was deleted by force: its tree, `runs`, or nothing."""
    recorded_pod: int = 0
    """`status.target.podUID`."""
    pinned: bool = False
    """That pod is marked for this migration, and on the target node; otherwise it starts afresh anywhere."""
    # --- the source node
    container: str = "running"
    """`running`, `paused`, `dead`, or `cold`: started afresh by the kubelet."""
    fence: bool = False
    # --- the source agent: journal
    s_state: str = ""
    s_failed: bool = False
    s_promised: bool = False
    s_word: bool = False
    s_owes_abort: bool = False
    s_let_go: bool = False
    """A clone's source goes on: `thawedAt` is journalled."""
    s_moved: bool = False
    """The target needs no memory of the source any more."""
    s_old_boot: bool = False
    s_late: bool = False
    """The freeze budget is used up."""
    # --- the source agent: memory
    s_up: bool = True
    s_silent: bool = False
    """No heartbeat for so long that it is taken for dead."""
    s_prepared: bool = True
    s_interrupted: bool = False
    s_known: str = "unreachable"
    s_wanted: bool = True
    s_alive: bool = True
    s_peer: str = ""
    s_copy: str = ""
    """Where the copy in the background is; `done` when it has ended."""
    s_stop: bool = False
    s_plan: Plan = ()
    # --- the target node: disk
    ticket: str = "none"
    buried: bool = False
    # --- the target node: processes
    create: str = ""
    """The interposer: `gate`, `restoring`, or `done` when its container runs and it has not returned."""
    linked: bool = False
    """Interposer and hook are connected to this life of the agent."""
    tree: str = ""
    """What that interposer restores: `made`, `held`, `told`, `ready` (at pre-resume, past its last look)."""
    orphan: str = ""
    """A tree whose interposer is dead."""
    runs: str = ""
    """`restored`, `cold`, or `stray`: it runs, and the kubelet does not know of it."""
    missing: bool = False
    """Of what runs restored some memory is still at the source: its pager asks for it."""
    # --- the target agent: journal
    t_state: str = ""
    t_settled: bool = False
    t_acked: bool = False
    t_entries: bool = False
    t_failed: bool = False
    t_proposed: bool = False
    t_bound: int = 0
    """The pod that has the ticket; 0: none."""
    t_old_boot: bool = False
    t_moved: bool = False
    """The source's agent was told that no memory is needed any more."""
    t_lost: bool = False
    """The source had no memory to give any more."""
    # --- the target agent: memory
    t_up: bool = True
    t_silent: bool = False
    t_power: str = ""
    """The target's machine: `off`, or `declared`: off, and an admin has said so by the taint."""
    t_prepared: bool = True
    t_known: str = "unreachable"
    t_pod: str = "unknown"
    t_asked: bool = False
    t_waited: bool = False
    """Committed, and nothing was held for the freeze budget."""
    t_plan: Plan = ()
    t_destroyed: bool = False
    """No pod will be given a ticket: not yet journalled."""
    t_found: int = 0
    # --- the history, as far as the invariants need it
    meddled: bool = False
    """Somebody deleted a pod."""
    excused: bool = False
    """A machine, or a container that nobody migrates at that moment, died: memory may be lost."""
    broken: str = ""
    """What an act did that it must never do."""
    accidents: int = 0
    """How many more things may go wrong."""

    @property
    def filling(self) -> bool:
        """A pager lives."""
        return self.missing and self.runs in {"restored", "stray"}

    @property
    def source_runs(self) -> bool:
        return self.container in {"running", "cold"}

    @property
    def registers(self) -> str:
        """What a live reading says."""
        return reading(self.exists, self.decision, self.outcome)


ENDED = frozenset({"Thawed", "Released", "Lost"})
PAUSED = frozenset({"Dumped", "Sent"})
BEGUN = frozenset({"Fenced", "Frozen", "Dumped", "Sent"})
"""Of a source's states, as its agent has journalled them."""
PROMISED = frozenset({"Destroyed", "Returned"})
"""Of a target's."""

Edge = tuple[str, World]
"""What happens, in words, and the state after it."""

Edges = Iterator[Edge]


@cache
def reading(exists: bool, decision: str, outcome: str) -> str:
    """Return what a live reading of the registers says."""
    if not exists:
        return verdict(Gone()).value
    return verdict(Seen(Decision(decision) if decision else None, Outcome(outcome) if outcome else None)).value


@cache
def remember(before: str, now: str, ended: bool) -> str:
    """Return what an agent knows after a reading, as `Side.take` does."""
    return now if ended else remembered(Verdict(before), Verdict(now)).value


def fly(w: World, request: str) -> World:
    """Send something whose answer nobody waits for: it arrives later, or never. That is an accident."""
    if request in w.flying:
        return w
    return w._replace(flying=(*w.flying, request), accidents=w.accidents - 1)
