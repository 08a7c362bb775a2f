from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from migration_api.base import format_time
from migration_api.conditions import Reason
from migration_api.crds import container_migration
from migration_api.migration import ContainerMigration, Decision, MigrationStatus
from migration_api.wire import Connections, Files, SourceReport, SourceState, TargetReport, TargetState
from migration_operator.events import events
from migration_operator.observation import Observation
from migration_operator.status import patch, report
from migration_operator.step import Action, Step
from support.controller import NOW, SOURCE, TARGET, agent, begun, migration, source_pod
from support.kstatus import kstatus

STEPS = ["PreflightPassed", "TargetPrepared", "Checkpointed", "Transferred", "Restored", "Committed", "SourceReleased"]
LATER = NOW + timedelta(seconds=5)


def observation(of: ContainerMigration, at: Any = NOW, **sides: Any) -> Observation:
    return Observation(
        at,
        of,
        source_pod=source_pod(),
        source_agent=agent(SOURCE, source=sides.get("source")),
        target_agent=agent(TARGET, target=sides.get("target")),
    )


def verdicts(status: MigrationStatus) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status, c.reason) for c in status.conditions}


def after(of: ContainerMigration, status: MigrationStatus, **changes: Any) -> ContainerMigration:
    return of.model_copy(update={"status": status.model_copy(update=changes)})


def test_golden_first_visit() -> None:
    of = migration(generation=3)
    step = Step(Action.BEGIN, Reason.IN_PROGRESS, "the pod can be moved")
    new = report(Observation(NOW, of), step)
    at = format_time(NOW)

    def expected(type_: str, status: str, reason: str, message: str) -> dict[str, Any]:
        return {
            "type": type_,
            "status": status,
            "observedGeneration": 3,
            "lastTransitionTime": at,
            "reason": reason,
            "message": message,
        }

    assert patch(of.status, new) == {
        "observedGeneration": 3,
        "phase": "InProgress",
        "message": "the pod can be moved",
        "timings": {"startedAt": at, "admittedAt": at},
        "conditions": [
            expected("PreflightPassed", "Unknown", "InProgress", "the pod can be moved"),
            *(expected(type_, "Unknown", "Pending", "") for type_ in STEPS[1:]),
            expected("Succeeded", "Unknown", "InProgress", "the pod can be moved"),
            expected("Reconciling", "True", "InProgress", "the pod can be moved"),
            expected("Stalled", "False", "InProgress", ""),
        ],
    }


def test_nothing_is_written_when_nothing_changed() -> None:
    of = migration(status=begun())
    step = Step(Action.WAIT, Reason.PREPARING_TARGET, "starting")
    new = report(observation(of), step)
    again = after(of, MigrationStatus.model_validate(new.dump()))
    assert patch(again.status, report(observation(again, at=LATER), step)) == {}


def test_a_condition_s_time_is_when_its_status_changed() -> None:
    of = migration(status=begun())
    of = after(of, report(observation(of), Step(Action.WAIT, Reason.PREPARING_TARGET, "scheduling")))
    later = report(observation(of, at=LATER), Step(Action.WAIT, Reason.PREPARING_TARGET, "pulling"))
    assert {c.last_transition_time for c in later.conditions} == {NOW}
    assert next(c for c in later.conditions if c.type == "Reconciling").message == "pulling"
    at_gate = TargetReport(state=TargetState.AT_GATE, gate_age_seconds=1)
    passed = report(observation(after(of, later), at=LATER, target=at_gate), Step(Action.CHECKPOINT, Reason.DONE, "x"))
    changed = {c.type for c in passed.conditions if c.last_transition_time == LATER}
    assert changed == {"TargetPrepared"}


def test_a_new_generation_is_observed() -> None:
    of = migration(status=begun(), generation=1)
    step = Step(Action.WAIT, Reason.PREPARING_TARGET, "starting")
    of = after(of, report(observation(of), step))
    of = of.model_copy(update={"metadata": of.metadata.model_copy(update={"generation": 2})})
    new = report(observation(of, at=LATER), step)
    assert new.observed_generation == 2
    assert {c.observed_generation for c in new.conditions} == {2}
    assert {c.last_transition_time for c in new.conditions} == {NOW}


