"""The target agent: the real `next_target_step` over what a look found, and its acts."""

from __future__ import annotations

from functools import cache

from migration_agent.ports import Comer, PodState
from migration_agent.seen import Verdict
from migration_agent.target_plan import TargetObservation
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.wire import TargetState
from support.protocol.api import delete_target, write
from support.protocol.invariants import own_ticket
from support.protocol.rules import Rules
from support.protocol.world import PROMISED, Edges, World, fly, remember

WITH_A_HOOK = frozenset({"held", "told", "ready"})
"""The hook has connected, so its tree stands in the journal."""


def put_target(w: World) -> World:
    """Take the operator's request, or refuse it for ever."""
    if not w.t_up or w.t_state:
        return w
    if w.buried or (not w.same and w.ticket in {"resuming", "destroyed"}):
        return w._replace(o_refused=True)
    if w.same:
        return blank_target(w)._replace(t_state="Prepared", t_prepared=True)
    return blank_target(w)._replace(t_state="Prepared", t_prepared=True, ticket="pending", t_acked=w.restore)


def blank_target(w: World) -> World:
    """Forget what is in memory of this migration."""
    return w._replace(
        t_known="unreachable", t_pod="unknown", t_asked=False, t_waited=False, t_plan=(), t_destroyed=False, t_found=0
    )  # fmt: skip


def forget_target(w: World) -> World:
    gone = w._replace(
        t_state="", t_settled=False, t_acked=False, t_entries=False, t_failed=False, t_old_boot=False,
        t_moved=False, t_lost=False,
        t_proposed=False, t_bound=0,
    )  # fmt: skip
    return blank_target(gone)._replace(t_prepared=True)


def is_its_pod(w: World) -> bool:
    """Whether the pod that is there now is the one that the agent knows."""
    return not w.same or (w.t_bound != 0 and w.t_bound == w.pod)


def is_held(w: World) -> bool:
    return is_its_pod(w) and w.create == "restoring" and w.linked and w.tree == "held"


def is_dead(w: World) -> bool:
    """Nobody is connected, and nobody lives who stands in the journal."""
    if w.same and w.ghost:
        return False
    if not is_its_pod(w):
        return True
    recorded = w.create in {"restoring", "done"} or w.tree in WITH_A_HOOK or w.orphan in WITH_A_HOOK
    went_on = w.runs in {"restored", "stray"}
    return not recorded and not went_on and not (w.linked and w.create)


def target_report(w: World) -> str:
    """The state as the operator is told it."""
    facts = (
        (w.t_state != "Prepared", w.t_state),
        (own_ticket(w) == "resuming", "Resuming"),
        (is_held(w), "Held"),
        (w.linked and w.create == "restoring" and is_its_pod(w), "Restoring"),
        (w.t_entries, "Received"),
        (w.linked and w.create == "gate" and is_its_pod(w), "AtGate"),
    )
    return next((state for holds, state in facts if holds), "Prepared")


def answer(w: World, rules: Rules) -> tuple[World, str]:
    """Answer the source that asks for the promise."""
    if not w.t_state:  # unknown: the ticket on disk still counts; else a tombstone comes first
        if w.ticket == "resuming":
            return w, "resumed"
        return w._replace(buried=True, ticket="destroyed" if w.ticket == "pending" else w.ticket), "destroyed"
    if w.t_state == "Resumed":
        return w, "resumed"
    if w.t_state in PROMISED:
        return w, "destroyed"
    if own_ticket(w) == "resuming":
        return w, "resumed" if w.t_known not in {"unreachable", "returned"} else "undecided"
    asked = w._replace(t_asked=True)
    return (asked, "undecided") if rules.promises_are_kept else (asked, "destroyed")


