"""The operator's part in the move of a Podman container: what is refused, and the plan without any pod."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from migration_api.conditions import Reason
from migration_api.migration import ContainerMigration
from migration_api.podman import ENTRY, PodmanContainerFacts, PodmanFacts, PodmanQuestion
from migration_api.preflight_reasons import PreflightReason as Why
from migration_api.wire import Connections, Failure, MigrationRef, RunBy, SourceReport, SourceState, TargetState, Thaw
from migration_operator.observation import Observation, PodmanPair, PreflightFacts
from migration_operator.plan import plan
from migration_operator.preflight import problems
from migration_operator.requests import source_request, target_request
from migration_operator.status import report
from migration_operator.step import Action
from support.agent import SHIPPING
from support.controller import (
    MEBIBYTE,
    NOW,
    SOURCE,
    TARGET,
    UID,
    adopted,
    agent,
    migration,
    node,
    target_at,
)

ID = "8d6b7460149066a121e86187482db3e3c58aba894953800f4a13054b6228a517"
SPEC = {"podman": {"nodeName": SOURCE, "container": "Web_1"}, "target": {"nodeName": TARGET}}
BEGUN = {"source": {"nodeName": SOURCE, "podUID": ID}, "target": {"nodeName": TARGET, "podUID": ID}}


def moving(**more: Any) -> ContainerMigration:
    spec = {**SPEC, **more.pop("spec", {})}
    return migration(spec=spec, **more)


def container(**changes: Any) -> PodmanContainerFacts:
    fields: dict[str, Any] = {
        "id": ID,
        "name": "Web_1",
        "status": "running",
        "image_id": "86a7",
        "image_name": "registry.example/web:1",
        "memory_bytes": 64 * MEBIBYTE,
        "changed_bytes": MEBIBYTE,
    }
    return PodmanContainerFacts(**{**fields, **changes})


HERE = PodmanFacts(criu_version="4.2.1", container=container())
THERE = PodmanFacts(criu_version="4.2.1", image_id="86a7")


def facts(**changes: Any) -> PreflightFacts:
    """Return facts in order; `here`, `there` and `pair` among the keywords change what the Podmans say."""
    pair = PodmanPair(
        HERE.model_copy(update=changes.pop("here", {})),
        THERE.model_copy(update=changes.pop("there", {})),
        PodmanFacts(criu_version="4.2.1"),
    )
    pair = replace(pair, **changes.pop("pair", {}))
    return replace(PreflightFacts(pod=None, source=node(SOURCE), target=node(TARGET), podman=pair), **changes)


def found(it: PreflightFacts, **spec: Any) -> list[tuple[Why, str]]:
    return [(problem.reason, problem.message) for problem in problems(moving(spec=spec), it, NOW)]


def test_nothing_stands_against_a_container_by_itself() -> None:
    assert found(facts()) == []


TABLE: list[tuple[dict[str, Any], Why, str]] = [
    ({"pair": {"allowed": False}}, Why.PODMAN_NAMESPACE, "namespace shop, not the operator's"),
    ({"here": {"problem": "Podman is not installed there"}}, Why.PODMAN_UNUSABLE, f"node {SOURCE} cannot be used"),
    ({"there": {"problem": "Podman is not installed there"}}, Why.PODMAN_UNUSABLE, f"node {TARGET} cannot be used"),
    ({"there": {"criu_version": ""}}, Why.PODMAN_UNUSABLE, f"node {TARGET} finds no CRIU"),
    ({"there": {"criu_version": "3.19"}}, Why.PODMAN_UNUSABLE, "CRIU 4.2.1, on node-b CRIU 3.19"),
    ({"here": {"container": None}}, Why.PODMAN_CONTAINER_NOT_FOUND, f"node {SOURCE} has no Podman container Web_1"),
    ({"source": node(SOURCE, exists=False)}, Why.PODMAN_CONTAINER_NOT_FOUND, f"there is no node {SOURCE}"),
    ({"target": node(TARGET, exists=False)}, Why.TARGET_NODE_NOT_FOUND, TARGET),
    ({"target": node(TARGET, schedulable=False)}, Why.NODE_NOT_READY, "cordoned"),
    (
        {"there": {"container": container(id="6" * 64)}},
        Why.PODMAN_NAME_TAKEN,
        "has a Podman container Web_1 (666666666666)",
    ),
    (
        {"pair": {"there_by_id": PodmanFacts(container=container(name="other"))}},
        Why.PODMAN_NAME_TAKEN,
        "container other (8d6b74601490)",
    ),
    ({"there": {"image_id": ""}}, Why.PODMAN_IMAGE_MISSING, f"node {TARGET} has none of that name"),
    ({"there": {"image_id": "other"}}, Why.PODMAN_IMAGE_MISSING, "has another one under that name (other)"),
    ({"there": {"missing_paths": ("/srv",)}}, Why.PODMAN_BIND_MISSING, f"node {TARGET} lacks /srv"),
]

CONTAINER_TABLE: list[tuple[dict[str, Any], Why, str]] = [
    ({"status": "paused"}, Why.PODMAN_CONTAINER_NOT_RUNNING, "Web_1 is paused"),
    ({"volumes": ("data", "/cache")}, Why.PODMAN_VOLUMES, "has the volumes data, /cache"),
    ({"dependencies": ("7" * 64,)}, Why.PODMAN_DEPENDENCIES, "depends on container 777777777777"),
    ({"pod": "8" * 64}, Why.PODMAN_DEPENDENCIES, "depends on pod 888888888888"),
    ({"restart_policy": "always"}, Why.PODMAN_STARTED_AGAIN, "the restart policy always"),
    ({"systemd_unit": "web.service"}, Why.PODMAN_STARTED_AGAIN, "the unit web.service"),
    ({"auto_remove": True}, Why.PODMAN_REMOVED, "--rm"),
    ({"cgroups": False}, Why.PODMAN_NO_CGROUP, "no cgroup of its own"),
    ({"connections": Connections(outside=3)}, Why.PODMAN_CONNECTIONS, "3 TCP connections with others"),
    ({"migration": "another"}, Why.ALREADY_MIGRATING, "for the migration with UID another"),
    ({"memory_bytes": 10_000 * MEBIBYTE}, Why.NO_ROOM, f"node {TARGET} has no room"),
    ({"memory_bytes": 4000 * MEBIBYTE}, Why.FREEZE_TOO_LONG, "longer than the budget of 30 s"),
]


@pytest.mark.parametrize(("changes", "reason", "words"), TABLE)
def test_what_stands_against_it(changes: dict[str, Any], reason: Why, words: str) -> None:
    [(why, message)] = found(facts(**changes))
    assert why is reason
    assert words in message


@pytest.mark.parametrize(("changes", "reason", "words"), CONTAINER_TABLE)
def test_what_the_container_itself_has_against_it(changes: dict[str, Any], reason: Why, words: str) -> None:
    got = found(facts(here={"container": container(**changes)}))
    assert any(why is reason and words in message for why, message in got), got


def test_connections_within_it_move() -> None:
    assert found(facts(here={"container": container(connections=Connections(within=2))})) == []


def test_the_target_is_another_node() -> None:
    [(why, _)] = found(facts(target=node(SOURCE)), target={"nodeName": SOURCE})
    assert why is Why.TARGET_IS_SOURCE


def test_the_older_migration_of_a_container_goes_first() -> None:
    older = moving(uid="older", name="first", creation_timestamp=NOW - timedelta(seconds=60))
    younger = moving(uid="younger", name="second", creation_timestamp=NOW)
    assert [why for why, _ in found(facts(rivals=(older,)))] == [Why.ALREADY_MIGRATING]
    assert found(facts(rivals=(younger,))) == []


def test_an_agent_that_does_not_answer_is_waited_for() -> None:
    it = facts(pair={"here": None, "there": None, "there_by_id": None}, agent_problem="node-a: timeout")
    step = plan(Observation(NOW, moving(), preflight=it))
    assert (step.action, step.reason) == (Action.WAIT, Reason.AGENT_UNREACHABLE)


def begun(**changes: Any) -> Observation:
    status = {**BEGUN, "timings": {"startedAt": NOW}, **changes.pop("status", {})}
    the_object = moving(status=status, spec=changes.pop("spec", {}), **adopted())
    fields: dict[str, Any] = {"source_agent": agent(SOURCE), "target_agent": agent(TARGET)}
    return Observation(NOW, the_object, **{**fields, **changes})


def test_it_begins_when_its_turn_has_come() -> None:
    it = Observation(NOW, moving(**adopted()), preflight=facts())
    assert plan(it).action is Action.BEGIN


READY = agent(TARGET, target=target_at(TargetState.PREPARED, at_late_gate=True))
RECEIVED = agent(TARGET, target=target_at(TargetState.RECEIVED, at_late_gate=True, received_at=NOW))
SENT = agent(SOURCE, source=SourceReport(state=SourceState.SENT, frozen_at=NOW, dumped_at=NOW))
RELEASED = agent(SOURCE, source=SourceReport(state=SourceState.RELEASED, settled=True))
RESUMED = agent(TARGET, target=target_at(TargetState.RESUMED, at_late_gate=True))
THAWED = agent(SOURCE, source=SourceReport(state=SourceState.THAWED, settled=True))
DESTROYED = agent(TARGET, target=target_at(TargetState.DESTROYED))
COMMIT: dict[str, Any] = {"decision": "Commit"}
AFTER: dict[str, Any] = {"decision": "Commit", "target": {**BEGUN["target"], "outcome": "Resumed"}}

FORWARD: list[tuple[dict[str, Any], Action, Reason]] = [
    ({}, Action.PREPARE_TARGET, Reason.PREPARING_TARGET),
    (
        {"target_agent": agent(TARGET, target=target_at(TargetState.PREPARED))},
        Action.WAIT,
        Reason.PREPARING_TARGET,
    ),
    ({"target_agent": READY}, Action.CHECKPOINT, Reason.CHECKPOINTING),
    ({"target_agent": READY, "source_agent": SENT}, Action.WAIT, Reason.TRANSFERRING),
    ({"target_agent": RECEIVED, "source_agent": SENT}, Action.WAIT, Reason.RESTORING),
    ({"target_agent": RECEIVED, "source_agent": SENT, "status": COMMIT}, Action.WAIT, Reason.COMMITTED),
    ({"target_agent": RESUMED, "source_agent": SENT, "status": AFTER}, Action.SETTLE, Reason.RELEASING_SOURCE),
    ({"target_agent": RESUMED, "source_agent": RELEASED, "status": AFTER}, Action.FORGET, Reason.RELEASING_SOURCE),
    ({"status": AFTER}, Action.FINISH, Reason.SUCCEEDED),
]


@pytest.mark.parametrize(("changes", "action", "reason"), FORWARD)
def test_the_way_forward_has_no_pod(changes: dict[str, Any], action: Action, reason: Reason) -> None:
    it = begun(**changes)
    step = plan(it)
    assert (step.action, step.reason) == (action, reason)
    assert "None" not in step.message
    report(it, step)


def test_the_end_says_where_it_runs() -> None:
    assert plan(begun(status=AFTER)).message == f"the container runs on in the Podman of node {TARGET}"


def test_what_the_agents_say_is_the_reason_to_go_back() -> None:
    why = Failure(reason=Reason.TARGET_FAILED, message="Node node-b has a Podman container Web_1 already")
    failed = agent(TARGET, target=target_at(TargetState.PREPARED, failure=why))
    assert plan(begun(target_agent=failed)).action is Action.PROPOSE_ABORT
    lost = agent(SOURCE, source=SourceReport(state=SourceState.LOST, settled=True))
    step = plan(begun(target_agent=READY, source_agent=lost))
    assert (step.action, step.reason) == (Action.PROPOSE_ABORT, Reason.SOURCE_LOST)


def test_back_at_the_source_nothing_has_happened() -> None:
    status = {"decision": "Abort", "source": {**BEGUN["source"], "reason": "CheckpointFailed", "message": "why"}}
    step = plan(begun(status=status))
    assert (step.action, step.reason) == (Action.FINISH, Reason.ROLLED_BACK)
    assert step.message.startswith("Podman container Web_1 runs on as if nothing had happened")
    waits = plan(begun(status=status, source_agent=SENT, target_agent=DESTROYED))
    assert waits.action is Action.SETTLE


def test_i1_a_target_that_is_out_of_service_is_given_up_by_the_taint_alone() -> None:
    silent = agent(TARGET, problem="timeout", ready=False, out_of_service=True)
    step = plan(begun(status=COMMIT, source_agent=SENT, target_agent=silent))
    assert step.action is Action.RETURN


class Agents:
    """Answers as the source's agent does."""

    def __init__(self, container: PodmanContainerFacts | None) -> None:
        self.container = container

    async def podman(self, _: object, question: PodmanQuestion) -> PodmanFacts:
        assert question.container == ID
        return HERE.model_copy(update={"container": self.container})


@pytest.mark.parametrize("clone", [False, True])
async def test_both_agents_are_asked_for_the_same_container(*, clone: bool) -> None:
    agents: Any = Agents(container())
    ref = MigrationRef(namespace="shop", name="move", uid=UID)
    it = begun(spec={"leaveSourceRunning": clone})
    target = await target_request(agents, it, ref, SHIPPING)
    source = await source_request(agents, it, ref, SHIPPING)
    for request in (target, source):
        assert (request.run_by, request.pod_uid, request.pod_name) == (RunBy.PODMAN, ID, "Web_1")
        assert request.containers == request.all_containers == (ENTRY,)
        assert request.expected_bytes == int(65 * MEBIBYTE * 1.2)
    assert (target.source_node, source.target_node) == (SOURCE, TARGET)
    assert source.refuse_connections
    assert source.thaw is (Thaw.DUMPED if clone else Thaw.DECIDED)
