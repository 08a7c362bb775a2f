"""The strategy PostCopy as the operator sees it: what is estimated, refused, waited for and said."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from migration_api.conditions import ConditionType, Reason
from migration_api.migration import Decision, Outcome, Strategy
from migration_api.preflight_reasons import PreflightReason
from migration_api.wire import LAZY_FROM_BYTES, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.estimates import (
    FREEZE_BASE_SECONDS,
    POST_COPY_BYTES_PER_SECOND,
    ROOM_FACTOR,
    checkpoint_bytes,
    freeze_estimate,
    memory_follows,
    room_needed,
)
from migration_operator.observation import Observation
from migration_operator.plan import plan
from migration_operator.preflight import problems
from migration_operator.status import report
from migration_operator.step import Action
from support.controller import (
    FACTS,
    NOW,
    SOURCE,
    TARGET,
    adopted,
    agent,
    begun,
    migration,
    node,
    pod_facts,
    preflight_facts,
    source_pod,
    target_pod,
)

POST_COPY = {"strategy": "PostCopy"}
CANNOT = FACTS.model_copy(update={"post_copy": False})


def test_only_what_must_come_before_the_commit_counts_for_freeze_and_room() -> None:
    small, large = pod_facts(16), pod_facts(4096)
    assert checkpoint_bytes(small, Strategy.POST_COPY) == checkpoint_bytes(small, Strategy.STOP_AND_COPY)
    assert checkpoint_bytes(large, Strategy.POST_COPY) == LAZY_FROM_BYTES
    assert room_needed(large, Strategy.POST_COPY) == int(LAZY_FROM_BYTES * ROOM_FACTOR)
    it, pod = migration(spec=POST_COPY), source_pod()
    more = freeze_estimate(it, pod, large, None) - freeze_estimate(it, pod, small, None)
    assert more < 1 + 4096 * 2**20 / POST_COPY_BYTES_PER_SECOND
    assert freeze_estimate(migration(), pod, large, None) > 40 + FREEZE_BASE_SECONDS
    assert memory_follows(small, None) == 0
    assert 40 < memory_follows(large, None) < 41


def test_the_expected_freeze_stands_in_the_status_before_anything_is_touched() -> None:
    for strategy, expected in (({}, "42.0"), (POST_COPY, "3.3")):
        it = Observation(NOW, migration(spec=strategy), preflight=preflight_facts(pod_facts=pod_facts(4096)))
        status = report(it, plan(it))
        assert status.timings.freeze_estimate_seconds == expected
        later = Observation(NOW, it.migration.model_copy(update={"status": status}))
        assert report(later, plan(it)).timings.freeze_estimate_seconds == expected, "kept"


def found(spec: dict[str, Any], **facts: Any) -> list[tuple[str, str]]:
    return [(p.reason, p.message) for p in problems(migration(spec=spec), preflight_facts(**facts), NOW)]


@pytest.mark.parametrize(
    ("nodes", "name"),
    [
        ({"source": node(SOURCE, CANNOT), "target": node(TARGET)}, SOURCE),
        ({"target": node(TARGET, CANNOT)}, TARGET),
    ],
)
def test_a_kernel_that_cannot_fill_memory_in_is_refused_by_name(nodes: dict[str, Any], name: str) -> None:
    where = {"target": {"nodeName": TARGET}}
    [(reason, message)] = found({**POST_COPY, **where}, **nodes)
    assert reason == PreflightReason.POST_COPY_NOT_POSSIBLE
    assert f"the kernel of node {name} cannot" in message
    assert found(where, **nodes) == []


def test_a_probe_that_would_kill_the_source_before_its_memory_has_moved_is_a_reason() -> None:
    probe = {"httpGet": {"port": 80}, "periodSeconds": 5, "failureThreshold": 3, "timeoutSeconds": 1}
    probed = source_pod(spec={"containers": [{"name": "main", "livenessProbe": probe}]})
    assert found(POST_COPY, pod=probed, pod_facts=pod_facts(700)) == []
    [(reason, message)] = found(POST_COPY, pod=probed, pod_facts=pod_facts(800))
    assert reason == PreflightReason.POST_COPY_NOT_POSSIBLE
    assert "longer than the 7 s after which the liveness probe of container main kills it" in message
    assert found(POST_COPY, pod_facts=pod_facts(800)) == []


def committed(
    source: SourceReport | None, target: TargetReport | None, spec: dict[str, Any] = POST_COPY, **status: Any
) -> Observation:
    status = begun(decision=Decision.COMMIT, **status)
    status["target"]["outcome"] = Outcome.RESUMED
    return Observation(
        NOW,
        migration(status=status, spec=spec, **adopted()),
        source_pod=source_pod(),
        target_pod=target_pod(status={"phase": "Running"}),
        source_agent=agent(SOURCE, source=source) if source else agent(SOURCE, problem="timeout"),
        target_agent=agent(TARGET, target=target),
    )


LENDING = SourceReport(state=SourceState.SENT, lending=True)
RUNS = TargetReport(state=TargetState.RESUMING, filling=True, resumed_at=NOW)


def test_the_source_is_waited_for_while_its_memory_moves() -> None:
    it = committed(LENDING, RUNS)
    step = plan(it)
    assert (step.action, step.reason) == (Action.WAIT, Reason.MOVING_MEMORY)
    verdicts = {c.type: (c.status, c.reason) for c in report(it, step).conditions}
    assert verdicts[ConditionType.COMMITTED] == ("True", Reason.DONE)
    assert verdicts[ConditionType.MEMORY_MOVED] == ("Unknown", Reason.MOVING_MEMORY)
    assert verdicts[ConditionType.SUCCEEDED] == ("Unknown", Reason.MOVING_MEMORY)
    assert verdicts[ConditionType.SOURCE_RELEASED] == ("Unknown", Reason.PENDING)


def test_a_source_out_of_reach_is_said_to_hold_up_whoever_needs_its_memory() -> None:
    step = plan(committed(None, RUNS))
    assert step.reason is Reason.AGENT_UNREACHABLE
    assert "whoever needs memory that has not come yet waits for it" in step.message
    moved = plan(committed(None, RUNS, timings={"filledAt": NOW}))
    assert "the frozen source pod is deleted when the agent is back" in moved.message


def test_when_all_has_come_the_source_is_released_and_the_condition_says_so() -> None:
    target = RUNS.model_copy(update={"filling": False, "filled_at": NOW + timedelta(seconds=3), "settled": True})
    it = committed(SourceReport(state=SourceState.SENT), target)
    step = plan(it)
    assert (step.action, step.reason) == (Action.SETTLE, Reason.RELEASING_SOURCE)
    status = report(it, step)
    verdicts = {c.type: c.status for c in status.conditions}
    assert verdicts[ConditionType.MEMORY_MOVED] == "True"
    assert verdicts[ConditionType.SOURCE_RELEASED] == "Unknown"
    assert status.timings.filled_at == target.filled_at


def test_memory_that_was_lost_is_the_end_and_stands_there_when_the_agents_have_forgotten() -> None:
    lost = RUNS.model_copy(update={"filling": False, "settled": True, "memory_lost": "process 7 died"})
    it = committed(SourceReport(state=SourceState.RELEASED, settled=True), lost)
    status = report(it, plan(it))
    [condition] = [c for c in status.conditions if c.type == ConditionType.MEMORY_MOVED]
    assert (condition.status, condition.reason, condition.message) == ("False", Reason.MEMORY_LOST, "process 7 died")
    later = it.migration.model_copy(update={"status": status})
    forgotten = Observation(
        NOW, later, target_pod=it.target_pod, source_agent=agent(SOURCE), target_agent=agent(TARGET)
    )
    step = plan(forgotten)
    assert (step.action, step.reason) == (Action.FINISH, Reason.MEMORY_LOST)
    assert "started afresh in pod" in step.message
    end = report(forgotten, step)
    assert end.phase == "Failed"
    assert {c.type: c.status for c in end.conditions}[ConditionType.SUCCEEDED] == "False"


def test_memory_that_a_copy_did_not_get_because_the_source_goes_on_is_not_lost() -> None:
    """Found by a storm: the budget had ended the freeze while the copy was being restored."""
    target = TargetReport(
        state=TargetState.DESTROYED, settled=True, memory_lost="it does not stand still: it is Thawed"
    )
    status = begun(decision=Decision.ABORT)
    source = SourceReport(state=SourceState.THAWED, settled=True)
    it = Observation(
        NOW,
        migration(status=status, spec=POST_COPY, **adopted()),
        source_pod=source_pod(),
        source_agent=agent(SOURCE, source=source),
        target_agent=agent(TARGET, target=target),
    )
    assert it.memory_lost == ""
    verdicts = {c.type: c.reason for c in report(it, plan(it)).conditions}
    assert verdicts[ConditionType.MEMORY_MOVED] != Reason.MEMORY_LOST


def test_without_post_copy_there_is_no_such_condition() -> None:
    it = committed(SourceReport(state=SourceState.SENT), RUNS, spec={})
    assert ConditionType.MEMORY_MOVED not in {c.type for c in report(it, plan(it)).conditions}
