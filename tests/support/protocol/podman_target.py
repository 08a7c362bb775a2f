"""The agent of the node whose Podman is to run the container: the real steps over what a look found, and its acts."""

from __future__ import annotations

from migration_agent.ports import PodState
from migration_agent.seen import Verdict
from migration_agent.target_plan import TargetObservation
from migration_agent.target_steps import TargetStep
from migration_agent.ticket import TicketState
from migration_api.wire import TargetState
from support.protocol.podman_world import Edges, Rules, World, conclude, decide
from support.protocol.world import PAUSED, PROMISED, remember


def forget_target(w: World) -> World:
    gone = w._replace(t_state="", t_settled=False, t_acked=False, t_entries=False, t_restores=False, ticket="none")
    return gone._replace(t_known="unreachable", t_asked=False, t_waited=False, t_plan=(), t_old_boot=False)


def answer(w: World) -> tuple[World, str]:
    if not w.t_state:
        return w._replace(buried=True), "destroyed"
    if w.t_state == "Resumed":
        return w, "resumed"
    if w.t_state in PROMISED:
        return w, "destroyed"
    if w.ticket == "resuming":
        return w, "resumed" if w.t_known not in {"unreachable", "returned"} else "undecided"
    return w._replace(t_asked=True), "undecided"


def target(w: World, rules: Rules) -> Edges:
    if not w.t_up:
        entries = w.t_entries and not w.t_old_boot
        up = w._replace(t_up=True, t_entries=entries, t_old_boot=False, t_known="unreachable", t_plan=())
        yield "target agent starts", up._replace(t_asked=False, t_waited=False)
        return
    if not w.t_state:
        return
    if w.t_known == "commit" and not w.t_waited and not w.t_settled:
        yield "nothing has run for a freeze budget's time", w._replace(t_waited=True)
    yield from _target_acts(w, rules) if w.t_plan else _target_looks(w, rules)


def _target_looks(w: World, rules: Rules) -> Edges:
    now = w.registers if w.target_api else "unreachable"
    known = remember(w.t_known, now, w.t_settled)
    w = w._replace(t_known=known)
    busy = bool(w.t_command) and rules.target_waits
    if not w.t_settled and w.t_restores and not busy and w.there in {"runs", "ended"} and w.ticket == "pending":
        yield "target agent sees that it has run", w._replace(ticket="resuming")
        return
    if busy and w.ticket == "pending":
        return
    waited = w.t_waited and known == "commit"
    dead = not busy and (not w.t_restores or not w.there or not rules.looks_for_the_dead)
    it = TargetObservation(
        state=TargetState(w.t_state),
        verdict=Verdict(known),
        ticket=TicketState(w.ticket),
        settled=w.t_settled,
        acknowledged=w.t_acked,
        received=w.t_entries,
        restoring=busy,
        held=w.t_entries and not waited,
        dead=dead,
        pod=PodState.LIVE,
        promise_asked=w.t_asked,
        waited=waited,
    )
    step = rules.target_step(it)
    if step is not TargetStep.WAIT:
        yield f"target agent reads {known}, plans {step}", w._replace(t_plan=(step.value, "begin"))


def _target_acts(w: World, rules: Rules) -> Edges:  # noqa: C901  # one case for each step
    step, at = w.t_plan
    idle = w._replace(t_plan=())
    match step:
        case TargetStep.MAKE_TICKET:
            yield "target agent makes the ticket", idle._replace(ticket="pending")
        case TargetStep.COMMIT if at == "begin":
            after = decide(idle, "Commit") if w.target_api else idle
            known = remember(w.t_known, after.registers, False) if w.target_api else w.t_known
            after = after._replace(t_known=known)
            yield "target agent proposes Commit", after._replace(t_plan=(step, "r")) if known == "commit" else after
        case TargetStep.COMMIT | TargetStep.RESUME:
            yield from _restore(w, step, at, rules)
        case TargetStep.DESTROY:
            yield "target agent destroys the ticket", idle._replace(ticket=_destroyed(w))
        case TargetStep.RETURN_IF_INTACT | TargetStep.RETURN_ANYWAY:
            yield from _return(w, step, at)
        case TargetStep.CLEAR | TargetStep.GIVE_UP:
            free = w.t_restores and not w.t_command
            after = idle._replace(t_command="rm") if free else idle
            yield "target agent removes what is there", after if rules.target_waits else idle._replace(there="")
        case TargetStep.PROMISE:
            yield "target agent journals the promise", idle._replace(t_state="Destroyed", t_entries=False)
        case TargetStep.WRITE_RESUMED | TargetStep.WRITE_RETURNED:
            value = "Resumed" if step == TargetStep.WRITE_RESUMED else "Returned"
            after = conclude(idle, value) if w.target_api else idle
            now = after.registers if w.target_api else "unreachable"
            state = "Resuming" if value == "Resumed" else w.t_state
            yield (
                f"target agent writes {value}",
                after._replace(t_known=remember(w.t_known, now, False), t_state=state),
            )
        case TargetStep.END_RESUMED | TargetStep.END_RETURNED | TargetStep.END_DESTROYED:
            state = {"end-resumed": "Resumed", "end-returned": "Returned", "end-destroyed": "Destroyed"}[step]
            ended = idle._replace(t_state=state, t_settled=True, t_entries=False, ticket="none")
            yield f"target agent journals {state}", ended
        case TargetStep.FORGET:
            yield "target agent forgets", forget_target(w)
        case _:
            raise AssertionError(step)


def _restore(w: World, step: str, at: str, rules: Rules) -> Edges:
    """Note it; remove what an earlier attempt left; tell Podman; wait."""
    if w.t_command:
        if not rules.target_waits and at != "wait":
            yield "target agent sees the restore fail, for another one works", w._replace(t_plan=())
        return
    if at in {"begin", "r"}:
        if not w.t_restores:
            yield "target agent notes that it restores", w._replace(t_restores=True, t_plan=(step, "tell"))
        else:
            yield "target agent removes what is left", w._replace(t_command="rm", t_plan=(step, "tell"))
    elif at == "tell":
        yield "target agent tells Podman to restore", w._replace(t_command="restore", t_plan=(step, "wait"))
    else:
        yield "target agent knows how the restore ended", w._replace(t_plan=())


def _destroyed(w: World) -> str:
    return w.ticket if w.ticket == "resuming" else "destroyed"


def _return(w: World, step: str, at: str) -> Edges:
    idle = w._replace(t_plan=())
    if at == "destroy":
        yield "target agent destroys the ticket", idle._replace(ticket=_destroyed(w))
    elif not (w.peers and w.s_up):
        yield "target agent gets no answer", idle
    else:
        intact = w.s_state in PAUSED and w.here in {"kept", "paused"} and not w.s_command
        goes = intact or step == TargetStep.RETURN_ANYWAY
        after = w._replace(t_plan=(step, "destroy")) if goes else idle._replace(t_waited=False)
        yield f"target agent learns that the source is {'' if intact else 'not '}intact", after
