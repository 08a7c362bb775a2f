"""What goes wrong: each costs one accident."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from support.protocol.source import blank_source
from support.protocol.target import blank_target
from support.protocol.world import Edges, World

Faults = Callable[[World], Edges]


def faults(w: World, kinds: Sequence[Faults]) -> Edges:
    """Everything that nobody planned. Agents, networks and nodes come back by themselves; the rest stays."""
    if w.accidents:
        w = w._replace(accidents=w.accidents - 1)
        for kind in kinds:
            yield from kind(w)


def people(w: World) -> Edges:
    """Somebody takes something away or asks for it."""
    if w.exists and not w.finished:
        if not w.cancelled:
            yield "somebody sets spec.cancel", w._replace(cancelled=True)
        if not w.deleted:
            yield "somebody deletes the object", w._replace(deleted=True)
        if not w.late and w.begun:
            yield "the deadline passes", w._replace(late=True)
        yield "somebody deletes the object and its finalizer", _forced_away(w)
    if w.restore and w.stored:
        yield "somebody deletes the ContainerCheckpoint", w._replace(stored=False)
    if w.target_pod == "unscheduled":
        yield "somebody deletes the target pod", w._replace(target_pod="", meddled=True)
    if w.same:
        yield from _people_and_a_name(w)
        return
    if w.target_pod == "scheduled":
        yield "somebody deletes the target pod", w._replace(target_pod="deleting", meddled=True)
    if w.source_pod == "running":
        yield "somebody deletes the source pod", w._replace(source_pod="deleting", meddled=True)


def _forced_away(w: World) -> World:
    """With the object the pin goes: a name that was given, or is being given, comes back without its memory."""
    gone = w._replace(exists=False, adopted=False)
    given = w.same and (w.s_word or w.s_plan[:1] == ("release",)) and not (w.target_pod and w.pinned)
    return gone._replace(meddled=True) if given else gone


def _people_and_a_name(w: World) -> Edges:
    """The one who deletes a pod with its memory in it has lost it; before it resumed, it has not got it yet."""
    if w.target_pod == "scheduled":
        ran = w.meddled or w.runs != "" or w.ticket == "resuming"
        yield "somebody deletes the target pod", w._replace(target_pod="deleting", meddled=ran)
        tree = "runs" if w.runs == "restored" else w.tree or w.orphan
        dead = w._replace(target_pod="", create="", tree="", orphan="", linked=False, runs="")
        yield "somebody deletes the target pod by force", dead._replace(ghost=tree, meddled=ran)
    if w.source_pod == "running":
        lost = w.decision != "Commit"
        yield "somebody deletes the source pod", w._replace(source_pod="deleting", meddled=lost)
        yield "somebody deletes the source pod by force", w._replace(source_pod="", meddled=lost)


def processes(w: World) -> Edges:
    """A process of ours dies, or is taken for dead."""
    if w.s_up:
        yield "source agent dies", blank_source(w)._replace(s_up=False)
    elif not w.s_silent:
        yield "source agent is taken for dead", w._replace(s_silent=True)
    if w.t_up:
        yield "target agent dies", blank_target(w)._replace(t_up=False, linked=False)
    elif not w.t_silent:
        yield "target agent is taken for dead", w._replace(t_silent=True)
    if w.create:
        yield "the interposer is killed", kill_interposer(w)
    if w.create == "restoring" and w.tree in {"made", "held", "told", "ready"}:
        yield "CRIU is killed, and its tree", w._replace(create="", tree="", linked=False)


def kill_interposer(w: World) -> World:
    """Its tree is left behind, if there is one, to its hook."""
    if w.create == "done":
        return w._replace(create="", linked=False, runs="stray")
    orphan = w.tree or w.orphan
    return w._replace(create="", linked=False, tree="", orphan=orphan)


def machines(w: World) -> Edges:
    """A container or a node dies."""
    if w.container != "dead" and w.source_pod:
        yield "the source container dies", w._replace(container="dead", excused=True)
    if w.source_pod:
        down = blank_source(w)._replace(s_up=False, s_old_boot=w.s_state != "", container="dead", excused=True)
        yield "the source node is rebooted", down
    if w.target_pod == "scheduled":
        yield "the target node is rebooted", _target_down(w)
    if w.runs:
        yield "the target container dies", w._replace(runs="", excused=True)


def _target_down(w: World) -> World:
    """What ran there has lost its memory."""
    down = blank_target(w)._replace(t_up=False, t_old_boot=w.t_state != "", linked=False)
    return down._replace(create="", tree="", orphan="", runs="", excused=w.excused or bool(w.runs))


def wrecks(w: World) -> Edges:
    """The target's machine goes off, for long."""
    if w.target_pod == "scheduled" and not w.t_power:
        yield "the target node is switched off", _target_down(w)._replace(t_power="off", t_silent=True)


def networks(w: World) -> Edges:
    """Somebody does not reach somebody."""
    for who in ("operator_api", "source_api", "target_api", "peers"):
        if getattr(w, who):
            yield f"{who} is cut", w._replace(**{who: False})
    if w.operator_api and w.source_api and w.target_api:
        yield "the API server is away", w._replace(operator_api=False, source_api=False, target_api=False)


ALL: tuple[Faults, ...] = (people, processes, machines, wrecks, networks)