@pytest.mark.parametrize(
    ("source", "target", "passed"),
    [
        (None, None, 1),
        (None, TargetReport(state=TargetState.AT_GATE, gate_age_seconds=3), 2),
        (SourceReport(state=SourceState.DUMPED, dumped_at=NOW), TargetReport(state=TargetState.RECEIVING), 3),
        (SourceReport(state=SourceState.SENT), TargetReport(state=TargetState.RECEIVED, received_at=NOW), 4),
        (SourceReport(state=SourceState.SENT), TargetReport(state=TargetState.HELD, held_at=NOW), 5),
    ],
)
def test_steps_are_passed_in_order(source: Any, target: Any, passed: int) -> None:
    of = migration(status=begun())
    new = report(observation(of, source=source, target=target), Step(Action.WAIT, Reason.RESTORING, "m"))
    got = [verdicts(new)[type_] for type_ in STEPS]
    assert got == [
        *[("True", "Done")] * passed,
        ("Unknown", "Restoring"),
        *[("Unknown", "Pending")] * (len(STEPS) - passed - 1),
    ]


def test_what_was_passed_stays_passed_when_an_agent_forgets() -> None:
    of = migration(status=begun())
    held = TargetReport(state=TargetState.HELD, held_at=NOW, received_at=NOW, bytes_received=7)
    step = Step(Action.WAIT, Reason.RESTORING, "m")
    first = report(observation(of, target=held), step)
    second = report(observation(after(of, first)), step)
    assert verdicts(second)["Restored"] == ("True", "Done")
    assert second.timings.restored_at == NOW
    assert second.progress.bytes_done == 7


def test_what_the_move_costs_in_connections_is_said_and_kept() -> None:
    of = migration(status=begun())
    step = Step(Action.WAIT, Reason.IN_PROGRESS, "")

    def said(of: ContainerMigration, found: Connections | None) -> str:
        source = SourceReport(state=SourceState.DUMPED, dumped_at=NOW, connections=found) if found else None
        status = report(observation(of, source=source), step)
        return next(c.message for c in status.conditions if c.type == "Checkpointed")

    assert said(of, Connections(within=2)) == ""
    assert said(of, Connections(outside=3)) == "3 TCP connections with others are closed when it goes on at the target."
    both = Connections(within=2, outside=1)
    assert "Those within the pod are closed, too" in said(of, both)
    source = SourceReport(state=SourceState.DUMPED, dumped_at=NOW, connections=both)
    later = after(of, report(observation(of, source=source), step))
    assert "Those within the pod are closed, too" in said(later, None)


def test_files_on_a_disk_are_said_and_kept() -> None:
    of = migration(status=begun())
    step = Step(Action.WAIT, Reason.IN_PROGRESS, "")
    here = SourceReport(state=SourceState.DUMPED, dumped_at=NOW, files=Files(on_disk=True, why="/run is small"))
    there = TargetReport(state=TargetState.AT_GATE, gate_age_seconds=1, files=Files(on_disk=True, why="it is full"))

    def said(of: ContainerMigration, source: SourceReport | None, target: TargetReport | None) -> MigrationStatus:
        return report(observation(of, source=source, target=target), step)

    def note(status: MigrationStatus) -> str:
        return next(c.message for c in status.conditions if c.type == "TargetPrepared")

    assert note(said(of, SourceReport(state=SourceState.DUMPED, dumped_at=NOW), None)) == ""
    first = said(of, None, there)
    assert note(first) == "Node node-b: it is full."
    second = said(after(of, first), here, there)
    assert note(second) == "Node node-b: it is full. Node node-a: /run is small."
    assert note(said(after(of, second), None, None)) == note(second), "the agents have forgotten"
    assert note(said(after(of, second), here, there)) == note(second)


def test_progress_has_rate_and_time_left_and_changes_only_with_the_bytes() -> None:
    of = migration(status=begun())
    step = Step(Action.WAIT, Reason.RESTORING, "m")
    source = SourceReport(state=SourceState.DUMPED, frozen_at=NOW, bytes_total=1000, chunks_sent=3, chunks_resumed=2)
    some = TargetReport(state=TargetState.RECEIVING, bytes_received=400)
    first = report(observation(of, at=LATER - timedelta(seconds=1), source=source, target=some), step)
    progress = first.progress
    assert (progress.bytes_per_second, progress.seconds_left) == (100, 6)
    assert (progress.chunks_sent, progress.chunks_resumed) == (3, 2)
    assert report(observation(after(of, first), at=LATER, source=source, target=some), step).progress == progress
    whole = TargetReport(state=TargetState.RECEIVED, bytes_received=1000, received_at=LATER)
    last = report(observation(after(of, first), at=LATER + timedelta(hours=1), source=source, target=whole), step)
    assert (last.progress.bytes_per_second, last.progress.seconds_left) == (200, None)
    assert report(observation(after(of, last)), step).progress == last.progress, "the agents have forgotten"


