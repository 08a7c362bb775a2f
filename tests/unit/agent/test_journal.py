"""Journal and ticket: what a crash between any two file operations leaves behind."""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

import pytest

from migration_agent.journal import Journal, JournalDamaged, SourceRecord, TargetRecord
from migration_agent.paths import Layout, UnsafeName
from migration_agent.runtime.interface import Container
from migration_agent.ticket import Ticket, TicketConflict, Tickets, TicketState
from migration_api.wire import SourceState
from support.agent import MIGRATION, SOURCE_POD, TARGET_POD, source_request, target_request

TICKET = Ticket(migration=MIGRATION, containers=("main",))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    it = Layout(tmp_path)
    it.prepare()
    return it


def crash_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Let a function of `os`, or a path's `replace`, fail as if the agent died there."""

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(name)

    monkeypatch.setattr(Path if name == "replace" else os, name, die)


def test_records_survive_and_are_private(layout: Layout) -> None:
    container = Container("main", "c1", SOURCE_POD, 77, 1234, Path("/bundle"), 1024, "runc")
    record = SourceRecord(
        request=source_request().task, boot_id="b", containers=(container,), state=SourceState.FROZEN, frozen_at_ns=5
    )
    Journal(layout).save(record)
    assert Journal(layout).source(MIGRATION) == record
    assert Journal(layout).migrations() == (MIGRATION,)
    path = layout.migration(MIGRATION) / "source.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(layout.state.stat().st_mode) == 0o700


@pytest.mark.parametrize("point", ["fsync", "replace"])
def test_a_crash_while_saving_leaves_the_old_record(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    journal = Journal(layout)
    old = TargetRecord(request=target_request().task, boot_id="old")
    journal.save(old)
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        with pytest.raises(KeyboardInterrupt):
            journal.save(old.model_copy(update={"boot_id": "new"}))
    assert journal.target(MIGRATION) == old


def test_a_damaged_record_is_never_taken_for_none(layout: Layout) -> None:
    journal = Journal(layout)
    journal.save(TargetRecord(request=target_request().task, boot_id="b"))
    (layout.migration(MIGRATION) / "target.json").write_text('{"request": ')
    with pytest.raises(JournalDamaged, match="cannot be read"):
        journal.target(MIGRATION)


def test_one_migration_per_pod(layout: Layout) -> None:
    journal = Journal(layout)
    assert journal.claim(SOURCE_POD, MIGRATION) == MIGRATION
    assert journal.claim(SOURCE_POD, "other") == MIGRATION
    journal.release_claim(SOURCE_POD, "other")
    assert journal.holder(SOURCE_POD) == MIGRATION
    journal.release_claim(SOURCE_POD, MIGRATION)
    assert journal.claim(SOURCE_POD, "other") == "other"


def test_a_claim_without_record_is_dropped_and_one_of_a_frozen_pod_is_not(layout: Layout) -> None:
    journal = Journal(layout)
    journal.claim("pod-without-record", "migration-that-never-began")
    journal.claim(SOURCE_POD, MIGRATION)
    journal.save(SourceRecord(request=source_request().task, boot_id="b", state=SourceState.FROZEN))
    journal.drop_stale_claims()
    assert journal.holder("pod-without-record") is None
    assert journal.holder(SOURCE_POD) == MIGRATION


def test_starts_are_counted_over_restarts(layout: Layout) -> None:
    assert [Journal(layout).next_start() for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".", "..", "a\nb", "x" * 65])
def test_no_name_from_outside_leaves_its_directory(layout: Layout, name: str) -> None:
    for path in (layout.migration, layout.ticket, layout.claim, layout.tombstone, layout.images):
        with pytest.raises(UnsafeName):
            path(name)
    with pytest.raises(UnsafeName):
        layout.image(MIGRATION, name)


def test_a_ticket_goes_one_way(layout: Layout) -> None:
    tickets = Tickets(layout)
    assert tickets.state(TARGET_POD) is TicketState.NONE
    assert tickets.create(TARGET_POD, TICKET) is TicketState.PENDING
    assert tickets.create(TARGET_POD, TICKET) is TicketState.PENDING
    assert tickets.destroy(TARGET_POD, TICKET) is TicketState.DESTROYED
    assert tickets.create(TARGET_POD, TICKET) is TicketState.DESTROYED
    assert tickets.read(TARGET_POD) == TICKET
    assert sorted(p.name for p in layout.ticket(TARGET_POD).iterdir()) == ["destroyed"]


def test_i1_the_hook_and_the_agent_cannot_both_have_the_ticket(layout: Layout) -> None:
    tickets = Tickets(layout)
    tickets.create(TARGET_POD, TICKET)
    directory = layout.ticket(TARGET_POD)
    (directory / "pending").rename(directory / "resuming")  # the hook was faster
    assert tickets.destroy(TARGET_POD, TICKET) is TicketState.RESUMING
    assert sorted(p.name for p in directory.iterdir()) == ["resuming"]


def test_destroying_a_ticket_that_was_never_made_refuses_the_pod_for_ever(layout: Layout) -> None:
    tickets = Tickets(layout)
    assert tickets.destroy(TARGET_POD, TICKET) is TicketState.DESTROYED
    assert tickets.create(TARGET_POD, TICKET) is TicketState.DESTROYED


def test_another_migration_does_not_get_the_ticket(layout: Layout) -> None:
    tickets = Tickets(layout)
    tickets.create(TARGET_POD, TICKET)
    with pytest.raises(TicketConflict, match=MIGRATION):
        tickets.create(TARGET_POD, Ticket(migration="other", containers=("main",)))


@pytest.mark.parametrize("point", ["fsync", "link"])
def test_a_crash_while_making_the_ticket_leaves_none_or_a_whole_one(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    tickets = Tickets(layout)
    layout.ticket(TARGET_POD).mkdir()
    with monkeypatch.context() as patch:
        crash_at(patch, point)
        with pytest.raises(KeyboardInterrupt):
            tickets.create(TARGET_POD, TICKET)
    assert tickets.state(TARGET_POD) is TicketState.NONE
    assert tickets.create(TARGET_POD, TICKET) is TicketState.PENDING
    assert tickets.read(TARGET_POD) == TICKET


def test_tickets_are_swept_only_when_pod_and_interposer_are_gone(layout: Layout) -> None:
    tickets = Tickets(layout)
    tickets.create(TARGET_POD, TICKET)
    layout.kubelet_pod(TARGET_POD).mkdir(parents=True)
    assert tickets.sweep(()) == ()
    layout.kubelet_pod(TARGET_POD).rmdir()
    assert tickets.sweep((TARGET_POD,)) == ()
    claim = layout.ticket(TARGET_POD) / "main.claim"
    with claim.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert tickets.sweep(()) == ()
    assert tickets.sweep(()) == (TARGET_POD,)
    assert tickets.state(TARGET_POD) is TicketState.NONE
