"""A ContainerCheckpoint is looked at once, removed with what is stored, and never waits for ever for its store."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from migration_api.checkpoint import POD_BYTES, ContainerCheckpoint
from migration_api.checkpoint_reasons import CheckpointReason
from migration_api.conditions import Reason
from migration_api.wire import Failure, SourceReport, SourceState
from migration_operator.checkpoint_plan import CheckpointAction as Action
from migration_operator.checkpoint_plan import (
    CheckpointObservation,
    Trouble,
    next_checkpoint_action,
    why_not_taken,
    with_ready,
)
from migration_operator.checkpoints import checkpoint_name, described, kept_manifest, kept_pod, series_of
from migration_operator.pods import Pod
from support.checkpoints import VOLUME, checkpoint
from support.controller import NOW, SOURCE, UID, agent, manifest, migration, of_deployment, source_pod, target_pod

AWAY = Trouble(CheckpointReason.STORE_UNAVAILABLE, "it is away")
LOST = Trouble(CheckpointReason.STORE_UNAVAILABLE, "its Secret is gone", passing=False)


@pytest.mark.parametrize(
    ("it", "action"),
    [
        (checkpoint(), Action.KEEP),
        (checkpoint(status={"uid": None}), Action.REST),
        (checkpoint(ready="True"), Action.REST),
        (checkpoint(ready="False"), Action.REST),
        (checkpoint(deletion_timestamp=NOW), Action.REMOVE),
        (checkpoint(ready="True", deletion_timestamp=NOW), Action.REMOVE),
        (checkpoint(deletion_timestamp=NOW, finalizers=()), Action.REST),
    ],
)
def test_the_next_action(it: object, action: Action) -> None:
    assert next_checkpoint_action(CheckpointObservation(NOW, it)) is action  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(("trouble", "seconds"), [(AWAY, 120), (LOST, 10)])
def test_a_store_that_is_gone_does_not_hold_the_object_for_ever(trouble: Trouble, seconds: int) -> None:
    for after, action in ((seconds - 1, Action.REMOVE), (seconds + 1, Action.GIVE_UP)):
        it = checkpoint(ready="True", deletion_timestamp=NOW - timedelta(seconds=after))
        assert next_checkpoint_action(CheckpointObservation(NOW, it, trouble=trouble)) is action
        assert next_checkpoint_action(CheckpointObservation(NOW, it)) is Action.REMOVE, "it is tried once at least"


def test_the_word_ready_keeps_what_else_is_known() -> None:
    it = checkpoint()
    status = with_ready(it, "True", CheckpointReason.COMPLETE, "all is there", at=NOW)
    assert (status.phase, status.uid, status.key_secret) == ("Ready", UID, it.status.key_secret)
    assert [(c.type, c.status, c.reason) for c in status.conditions] == [("Ready", "True", "Complete")]


def test_the_object_of_a_migration_is_the_same_for_every_operator_and_holds_its_deletion_back() -> None:
    of = migration(spec={"retain": True, "transport": VOLUME})
    assert of.spec.transport is not None
    made = kept_manifest(of, of.spec.transport)
    assert made == kept_manifest(of, of.spec.transport)
    assert made["metadata"]["finalizers"]
    assert made["spec"]["migration"] == {"name": "move", "uid": UID}
    assert checkpoint_name(of).startswith("redis-")


def test_a_pod_is_kept_without_what_ties_it_to_its_owner() -> None:
    pod = Pod(manifest(metadata=of_deployment()))
    kept = kept_pod(pod)
    assert kept["metadata"] == {"name": "redis", "labels": {"app": "web"}, "annotations": {}}
    assert kept["spec"] == pod.spec
    assert kept["status"]["containerStatuses"][0]["imageID"].startswith("sha256:")
    assert series_of(pod) == "web"


def test_a_series_goes_over_moves() -> None:
    assert series_of(source_pod()) == "redis"
    moved = Pod({**target_pod().manifest, "metadata": {**target_pod().metadata, "name": "redis-"}})
    assert series_of(moved).startswith("redis")


def test_what_is_described() -> None:
    status = described(
        source_pod(), uid=UID, key_secret="k", containers=("main",), node_name="node-a", facts=None, taken_at=NOW
    )
    assert status.source is not None
    assert status.source.containers == ("main",)
    assert [(i.container, i.image) for i in status.images] == [("main", "docker.io/library/redis:7")]
    assert status.pod is not None
    assert json.loads(status.pod)["metadata"]["name"] == "redis"
    huge = source_pod(metadata={"annotations": {"a": "x" * POD_BYTES}})
    assert (
        described(huge, uid=UID, key_secret="k", containers=("main",), node_name=None, facts=None, taken_at=None).pod
        is None
    )


def taking(*, begun: bool = True, ready: str = "Unknown", **metadata: Any) -> ContainerCheckpoint:
    """Return a checkpoint that is to be taken from the pod `redis`."""
    spec: dict[str, Any] = {"migration": None, "podName": "redis"}
    status: dict[str, Any] = {"begunAt": NOW} if begun else {"uid": None, "source": None}
    return checkpoint(ready=ready, spec=spec, status=status, **metadata)


SENT = SourceReport(state=SourceState.THAWED, settled=True, sent_at=NOW)
FAILED = SourceReport(
    state=SourceState.THAWED, settled=True, failure=Failure(reason=Reason.CHECKPOINT_FAILED, message="CRIU says no")
)


@pytest.mark.parametrize(
    ("it", "more", "action"),
    [
        (taking(begun=False), {}, Action.WAIT),
        (taking(begun=False), {"objection": "PodNotFound: there is none"}, Action.FAIL),
        (taking(begun=False, finalizers=()), {"objection": ""}, Action.ADOPT),
        (taking(begun=False), {"objection": ""}, Action.BEGIN),
        (taking(begun=False, ready="False"), {}, Action.REST),
        (taking(), {"agent": agent(SOURCE)}, Action.TAKE),
        (taking(), {"agent": agent(SOURCE), "refusal": "another migration has it"}, Action.FAIL),
        (taking(), {"agent": agent(SOURCE, problem="timeout")}, Action.WAIT),
        (taking(), {"agent": agent(SOURCE, problem="timeout", ready=False)}, Action.FAIL),
        (taking(), {"agent": agent(SOURCE, source=SourceReport(state=SourceState.FROZEN))}, Action.WAIT),
        (taking(), {"agent": agent(SOURCE, source=SENT)}, Action.KEEP),
        (taking(), {"agent": agent(SOURCE, source=FAILED)}, Action.FAIL),
        (taking(ready="True"), {"agent": agent(SOURCE, source=SENT)}, Action.FORGET),
        (taking(ready="False"), {"agent": agent(SOURCE, source=FAILED)}, Action.FORGET),
        (
            taking(ready="False"),
            {"agent": agent(SOURCE, source=SourceReport(state=SourceState.FROZEN))},
            Action.WAIT,
        ),
        (taking(ready="True"), {"agent": agent(SOURCE)}, Action.REST),
        (
            taking(deletion_timestamp=NOW),
            {"agent": agent(SOURCE, source=SourceReport(state=SourceState.FROZEN))},
            Action.WAIT,
        ),
        (taking(deletion_timestamp=NOW), {"agent": agent(SOURCE, source=SENT)}, Action.FORGET),
        (taking(deletion_timestamp=NOW), {"agent": agent(SOURCE)}, Action.REMOVE),
        (taking(deletion_timestamp=NOW), {"agent": agent(SOURCE, problem="gone", ready=False)}, Action.REMOVE),
    ],
)
def test_the_next_action_of_a_taking(it: ContainerCheckpoint, more: dict[str, Any], action: Action) -> None:
    assert next_checkpoint_action(CheckpointObservation(NOW, it, **more)) is action


def test_a_taking_has_a_deadline_and_says_so() -> None:
    going = agent(SOURCE, source=SourceReport(state=SourceState.DUMPED))
    o = CheckpointObservation(NOW + timedelta(seconds=601), taking(), agent=going)
    assert next_checkpoint_action(o) is Action.FAIL
    assert "not complete within 600 s" in why_not_taken(o)
    assert why_not_taken(CheckpointObservation(NOW, taking(), agent=agent(SOURCE, source=FAILED))) == "CRIU says no"


def test_it_lies_under_its_own_uid() -> None:
    assert taking().uid == taking().metadata.uid
    assert checkpoint().uid == UID


def test_a_claim_is_mounted_before_a_checkpoint_is_taken_into_it() -> None:
    it = checkpoint(spec={"migration": None, "podName": "redis"}, status={"uid": None})

    def action(**what: Any) -> Action:
        return next_checkpoint_action(CheckpointObservation(NOW, it, **what))

    assert action(to_mount=(SOURCE,)) is Action.MOUNT
    assert action() is Action.WAIT
    assert action(refusal="a quota is used up", to_mount=(SOURCE,)) is Action.FAIL
    assert action(objection="it does not run", to_mount=()) is Action.FAIL
