"""What is done where: the failpoints that a migration passes, the accidents, and how each place is reached."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

from migration_api.failpoints import Failpoint

_GO = Path(__file__).parents[2] / "node-agent" / "interposer" / "failpoint.go"


class Accident(StrEnum):
    """What happens when a failpoint is reached."""

    DIES = "it is killed"
    FAILS = "it fails"
    OPERATOR = "operator killed"
    SOURCE_AGENT = "source agent killed"
    TARGET_AGENT = "target agent killed"
    SOURCE_KUBELET = "source kubelet killed"
    TARGET_KUBELET = "target kubelet killed"
    SOURCE_CONTAINERD = "source containerd killed"
    TARGET_CONTAINERD = "target containerd killed"
    CRIU = "CRIU killed"
    INTERPOSER = "interposer killed"
    TARGET_POD = "target pod deleted"
    SOURCE_POD = "source pod deleted"
    CANCEL = "cancelled"
    FORCED = "object removed by force"
    SOURCE_EXITS = "source container exits"
    NO_MEMORY = "no memory for the restore"
    SECOND_OPERATOR = "a second operator"
    API_AWAY_SHORT = "API server away for 1 s"
    API_AWAY = "API server away for 20 s"
    API_AWAY_LONG = "API server away for 120 s"
    API_AWAY_VERY_LONG = "API server away for 300 s"
    AGENTS_APART = "network between the agents cut for 20 s"
    SOURCE_CUT_OFF = "source cut off from the API server for 20 s"
    TARGET_CUT_OFF = "target cut off from the API server for 20 s"
    SOURCE_FULL = "source's /run full for 20 s"
    TARGET_FULL = "target's /run full for 20 s"
    TARGET_NOT_READY = "target's kubelet away for 90 s"
    SOURCE_REBOOTS = "source node reboots"
    TARGET_REBOOTS = "target node reboots"


AT_THE_POINT = frozenset({Accident.DIES, Accident.FAILS})
VICTIMS = (
    Accident.OPERATOR,
    Accident.SOURCE_AGENT,
    Accident.TARGET_AGENT,
    Accident.SOURCE_KUBELET,
    Accident.TARGET_KUBELET,
    Accident.SOURCE_CONTAINERD,
    Accident.TARGET_CONTAINERD,
    Accident.CRIU,
    Accident.INTERPOSER,
    Accident.TARGET_POD,
    Accident.SOURCE_POD,
    Accident.CANCEL,
    Accident.FORCED,
)
"""What happens in a moment, while somebody hangs at the failpoint."""


class Way(StrEnum):
    """How a migration is brought past a failpoint."""

    FORWARD = "forward"
    BACK = "back"
    """The dump fails: Abort."""
    RETURNED = "returned"
    """After Commit the restored tree is lost, and the target pod deleted."""
    GONE = "gone"
    """The object is removed by force while the source is frozen."""


WAYS: dict[str, Way] = {
    **dict.fromkeys(
        (Failpoint.OPERATOR_PROPOSE_ABORT, Failpoint.OPERATOR_DELETE_TARGET, Failpoint.SOURCE_ABORT),
        Way.BACK,
    ),
    **dict.fromkeys(
        (Failpoint.SOURCE_THAW, Failpoint.SOURCE_THAWED, Failpoint.TARGET_DESTROY, Failpoint.TARGET_CLEAR),
        Way.BACK,
    ),
    **dict.fromkeys((Failpoint.TARGET_PROMISE, Failpoint.TARGET_END_DESTROYED), Way.BACK),
    **dict.fromkeys(
        (Failpoint.TARGET_RETURN_ANYWAY, Failpoint.TARGET_WRITE_RETURNED, Failpoint.TARGET_END_RETURNED),
        Way.RETURNED,
    ),
    **dict.fromkeys(
        (Failpoint.SOURCE_ASK_PROMISE, Failpoint.SOURCE_PROMISED, Failpoint.SOURCE_ACKNOWLEDGE),
        Way.GONE,
    ),
    Failpoint.TARGET_FORGET: Way.GONE,
}
"""Those that are not passed on the way forward."""

ELSEWHERE = {
    Failpoint.OPERATOR_PROPOSE_ABORT: "the source's agent is faster, except when somebody cancels",
    Failpoint.OPERATOR_LET_GO: "a finished migration with a finalizer: somebody else must have added it",
    Failpoint.OPERATOR_HAND_OVER: "a pod of a Deployment: test_owners.py",
    Failpoint.OPERATOR_KEEP: "spec.retain: test_checkpoints.py",
    Failpoint.OPERATOR_MOUNT: "a claim: test_claim_transport.py",
    Failpoint.OPERATOR_CLEAR: "a claim: test_claim_transport.py",
    Failpoint.OPERATOR_UNMOUNT: "a claim: test_claim_transport.py",
    Failpoint.OPERATOR_CHECKPOINT_ADOPT: "a ContainerCheckpoint of a running pod: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_MOUNT: "a ContainerCheckpoint in a claim: test_claim_transport.py",
    Failpoint.OPERATOR_CHECKPOINT_BEGIN: "a ContainerCheckpoint of a running pod: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_TAKE: "a ContainerCheckpoint of a running pod: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_WAIT: "a ContainerCheckpoint of a running pod: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_FAIL: "a ContainerCheckpoint that is not taken: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_FORGET: "a ContainerCheckpoint of a running pod: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_KEEP: "a ContainerCheckpoint: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_REMOVE: "a ContainerCheckpoint that is deleted: test_checkpoints.py",
    Failpoint.OPERATOR_CHECKPOINT_GIVE_UP: "a ContainerCheckpoint whose store is gone: test_checkpoints.py",
    Failpoint.OPERATOR_RETURN: "a target node that is out of service",
    Failpoint.TARGET_PODMAN_RESTORES: "a container of Podman's: test_podman.py",
    Failpoint.TARGET_PODMAN_RESTORED: "a container of Podman's: test_podman.py",
    Failpoint.SOURCE_ROUND: "the strategy PreCopy: test_pre_copy.py",
    Failpoint.SOURCE_SEND: "the source's agent died after the dump: reached by killing it at source.sent",
    Failpoint.SOURCE_WITHDRAW: "cancelled between the request and the freeze",
    Failpoint.SOURCE_LOSE: "the source died while frozen: test_rollback.py",
    Failpoint.SOURCE_REFREEZE: "somebody resumed the frozen container by hand",
    Failpoint.SOURCE_PAY_ABORT: "thawed by promise while the API server was away",
    Failpoint.SOURCE_CLEAR_ABORT: "thawed by promise while the API server was away",
    Failpoint.SOURCE_LET_GO: "a clone: test_clone.py",
    Failpoint.SOURCE_LEAVE: "a clone: test_clone.py",
    Failpoint.SOURCE_WENT_ON: "a clone: test_clone.py",
    Failpoint.TARGET_MAKE_TICKET: "the target's agent died between its journal and the ticket",
    Failpoint.TARGET_GIVE_UP: "a target node that was declared out of service and came back",
    Failpoint.TARGET_FETCH: "a restore from a ContainerCheckpoint: test_checkpoints.py",
    Failpoint.TARGET_MEMORY_MOVED: "strategy PostCopy: test_post_copy.py",
    Failpoint.TARGET_BIND: "a pod of a StatefulSet: test_statefulset.py",
    Failpoint.TARGET_BOUND: "a pod of a StatefulSet: test_statefulset.py",
    Failpoint.TARGET_UNBIND: "a pod of a StatefulSet that is deleted before it resumed: test_statefulset.py",
    Failpoint.SOURCE_GAVE_ITS_NAME: "a pod of a StatefulSet: test_statefulset.py",
    Failpoint.TARGET_OPEN: "the late gate: test_late_gate.py",
    Failpoint.TARGET_REFUSE: "a gate after a failure",
    Failpoint.TARGET_LOSE: "several containers: test_several.py",
    Failpoint.TARGET_RESUME: "held again after Commit",
    Failpoint.TARGET_RETURN_IF_INTACT: "no restore within the budget after Commit",
    "interposer.kept": "several containers: test_several.py",
    "interposer.early-return": "several containers: test_several.py",
    "pager.filling": "much memory: test_filling.py",
    "interposer.start": "several containers: test_several.py",
}
"""Those that the matrix does not pass, and what would: the tests named, those of the units, and the model."""


@cache
def interposer_points() -> tuple[str, ...]:
    """Return the names of the interposer's failpoints, from where they are listed."""
    return tuple(re.findall(r'^\tat\w+ += "([a-z.-]+)"', _GO.read_text(encoding="utf-8"), flags=re.MULTILINE))


