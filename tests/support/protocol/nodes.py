"""What the nodes do without an agent: kubelets, the interposer with its claim, CRIU and its hook."""

from __future__ import annotations

from support.protocol.rules import Rules
from support.protocol.target import WITH_A_HOOK
from support.protocol.world import Edges, World


def source_node(w: World, rules: Rules) -> Edges:
    """The kubelet starts again what died, unless it is fenced, and ends what is deleted."""
    if w.source_pod == "running" and w.container == "dead" and not (w.fence and rules.fence_holds):
        broken = "I3: a fenced source is started afresh" if w.fence else w.broken
        yield "the source's kubelet starts the container afresh", w._replace(container="cold", broken=broken)
    if w.source_pod == "deleting":
        yield "the source pod is gone", w._replace(source_pod="", container="dead", fence=False)
    if w.same and not w.source_pod and w.container not in {"", "dead"}:
        yield "the source's kubelet ends what was deleted by force", w._replace(container="dead", fence=False)


def target_node(w: World, rules: Rules) -> Edges:  # noqa: C901  # one line for each
    """The kubelet creates, again and again; the pod's end takes everything along."""
    if w.t_power:
        yield from _power(w)
        return
    if w.target_pod == "deleting":
        yield "the target pod is gone", w._replace(target_pod="", create="", tree="", orphan="", runs="", linked=False)
    if not w.target_pod and w.ticket != "none" and (not w.t_state or w.t_settled):
        yield "target agent sweeps the ticket", w._replace(ticket="none")
    yield from _earlier(w, rules)
    if w.same and not w.pinned:  # an ordinary pod, wherever it runs
        if w.target_pod == "scheduled" and not w.runs:
            yield "a kubelet starts the container, as after any crash", w._replace(runs="cold")
        return
    if w.target_pod == "scheduled" and not w.create and w.runs in {"", "stray"}:
        yield from _create(w, rules)
    if w.create == "gate":
        yield from _gate(w, rules)
    elif w.create == "restoring":
        yield from _restore(w, rules)
    elif w.create == "done":
        yield "the interposer returns: the container runs", w._replace(create="", linked=False)
    yield from _orphan(w, rules)
    if w.filling:
        yield from _pager(w)


def _pager(w: World) -> Edges:
    """Memory comes by way of both agents, or the source's says that it has none any more."""
    if not (w.peers and w.s_up and w.s_prepared and w.t_up):
        return
    if w.s_state in {"Dumped", "Sent"} and w.container == "paused":
        yield "the rest of the memory comes", w._replace(missing=False)
    else:
        broken = w.broken if w.excused or w.meddled else "I2: the memory is lost before it has moved"
        lost = w._replace(t_lost=w.t_state != "", broken=broken)
        yield "the memory is lost: the pager kills the container", lost._replace(runs="", missing=False)


def _earlier(w: World, rules: Rules) -> Edges:
    """What is left of a pod that had the name before."""
    if w.old_ticket != "none" and (not w.t_state or w.t_settled) and not w.ghost:
        yield "target agent sweeps the ticket of an earlier pod", w._replace(old_ticket="none")
    if w.ghost:
        yield from _ghost(w, rules)


def _ghost(w: World, rules: Rules) -> Edges:
    """What is left of a pod that was deleted by force goes on until its kubelet ends it; its ticket is its own."""
    yield "the target's kubelet ends what was deleted by force", w._replace(ghost="")
    its_last = w.t_bound in {0, w.pod} and not w.target_pod
    which, mine = ("ticket", w.ticket) if its_last else ("old_ticket", w.old_ticket)
    if w.ghost in {"told", "ready"} and (mine == "pending" or not rules.only_pending_resumes):
        after = w._replace(ghost="runs", meddled=True, **{which: "resuming"})
        yield "the hook in a pod that was deleted by force renames its ticket", after


def _power(w: World) -> Edges:
    """The machine is off. With the taint Kubernetes gives its pods up; whoever set it must mean it."""
    if w.t_power == "off":
        pod = "deleting" if w.target_pod == "scheduled" else w.target_pod
        ended = bool(w.outcome)  # a pod of that node like any other
        only_copy = w.same and w.container == "dead"
        declared = w._replace(
            t_power="declared", target_pod=pod, meddled=w.meddled or ended, excused=w.excused or only_copy
        )
        yield "an admin declares the target node out of service", declared
    elif w.target_pod == "deleting":
        late = w.ticket == "resuming" and w.outcome != "Returned"  # Resumed was true, and arrives or is read too late
        yield "the target pod is collected", w._replace(target_pod="", meddled=w.meddled or late)
    # Whoever takes the word back before it was heard has lost the pod by it.
    back = w.t_power == "declared" and not w.outcome
    yield "the target node is switched on", w._replace(t_power="", meddled=w.meddled or back)