def target(w: World, rules: Rules) -> Edges:
    """Everything that the agent of the target node can do next."""
    if w.t_power:
        return
    if not w.t_up:
        up = blank_target(w)._replace(t_up=True, t_silent=False, t_prepared=not w.t_state or w.t_settled)
        yield "target agent starts", up
        return
    if not w.t_state:
        return
    if not w.t_prepared:
        kept = w.t_entries and (w.same or not w.t_old_boot)  # a successor's lies on the disk
        fresh = w._replace(t_entries=kept, t_old_boot=False, t_prepared=True)
        yield "target agent looks at what it has", fresh
        return
    waits = w.t_known == "gone" if w.same else w.t_known == "commit" and not is_held(w)
    if waits and not w.t_waited and not w.t_settled:
        yield "nothing is held for a freeze budget's time", w._replace(t_waited=True)
    if w.t_plan:
        yield from _act(w, rules)
    else:
        yield from _look(w, rules)


# --- look and decide


def _look(w: World, rules: Rules) -> Edges:
    now = w.registers if w.target_api else "unreachable"
    known = remember(w.t_known, now, w.t_settled)
    held = is_held(w)
    pod = w.t_pod
    matters = bool(w.t_bound) if w.same else known == "commit" or held
    if not w.t_settled and matters and pod != "gone":
        there = w.target_pod == "scheduled" and is_its_pod(w)
        pod = ("live" if there else "gone") if w.target_api else "unknown"
    waited = w.t_waited and not held and known == ("gone" if w.same else "commit")
    gate = w.linked and w.create == "gate" and is_its_pod(w)
    comer = _comer(w, known)
    clear = w.orphan not in WITH_A_HOOK or not is_its_pod(w)
    it = _observation(
        w.t_state, known, own_ticket(w), w.t_settled, w.t_acked, w.t_entries, gate, _is_restoring(w), held,
        clear, is_dead(w), pod, w.t_asked, waited, w.t_failed,
        w.restore and not w.t_entries and not w.t_failed, w.filling, w.post_copy and not w.t_moved,
        w.same, w.t_proposed, w.t_bound != 0, comer,
    )  # fmt: skip
    step = rules.target_step(it)
    still = w.t_waited if w.same else waited
    looked = w._replace(t_known=known, t_pod=pod, t_waited=still, t_found=w.pod if comer == "here" else 0)
    if step is TargetStep.WAIT:
        if looked != w:
            yield f"target agent reads {known}", looked
        return
    yield f"target agent reads {known}, plans {step}", looked._replace(t_plan=(step.value, "begin"))


def _comer(w: World, known: str) -> str:
    """Who has the name, as the API server says."""
    looks = w.same and not w.t_bound and not w.t_settled and known in {"commit", "gone"} and w.target_api
    if not looks or w.target_pod != "scheduled":
        return "nobody"
    return "here" if w.pinned else "another"


def _is_restoring(w: World) -> bool:
    return is_its_pod(w) and w.linked and (w.create == "done" or (w.create == "restoring" and w.tree != "held"))


@cache
def _observation(  # noqa: PLR0917  # a key
    state: str, known: str, ticket: str, settled: bool, acked: bool, received: bool, gate: bool, restoring: bool,
    held: bool, clear: bool, dead: bool, pod: str, asked: bool, waited: bool, failed: bool, fetch: bool,
    filling: bool, borrows: bool,
    successor: bool, proposed: bool, bound: bool, comer: str,
) -> TargetObservation:  # fmt: skip
    return TargetObservation(
        state=TargetState(state),
        verdict=Verdict(known),
        ticket=TicketState(ticket),
        settled=settled,
        acknowledged=acked,
        received=received,
        fetch=fetch,
        gate=gate,
        restoring=restoring,
        held=held,
        clear=clear,
        dead=dead,
        pod=PodState(pod),
        promise_asked=asked,
        waited=waited,
        failed=failed,
        filling=filling,
        borrows=borrows,
        successor=successor,
        proposed=proposed,
        bound=bound,
        comer=Comer(comer),
    )


# --- act


