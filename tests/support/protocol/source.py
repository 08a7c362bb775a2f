"""The source agent: the real `next_source_step` over what a look found, and its acts, one state for each write."""

from __future__ import annotations

from functools import cache

from migration_agent.ports import PeerState
from migration_agent.seen import Verdict
from migration_agent.source_plan import SourceObservation, SourceStep, abort_reason
from migration_api.wire import SourceState
from support.protocol.api import delete_source, write
from support.protocol.invariants import own_ticket
from support.protocol.rules import Rules
from support.protocol.target import answer
from support.protocol.world import BEGUN, ENDED, PAUSED, Edges, World, fly, remember

FROM_A_REGISTER = frozenset({"abort", "returned"})


def source_settled(w: World) -> bool:
    return w.s_state in ENDED and not w.s_owes_abort


def put_source(w: World) -> World:
    """Take the operator's request."""
    if not w.s_up or w.s_state:
        return w
    return blank_source(w)._replace(s_state="Accepted", s_prepared=True)


def blank_source(w: World) -> World:
    """Forget what is in memory of this migration."""
    return w._replace(
        s_known="unreachable", s_wanted=True, s_alive=True, s_peer="", s_copy="", s_stop=False, s_plan=(),
        s_interrupted=False,
    )  # fmt: skip


def forget_source(w: World) -> World:
    gone = w._replace(
        s_state="", s_failed=False, s_promised=False, s_word=False, s_late=False, s_old_boot=False, s_let_go=False,
        s_moved=False,
    )  # fmt: skip
    return blank_source(gone)._replace(s_prepared=True)


def source(w: World, rules: Rules) -> Edges:
    """Everything that the agent of the source node can do next."""
    if not w.s_up:
        yield "source agent starts", _started(w)
        return
    if not w.s_state:
        return
    if not w.s_prepared:
        yield "source agent raises the fence again", _prepared(w)
        return
    if w.s_state in BEGUN and w.s_state != "Fenced" and not w.s_late and not w.s_let_go:
        yield "the freeze budget is used up", w._replace(s_late=True)
    if w.s_copy not in {"", "done"}:
        yield from _copy(w)
    if w.s_plan:
        yield from _act(w, rules)
    else:
        yield from _look(w, rules)


def _started(w: World) -> World:
    up = blank_source(w)._replace(s_up=True, s_silent=False, s_prepared=not w.s_state or w.s_state not in BEGUN)
    return up._replace(s_interrupted=w.s_state in BEGUN - {"Sent"}, s_peer="resumed" if w.s_word else "")


def _prepared(w: World) -> World:
    going_on = w.clone and w.s_state in PAUSED
    again = w._replace(fence=w.fence if going_on else w.source_pod != "", s_prepared=True)
    return again._replace(s_old_boot=False, s_late=False) if w.s_old_boot else again


# --- look and decide


def _look(w: World, rules: Rules) -> Edges:
    now = w.registers if w.source_api else "unreachable"
    known = remember(w.s_known, now, w.s_state in ENDED)
    wanted = not (w.cancelled or w.deleted) if w.source_api and w.exists else w.s_wanted
    alive, running = w.s_alive, False
    if w.s_state in BEGUN and not w.s_let_go:
        alive = w.container in {"running", "paused"}
        running = w.s_state in PAUSED and w.container == "running"
    it = _observation(
        w.s_state, known, w.s_peer, wanted, alive, running, w.s_copy not in {"", "done"}, w.s_interrupted,
        w.s_late and not w.s_let_go, w.s_failed, w.s_owes_abort, w.clone, w.s_let_go, w.post_copy and not w.s_moved,
        w.same, w.s_word,
    )  # fmt: skip
    step = rules.source_step(it)
    looked = w._replace(s_known=known, s_wanted=wanted, s_alive=alive)
    if step is SourceStep.WAIT:
        if looked != w:
            yield f"source agent reads {known}", looked
        return
    first = "why" if step is SourceStep.ABORT and not (w.s_failed or w.s_state in ENDED) else "begin"
    reason = abort_reason(it) if step is SourceStep.ABORT else None
    planned = looked._replace(s_plan=(step.value, first, known))
    yield f"source agent reads {known}, plans {step}" + (f" ({reason})" if reason else ""), planned


@cache
def _observation(  # noqa: PLR0917  # a key
    state: str, known: str, peer: str, wanted: bool, alive: bool, running: bool, working: bool, interrupted: bool,
    expired: bool, failed: bool, owes_abort: bool, apart: bool, let_go: bool, lends: bool,
    same_name: bool, releasing: bool,
) -> SourceObservation:  # fmt: skip
    return SourceObservation(
        state=SourceState(state),
        verdict=Verdict(known),
        peer=PeerState(peer) if peer else None,
        wanted=wanted,
        alive=alive,
        running=running,
        working=working,
        interrupted=interrupted,
        expired=expired,
        failed=failed,
        owes_abort=owes_abort,
        apart=apart,
        let_go=let_go,
        lends=lends,
        same_name=same_name,
        releasing=releasing,
    )


