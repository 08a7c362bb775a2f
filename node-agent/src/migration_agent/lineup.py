"""How far the restored containers of one target pod are, in the order in which the kubelet starts them.

The kubelet starts a container when the one before it has been created; a restored one counts as created when it is
held. So there is one next container, and whatever does not fit this order means that a tree was lost.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    """How far one container is, by who is connected for it now."""

    ABSENT = "absent"
    WAITING = "waiting"
    """At the gate."""
    RESTORING = "restoring"
    HELD = "held"
    """Its hook holds a complete tree."""
    RELEASED = "released"
    """Its hook was told to resume and is on its way to pre-resume, or waits there for the others."""


_ENGAGED = frozenset({Place.RESTORING, Place.HELD, Place.RELEASED})
_COMPLETE = frozenset({Place.HELD, Place.RELEASED})


@dataclass(frozen=True)
class Lineup:
    """All restored containers, in the pod's order."""

    places: tuple[Place, ...]
    one_sandbox: bool = True
    """All that are engaged belong to the same sandbox."""

    @property
    def held(self) -> bool:
        """Whether every one is held."""
        return all(place is Place.HELD for place in self.places) and self.one_sandbox

    @property
    def engaged(self) -> bool:
        """Whether any tree exists or is being made."""
        return any(place in _ENGAGED for place in self.places)

    @property
    def restoring(self) -> bool:
        """Whether any tree is being made or is on its way to run."""
        return any(place in {Place.RESTORING, Place.RELEASED} for place in self.places)

    @property
    def next(self) -> int | None:
        """Return the index of the container that waits and whose turn it is: all before it are held."""
        before = 0
        while before < len(self.places) and self.places[before] is Place.HELD:
            before += 1
        turn = before < len(self.places) and self.places[before] is Place.WAITING
        return before if turn else None

    @property
    def out_of_turn(self) -> tuple[int, ...]:
        """Return the indices of those that wait though one before them is not held: they would wait for ever."""
        return tuple(
            index
            for index, place in enumerate(self.places)
            if place is Place.WAITING and any(earlier is not Place.HELD for earlier in self.places[:index])
        )

    @property
    def broken(self) -> bool:
        """Whether a tree is lost that others count on: none of them may run."""
        if not self.one_sandbox:
            return True
        if Place.RELEASED in self.places and not all(place in _COMPLETE for place in self.places):
            return True
        return any(
            place in _ENGAGED and any(earlier not in _COMPLETE for earlier in self.places[:index])
            for index, place in enumerate(self.places)
        )