def points() -> tuple[str, ...]:
    """Return every failpoint that the matrix passes."""
    return tuple(point for point in (*Failpoint, *interposer_points()) if point not in ELSEWHERE)


@dataclass(frozen=True)
class Cell:
    """One migration with one accident."""

    point: str
    accident: Accident

    @property
    def way(self) -> Way:
        return WAYS.get(self.point, Way.FORWARD)

    def __str__(self) -> str:
        return f"{self.point}: {self.accident}"


_COLD = (
    "the ticket says resuming, so the source was told to end, and whoever makes the container dies before the kubelet "
    "knows that it runs: it starts afresh, as after any crash of a container"
)
_RUNS_ON = (
    "after Commit, with the source frozen: CRIU does not look at how this hook ended and lets the tree run, until the "
    "interposer sees that the ticket is pending, kills it and restores again"
)
_SOURCE_DIES_AT = (Failpoint.OPERATOR_RECORD_TARGET, Failpoint.SOURCE_FENCED, Failpoint.SOURCE_DUMPED)
_ITS_OWN = "its own process was killed, and not by a migration: the kubelet starts it afresh, as after any crash"
_NO_ROOM = (
    "runc has restored the container and let it run, and then finds no room in /run for the file with its pid: it ends "
    "it, and the kubelet starts it afresh. The room must go between the commit and the start, a tenth of a second"
)
KNOWN: dict[Cell, tuple[str, str]] = {
    Cell("hook.deciding", Accident.DIES): ("doubled", _RUNS_ON),
    **{
        Cell("hook.resuming", accident): ("lost all of a life", _COLD)
        for accident in (
            Accident.TARGET_KUBELET,
            Accident.TARGET_CONTAINERD,
            Accident.CRIU,
            Accident.INTERPOSER,
        )
    },
    Cell("interposer.restored", Accident.DIES): ("lost all of a life", _COLD),
    **{Cell(point, Accident.SOURCE_EXITS): ("lost all of a life", _ITS_OWN) for point in _SOURCE_DIES_AT},
    Cell(Failpoint.SOURCE_DUMPING, Accident.SOURCE_REBOOTS): ("lost all of a life", _ITS_OWN),
    Cell(Failpoint.TARGET_COMMITTED, Accident.TARGET_FULL): ("lost all of a life", _NO_ROOM),
}
"""What is no fault there, as the witness's findings begin, and why."""