# --- act


def _act(w: World, rules: Rules) -> Edges:  # noqa: C901  # one case for each step
    step, at, known = w.s_plan
    idle = w._replace(s_plan=())
    match step:
        case SourceStep.COPY | SourceStep.SEND:
            first = "read" if step == SourceStep.COPY else "send"
            yield f"source agent begins to {step}", idle._replace(s_copy=first, s_stop=False)
        case SourceStep.ABORT | SourceStep.PAY_ABORT:
            yield from _abort(w, at, rules)
        case SourceStep.THAW | SourceStep.LOSE:
            yield from _go_on(w, step, at, known, rules)
        case SourceStep.RELEASE:
            yield from _release(w, at, known, rules)
        case SourceStep.WITHDRAW:
            yield "source agent withdraws", idle._replace(s_state="Thawed")
        case SourceStep.REFREEZE:
            paused = "paused" if w.container == "running" else w.container
            yield "source agent pauses again", idle._replace(container=paused, s_failed=True)
        case SourceStep.LET_GO:
            yield from _let_go(w, at, known)
        case SourceStep.LEAVE:
            yield from _leave(w)
        case SourceStep.ASK_PROMISE:
            yield from _ask(idle, rules)
        case SourceStep.CLEAR_ABORT:
            yield "source agent owes nothing any more", idle._replace(s_owes_abort=False)
        case SourceStep.ACKNOWLEDGE:
            yield from _acknowledge(idle)
        case _:
            raise AssertionError(step)


def _abort(w: World, at: str, rules: Rules) -> Edges:
    if at == "why":
        yield "source agent journals why", w._replace(s_failed=True, s_plan=(w.s_plan[0], "begin", w.s_plan[2]))
        return
    idle = w._replace(s_plan=())
    if not w.source_api:
        yield "source agent cannot write Abort", idle
        return
    after = write(idle, "Abort", rules)
    known = after.registers if rules.answers_are_read else "abort"
    yield "source agent proposes Abort", after._replace(s_known=remember(w.s_known, known, w.s_state in ENDED))
    if w.accidents:
        yield "source agent's Abort is delayed", fly(idle, "Abort")


def _go_on(w: World, step: str, at: str, known: str, rules: Rules) -> Edges:
    """Thaw, or give up what is dead: stop the copy; note the promise; resume; lift the fence; note the end."""
    by_promise = known not in FROM_A_REGISTER
    if at == "begin":
        if w.s_copy not in {"", "done"}:
            if not w.s_stop:
                yield "source agent stops the copy", w._replace(s_stop=True)
            return
        noted = step == SourceStep.THAW and by_promise and rules.words_are_journalled and not w.clone
        yield "source agent is about to go on", w._replace(s_promised=w.s_promised or noted, s_plan=(step, "go", known))
    elif at == "go":
        yield "source agent resumes the container", _resumed(w)._replace(s_plan=(step, "unfence", known))
    elif at == "unfence":
        yield "source agent lifts the fence", w._replace(fence=False, s_plan=(step, "end", known))
    else:
        state = "Thawed" if step == SourceStep.THAW else "Lost"
        owes = by_promise and known != "gone"
        ended = w._replace(s_state=state, s_owes_abort=owes, s_failed=w.s_failed or state == "Lost", s_plan=())
        yield f"source agent journals {state}", ended


def _let_go(w: World, at: str, known: str) -> Edges:
    """Let a clone's source go on: resume; lift the fence; note it."""
    if at == "begin":
        yield "source agent resumes the container", _resumed(w)._replace(s_plan=(w.s_plan[0], "unfence", known))
    elif at == "unfence":
        yield "source agent lifts the fence", w._replace(fence=False, s_plan=(w.s_plan[0], "end", known))
    else:
        yield "source agent journals that the source goes on", w._replace(s_let_go=True, s_plan=())


def _leave(w: World) -> Edges:
    if w.s_copy in {"", "done"}:
        yield "source agent ends its part", w._replace(s_state="Thawed", s_plan=())
    elif not w.s_stop:
        yield "source agent stops the copy", w._replace(s_stop=True)