def _act(w: World, rules: Rules) -> Edges:  # noqa: C901, PLR0912, PLR0915  # one case for each step
    step, at = w.t_plan
    idle = w._replace(t_plan=())
    match step:
        case TargetStep.BIND:
            yield from _bind(w, at)
        case TargetStep.UNBIND:
            freed = idle._replace(t_bound=0, t_destroyed=False, old_ticket="none", t_pod="unknown")
            yield "target agent waits for the next pod of the name", freed
        case TargetStep.MAKE_TICKET if w.same:
            yield "target agent makes the ticket", _made(idle)
        case TargetStep.MAKE_TICKET:
            made = "pending" if w.ticket == "none" else w.ticket
            yield "target agent makes the ticket", idle._replace(ticket=made)
        case TargetStep.FETCH:
            yield "target agent fetches the checkpoint", idle._replace(t_entries=w.stored, t_failed=not w.stored)
        case TargetStep.RESTORE:
            waits = w.linked and w.create == "gate" and is_its_pod(w)
            yield "target agent says restore", idle._replace(create="restoring") if waits else idle
        case TargetStep.REFUSE:
            waits = w.linked and w.create == "gate"
            yield "target agent refuses the gate", idle._replace(create="", linked=False) if waits else idle
        case TargetStep.COMMIT:
            yield from _commit(w, at, rules)
        case TargetStep.RESUME:
            yield "target agent says resume", resume(idle)
        case TargetStep.DESTROY:
            yield "target agent destroys the ticket", _destroy(idle, rules)
        case TargetStep.RETURN_IF_INTACT | TargetStep.RETURN_ANYWAY:
            yield from _return(w, step, at, rules)
        case TargetStep.CLEAR:
            yield from _clear(idle)
        case TargetStep.PROMISE:
            yield "target agent journals the promise", idle._replace(t_state="Destroyed", t_entries=False)
        case TargetStep.WRITE_RESUMED:
            if at == "begin" and w.t_state != "Resuming":
                yield "target agent journals Resuming", w._replace(t_state="Resuming", t_plan=(step, "write"))
            else:
                yield from _write(idle, "Resumed", rules)
        case TargetStep.WRITE_RETURNED:
            yield from _write(idle, "Returned", rules)
        case TargetStep.END_RESUMED | TargetStep.END_RETURNED | TargetStep.END_DESTROYED:
            state = {"end-resumed": "Resumed", "end-returned": "Returned", "end-destroyed": "Destroyed"}[step]
            yield f"target agent journals {state}", idle._replace(t_state=state, t_settled=True, t_entries=False)
        case TargetStep.MEMORY_MOVED:
            yield from _memory_moved(w, at)
        case TargetStep.GIVE_UP:
            if w.target_api:
                without = delete_target(idle) if is_its_pod(w) else idle
                ended = without._replace(create="", tree="", orphan="", runs="", linked=False)
                yield "target agent ends what went on", ended
            else:
                yield "target agent cannot end what went on", idle
        case TargetStep.FORGET:
            yield from _forget(idle)
        case _:
            raise AssertionError(step)


def _forget(w: World) -> Edges:
    """Nobody is left who knows a pod that never starts: it goes first."""
    if w.t_state not in PROMISED:
        yield "target agent forgets", forget_target(w)
    elif w.target_api:
        deleted = delete_target(w) if is_its_pod(w) else w
        yield "target agent deletes the pod that never starts, and forgets", forget_target(deleted)
    else:
        yield "target agent cannot delete the pod that never starts", w


def _memory_moved(w: World, at: str) -> Edges:
    """Tell the source's agent; then journal that it knows."""
    idle = w._replace(t_plan=())
    if at == "told":
        yield "target agent journals that the memory has moved", idle._replace(t_moved=True)
    elif w.peers and w.s_up:
        told = w._replace(s_moved=w.s_moved or w.s_state != "", t_plan=(w.t_plan[0], "told"))
        yield "target agent tells the source that its memory has moved", told
    else:
        yield "target agent cannot tell the source that its memory has moved", idle


def resume(w: World) -> World:
    """Tell the hook, over its open connection, to go on."""
    return w._replace(tree="told", t_waited=False) if is_held(w) else w


def _destroy(w: World, rules: Rules) -> World:
    """What is `resuming` stays so; without a pod nobody will be given a ticket."""
    if w.same and not w.t_bound:
        return w._replace(t_destroyed=True)
    kept = own_ticket(w) == "resuming" and rules.resuming_is_kept
    which = "ticket" if is_its_pod(w) else "old_ticket"
    return w if kept else w._replace(**{which: "destroyed"})


