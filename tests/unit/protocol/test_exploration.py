"""I1 to I4 in every state that the whole system can reach (docs/verification.md says what is modelled)."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from migration_agent.paths import Layout
from migration_agent.ticket import Ticket, Tickets, TicketState
from support.protocol import faults
from support.protocol.barrier import ended, halves, reachable
from support.protocol.explore import Exploration
from support.protocol.faults import Faults
from support.protocol.world import World

pytestmark = pytest.mark.timeout(1800)  # a slow machine is no failure

CASES = {
    "any one accident": (World(accidents=1), faults.ALL, 400_000),
    "two processes die": (World(accidents=2), (faults.processes,), 350_000),
    "two operators by mistake": (World(operators=2), (), 70_000),
    "a clone, and any one accident": (World(clone=True, accidents=1), faults.ALL, 600_000),
    "memory that follows, and any one accident": (World(post_copy=True, accidents=1), faults.ALL, 400_000),
    "under the same name, and any one accident": (World(same=True, accidents=1), faults.ALL, 300_000),
    "under the same name, and two processes die": (World(same=True, accidents=2), (faults.processes,), 100_000),
}


@pytest.mark.parametrize("case", CASES)
def test_i1_to_i4_in_every_state(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    start, kinds, least = CASES[case]
    exploration = explored(start, kinds)
    with capsys.disabled():
        print(f"\n{case}: {exploration.summary}")
    assert len(exploration.worlds) >= least, "the world must be rich enough to mean something"


def explored(start: World, kinds: tuple[Faults, ...]) -> Exploration:
    began = time.process_time()
    exploration = Exploration(kinds=kinds)
    exploration.explore(start)
    exploration.demand_an_end()
    exploration.seconds = time.process_time() - began
    return exploration


def test_without_accidents_it_only_succeeds_or_is_given_up_for_its_budget() -> None:
    ends = set(explored(World(), ()).ends)
    assert ends == {"Succeeded, runs at the target", "RolledBack, runs at the source"}


def test_under_the_same_name_without_accidents_it_succeeds_or_is_given_up_for_its_budget() -> None:
    exploration = explored(World(same=True), ())
    assert set(exploration.ends) == {"Succeeded, runs at the target", "RolledBack, runs at the source"}
    assert not [w for w in exploration.worlds if w.runs and w.source_pod], "one pod of a name at any time"
    assert {w.decision for w in exploration.worlds if not w.source_pod} == {"Commit"}


def test_a_clone_without_accidents_leaves_its_source_running_whatever_the_end() -> None:
    exploration = explored(World(clone=True), ())
    assert set(exploration.ends) == {"Succeeded, runs at the target", "RolledBack, runs at the source"}
    copied = [w for w in exploration.worlds if w.s_let_go]
    assert copied
    assert all(w.source_runs and not w.fence for w in copied)


def test_memory_that_follows_is_lost_only_when_the_source_dies() -> None:
    ends = set(explored(World(post_copy=True), ()).ends)
    assert ends == {"Succeeded, runs at the target", "RolledBack, runs at the source"}
    ends = set(explored(World(post_copy=True, accidents=1), (faults.machines,)).ends)
    assert "MemoryLost, runs at the target" in ends


def test_a_checkpoint_that_is_to_stay_is_kept_before_the_end_whoever_dies() -> None:
    ends = set(explored(World(retain=True, accidents=1), (faults.processes,)).ends)
    assert "Succeeded, runs at the target" in ends


def test_a_restore_without_a_source_ends_whatever_goes_wrong() -> None:
    start = World(restore=True, source_pod="", container="", accidents=1)
    ends = set(explored(start, faults.ALL).ends)
    assert {"Succeeded, runs at the target", "NotRestored, runs at nowhere"} <= ends


@pytest.mark.parametrize("containers", [2, 3, 4])
def test_i1_i2_at_the_barrier_all_run_or_none(containers: int) -> None:
    states = reachable(containers)
    assert {frozenset(b.hooks) for b in states if ended(b)} >= {frozenset({"runs"}), frozenset({"dead"})}
    assert not halves(states)
    assert all(b.ticket == "resuming" for b in states if "runs" in b.hooks)


def test_without_its_mutex_the_barrier_would_tear_a_pod_apart() -> None:
    assert halves(reachable(2, with_mutex=False))


@pytest.mark.parametrize("before", TicketState)
@pytest.mark.parametrize("act", ["create", "destroy", "rename"])
def test_the_models_ticket_is_the_real_one(tmp_path: Path, before: TicketState, act: str) -> None:
    """What the model says about `pending`, `resuming` and `destroyed`, done to files by the real code."""
    layout = Layout(tmp_path)
    layout.prepare()
    tickets, ticket = Tickets(layout), Ticket(migration="m", containers=("main",))
    directory = layout.ticket("pod")
    if before is not TicketState.NONE:
        tickets.create("pod", ticket)
    if before is TicketState.RESUMING:
        (directory / "pending").rename(directory / "resuming")
    if before is TicketState.DESTROYED:
        tickets.destroy("pod", ticket)
    expected = {
        "create": {TicketState.NONE: TicketState.PENDING},
        "destroy": {TicketState.NONE: TicketState.DESTROYED, TicketState.PENDING: TicketState.DESTROYED},
        "rename": {TicketState.PENDING: TicketState.RESUMING},
    }[act].get(before, before)
    if act == "create":
        tickets.create("pod", ticket)
    elif act == "destroy":
        tickets.destroy("pod", ticket)
    elif (directory / "pending").exists():  # the hook's rename(2)
        (directory / "pending").rename(directory / "resuming")
    assert tickets.state("pod") is expected
