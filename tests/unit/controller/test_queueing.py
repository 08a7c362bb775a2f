"""Whose turn it is: the limits hold, nobody is overtaken for ever, and a busy node holds up nobody else."""

from __future__ import annotations

import random
from datetime import timedelta
from typing import Any

import pytest

from migration_operator.observation import Observation, Place
from migration_operator.plan import plan
from migration_operator.queueing import Claim, Limits, Queue, Seat, claim_of, places, seat_for, seat_of
from migration_operator.step import Action
from support.controller import NOW, SOURCE, TARGET, UID, begun, migration, node, preflight_facts, target_pod

LIMITS = Limits(cluster=5, node=2)


def claim(number: int, source: str = "a", *targets: str) -> Claim:
    return Claim(f"u{number:03}", NOW + timedelta(seconds=number), source, frozenset(targets or {"b"}))


def seat(*nodes: str, anywhere: bool = False) -> Seat:
    return Seat(frozenset(nodes), anywhere)


def granted(seats: list[Seat], claims: list[Claim], limits: Limits = LIMITS) -> list[str]:
    return [uid for uid, place in places(seats, claims, limits).items() if place.granted]


def test_as_many_as_the_nodes_may() -> None:
    assert granted([], [claim(3), claim(1), claim(2)]) == ["u001", "u002"]


def test_as_many_as_the_cluster_may() -> None:
    pairs = [claim(i, f"s{i}", f"t{i}") for i in range(7)]
    assert granted([], pairs) == ["u000", "u001", "u002", "u003", "u004"]
    assert places([], pairs, LIMITS)["u006"] == Place(2, "5 migrations run in the cluster, which may have 5")


def test_a_node_counts_as_source_and_as_target() -> None:
    assert granted([seat("a", "b"), seat("c", "a")], [claim(1, "a", "d"), claim(2, "d", "a"), claim(3, "d", "e")]) == []
    assert granted([seat("a", "b"), seat("c", "a")], [claim(3, "d", "e")]) == ["u003"]


def test_a_busy_node_holds_up_nobody_else() -> None:
    busy = [seat("a", "b"), seat("a", "b")]
    assert granted(busy, [claim(1), claim(2), claim(3, "c", "d")]) == ["u003"]


def test_who_waits_is_not_overtaken_on_the_nodes_that_it_waits_for() -> None:
    """Two nodes that become free in turns would else be taken by those who want only one of them."""
    busy = [seat("a", "x"), seat("a", "y")]
    found = places(busy, [claim(1, "a", "b"), claim(2, "c", "b"), claim(3, "c", "a")], LIMITS)
    assert found["u001"] == Place(1, "node a takes part in 2 migrations and may in 2")
    assert found["u002"].granted, "b has room, and the first waits for a"
    assert found["u003"] == Place(2, "node a takes part in 2 migrations and may in 2")
    half = [seat("a", "x"), seat("b", "y"), seat("b", "z")]
    found = places(half, [claim(1, "a", "b"), claim(2, "a", "c")], LIMITS)
    assert found["u002"] == Place(2, "an earlier migration waits for node a")


def test_any_of_several_targets_will_do() -> None:
    busy = [seat("x", "b"), seat("y", "b")]
    assert granted(busy, [claim(1, "a", "b", "c")]) == ["u001"]
    assert granted([*busy, seat("c", "z"), seat("c", "w")], [claim(1, "a", "b", "c")]) == []


def test_one_that_is_being_scheduled_counts_on_every_node() -> None:
    assert granted([seat("a", anywhere=True), seat("c", anywhere=True)], [claim(1, "d", "e")]) == []
    assert seat_for(claim(1, "a", "b", "c")) == seat("a", anywhere=True)
    assert seat_for(claim(1, "a", "b")) == seat("a", "b")


def test_what_a_migration_claims() -> None:
    named = preflight_facts(target=node(TARGET), candidates=())
    assert claim_of(migration(), named, NOW) == Claim(UID, NOW - timedelta(seconds=10), SOURCE, frozenset({TARGET}))
    picked = preflight_facts(candidates=(node(SOURCE), node(TARGET), node("cordoned", schedulable=False), node("c")))
    assert claim_of(migration(), picked, NOW).targets == {TARGET, "c"}


@pytest.mark.parametrize(
    ("status", "fields", "expected"),
    [
        (begun(), {}, seat(SOURCE, TARGET)),
        (begun(target_node=None), {}, seat(SOURCE, anywhere=True)),
        (begun(target_node=None, decision="Abort"), {}, seat(SOURCE)),
    ],
)
def test_what_a_migration_occupies(status: dict[str, Any], fields: dict[str, Any], expected: Seat) -> None:
    assert seat_of(Observation(NOW, migration(status=status), **fields)) == expected


def test_a_pod_without_a_node_does_not_hold_up_the_whole_cluster() -> None:
    said = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
    pod = target_pod(node=None, status={"conditions": [said]})
    o = Observation(NOW, migration(status=begun(target_node=None)), target_pod=pod)
    assert seat_of(o) == seat(SOURCE)


WAITED: dict[str, Any] = {"timings": {"startedAt": NOW - timedelta(hours=1)}}
"""Longer than `deadlineSeconds`."""
QUEUED: dict[str, Any] = {
    "conditions": [
        {
            "type": "PreflightPassed",
            "status": "Unknown",
            "reason": "Queued",
            "message": "number 1",
            "lastTransitionTime": NOW,
            "observedGeneration": 1,
        }
    ]
}