def _release(w: World, at: str, known: str, rules: Rules) -> Edges:
    by_word = known == "gone"
    step = w.s_plan[0]
    if at == "begin":
        if w.s_copy not in {"", "done"}:
            if not w.s_stop:
                yield "source agent stops the copy", w._replace(s_stop=True)
            return
        word = w.s_word or ((by_word or w.same) and rules.words_are_journalled)
        yield "source agent is about to release", w._replace(s_word=word, s_plan=(step, "kill", known))
    elif at == "kill":
        broken = w.broken
        if w.clone:
            broken = broken or "I2: a clone's source is killed"
        safe = w.t_entries if w.same else w.ticket == "resuming"
        if not safe and not w.meddled and w.container != "dead" and not w.runs:
            broken = broken or "I2: the source is killed, and the target was not on its way"
        dead = w._replace(container="dead", broken=broken, s_plan=(step, "name" if w.same else "end", known))
        if not rules.release_only_frozen:
            dead = dead._replace(fence=False)
        yield "source agent kills what is frozen", dead
    elif at == "name":
        if w.source_api:
            freed = delete_source(w, at_once=True)._replace(fence=False)
            yield "source agent deletes the source pod: its name is free", freed._replace(s_plan=(step, "end", known))
        else:
            yield "source agent cannot delete the source pod", w._replace(s_plan=())
    else:
        yield "source agent journals Released", w._replace(s_state="Released", s_plan=())


def _ask(w: World, rules: Rules) -> Edges:
    if not (w.peers and w.t_up):
        yield "source agent gets no answer", w
        return
    asked, says = answer(w, rules)
    yield f"source agent asks for the promise; the target says {says}", asked._replace(s_peer=says)
    if w.accidents:
        yield "source agent asks for the promise; the answer is lost", asked._replace(accidents=w.accidents - 1)


def _acknowledge(w: World) -> Edges:
    if w.s_state == "Released":
        if not w.source_api:
            yield "source agent cannot delete the released pod", w
            return
        w = delete_source(w)
    if not (w.peers and w.t_up and w.t_prepared):
        yield "source agent cannot tell the target", w
        return
    yield "source agent tells the target and forgets", forget_source(w._replace(t_acked=w.t_state != ""))


# --- the copy in the background


def _copy(w: World) -> Edges:  # noqa: C901  # one case for each act
    """One attempt, from the live reading to the last byte."""
    at = w.s_copy
    done = w._replace(s_copy="done")
    failed = done._replace(s_failed=True)
    if w.s_stop:
        yield "the copy is given up", done
        return
    match at:
        case "read":
            wanted = w.source_api and w.registers == "undecided" and not (w.cancelled or w.deleted)
            if w.container == "dead":
                yield "the copy finds no container", failed
            else:
                found = w._replace(s_copy="note", container="running")  # one that was started afresh moves as well
                yield "the copy reads the object", found if wanted else done
        case "note":
            yield "the copy journals Fenced", w._replace(s_state="Fenced", s_copy="fence")
        case "fence":
            yield "the copy raises the fence", w._replace(fence=True, s_copy="freeze")
        case "freeze":
            yield "the copy journals Frozen", w._replace(s_state="Frozen", s_copy="pause")
        case "pause":
            paused = w._replace(container="paused", s_copy="dump")
            yield "the copy pauses the container", paused if w.container == "running" else failed
        case "dump":
            dumped = w._replace(s_state="Dumped", s_copy="go on" if w.clone else "send")
            yield "the copy dumps the container", dumped if w.container == "paused" else failed
        case "send":
            yield from _send(w, failed)
        case "sent":
            yield "the copy journals Sent", w._replace(s_state="Sent", s_copy="done")
        case _:
            yield from _copy_lets_go(w)


def _copy_lets_go(w: World) -> Edges:
    """Let a clone's source go on before the rest is sent."""
    match w.s_copy:
        case "go on":
            yield "the copy lets the container go on", _resumed(w)._replace(s_copy="unfence")
        case "unfence":
            yield "the copy lifts the fence", w._replace(fence=False, s_copy="let go")
        case _:
            yield "the copy journals that the source goes on", w._replace(s_let_go=True, s_copy="send")


def _resumed(w: World) -> World:
    return w._replace(container="running" if w.container == "paused" else w.container)


def _send(w: World, failed: World) -> Edges:
    expected = own_ticket(w) == "pending" and not w.t_asked and not w.t_settled and not w.t_entries and w.t_state != ""
    if not (w.peers and w.t_up and w.t_prepared and expected):
        yield "the copy cannot be sent", failed
        return
    yield "the copy arrives complete", w._replace(t_entries=True, s_copy="sent")
    if w.accidents:
        lost = failed._replace(t_entries=True, accidents=w.accidents - 1)
        yield "the copy arrives complete, but the source does not hear of it", lost
        yield "the dump or the transfer fails", failed._replace(accidents=w.accidents - 1)
