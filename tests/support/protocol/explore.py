"""Looks at every state that can be reached, in the order of distance, and tells the shortest way to what is wrong."""

from __future__ import annotations

import gc
from array import array
from collections import Counter
from dataclasses import dataclass, field

from support.protocol.api import api, arrival
from support.protocol.faults import ALL, Faults, faults
from support.protocol.invariants import broken, left_over
from support.protocol.nodes import source_node, target_node
from support.protocol.operator import operator
from support.protocol.rules import Rules
from support.protocol.source import source
from support.protocol.target import target
from support.protocol.world import Edges, World


class Wrong(Exception):
    """An invariant does not hold; the message is the shortest history that shows it."""


def orderly(w: World, rules: Rules) -> Edges:
    """What happens when nothing more goes wrong."""
    yield from operator(w, rules)
    yield from source(w, rules)
    yield from target(w, rules)
    yield from source_node(w, rules)
    yield from target_node(w, rules)
    yield from api(w, rules)


@dataclass
class Exploration:
    """All states, by number, with the way to each and back."""

    rules: Rules = field(default_factory=Rules)
    kinds: tuple[Faults, ...] = ALL
    worlds: list[World] = field(default_factory=list[World])
    edges: int = 0
    ends: Counter[str] = field(default_factory=Counter[str])
    seconds: float = 0.0
    _number: dict[World, int] = field(default_factory=dict[World, int])
    _parent: array[int] = field(default_factory=lambda: array("l"))
    _how: list[str] = field(default_factory=list[str])
    _orderly: array[int] = field(default_factory=lambda: array("l"))
    """Pairs: from, to."""

    def explore(self, start: World) -> None:
        """Visit everything.

        Raises:
            Wrong: a state or a step breaks an invariant.
        """
        collecting = gc.isenabled()
        gc.disable()  # a million tuples without a cycle among them
        try:
            self._visit(start)
        finally:
            if collecting:
                gc.enable()

    def _visit(self, start: World) -> None:
        self._add(start, -1, "")
        at = 0
        while at < len(self.worlds):
            w = self.worlds[at]
            for how, after in orderly(w, self.rules):
                if how.endswith("delayed") or after.accidents < w.accidents:
                    self._reach(at, how, after)
                else:
                    self._orderly.extend((at, self._reach(at, how, after)))
            for how, after in faults(w, self.kinds):
                self._reach(at, how, after)
            for request in w.flying:
                self._reach(at, *arrival(w, request, self.rules))
            at += 1

    @property
    def summary(self) -> str:
        ends = ", ".join(f"{count} x {end}" for end, count in self.ends.most_common())
        return f"{len(self.worlds)} states, {self.edges} steps, {self.seconds:.0f} s; ends: {ends}"

    def demand_an_end(self) -> None:
        """Demand that from each state, with nothing more going wrong, an end is reached that leaves nothing behind.

        Raises:
            Wrong: from some state there is no way.
        """
        count = len(self.worlds)
        before: list[list[int]] = [[] for _ in range(count)]
        for i in range(0, len(self._orderly), 2):
            before[self._orderly[i + 1]].append(self._orderly[i])
        good = [not left_over(w) for w in self.worlds]
        queue = [n for n in range(count) if good[n]]
        for n in queue:
            self.ends[self._end(self.worlds[n])] += 1
        while queue:
            for n in before[queue.pop()]:
                if not good[n]:
                    good[n] = True
                    queue.append(n)
        stuck = next((n for n in range(count) if not good[n]), None)
        if stuck is not None:
            raise Wrong(self.history(stuck, f"I4: it never ends: {self._why_stuck(stuck)}"))

    def history(self, number: int, what: str) -> str:
        """Return how a state was reached, one line a step."""
        steps: list[str] = []
        while number > 0:
            steps.append(self._how[number])
            number = self._parent[number]
        lines = [f"{i:3}. {how}" for i, how in enumerate(reversed(steps), 1)]
        return "\n".join([what, *lines])

    def _why_stuck(self, number: int) -> str:
        """Go on in good order as far as it goes and say what is left."""
        seen = {number}
        queue = [number]
        following: dict[int, list[int]] = {}
        for i in range(0, len(self._orderly), 2):
            following.setdefault(self._orderly[i], []).append(self._orderly[i + 1])
        for n in queue:
            for m in following.get(n, ()):
                if m not in seen:
                    seen.add(m)
                    queue.append(m)
        return min((left_over(self.worlds[n]) for n in queue), key=len)

    def _end(self, w: World) -> str:
        where = "the target" if w.runs else "the source" if w.source_runs else "nowhere"
        return f"{w.finished or 'vanished'}, runs at {where}"

    def _reach(self, at: int, how: str, after: World) -> int:
        known = self._number.get(after)
        self.edges += 1
        if known is not None:
            return known
        wrong = broken(self.worlds[at], after)
        number = self._add(after, at, how)
        if wrong:
            raise Wrong(self.history(number, wrong))
        return number

    def _add(self, w: World, parent: int, how: str) -> int:
        number = len(self.worlds)
        self._number[w] = number
        self.worlds.append(w)
        self._parent.append(parent)
        self._how.append(how)
        return number