FOR_VICTIMS = (
    Failpoint.OPERATOR_RECORD_TARGET,
    Failpoint.SOURCE_FENCED,
    Failpoint.SOURCE_DUMPING,
    Failpoint.TARGET_RECEIVED,
    "hook.recorded",
    Failpoint.TARGET_COMMITTED,
    "hook.resuming",
    Failpoint.SOURCE_RELEASED,
)
"""Where the accidents of others are tried: one place in each stretch between two decisions."""

_NEEDS_CRIU = frozenset({Failpoint.SOURCE_DUMPING, "hook.recorded", "hook.resuming"})
_COMMITTED = frozenset({Failpoint.TARGET_COMMITTED, "hook.resuming", Failpoint.SOURCE_RELEASED})


_FROZEN = (Failpoint.SOURCE_DUMPING, Failpoint.TARGET_RECEIVED, Failpoint.TARGET_COMMITTED)
_OF_THE_TARGET = (Failpoint.OPERATOR_RECORD_TARGET, Failpoint.TARGET_RECEIVED, Failpoint.TARGET_COMMITTED)
PLACES: dict[Accident, tuple[str, ...]] = {
    Accident.SOURCE_EXITS: _SOURCE_DIES_AT,
    Accident.NO_MEMORY: ("interposer.told",),
    Accident.SECOND_OPERATOR: (Failpoint.OPERATOR_RECORD_TARGET, Failpoint.SOURCE_DUMPING, Failpoint.TARGET_COMMITTED),
    Accident.API_AWAY_SHORT: FOR_VICTIMS,
    Accident.API_AWAY: FOR_VICTIMS,
    Accident.API_AWAY_LONG: _FROZEN,
    Accident.API_AWAY_VERY_LONG: (Failpoint.SOURCE_DUMPING, Failpoint.TARGET_COMMITTED),
    Accident.AGENTS_APART: (Failpoint.SOURCE_FENCED, *_FROZEN),
    Accident.SOURCE_CUT_OFF: _FROZEN,
    Accident.TARGET_CUT_OFF: _FROZEN,
    Accident.SOURCE_FULL: (Failpoint.OPERATOR_RECORD_TARGET, Failpoint.SOURCE_FENCED, Failpoint.SOURCE_DUMPING),
    Accident.TARGET_FULL: _OF_THE_TARGET,
    Accident.TARGET_NOT_READY: _OF_THE_TARGET,
    Accident.SOURCE_REBOOTS: (Failpoint.SOURCE_DUMPING, Failpoint.SOURCE_RELEASED),
    Accident.TARGET_REBOOTS: (Failpoint.TARGET_RECEIVED, Failpoint.TARGET_COMMITTED),
}
"""Where that is tried which lasts, or which only means something there."""


