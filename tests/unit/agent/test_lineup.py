"""The order of a pod's restores, over every combination of what up to four containers can be at."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest

from migration_agent.lineup import Lineup, Place

ABSENT, WAITING, RESTORING, HELD, RELEASED = Place
ENGAGED = {RESTORING, HELD, RELEASED}


def lineups() -> Iterator[Lineup]:
    for count in (1, 2, 3, 4):
        yield from (Lineup(places) for places in product(Place, repeat=count))


def test_i1_only_a_complete_unbroken_pod_is_held() -> None:
    for it in lineups():
        assert it.held == (set(it.places) == {HELD}), it
        assert not (it.held and it.broken), it
        assert not Lineup(it.places, one_sandbox=False).held


def test_whose_turn_it_is_has_only_held_ones_before_it() -> None:
    for it in lineups():
        turn = it.next
        if turn is not None:
            assert it.places[turn] is WAITING
            assert set(it.places[:turn]) <= {HELD}
            assert turn not in it.out_of_turn


def test_who_waits_either_has_its_turn_or_is_sent_away() -> None:
    """Nobody waits for one before it that the kubelet will not start while it waits."""
    for it in lineups():
        for index, place in enumerate(it.places):
            assert (place is WAITING) == (index == it.next or index in it.out_of_turn), it


def test_unbroken_is_what_the_kubelets_order_allows() -> None:
    for it in lineups():
        if it.broken or not it.engaged:
            continue
        held = [place for place in it.places if place in {HELD, RELEASED}]
        assert list(it.places[: len(held)]) == held, "those that are complete come first"
        rest = it.places[len(held) :]
        assert not ENGAGED & set(rest[1:]), "one at a time"
        if RELEASED in held:
            assert not rest, "nobody is told to resume before all are held"


def test_a_single_container_is_never_broken() -> None:
    assert not any(Lineup((place,)).broken for place in Place)


@pytest.mark.parametrize(
    ("places", "broken"),
    [
        ((HELD, ABSENT), False),
        ((HELD, WAITING), False),
        ((HELD, RESTORING), False),
        ((ABSENT, HELD), True),
        ((WAITING, RESTORING), True),
        ((RELEASED, ABSENT), True),
        ((RELEASED, HELD), False),
        ((HELD, RELEASED), False),
        ((ABSENT, RELEASED), True),
        ((WAITING, WAITING), False),
    ],
)
def test_a_lost_tree_is_recognized(places: tuple[Place, ...], broken: bool) -> None:
    assert Lineup(places).broken is broken
    assert Lineup(places, one_sandbox=False).broken