@pytest.mark.parametrize(
    ("place", "status", "action"),
    [
        (Place(1, "others"), {}, Action.WAIT),
        (Place(), {}, Action.ADOPT),
        (None, QUEUED, Action.QUEUE),
        (None, {}, Action.PROPOSE_ABORT),
    ],
    ids=[
        "waits",
        "its turn has come just now",
        "waited before the operator was restarted",
        "never passed the preflight",
    ],
)
def test_the_deadline_does_not_count_while_others_have_their_turn(
    place: Place | None, status: dict[str, Any], action: Action
) -> None:
    of = migration(status={**WAITED, **status})
    step = plan(Observation(NOW, of, preflight=preflight_facts(), place=place))
    assert step.action is action, step


def queue(limits: Limits = LIMITS) -> tuple[Queue, list[str]]:
    woken: list[str] = []
    it = Queue(limits, woken.append)
    it.resume([])
    return it, woken


def test_who_leaves_lets_the_next_one_in() -> None:
    it, woken = queue()
    for number in range(4):
        it.ask(claim(number))
    assert woken == ["u000", "u001"]
    assert it.place("u002") == Place(1, "node a takes part in 2 migrations and may in 2")
    assert it.place("u003") == Place(2, "node a takes part in 2 migrations and may in 2")
    assert it.place("nobody") is None
    assert it.full() == {"a", "b"}
    it.leave("u000")
    assert woken == ["u000", "u001", "u002"]
    it.leave("u003")
    it.leave("u001")
    assert woken == ["u000", "u001", "u002"]
    assert it.place("u003") is None


def test_when_the_scheduler_has_chosen_the_other_nodes_are_free() -> None:
    it, woken = queue(Limits(cluster=5, node=1))
    it.ask(claim(1, "a", "b", "c"))
    it.ask(claim(2, "d", "e"))
    assert woken == ["u001"]
    it.sit("u001", seat("a", "c"))
    assert woken == ["u001", "u002"]


def test_a_new_operator_counts_those_that_run_before_it_lets_anybody_in() -> None:
    woken: list[str] = []
    it = Queue(LIMITS, woken.append)
    it.ask(claim(1, SOURCE, TARGET))
    assert woken == []
    it.sit("r1", seat(SOURCE, TARGET))
    it.leave("r2")
    ended = {"conditions": [{**condition_of("True"), "type": "Succeeded"}]}
    it.resume(
        [
            migration(uid="r1", status=begun()),
            migration(uid="r2", status=begun()),  # has ended since the list was made
            migration(uid="r3", status={**begun(), **ended}),
            migration(uid="r4"),
        ]
    )
    it.ask(claim(1, SOURCE, TARGET))
    it.ask(claim(2, SOURCE, TARGET))
    assert woken == ["u001"]


def condition_of(status: str) -> dict[str, Any]:
    return {"status": status, "observedGeneration": 1, "lastTransitionTime": NOW, "reason": "Done", "message": ""}


@pytest.mark.parametrize("seed", range(20))
def test_whatever_comes_and_goes_the_limits_hold_and_everybody_has_a_turn(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  not a secret
    nodes = "abcdef"
    running: dict[str, Claim] = {}
    waiting: dict[str, Claim] = {}
    placed: dict[str, str] = {}
    it = Queue(LIMITS, lambda uid: running.update({uid: waiting.pop(uid)}))
    it.resume([])

    def schedule() -> None:
        """As the scheduler does: a node that is not busy, when there is one that fits; after a while."""
        for uid, one in list(running.items()):
            if uid not in placed and chance.random() < 0.5:
                free = sorted(one.targets if len(one.targets) == 1 else one.targets - it.full())
                assert free, (one, running)
                placed[uid] = chance.choice(free)
                it.sit(uid, seat(one.source, placed[uid]))

    def end_one() -> None:
        it.leave(done := chance.choice(sorted(running)))
        running.pop(done)

    for number in range(300):
        source, *targets = chance.sample(nodes, chance.choice((2, 2, 2, 3, 6)))
        one = claim(number, source, *targets)
        waiting[one.uid] = one
        it.ask(one)
        schedule()
        if running and chance.random() < 0.7:
            end_one()
        assert len(running) <= LIMITS.cluster
        for name in nodes:
            there = [uid for uid, c in running.items() if name in {c.source, placed.get(uid)}]
            assert len(there) <= LIMITS.node, (name, running)
    while running:
        end_one()
    assert not waiting, "somebody waits for ever"


def test_those_who_want_one_of_two_nodes_do_not_keep_out_who_wants_both() -> None:
    """Nodes a and b become free in turns, and there is always somebody who wants only that one."""
    running: list[str] = []
    it = Queue(LIMITS, running.append)
    it.resume([])
    for number, source in enumerate(("a", "b") * 2):
        it.ask(claim(number, source, f"t{number}"))
    it.ask(claim(10, "a", "b"))
    for turn in range(4):
        it.ask(claim(20 + turn, "ab"[turn % 2], f"t{turn}"))
        it.leave(running[turn])
    assert "u010" in running[:6], running


def test_limits_below_one_are_refused() -> None:
    assert Limits.from_environment({}) == Limits(5, 2)
    assert Limits.from_environment({"PARALLEL_MIGRATIONS_PER_CLUSTER": "9"}) == Limits(9, 2)
    with pytest.raises(ValueError, match="no migration would ever run"):
        Limits.from_environment({"PARALLEL_MIGRATIONS_PER_NODE": "0"})
