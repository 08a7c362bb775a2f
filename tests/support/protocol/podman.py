"""Looks at every state that the move of a Podman container can reach; the operator here decides nothing but Abort."""

from __future__ import annotations

from collections.abc import Callable

from support.protocol.podman_source import blank_source, forget_source, source
from support.protocol.podman_target import forget_target, target
from support.protocol.podman_world import Edges, Rules, World, decide, podmans
from support.protocol.world import ENDED, PROMISED


def operator(w: World) -> Edges:
    """It decides nothing but Abort, and everything it says can be said again."""
    if not w.exists:
        return
    source_settled = w.s_state in ENDED and not w.s_owes_abort
    if not w.decision:
        gives_up = w.cancelled or w.s_failed or source_settled or (w.t_settled and bool(w.t_state)) or w.buried
        if gives_up:
            yield "operator proposes Abort", decide(w, "Abort")
        if not w.t_state and w.t_up and not w.buried:
            told = w._replace(t_state="Prepared", ticket="pending")
            yield "operator tells the target", told
        if w.t_state == "Prepared" and not w.s_state and w.s_up:
            yield "operator tells the source", w._replace(s_state="Accepted")
        return
    over = (w.decision == "Abort" or bool(w.outcome)) and (source_settled or not w.s_state)
    if over and w.t_state and w.t_settled and w.t_up:
        yield "target agent is told to forget", forget_target(w)
    elif over and not w.t_state and w.s_state and w.s_up:
        yield "source agent is told to forget", forget_source(w)
    elif over and not w.t_state and not w.s_state:
        yield "operator lets the object go", w._replace(exists=False)


def faults(w: World) -> Edges:
    """Each costs one accident."""
    if not w.accidents:
        return
    w = w._replace(accidents=w.accidents - 1)
    if w.exists and not w.cancelled:
        yield "somebody sets spec.cancel", w._replace(cancelled=True)
    if w.exists:
        yield "somebody deletes the object and its finalizer", w._replace(exists=False)
    if w.s_up:
        yield "source agent dies", blank_source(w)._replace(s_up=False)
        dead = "dead" if w.here in {"running", "paused"} else w.here
        off = blank_source(w)._replace(s_up=False, s_command="", here=dead, excused=True)
        yield "the source node is rebooted", off
    if w.t_up:
        down = w._replace(t_up=False, t_known="unreachable", t_asked=False, t_waited=False, t_plan=())
        yield "target agent dies", down
        ended = "ended" if w.there == "runs" else w.there
        off = down._replace(t_command="", there=ended, t_old_boot=True, excused=w.excused or ended == "ended")
        yield "the target node is rebooted", off
    if w.here == "running":
        yield "the source container dies", w._replace(here="dead", excused=True)
    if w.there == "runs":
        yield "the target container dies", w._replace(there="ended", excused=True)
    if w.here == "kept":
        yield "somebody starts the stopped source", w._replace(here="running", excused=True)
    yield from _cuts(w)


def _cuts(w: World) -> Edges:
    for who in ("source_api", "target_api", "peers"):
        if getattr(w, who):
            yield f"{who} is cut", w._replace(**{who: False})


def orderly(w: World, rules: Rules) -> Edges:
    """What happens when nothing more goes wrong."""
    yield from operator(w)
    yield from source(w, rules)
    yield from target(w, rules)
    yield from podmans(w)
    for who in ("source_api", "target_api", "peers"):
        if not getattr(w, who):
            yield f"{who} is back", w._replace(**{who: True})


def broken(before: World, after: World) -> str:
    if after.here == "running" and after.there == "runs" and not _meddled(before, after):
        return "I1: the container runs at both nodes"
    if before.here != "" and after.here == "" and after.there not in {"runs", "ended"}:
        return "I2: the source is removed, and the target has not run"
    if after.there == "runs" and after.decision != "Commit":
        return "I1: it is restored without Commit"
    promised = after.t_state in PROMISED and (after.t_command == "restore" or after.there)
    return "the target promised, and something is there" if promised and not after.t_settled else ""


def _meddled(before: World, after: World) -> bool:
    """Somebody started the stopped source by hand: Podman has nothing to keep him from it."""
    return (before.here == "kept" and before.s_command != "restore" and after.here == "running") or (
        before.here == after.here == "running" and before.excused
    )


def left_over(w: World) -> str:
    """Return what stands against the end; empty when the migration has ended and left nothing behind."""
    runs = "running" if w.here == "running" else w.there
    found = (
        (w.exists, "the object is there"),
        (bool(w.s_state or w.t_state), "an agent keeps a journal"),
        (bool(w.s_command or w.t_command), "a command is under way"),
        (w.t_entries, "memory images lie at the target"),
        (w.there == "created", "a container that never ran is at the target"),
        (w.here in {"kept", "paused"}, "the source is stopped"),
        (bool(w.here) and bool(w.there) and not w.excused, "it is at both nodes"),
        (runs not in {"running", "runs"} and not w.excused, "I4: nothing runs"),
    )
    return ", ".join(words for wrong, words in found if wrong)


class Wrong(Exception):
    """An invariant does not hold; the message is the shortest history that shows it."""


def explore(start: World, rules: Rules | None = None) -> tuple[int, set[str]]:
    """Visit every state; return how many there are, and the ends.

    Raises:
        Wrong: a step breaks an invariant, or from some state no end is reached.
    """
    rules = rules or Rules()
    number, worlds, parents, how = {start: 0}, [start], [-1], [""]
    after_of: list[list[int]] = []
    for at, w in enumerate(worlds):
        after_of.append([])
        edges = [*((*edge, False) for edge in orderly(w, rules)), *((*edge, True) for edge in faults(w))]
        for words, after, fault in edges:
            known = number.get(after)
            if known is None:
                known = number[after] = len(worlds)
                worlds.append(after)
                parents.append(at)
                how.append(words)
                if wrong := broken(w, after):
                    raise Wrong(_story(known, parents, how, wrong))
            if not fault and after.accidents == w.accidents:
                after_of[at].append(known)
    ends = [n for n, w in enumerate(worlds) if not left_over(w)]
    _demand_an_end(worlds, after_of, ends, lambda n, why: _story(n, parents, how, why))
    return len(worlds), {_end(worlds[n]) for n in ends}


def _demand_an_end(
    worlds: list[World], after_of: list[list[int]], ends: list[int], story: Callable[[int, str], str]
) -> None:
    before_of: list[list[int]] = [[] for _ in worlds]
    for n, following in enumerate(after_of):
        for m in following:
            before_of[m].append(n)
    good, queue = set(ends), list(ends)
    while queue:
        for n in before_of[queue.pop()]:
            if n not in good:
                good.add(n)
                queue.append(n)
    stuck = next((n for n in range(len(worlds)) if n not in good), None)
    if stuck is not None:
        seen, reached = {stuck}, [stuck]
        for n in reached:
            reached += [m for m in after_of[n] if not (m in seen or seen.add(m))]
        raise Wrong(story(stuck, "I4: it never ends: " + min((left_over(worlds[n]) for n in reached), key=len)))


def _story(number: int, parents: list[int], how: list[str], what: str) -> str:
    steps: list[str] = []
    while number > 0:
        steps.append(how[number])
        number = parents[number]
    return "\n".join([what, *(f"{i:3}. {step}" for i, step in enumerate(reversed(steps), 1))])


def _end(w: World) -> str:
    where = "the source" if w.here == "running" else "the target" if w.there == "runs" else "nowhere"
    return f"{w.decision or 'undecided'}, runs at {where}"
