"""Many migrations, several at a time, and to each something random happens."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from chaos.accidents import Scene, befall
from chaos.cells import KNOWN, Accident, Cell, points
from chaos.lab import Lab, OnNodeError
from chaos.trial import left_in
from chaos.workload import End, Workload
from migration_api.migration import Strategy
from support.cluster import NotInTimeError, wait_for

_RELIEF_SECONDS = 2.0
_LONGEST_WAIT = 6.0
_ACCIDENTS = {
    Accident.OPERATOR: 4,
    Accident.SOURCE_AGENT: 4,
    Accident.TARGET_AGENT: 4,
    Accident.INTERPOSER: 2,
    Accident.CANCEL: 2,
    Accident.SOURCE_KUBELET: 1,
    Accident.TARGET_KUBELET: 1,
    Accident.SOURCE_CONTAINERD: 1,
    Accident.TARGET_CONTAINERD: 1,
}
"""By weight. None that takes away what is moved: the pods, the object, or the tasks that CRIU's code is in."""
_POST_COPY = 0.35
_MEBIBYTES = 40
"""So much of each counter's memory that with PostCopy it stays at the source."""
_DEEDS = ("kill", "kill", "kill", "fail", "fail", "delay")


@dataclass(frozen=True)
class Harm:
    """What happens to one migration: a deed at a failpoint, or an accident after so many seconds."""

    point: str = ""
    deed: str = ""
    accident: Accident | None = None
    after: float = 0.0

    def __str__(self) -> str:
        return f"{self.point} {self.deed}" if self.accident is None else f"{self.accident} after {self.after:.1f} s"


def harm(seed: str, number: int) -> Harm:
    """Return what happens to that migration: the same for the same seed."""
    dice = random.Random(f"{seed}/{number}")  # noqa: S311  # no secret
    if dice.random() < 0.6:
        deed, point = dice.choice(_DEEDS), dice.choice(points())
        if deed == "kill" and Cell(point, Accident.DIES) in KNOWN:
            deed = "fail"
        return Harm(point, f"delay {dice.uniform(0.2, 3):.1f}" if deed == "delay" else deed)
    [accident] = dice.choices(tuple(_ACCIDENTS), tuple(_ACCIDENTS.values()))
    return Harm(accident=accident, after=dice.uniform(0, _LONGEST_WAIT))


def strategy(seed: str, number: int) -> Strategy:
    """Return how that migration's memory moves: the same for the same seed."""
    dice = random.Random(f"{seed}/{number}/strategy")  # noqa: S311  # no secret
    return Strategy.POST_COPY if dice.random() < _POST_COPY else Strategy.STOP_AND_COPY


@dataclass
class Tally:
    """What became of all migrations."""

    succeeded: int = 0
    rolled_back: int = 0
    doubled: list[str] = field(default_factory=list[str])
    lost: list[str] = field(default_factory=list[str])
    leftovers: list[str] = field(default_factory=list[str])
    unended: list[str] = field(default_factory=list[str])
    """What ended otherwise, or not at all, or with no or two runners."""
    reasons: Counter[str] = field(default_factory=Counter[str])
    seconds: list[float] = field(default_factory=list[float])

    @property
    def good(self) -> bool:
        """Nothing that must not be."""
        return not (self.doubled or self.lost or self.leftovers or self.unended)

    def count(self, end: End) -> bool:
        """Count an end; False when it is none that keeps the container."""
        self.reasons.update([end.reason if end.succeeded else "/".join(end.reasons)])
        self.succeeded += end.succeeded is True
        back = end.succeeded is False and end.reason == "RolledBack"
        self.rolled_back += back
        return end.succeeded is True or back

    def last_line(self, number: int) -> str:
        """Return the result in one line."""
        return (
            f"{number} migrations, {self.succeeded} succeeded, {self.rolled_back} rolled back, "
            f"{len(self.doubled)} doubled, {len(self.lost)} lost, {len(self.leftovers)} leftovers"
        )


@dataclass
class Storm:
    """A number of migrations of a few counters."""

    lab: Lab
    seed: str
    number: int
    jobs: int
    say: Callable[[str], None] = print
    tally: Tally = field(default_factory=Tally)
    _next: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> Tally:
        """Let it blow."""
        relief = threading.Thread(target=self._relieve, daemon=True)
        relief.start()
        try:
            with ThreadPoolExecutor(self.jobs) as pool:
                for done in [pool.submit(self._many, job) for job in range(self.jobs)]:
                    done.result()
        finally:
            self._over.set()
            relief.join()
        self.lab.disarm()
        self.lab.heal()
        with suppress(NotInTimeError):
            wait_for("clean nodes", lambda: not left_in(self.lab, self.tally.leftovers), seconds=120, every=2)
        return self.tally

    def _many(self, job: int) -> None:
        workload = Workload(self.lab, f"counter-{job}", _MEBIBYTES)
        workload.start(self.lab.nodes[job % 2])
        while (number := self._take()) is not None:
            try:
                self._one(workload, number)
            except (AssertionError, OSError) as error:
                self._note(self.tally.unended, f"{number} ({harm(self.seed, number)}): {error}")
                return  # nobody knows where this counter is

    def _take(self) -> int | None:
        with self._lock:
            if self._next >= self.number:
                return None
            self._next += 1
            return self._next

    def _note(self, where: list[str], what: str) -> None:
        with self._lock:
            where.append(what)
        self.say(f"!! {what}")

    def _one(self, workload: Workload, number: int) -> None:
        lab, move, it = self.lab, f"move-{number}", harm(self.seed, number)
        scene = Scene(lab, workload, move, workload.node, lab.other(workload.node))
        began = time.monotonic()
        if it.accident is None and (spot := lab.spot(it.point, scene.source, scene.target)):
            lab.arm(spot, it.point, it.deed)
        how = strategy(self.seed, number)
        workload.apply(move, strategy=how.value)
        if it.accident is not None:
            self._over.wait(it.after)
            with suppress(OnNodeError):
                befall(it.accident, scene)
        end = workload.end(move)
        with self._lock:
            kept = self.tally.count(end)
            self.tally.seconds.append(time.monotonic() - began)
        where = workload.settle(end)
        for finding in workload.found():
            self._note(self.tally.doubled if finding.startswith("doubled") else self.tally.lost, f"{number}: {finding}")
        if not kept or where.startswith("not"):
            raise AssertionError(f"{end.reason}: {end.message}; {where}")
        lab.kubectl("delete", "cmig", move, "-n", lab.namespace, "--ignore-not-found", "--wait=false")
        told = f"{how:11} {it!s:50} {end.reason:12} runs on at the {where} after"
        self.say(f"{number:4} {told} {time.monotonic() - began:.0f} s")

    def _relieve(self) -> None:
        while not self._over.wait(_RELIEF_SECONDS):
            with suppress(AssertionError, OSError, ValueError):
                self.lab.relieve()
