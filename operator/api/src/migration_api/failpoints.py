"""Named places where a test may stop, kill, delay or fail the operator or an agent. Off, and harmless, in production.

A failpoint is armed by a file of its name in one directory. The agents' is below their run directory on the node, which
only root can enter, and nothing of ours makes it. The operator has none unless its Deployment names one in FAILPOINTS.
Whoever can do either can kill the process anyway. Unarmed, a failpoint costs one system call that finds no file.

The interposer's are in `failpoint.go`; `docs/chaos.md` says how they are used.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from enum import StrEnum
from pathlib import Path

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.05
_MUCH = 200


class Failpoint(StrEnum):
    """All of them. Those of an action or step lie right before it; the others where their sentence says."""

    OPERATOR_WAIT = "operator.Wait"
    OPERATOR_LET_GO = "operator.LetGo"
    OPERATOR_QUEUE = "operator.Queue"
    OPERATOR_MOUNT = "operator.Mount"
    OPERATOR_ADOPT = "operator.Adopt"
    OPERATOR_BEGIN = "operator.Begin"
    OPERATOR_CREATE_TARGET = "operator.CreateTarget"
    OPERATOR_RECORD_TARGET = "operator.RecordTarget"
    OPERATOR_PREPARE_TARGET = "operator.PrepareTarget"
    OPERATOR_CHECKPOINT = "operator.Checkpoint"
    OPERATOR_PROPOSE_ABORT = "operator.ProposeAbort"
    OPERATOR_SETTLE = "operator.Settle"
    OPERATOR_RETURN = "operator.Return"
    OPERATOR_DELETE_TARGET = "operator.DeleteTarget"
    OPERATOR_KEEP = "operator.Keep"
    OPERATOR_HAND_OVER = "operator.HandOver"
    OPERATOR_DELETE_SOURCE = "operator.DeleteSource"
    OPERATOR_FORGET = "operator.Forget"
    OPERATOR_CLEAR = "operator.Clear"
    OPERATOR_UNMOUNT = "operator.Unmount"
    OPERATOR_FINISH = "operator.Finish"
    OPERATOR_ONE_FORGOT = "operator.one-forgot"
    """The target's agent was told to forget, the source's not yet."""
    OPERATOR_CHECKPOINT_ADOPT = "operator.checkpoint.Adopt"
    OPERATOR_CHECKPOINT_MOUNT = "operator.checkpoint.Mount"
    OPERATOR_CHECKPOINT_BEGIN = "operator.checkpoint.Begin"
    OPERATOR_CHECKPOINT_TAKE = "operator.checkpoint.Take"
    OPERATOR_CHECKPOINT_WAIT = "operator.checkpoint.Wait"
    OPERATOR_CHECKPOINT_FAIL = "operator.checkpoint.Fail"
    OPERATOR_CHECKPOINT_FORGET = "operator.checkpoint.Forget"
    OPERATOR_CHECKPOINT_KEEP = "operator.checkpoint.Keep"
    OPERATOR_CHECKPOINT_REMOVE = "operator.checkpoint.Remove"
    OPERATOR_CHECKPOINT_GIVE_UP = "operator.checkpoint.GiveUp"
    OPERATOR_LET_GO_OF_THE_END = "operator.let-go-of-the-end"
    """The finalizer is gone, the end is not yet in the status."""

    SOURCE_COPY = "source.copy"
    SOURCE_SEND = "source.send"
    SOURCE_ROUND = "source.round"
    """Memory was copied while its processes run, once more or for the first time."""
    SOURCE_ABORT = "source.abort"
    SOURCE_THAW = "source.thaw"
    SOURCE_WITHDRAW = "source.withdraw"
    SOURCE_LOSE = "source.lose"
    SOURCE_RELEASE = "source.release"
    SOURCE_REFREEZE = "source.refreeze"
    SOURCE_LET_GO = "source.let-go"
    SOURCE_LEAVE = "source.leave"
    SOURCE_ASK_PROMISE = "source.ask-promise"
    SOURCE_PAY_ABORT = "source.pay-abort"
    SOURCE_CLEAR_ABORT = "source.clear-abort"
    SOURCE_ACKNOWLEDGE = "source.acknowledge"
    SOURCE_FENCING = "source.fencing"
    """The fence is journalled, and not yet up."""
    SOURCE_FENCED = "source.fenced"
    """The fence is up; the freeze is not yet journalled."""
    SOURCE_FREEZING = "source.freezing"
    """The freeze is journalled; packets still flow."""
    SOURCE_DROPPED = "source.dropped"
    """Packets are dropped; the containers still run."""
    SOURCE_PAUSED = "source.paused"
    """The containers are paused; nothing is dumped."""
    SOURCE_DUMPING = "source.dumping"
    """CRIU holds the tasks in its post-dump hook."""
    SOURCE_DUMPED = "source.dumped"
    """All is dumped; the journal does not know it."""
    SOURCE_WENT_ON = "source.went-on"
    """What is to be left running goes on, its checkpoint being complete; the journal does not know it."""
    SOURCE_CHUNK = "source.chunk"
    """A chunk is about to be sent."""
    SOURCE_SENT = "source.sent"
    """The target has verified all of it; the journal does not know it."""
    SOURCE_PROMISED = "source.promised"
    """The promise is journalled; the containers do not go on yet."""
    SOURCE_THAWED = "source.thawed"
    """The containers go on; the journal does not know it."""
    SOURCE_RELEASED = "source.released"
    """Every task is dead; the journal does not know it."""
    SOURCE_GAVE_ITS_NAME = "source.gave-its-name"
    """The source pod of a target of its name is deleted; the journal does not know it."""
    SOURCE_WIPED = "source.wiped"
    """The images are gone; the end is not journalled."""

    TARGET_MAKE_TICKET = "target.make-ticket"
    TARGET_FETCH = "target.fetch"
    TARGET_BIND = "target.bind"
    TARGET_UNBIND = "target.unbind"
    TARGET_OPEN = "target.open"
    TARGET_RESTORE = "target.restore"
    TARGET_REFUSE = "target.refuse"
    TARGET_LOSE = "target.lose"
    TARGET_COMMIT = "target.commit"
    TARGET_RESUME = "target.resume"
    TARGET_WRITE_RESUMED = "target.write-resumed"
    TARGET_MEMORY_MOVED = "target.memory-moved"
    TARGET_END_RESUMED = "target.end-resumed"
    TARGET_DESTROY = "target.destroy"
    TARGET_RETURN_IF_INTACT = "target.return-if-intact"
    TARGET_RETURN_ANYWAY = "target.return-anyway"
    TARGET_CLEAR = "target.clear"
    TARGET_PROMISE = "target.promise"
    TARGET_WRITE_RETURNED = "target.write-returned"
    TARGET_END_RETURNED = "target.end-returned"
    TARGET_GIVE_UP = "target.give-up"
    TARGET_END_DESTROYED = "target.end-destroyed"
    TARGET_FORGET = "target.forget"
    TARGET_BOUND = "target.bound"
    """The journal says which pod has the ticket; there is no ticket."""
    TARGET_CHUNK = "target.chunk"
    """A chunk came and is not yet written."""
    TARGET_RECEIVED = "target.received"
    """The whole checkpoint is verified; the journal does not know it."""
    TARGET_RESTORING = "target.restoring"
    """The restore is journalled; the interposer is not told."""
    TARGET_HELD = "target.held"
    """A hook holds its tree; the journal does not know it."""
    TARGET_PODMAN_RESTORES = "target.podman-restores"
    """The restore by Podman is journalled; it is not told."""
    TARGET_PODMAN_RESTORED = "target.podman-restored"
    """Podman has restored the container; the ticket does not know it."""
    TARGET_COMMITTED = "target.committed"
    """Commit is written; no hook is told."""
    TARGET_RESUMED = "target.resumed"
    """The outcome is written; the agent has not looked at the answer."""
    TARGET_WIPED = "target.wiped"
    """The images are gone; the end is not journalled."""


class FailpointHit(OSError):
    """What a failpoint that is to fail raises: an error that every step may meet."""


class _Switch:
    directory: str | None = None


def look_in(directory: Path | None) -> None:
    """Let failpoints be armed by files in `directory`, which need not exist; None: not at all."""
    _Switch.directory = None if directory is None else str(directory)


async def reach(point: Failpoint) -> None:
    """Do here what a test asks for; nothing, unless it does. Meanwhile the loop turns.

    Raises:
        FailpointHit: it asks for a failure.
    """
    if (hit := _hit(point)) is not None:
        await asyncio.to_thread(_do, point, hit)


def reach_in_thread(point: Failpoint) -> None:
    """As `reach`, for code that may block."""
    if (hit := _hit(point)) is not None:
        _do(point, hit)


def _hit(point: Failpoint) -> Path | None:
    """Disarm the failpoint, so that it acts once, and return what tells the test that it was reached."""
    if _Switch.directory is None:
        return None
    armed = f"{_Switch.directory}/{point.value}"
    try:
        os.rename(armed, f"{armed}.hit")  # noqa: PTH104  # twice as fast as Path's, and on the way of every step
    except OSError:
        return None
    return Path(f"{armed}.hit")


def _do(point: Failpoint, hit: Path) -> None:
    deed, _, seconds = hit.read_text(encoding="ascii")[:_MUCH].strip().partition(" ")
    log.warning("failpoint %s: %s %s", point, deed, seconds)
    match deed:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
            os._exit(128 + signal.SIGKILL)  # the first process of a PID namespace cannot kill itself
        case "fail":
            raise FailpointHit(f"failpoint {point}")
        case "delay":
            time.sleep(float(seconds))
        case "hang":
            while hit.exists():
                time.sleep(_LOOK_SECONDS)
        case _:
            log.error("failpoint %s: %r is none of kill, fail, delay SECONDS, hang", point, deed)