def _create(w: World, rules: Rules) -> Edges:
    """One claimant: the older interposer is dead, so its tree is killed first."""
    orphan = "" if w.orphan in WITH_A_HOOK and rules.hooks_watch else w.orphan
    if w.ticket == "resuming":
        stray = w.runs == "stray"
        after = w._replace(runs="cold", orphan=orphan, excused=w.excused or stray)
        yield "the target's kubelet starts the container, as after any crash", after
    elif w.ticket == "destroyed" and rules.destroyed_is_refused:
        return
    elif w.ticket == "destroyed" or (w.ticket == "none" and not rules.marked_waits):
        broken = w.broken or "I3: the target starts afresh without permission"
        yield "the target's kubelet starts the container afresh", w._replace(runs="cold", broken=broken)
    else:
        yield "an interposer claims the container", w._replace(create="gate", linked=False, orphan=orphan)


def _gate(w: World, rules: Rules) -> Edges:
    if w.ticket == "destroyed":
        yield "the interposer finds the ticket destroyed", w._replace(create="", linked=False)
    elif w.ticket == "resuming":
        yield "the interposer finds the ticket resuming", w._replace(create="", linked=False)
    elif not w.linked and w.t_up:
        yield "the interposer is at the gate", w._replace(linked=True)


def _restore(w: World, rules: Rules) -> Edges:
    dead = w._replace(create="", tree="", linked=False)
    failed = dead
    undecided = w.t_known in {"undecided", "unreachable"} and w.ticket == "pending"
    if w.linked and undecided and w.t_state:
        failed = dead._replace(t_failed=True)
    match w.tree:
        case "":
            ready = w.ticket == "pending" and w.t_entries
            yield "CRIU makes the tree", w._replace(tree="made") if ready else failed
            if w.accidents:
                yield "the restore fails", failed._replace(accidents=w.accidents - 1)
        case "made":
            known = w.linked and w.t_up and w.ticket == "pending"
            yield "the hook holds the tree", w._replace(tree="held") if known else dead
        case "held":
            if not w.linked:
                yield "the hook loses the agent and kills the tree", dead
        case "told":
            ready = w.ticket == "pending" or not rules.hooks_watch
            yield "the hook is at pre-resume", w._replace(tree="ready") if ready else dead
        case _:
            yield from _rename(w, dead, rules)


def _rename(w: World, dead: World, rules: Rules) -> Edges:
    """The one rename: only `pending` becomes `resuming`."""
    if w.ticket == "pending" or not rules.only_pending_resumes:
        twice = "I1: two trees of one container run in the target pod" if w.runs else w.broken
        going = w.meddled or (w.same and w.target_pod == "deleting")  # it has its memory, and loses it with the pod
        yield (
            "the hook renames the ticket to resuming: the tree runs",
            w._replace(
                ticket="resuming",
                tree="",
                create="done",
                runs="restored",
                missing=w.post_copy,
                broken=twice,
                meddled=going,
            ),
        )
    else:
        yield "the hook finds no pending ticket and kills the tree", dead


def _orphan(w: World, rules: Rules) -> Edges:
    """A tree without its interposer: its hook sees that, unless it has looked for the last time already."""
    gone = w._replace(orphan="")
    match w.orphan:
        case "":
            return
        case "ready":
            if w.ticket == "pending" or not rules.only_pending_resumes:
                twice = "I1: two trees of one container run in the target pod" if w.runs else w.broken
                yield (
                    "the hook of a dead interposer renames the ticket",
                    gone._replace(ticket="resuming", runs="stray", missing=w.post_copy, broken=twice),
                )
            else:
                yield "the hook finds no pending ticket and kills the tree", gone
        case "told" if not rules.hooks_watch:
            yield "the hook of a dead interposer goes on", w._replace(orphan="ready")
        case _:
            yield "the hook sees that its interposer is dead and kills the tree", gone
