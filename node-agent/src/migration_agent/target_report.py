"""The target side as the operator sees it: the journal's state, or what the live facts add to it."""

from __future__ import annotations

from migration_agent.gate_messages import CREATE_NS
from migration_agent.intake import Intake
from migration_agent.journal import TargetRecord
from migration_agent.restores import Restores
from migration_agent.ticket import TicketState
from migration_api.wire import TargetReport, TargetState


def target_report(
    record: TargetRecord, intake: Intake, restores: Restores, ticket: TicketState, *, filling: bool, now_ns: int
) -> TargetReport:
    """Return the report; `now_ns` is CLOCK_BOOTTIME."""
    age, late = None, restores.late_gate() is not None
    waiting, lineup = restores.waiting(), restores.lineup()
    if waiting is not None and not lineup.engaged:
        began = waiting.hello.deadline_boottime_ns - CREATE_NS
        age = max(0.0, (now_ns - began) / 1e9)
    facts = (
        (record.state is not TargetState.PREPARED, record.state),
        (ticket is TicketState.RESUMING, TargetState.RESUMING),
        (lineup.held, TargetState.HELD),
        (lineup.engaged, TargetState.RESTORING),
        (record.entries is not None, TargetState.RECEIVED),
        (intake.receiving, TargetState.RECEIVING),
        (waiting is not None or late, TargetState.AT_GATE),
    )
    return TargetReport(
        state=next((state for holds, state in facts if holds), TargetState.PREPARED),
        settled=record.settled,
        gate_age_seconds=age,
        at_late_gate=late,
        bytes_received=intake.bytes_received or sum(entry.size for entry in record.entries or ()),
        bytes_total=record.expected_bytes if record.request.stored else None,
        began_at=intake.began_at,
        pod_uid=restores.pod_uid or None,
        files=record.files,
        received_at=record.received_at,
        held_at=record.held_at,
        resumed_at=record.resumed_at,
        filling=filling,
        filled_at=record.filled_at,
        memory_lost=record.memory_lost,
        failure=record.failure,
        trouble=record.last_error or "",
    )
