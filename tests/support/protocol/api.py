"""The API server: the registers with their CEL rules, the pods, and requests that arrive late."""

from __future__ import annotations

from support.protocol.rules import Rules
from support.protocol.world import Edge, Edges, World


def decide(w: World, value: str, rules: Rules) -> World:
    """Write the first register; refused when it is written already."""
    if not w.exists or (w.decision and rules.registers_are_write_once):
        return w
    return w._replace(decision=value)


def conclude(w: World, value: str, rules: Rules) -> World:
    """Write the second register; refused when it is written already, or without Commit."""
    if not w.exists or w.decision != "Commit" or (w.outcome and rules.registers_are_write_once):
        return w
    return w._replace(outcome=value)


def write(w: World, value: str, rules: Rules) -> World:
    return decide(w, value, rules) if value in {"Commit", "Abort"} else conclude(w, value, rules)


def delete_target(w: World) -> World:
    """A pod that was never scheduled is gone at once."""
    after = {"unscheduled": "", "scheduled": "deleting"}.get(w.target_pod, w.target_pod)
    return w._replace(target_pod=after)


def delete_source(w: World, *, at_once: bool = False) -> World:
    if at_once:
        return w._replace(source_pod="")
    return w._replace(source_pod="deleting") if w.source_pod == "running" else w


def pin_is_in_force(w: World, rules: Rules) -> bool:
    """As the MutatingAdmissionPolicy decides, by the object itself."""
    return w.exists and w.begun and w.decision != "Abort" and not w.outcome and rules.pins


def stateful_set(w: World, rules: Rules) -> Edges:
    """It creates the pod that is missing under the name, at any time; admission marks it or not."""
    if not w.same or w.source_pod or w.target_pod:
        return
    number = next(n for n in (1, 2, 3, 4) if n not in {w.pod, w.t_bound, w.recorded_pod})
    old = w.ticket if w.t_bound and w.t_bound == w.pod else w.old_ticket
    made = w._replace(target_pod="scheduled", pod=number, ticket="none", old_ticket=old)
    if pin_is_in_force(w, rules):
        yield "the StatefulSet creates the pod again, and it is pinned", made._replace(pinned=True)
    else:
        yield "the StatefulSet creates the pod again, and it starts afresh", made._replace(pinned=False, runs="cold")


def api(w: World, rules: Rules) -> Edges:
    """What the API server and its controllers do by themselves, and what an admin does in the end."""
    yield from stateful_set(w, rules)
    if w.exists and w.deleted and not w.adopted:
        yield "the API server removes the object", w._replace(exists=False)
    if w.exists and w.finished and not w.deleted:
        yield "the finished object is deleted", w._replace(deleted=True)
    if w.s_let_go and w.s_copy in {"", "done"} and w.exists and not (w.finished or w.decision or w.late):
        yield "the deadline passes", w._replace(late=True)  # no freeze budget bounds what comes after the thaw
    if w.target_pod == "unscheduled":
        yield "the scheduler places the target pod", w._replace(target_pod="scheduled")
    for who in ("operator_api", "source_api", "target_api", "peers"):
        if not getattr(w, who):
            yield f"{who} is back", w._replace(**{who: True})


def arrival(w: World, request: str, rules: Rules) -> Edge:
    """A register's write that was sent long ago arrives."""
    landed = w._replace(flying=tuple(r for r in w.flying if r != request))
    return f"a late {request} arrives", write(landed, request, rules)
