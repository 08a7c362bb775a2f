"""One cell: a migration is brought to its failpoint, the accident happens, and the end is judged."""

from __future__ import annotations

import subprocess
import time
from dataclasses import dataclass, field

from chaos.accidents import Scene, befall, repair
from chaos.cells import AT_THE_POINT, KNOWN, Accident, Cell, Way
from chaos.lab import Lab, Spot, released
from chaos.spells import cast, outlast, spell
from chaos.story import story
from chaos.workload import Workload
from migration_api.failpoints import Failpoint
from support.cluster import NotInTimeError, wait_for

REACH_SECONDS = 90
LEFT_SECONDS = 120
_DEEDS = {Accident.DIES: "kill", Accident.FAILS: "fail"}


@dataclass
class Outcome:
    """What became of a cell."""

    cell: Cell
    reached: bool = False
    ended: str = ""
    reason: str = ""
    message: str = ""
    seconds: float = 0.0
    """From the accident until the end was written and one copy counted."""
    gap: float = 0.0
    faults: list[str] = field(default_factory=list[str])
    known: list[str] = field(default_factory=list[str])
    """What is a fault elsewhere, and here known and accepted."""
    story: str = ""
    """With faults: what the cluster and its nodes have to say."""

    def told(self) -> str:
        """Return all that is known of what went wrong."""
        return "\n".join([f"{self.cell}: {self.reason}: {self.message}", *self.faults, self.story])


@dataclass
class Trial:
    """Takes one cell at a time, all with the same counter."""

    lab: Lab
    workload: Workload
    number: int = 0

    def survived(self, cell: Cell) -> None:
        """Take a cell, and demand that its accident came and that one copy runs on."""
        outcome = self.run(cell)
        assert not outcome.faults, outcome.told()
        assert outcome.reached, outcome.told()
        assert outcome.ended in {"source", "target"}, outcome.told()

    def run(self, cell: Cell) -> Outcome:
        """Take a cell; the outcome's faults are empty when all is as it must be.

        Whatever goes wrong, in the laboratory too, is a fault of this cell; the next one begins with a new counter.
        """
        self.number += 1
        outcome = Outcome(cell)
        for work in (self._ready, lambda: self._take(cell, outcome), self.lab.disarm, lambda: self._look(outcome)):
            try:
                work()
            except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
                outcome.faults.append(f"{type(error).__name__}: {error}")
        if outcome.faults:
            outcome.story = story(self.lab)
            self.workload.give_up()
        return outcome

    def _ready(self) -> None:
        self.lab.heal()
        if not self.workload.pod:
            self.workload.start(self.workload.node or self.lab.nodes[0])

    def _look(self, outcome: Outcome) -> None:
        """Look for what the witness found, and for leftovers."""
        found = self.workload.found()
        if outcome.cell in KNOWN:
            begins, _ = KNOWN[outcome.cell]
            outcome.known = [it for it in found if it.startswith(begins)]
        outcome.faults += [it for it in found if it not in outcome.known]
        left: list[str] = []
        try:
            wait_for("clean nodes", lambda: not left_in(self.lab, left), seconds=LEFT_SECONDS, every=2)
        except NotInTimeError:
            outcome.faults += [f"left over: {it}" for it in left]

    def _take(self, cell: Cell, outcome: Outcome) -> None:
        lab, workload, move = self.lab, self.workload, f"move-{self.number}"
        source, target = workload.node, lab.other(workload.node)
        spot = lab.spot(cell.point, source, target)
        assert spot, "no operator"
        lab.arm(spot, cell.point, _DEEDS.get(cell.accident, "hang"))
        self._bring(cell.way, move, source, target)
        lab.hit(spot, cell.point, REACH_SECONDS)
        outcome.reached = True
        began = time.monotonic()
        scene = Scene(lab, workload, move, source, target)
        self._befall(cell, scene, spot)
        end = workload.end(move)
        repair(cell.accident, scene)
        outcome.reason, outcome.message = end.reason or "(object gone)", end.message
        if cell.accident is Accident.SOURCE_POD and end.succeeded is not True:
            outcome.ended = "nowhere: its pod was deleted"
            lab.kubectl("delete", "pod", workload.pod, "-n", lab.namespace, "--ignore-not-found", timeout=90)
            workload.pod = ""
        else:
            outcome.ended = workload.settle(end)
        outcome.seconds, outcome.gap = time.monotonic() - began, workload.gap()
        if outcome.ended.startswith("not"):
            outcome.faults.append(outcome.ended)
        lab.kubectl("delete", "cmig", move, "-n", lab.namespace, "--ignore-not-found", "--wait=false")

    def _befall(self, cell: Cell, scene: Scene, spot: Spot) -> None:
        """Let the accident happen while somebody hangs at the failpoint, and go on there; a spell is waited for."""
        if cell.accident in AT_THE_POINT:
            return
        if (where := spell(cell.accident, scene)) is None:
            befall(cell.accident, scene)
            self.lab.release(spot, cell.point)
        else:
            node, what = where
            cast(scene, node, what, then=released(spot, cell.point), at=spot.node)
            outlast(scene, node, what)

    def _bring(self, way: Way, move: str, source: str, target: str) -> None:
        """Apply a migration, and lead it the way on which the failpoint lies."""
        lab = self.lab
        match way:
            case Way.FORWARD:
                self.workload.apply(move)
            case Way.BACK:
                lab.arm(lab_spot(lab, source), Failpoint.SOURCE_DUMPED, "fail")
                self.workload.apply(move)
            case Way.RETURNED:
                scene = Scene(lab, self.workload, move, source, target)
                self._held_at("hook.released", scene, target, Accident.TARGET_POD, Accident.INTERPOSER)
            case Way.GONE:
                scene = Scene(lab, self.workload, move, source, target)
                self._held_at(Failpoint.SOURCE_PAUSED, scene, source, Accident.FORCED)

    def _held_at(self, point: str, scene: Scene, node: str, *accidents: Accident) -> None:
        lab, spot = self.lab, lab_spot(self.lab, node)
        lab.arm(spot, point, "hang")
        self.workload.apply(scene.move)
        lab.hit(spot, point, REACH_SECONDS)
        for accident in accidents:
            befall(accident, scene)
        lab.release(spot, point)


def lab_spot(lab: Lab, node: str) -> Spot:
    """Return where an agent's failpoints are armed."""
    spot = lab.spot("target.", "", node)
    assert spot
    return spot


def left_in(lab: Lab, left: list[str]) -> list[str]:
    """Look for leftovers; what there is goes into `left` too."""
    left[:] = lab.leftovers()
    return left


HEADER = """| failpoint | accident | reason that the admin sees | runs on at | seconds | stood still | faults |
|---|---|---|---|---|---|---|
"""
"""Seconds: from the accident until the end was written and one copy counted."""
NO_FAULT = "none"
"""How the last column begins when all is as it must be."""


def row(outcome: Outcome) -> str:
    """Return a cell as a line of the table."""
    where = outcome.ended or "-"
    known = f"{NO_FAULT} but what is known: {outcome.known[0][:60]}" if outcome.known else NO_FAULT
    faults = "; ".join(outcome.faults).replace("|", "/").replace("\n", " ")[:300] or known
    cell = outcome.cell
    return (
        f"| `{cell.point}` | {cell.accident} | {outcome.reason or '-'} | {where} | {outcome.seconds:.1f} "
        f"| {outcome.gap:.1f} s | {faults} |\n"
    )