def matrix() -> Iterator[Cell]:
    """Every cell."""
    for point in points():
        for accident in AT_THE_POINT:
            yield Cell(point, accident)
    for point in FOR_VICTIMS:
        for victim in VICTIMS:
            if victim in {Accident.CRIU, Accident.INTERPOSER} and point not in _NEEDS_CRIU:
                continue
            if victim is Accident.TARGET_POD and point in _COMMITTED:
                continue  # that would be the moved container itself
            yield Cell(point, victim)
    for accident, places in PLACES.items():
        for point in places:
            yield Cell(point, accident)


LONG = frozenset(
    {
        Accident.API_AWAY_LONG,
        Accident.API_AWAY_VERY_LONG,
        Accident.TARGET_NOT_READY,
        Accident.SOURCE_REBOOTS,
        Accident.TARGET_REBOOTS,
    }
)
"""Those take minutes."""

DEATHS = (
    Cell(Failpoint.OPERATOR_CREATE_TARGET, Accident.DIES),
    Cell(Failpoint.SOURCE_FENCED, Accident.SOURCE_AGENT),
    Cell(Failpoint.SOURCE_DUMPING, Accident.SOURCE_KUBELET),
    Cell(Failpoint.SOURCE_DUMPING, Accident.CRIU),
    Cell(Failpoint.SOURCE_CHUNK, Accident.SOURCE_CONTAINERD),
    Cell(Failpoint.TARGET_RECEIVED, Accident.FAILS),
    Cell("interposer.told", Accident.DIES),
    Cell("hook.recorded", Accident.TARGET_CONTAINERD),
    Cell("hook.released", Accident.INTERPOSER),
    Cell(Failpoint.TARGET_HELD, Accident.CANCEL),
    Cell(Failpoint.TARGET_COMMITTED, Accident.DIES),
    Cell(Failpoint.TARGET_RECEIVED, Accident.TARGET_POD),
    Cell(Failpoint.TARGET_WRITE_RETURNED, Accident.DIES),
    Cell(Failpoint.TARGET_COMMITTED, Accident.TARGET_KUBELET),
    Cell("hook.resuming", Accident.TARGET_AGENT),
    Cell(Failpoint.SOURCE_RELEASED, Accident.OPERATOR),
    Cell(Failpoint.SOURCE_PAUSED, Accident.FORCED),
    Cell(Failpoint.SOURCE_FENCED, Accident.SOURCE_EXITS),
    Cell("interposer.told", Accident.NO_MEMORY),
    Cell(Failpoint.OPERATOR_RECORD_TARGET, Accident.SECOND_OPERATOR),
)
OUTAGES = (
    Cell(Failpoint.TARGET_COMMITTED, Accident.API_AWAY_SHORT),
    Cell(Failpoint.SOURCE_DUMPING, Accident.API_AWAY),
    Cell(Failpoint.SOURCE_FENCED, Accident.AGENTS_APART),
    Cell(Failpoint.TARGET_COMMITTED, Accident.SOURCE_CUT_OFF),
    Cell(Failpoint.TARGET_RECEIVED, Accident.TARGET_CUT_OFF),
    Cell(Failpoint.SOURCE_DUMPING, Accident.SOURCE_FULL),
    Cell(Failpoint.TARGET_RECEIVED, Accident.TARGET_FULL),
)
PAIRWISE = (*DEATHS, *OUTAGES)
"""Every accident but the loss of the source and the longest ones, and every part and stretch of the protocol.

The target pod is deleted while the target's agent itself hangs before the commit; afterwards it is the moved container.
"""
