"""The agent of a node whose Podman runs the container: the real steps over what a look found, and its acts."""

from __future__ import annotations

from migration_agent.ports import PeerState
from migration_agent.seen import Verdict
from migration_agent.source_plan import SourceObservation, SourceStep
from migration_api.wire import SourceState
from support.protocol.podman_target import answer
from support.protocol.podman_world import Edges, Rules, World, decide
from support.protocol.world import BEGUN, ENDED, PAUSED, remember


def forget_source(w: World) -> World:
    gone = w._replace(s_state="", s_failed=False, s_word=False, s_late=False, s_owes_abort=False)
    return blank_source(gone)


def blank_source(w: World) -> World:
    return w._replace(
        s_known="unreachable", s_wanted=True, s_alive=True, s_peer="", s_copy="", s_stop=False, s_plan=(),
        s_interrupted=False,
    )  # fmt: skip


def source(w: World, rules: Rules) -> Edges:
    if not w.s_up:
        up = blank_source(w)._replace(s_up=True, s_peer="resumed" if w.s_word else "")
        yield "source agent starts", up._replace(s_interrupted=w.s_state in BEGUN - {"Sent"})
        return
    if not w.s_state:
        return
    if w.s_state in BEGUN - {"Fenced"} and not w.s_late:
        yield "the freeze budget is used up", w._replace(s_late=True)
    if w.s_copy not in {"", "done"}:
        yield from _copy(w)
    yield from _source_acts(w, rules) if w.s_plan else _source_looks(w, rules)


def _source_looks(w: World, rules: Rules) -> Edges:
    now = w.registers if w.source_api else "unreachable"
    known = remember(w.s_known, now, w.s_state in ENDED)
    wanted = not w.cancelled if w.source_api and w.exists else w.s_wanted
    alive, running = w.s_alive, False
    if w.s_state in BEGUN:
        busy = bool(w.s_command) and rules.source_waits
        alive = busy or w.here in {"running", "kept", "paused"}
        running = w.s_state in PAUSED and (busy or w.here == "running")
    it = SourceObservation(
        state=SourceState(w.s_state),
        verdict=Verdict(known),
        peer=PeerState(w.s_peer) if w.s_peer else None,
        wanted=wanted,
        alive=alive,
        running=running,
        working=w.s_copy not in {"", "done"},
        interrupted=w.s_interrupted,
        expired=w.s_late,
        failed=w.s_failed,
        owes_abort=w.s_owes_abort,
    )
    step = rules.source_step(it)
    looked = w._replace(s_known=known, s_wanted=wanted, s_alive=alive)
    if step is not SourceStep.WAIT:
        yield f"source agent reads {known}, plans {step}", looked._replace(s_plan=(step.value, "begin", known))
    elif looked != w:
        yield f"source agent reads {known}", looked


def _source_acts(w: World, rules: Rules) -> Edges:
    step, at, known = w.s_plan
    idle = w._replace(s_plan=())
    match step:
        case SourceStep.COPY | SourceStep.SEND:
            yield (
                f"source agent begins to {step}",
                idle._replace(s_copy="read" if step == SourceStep.COPY else "send", s_stop=False),
            )
        case SourceStep.ABORT | SourceStep.PAY_ABORT:
            after = decide(idle, "Abort") if w.source_api else idle
            now = after.registers if w.source_api else "unreachable"
            known = remember(w.s_known, now, w.s_state in ENDED)
            failed = w.s_failed or w.s_state not in ENDED
            yield "source agent proposes Abort", after._replace(s_known=known, s_failed=failed)
        case SourceStep.THAW | SourceStep.LOSE | SourceStep.RELEASE:
            yield from _source_ends(w, step, at, known, rules)
        case SourceStep.WITHDRAW:
            yield "source agent withdraws", idle._replace(s_state="Thawed")
        case SourceStep.REFREEZE:
            free = not (w.s_command and rules.source_waits)
            paused = idle._replace(here="paused" if w.here == "running" else w.here, s_failed=True)
            yield "source agent pauses what runs again", paused if free else idle
        case SourceStep.ASK_PROMISE:
            yield from _ask(idle)
        case SourceStep.CLEAR_ABORT:
            yield "source agent owes nothing any more", idle._replace(s_owes_abort=False)
        case SourceStep.ACKNOWLEDGE:
            reached = w.peers and w.t_up
            told = forget_source(idle._replace(t_acked=w.t_state != ""))
            yield "source agent tells the target and forgets", told if reached else idle
        case _:
            raise AssertionError(step)


