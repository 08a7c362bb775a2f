"""The source side of a checkpoint that is taken: nobody decides, nobody is asked, and the pod always goes on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from pydantic import ValidationError

from migration_agent.ports import PeerState, TransferFailed
from migration_agent.runtime.interface import ContainerStatus
from migration_agent.seen import Verdict, seen_checkpoint
from migration_agent.source_plan import SourceObservation, SourceStep, next_source_step
from migration_api.base import now
from migration_api.checkpoint import ContainerCheckpoint
from migration_api.conditions import Reason
from migration_api.shipping import Stays, StoreAccess
from migration_api.transport import SharedVolume
from migration_api.wire import SourceRequest, SourceState, Thaw
from support.agent import MIGRATION, SHIPPING, source_request
from support.source_world import World

BOOLEANS = (False, True)
DUMPED = {SourceState.DUMPED, SourceState.SENT}
LIVE = [s for s in SourceState if s not in {SourceState.THAWED, SourceState.RELEASED, SourceState.LOST}]
STORE = StoreAccess(shared_volume=SharedVolume(path="/mnt/shared"))


def everything() -> Iterator[SourceObservation]:
    for state, verdict, peer in product(LIVE, Verdict, (None, *PeerState)):
        for let_go in BOOLEANS if state in DUMPED else (False,):
            for flags in product(BOOLEANS, repeat=7):
                yield SourceObservation(state, verdict, peer, *flags, apart=True, taking=True, let_go=let_go)


def test_i2_nothing_of_it_is_ever_killed_nobody_is_asked_and_nothing_is_decided() -> None:
    never = {SourceStep.RELEASE, SourceStep.REFREEZE, SourceStep.ASK_PROMISE, SourceStep.ABORT, SourceStep.PAY_ABORT}
    assert not {next_source_step(it) for it in everything()} & never


def test_i5_it_goes_on_by_itself() -> None:
    for it in everything():
        step = next_source_step(it)
        if it.state in DUMPED and not it.let_go:
            assert step is (SourceStep.WAIT if it.working else SourceStep.LET_GO), it
        stuck = it.expired or it.failed or not it.alive or it.verdict is Verdict.GONE or not it.wanted
        if it.state in {SourceState.FENCED, SourceState.FROZEN} and stuck:
            assert step is (SourceStep.THAW if it.alive else SourceStep.LOSE), it


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, taking=True)


def keep(world: World) -> None:
    world.vault.keep(MIGRATION, SHIPPING.model_copy(update={"store": STORE, "stays": Stays.WHEN_IT_ENDED_WELL}))


async def test_it_is_taken_and_stays_in_the_store_while_the_pod_goes_on(world: World) -> None:
    keep(world)
    await world.reach(SourceState.THAWED)
    assert world.peers.sent == ["the store"]
    assert world.node.status_ is ContainerStatus.RUNNING
    assert (world.node.fenced, world.node.dropped) == (False, False)
    report = world.side.report()
    assert (report.settled, report.failure) == (True, None)
    assert None not in {report.frozen_at, report.dumped_at, report.thawed_at, report.sent_at}
    assert world.vault.owed() == {}, "what lies in the store stays"
    assert world.peers.asked == []
    world.cluster.migration = None
    await world.rounds_until(lambda: world.side.forgotten)
    assert world.peers.asked == [], "nobody is there to be told"


@pytest.mark.parametrize("how", ["unwanted", "gone", "failed"])
async def test_what_is_given_up_is_removed_and_the_pod_goes_on(world: World, how: str) -> None:
    keep(world)
    if how == "failed":
        world.peers.send_error = TransferFailed("the volume is full")
    await world.side.round()
    if how == "unwanted":
        assert world.cluster.migration is not None
        world.cluster.migration = replace(world.cluster.migration, given_up=True)
    if how == "gone":
        world.cluster.migration = None
    await world.reach(SourceState.THAWED)
    assert world.node.status_ is ContainerStatus.RUNNING
    if world.side.report().sent_at is None:
        assert world.vault.owed() == {MIGRATION: STORE}
    if how == "failed":
        failure = world.side.report().failure
        assert failure is not None
        assert "did not reach its store: the volume is full" in failure.message


async def test_i5_a_dump_that_takes_too_long_is_ended_with_its_reason(world: World) -> None:
    world.node.dump_error = "CRIU says no"
    await world.reach(SourceState.THAWED)
    failure = world.side.report().failure
    assert failure is not None
    assert failure.reason is Reason.CHECKPOINT_FAILED
    assert "CRIU says no" in failure.message
    assert world.node.status_ is ContainerStatus.RUNNING


@pytest.mark.parametrize("state", [SourceState.FENCED, SourceState.FROZEN, SourceState.DUMPED, SourceState.SENT])
async def test_i4_a_new_life_of_the_agent_brings_it_to_its_end(world: World, state: SourceState) -> None:
    await world.rounds_until(lambda: world.side.record.state in {state, SourceState.THAWED})
    await world.restart()
    await world.reach(SourceState.THAWED)
    assert world.node.status_ is ContainerStatus.RUNNING
    assert not world.node.fenced


def test_a_request_is_one_or_the_other() -> None:
    taking, moving = source_request(taking=True).dump(reveal=True), source_request().dump(reveal=True)
    assert SourceRequest.model_validate(taking).taking
    for wrong in (
        {**taking, "targetNode": "node-b"},
        {**taking, "thaw": Thaw.DECIDED},
        {k: v for k, v in moving.items() if k != "targetNode"},
    ):
        with pytest.raises(ValidationError, match="a ContainerCheckpoint has no targetNode"):
            SourceRequest.model_validate(wrong)


def test_the_object_says_whether_it_is_wanted() -> None:
    def seen(**more: object) -> bool:
        spec = {"podName": "redis", "transport": {"type": "SharedVolume", "sharedVolume": {"path": "/mnt/a"}}}
        status = {"source": {"podName": "redis", "podUID": "u", "nodeName": "node-a", "containers": ["main"]}}
        it = ContainerCheckpoint.model_validate(
            {"metadata": {"name": "c", **more}, "spec": spec, "status": {**status, "conditions": conditions}}
        )
        found = seen_checkpoint(it)
        assert (found.source_node, found.source_pod_uid, found.target_node, found.decision) == (
            "node-a",
            "u",
            None,
            None,
        )
        return found.given_up

    common = {"type": "Ready", "observedGeneration": 1, "lastTransitionTime": now(), "reason": "r", "message": ""}
    for status, given_up in (("Unknown", False), ("True", False), ("False", True)):
        conditions = [{**common, "status": status}]
        assert seen() is given_up
    conditions = []
    assert seen(deletionTimestamp=now())