def test_giving_up_says_why_at_the_step_that_was_not_passed() -> None:
    of = migration(status=begun())
    dumped = SourceReport(state=SourceState.DUMPED, dumped_at=NOW)
    give_up = Step(Action.PROPOSE_ABORT, Reason.TRANSFER_FAILED, "the connection broke")
    proposed = report(observation(of, source=dumped), give_up)
    assert verdicts(proposed)["Checkpointed"] == ("True", "Done")
    assert verdicts(proposed)["Transferred"] == ("False", "TransferFailed")
    assert verdicts(proposed)["Committed"] == ("False", "NotReached")
    assert proposed.decision is None, "registers are none of its business"
    aborted = after(of, proposed, decision=Decision.ABORT)
    end = Step(Action.FINISH, Reason.ROLLED_BACK, "it runs on; the connection broke")
    ended = report(observation(aborted, at=LATER), end)
    assert verdicts(ended)["Transferred"] == ("False", "TransferFailed")
    assert verdicts(ended)["Succeeded"] == ("False", "RolledBack")
    assert verdicts(ended)["Reconciling"] == ("False", "RolledBack")
    assert verdicts(ended)["Stalled"] == ("True", "RolledBack")
    assert (ended.phase, ended.timings.completed_at) == ("RolledBack", LATER)


def test_the_agent_s_own_reason_is_kept() -> None:
    status = begun(decision="Abort")
    status["source"] |= {"reason": "FreezeBudgetExceeded", "message": "31 s"}
    new = report(observation(migration(status=status)), Step(Action.SETTLE, Reason.ROLLING_BACK, "m"))
    assert verdicts(new)["TargetPrepared"] == ("False", "FreezeBudgetExceeded")


def test_a_lost_source_is_written_down_before_its_agent_forgets_it() -> None:
    lost = SourceReport(state=SourceState.LOST, settled=True)
    of = migration(status=begun(decision="Abort"))
    new = report(observation(of, source=lost), Step(Action.FORGET, Reason.ROLLING_BACK, "m"))
    assert verdicts(new)["SourceReleased"] == ("False", "SourceLost")


def test_success() -> None:
    frozen, resumed = NOW, NOW + timedelta(seconds=2.5)
    of = migration(status=begun(decision="Commit", target={"outcome": "Resumed"}))
    source = SourceReport(state=SourceState.RELEASED, settled=True, frozen_at=frozen, dumped_at=NOW)
    target = TargetReport(state=TargetState.RESUMED, settled=True, received_at=NOW, held_at=NOW, resumed_at=resumed)
    first = report(observation(of, source=source, target=target), Step(Action.FORGET, Reason.RELEASING_SOURCE, "m"))
    assert first.timings.freeze_seconds == "2.500"
    done = report(observation(after(of, first)), Step(Action.FINISH, Reason.SUCCEEDED, "it runs"))
    assert {verdicts(done)[type_] for type_ in STEPS} == {("True", "Done")}
    assert verdicts(done)["Succeeded"] == ("True", "Succeeded")
    assert verdicts(done)["Stalled"] == ("False", "Succeeded")
    assert (done.phase, done.timings.freeze_seconds) == ("Succeeded", "2.500")


def test_the_freeze_of_a_source_that_went_on_is_measured_there() -> None:
    of = migration(status=begun(decision="Abort"))
    source = SourceReport(
        state=SourceState.THAWED, settled=True, frozen_at=NOW, thawed_at=NOW + timedelta(milliseconds=750)
    )
    new = report(observation(of, source=source), Step(Action.FORGET, Reason.ROLLING_BACK, "m"))
    assert new.timings.freeze_seconds == "0.750"


def test_clocks_that_differ_never_give_less_than_nothing() -> None:
    of = migration(status=begun(decision="Commit"))
    source = SourceReport(state=SourceState.SENT, frozen_at=NOW)
    target = TargetReport(state=TargetState.RESUMED, resumed_at=NOW - timedelta(seconds=1))
    new = report(observation(of, source=source, target=target), Step(Action.WAIT, Reason.COMMITTED, "m"))
    assert new.timings.freeze_seconds == "0.000"


def test_stalled_is_said_where_tools_look() -> None:
    step = Step(Action.WAIT, Reason.TARGET_LOST_AFTER_COMMIT, "node-b is away", stalled=True)
    new = report(observation(migration(status=begun(decision="Commit"))), step)
    assert verdicts(new)["Stalled"] == ("True", "TargetLostAfterCommit")
    assert verdicts(new)["Succeeded"] == ("Unknown", "TargetLostAfterCommit")
    assert new.phase == "Stalled"


def test_when_the_target_was_ready_is_kept() -> None:
    of = migration(status=begun())
    step = Step(Action.WAIT, Reason.PREPARING_TARGET, "m")
    first = report(observation(of, target=TargetReport(state=TargetState.AT_GATE, gate_age_seconds=3)), step)
    assert first.timings.prepared_at == NOW - timedelta(seconds=3)
    assert report(observation(after(of, first), at=LATER), step).timings.prepared_at == first.timings.prepared_at