def _bind(w: World, at: str) -> Edges:
    """The journal first."""
    if at == "begin":
        yield "target agent journals which pod has come", w._replace(t_bound=w.t_found, t_plan=(w.t_plan[0], "ticket"))
    else:
        yield "target agent makes its ticket", _made(w._replace(t_plan=()))


def _made(w: World) -> World:
    which, now = ("ticket", w.ticket) if is_its_pod(w) else ("old_ticket", w.old_ticket)
    return w._replace(**{which: "pending"}) if now == "none" else w


def _commit(w: World, at: str, rules: Rules) -> Edges:
    idle = w._replace(t_plan=())
    if at == "resume":
        yield "target agent says resume", resume(idle)
        return
    if w.same and not w.t_proposed and rules.words_are_journalled:
        yield "target agent journals that it proposes Commit", w._replace(t_proposed=True)
        return
    if not w.target_api:
        known = w.t_known if rules.answers_are_read else "commit"
        after = w._replace(t_known=known, t_plan=(w.t_plan[0], "resume")) if known == "commit" else idle
        yield "target agent cannot write Commit", after
        return
    after = write(idle, "Commit", rules)
    known = remember(w.t_known, after.registers, False) if rules.answers_are_read else "commit"
    after = after._replace(t_known=known)
    if known == "commit":
        after = after._replace(t_plan=(w.t_plan[0], "resume"))
    if w.same and after.decision == "Commit" and not w.decision and not w.t_entries:
        after = after._replace(broken=after.broken or "I2: Commit, and the checkpoint is not complete at the target")
    yield "target agent proposes Commit", after
    if w.accidents:
        yield "target agent's Commit is delayed", fly(idle, "Commit")


def _write(w: World, value: str, rules: Rules) -> Edges:
    if not w.target_api:
        yield f"target agent cannot write {value}", w
        return
    after = write(w, value, rules)
    yield f"target agent writes {value}", after._replace(t_known=remember(w.t_known, after.registers, False))
    if w.accidents:
        yield f"target agent's {value} is delayed", fly(w, value)


def _return(w: World, step: str, at: str, rules: Rules) -> Edges:
    idle = w._replace(t_plan=())
    if at == "destroy":
        yield "target agent destroys the ticket", _destroy(idle, rules)
        return
    if w.restore:
        yield "target agent has nobody to ask", w._replace(t_plan=(step, "destroy"))
        return
    if not (w.peers and w.s_up):
        yield "target agent gets no answer", idle
        return
    intact = w.s_state in {"Dumped", "Sent"} and w.container == "paused" and w.fence
    if w.same:
        intact = intact and not w.s_word and w.s_known == "gone"
    intact = intact or (w.clone and w.s_state != "")
    if intact or step == TargetStep.RETURN_ANYWAY:
        yield (
            f"target agent learns that the source is {'intact' if intact else 'dead'}",
            w._replace(t_plan=(step, "destroy")),
        )
    else:
        yield "target agent learns that the source is not intact", idle._replace(t_waited=w.same and w.t_waited)


def _clear(w: World) -> Edges:
    """Kill what is held and refuse who waits; then kill whoever stands in the journal."""
    told = w
    if w.ghost:
        yield "target agent kills what was deleted by force", w._replace(ghost="")
        return
    if not is_its_pod(w):
        yield "target agent finds nothing to kill", w
        return
    if w.linked and (w.create == "gate" or (w.create == "restoring" and w.tree == "held")):
        told = w._replace(create="", tree="", linked=False)
    if told != w:
        yield "target agent kills what is held", told
        return
    orphan = "" if w.orphan in WITH_A_HOOK else w.orphan
    if w.create in {"restoring", "done"}:
        left = w.tree if w.tree == "made" else ""  # a tree whose hook has not connected stands in no journal
        w = w._replace(create="", linked=False, tree="", orphan=left or orphan)
    yield "target agent kills all that it knows of", w._replace(orphan=orphan if not w.orphan else w.orphan)