def _source_ends(w: World, step: str, at: str, known: str, rules: Rules) -> Edges:
    """Stop the copy; wait for a command that is under way; begin one and wait for it; journal the end."""
    if at == "begin":
        if w.s_copy not in {"", "done"}:
            if not w.s_stop:
                yield "source agent stops the copy", w._replace(s_stop=True)
            return
        word = w.s_word or (step == SourceStep.RELEASE and known == "gone")
        yield f"source agent is about to {step}", w._replace(s_word=word, s_plan=(step, "command", known))
        return
    if at == "command":
        if w.s_command and rules.source_waits:
            yield "source agent finds a command under way", w._replace(s_plan=())
            return
        waits = w._replace(s_plan=(step, "wait", known))
        if step == SourceStep.RELEASE:
            yield "source agent removes the container", waits._replace(s_command="rm")
        elif w.here == "kept":
            yield "source agent restores the container", waits._replace(s_command="restore")
        else:
            running = "running" if w.here == "paused" else w.here
            yield "source agent unpauses what is paused", waits._replace(here=running)
        return
    if w.s_command:
        return
    if step == SourceStep.RELEASE:
        yield "source agent journals Released", w._replace(s_state="Released", s_plan=())
        return
    owes = known not in {"abort", "returned", "gone"}
    state = "Thawed" if step == SourceStep.THAW else "Lost"
    ended = w._replace(s_state=state, s_owes_abort=owes, s_failed=w.s_failed or state == "Lost", s_plan=())
    yield f"source agent journals {state}", ended


def _ask(w: World) -> Edges:
    if not (w.peers and w.t_up):
        yield "source agent gets no answer", w
        return
    asked, says = answer(w)
    yield f"source agent asks for the promise; the target says {says}", asked._replace(s_peer=says)


def _copy(w: World) -> Edges:  # noqa: C901  # one case for each act
    at = w.s_copy
    done = w._replace(s_copy="done")
    if w.s_stop and at != "made":
        yield "the copy is given up", done
        return
    match at:
        case "read":
            wanted = w.source_api and w.registers == "undecided" and not w.cancelled
            found = w.here == "running" and not w.s_command
            after = w._replace(s_copy="note") if wanted else done
            yield "the copy reads the object", after if found else done._replace(s_failed=True)
        case "note":
            yield "the copy journals Fenced", w._replace(s_state="Fenced", s_copy="freeze")
        case "freeze":
            yield "the copy journals Frozen", w._replace(s_state="Frozen", s_copy="dump")
        case "dump":
            yield "the copy begins the checkpoint", w._replace(s_command="checkpoint", s_copy="made")
        case "made":
            if w.s_command:
                return
            whole = w.here == "kept" and not w.s_failed
            dumped = w._replace(s_state="Dumped", s_copy="send")
            yield "the copy journals Dumped", dumped if whole else done._replace(s_failed=True)
        case "send":
            expected = w.peers and w.t_up and w.ticket == "pending" and not (w.t_settled or w.t_asked)
            if w.t_state and expected:
                yield "the copy is sent", w._replace(t_entries=True, s_copy="sent")
            elif w.peers and w.t_up:
                yield "the target refuses the copy", done._replace(s_failed=True)
        case _:
            yield "the copy journals Sent", w._replace(s_state="Sent", s_copy="done")