ABORTED = begun(decision="Abort")
KSTATUS: list[tuple[str, dict[str, Any], Step]] = [
    ("InProgress", begun(), Step(Action.WAIT, Reason.PREPARING_TARGET, "starting")),
    ("InProgress", begun(), Step(Action.PROPOSE_ABORT, Reason.TRANSFER_FAILED, "it broke")),
    ("Failed", begun(decision="Commit"), Step(Action.WAIT, Reason.TARGET_LOST_AFTER_COMMIT, "away", stalled=True)),
    ("Failed", {}, Step(Action.FINISH, Reason.PREFLIGHT_FAILED, "hostNetwork")),
    ("Failed", ABORTED, Step(Action.FINISH, Reason.ROLLED_BACK, "it runs on")),
    ("Failed", ABORTED, Step(Action.FINISH, Reason.SOURCE_LOST, "it died")),
    ("Current", begun(decision="Commit"), Step(Action.FINISH, Reason.SUCCEEDED, "it runs")),
]


@pytest.mark.parametrize(("expected", "status", "step"), KSTATUS, ids=[f"{s.action}-{s.reason}" for _, _, s in KSTATUS])
def test_what_gitops_tools_see(expected: str, status: dict[str, Any], step: Step) -> None:
    of = migration(status=status, generation=2)
    thing = {"metadata": {"generation": 2}, "status": report(observation(of), step).dump()}
    assert kstatus(thing) == expected
    assert kstatus({**thing, "metadata": {"generation": 3}}) == "InProgress"


def test_a_new_object_is_not_taken_for_one_that_is_done() -> None:
    status = container_migration()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
    assert kstatus({"metadata": {"generation": 1}, "status": status["default"]}) == "InProgress"


def test_giving_up_is_told_with_its_cause_and_once() -> None:
    of = migration(status=begun())
    dumped = SourceReport(state=SourceState.DUMPED, dumped_at=NOW)
    step = Step(Action.PROPOSE_ABORT, Reason.TRANSFER_FAILED, "the connection broke")
    proposed = report(observation(of, source=dumped), step)
    assert [(e.reason, e.message, e.warning) for e in events(of.status, proposed)] == [
        ("TransferFailed", "the connection broke", True)
    ]
    aborted = after(of, proposed, decision=Decision.ABORT)
    thawing = report(observation(aborted, at=LATER), Step(Action.SETTLE, Reason.ROLLING_BACK, "m"))
    assert events(proposed, thawing) == []
    ended = report(observation(aborted, at=LATER), Step(Action.FINISH, Reason.ROLLED_BACK, "it runs on"))
    assert [e.reason for e in events(thawing, ended)] == ["RolledBack"]


def test_a_stall_is_told_once() -> None:
    of = migration(status=begun(decision="Commit"))
    moving = report(observation(of), Step(Action.WAIT, Reason.COMMITTED, "m"))
    lost = Step(Action.WAIT, Reason.TARGET_LOST_AFTER_COMMIT, "node-b is away", stalled=True)
    stalled = report(observation(after(of, moving)), lost)
    assert [(e.reason, e.warning) for e in events(moving, stalled)] == [("TargetLostAfterCommit", True)]
    assert events(stalled, stalled) == []


def test_events_are_few() -> None:
    of = migration(status=begun(decision="Commit"))
    committed = report(observation(of), Step(Action.WAIT, Reason.COMMITTED, "m"))
    assert [(e.reason, e.warning) for e in events(of.status, committed)] == [("Committed", False)]
    done = report(observation(after(of, committed)), Step(Action.FINISH, Reason.SUCCEEDED, "it runs"))
    assert [(e.reason, e.message) for e in events(committed, done)] == [("Succeeded", "it runs")]
    assert events(done, done) == []
    refused = report(Observation(NOW, migration()), Step(Action.FINISH, Reason.PREFLIGHT_FAILED, "hostNetwork"))
    assert [(e.reason, e.warning) for e in events(migration().status, refused)] == [("PreflightFailed", True)]


def test_what_is_not_known_any_more_is_removed_from_the_progress() -> None:
    """A merge patch that does not name a field leaves it as it is."""
    old = MigrationStatus.model_validate({"progress": {"bytesTotal": 100, "bytesDone": 50, "secondsLeft": 1}})
    new = MigrationStatus.model_validate({"progress": {"bytesTotal": 100, "bytesDone": 100}})
    changes = patch(old, new)
    assert changes == {"progress": {"bytesTotal": 100, "bytesDone": 100, "secondsLeft": None}}
