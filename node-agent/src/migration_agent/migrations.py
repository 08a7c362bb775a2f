"""All migrations of this node: takes requests from operator, peers and gate, and keeps one side per migration going."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from migration_agent.entry import Entry
from migration_agent.gate import Gates
from migration_agent.journal import Journal, JournalDamaged, SourceRecord, TargetRecord
from migration_agent.ports import Clock, PeerState
from migration_agent.room import Room
from migration_agent.source import SourceSide
from migration_agent.target import TargetSide
from migration_agent.ticket import Ticket, TicketConflict, Tickets, TicketState, ticket_for
from migration_agent.vault import OtherKey, Vault
from migration_api.shipping import Shipping
from migration_api.wire import Files, MigrationReport, SourceRequest, TargetRequest

log = logging.getLogger(__name__)

_REVISIONS_PER_START = 10**9
_POKE_SECONDS = 5.0


class Conflict(Exception):
    """The request contradicts what this node has on disk; the message says how."""


class Sides(Protocol):
    """Makes the two sides; tests give them fakes to work with."""

    def source(self, record: SourceRecord, *, changed: Callable[[], None], restarted: bool) -> SourceSide: ...

    def target(self, record: TargetRecord, *, changed: Callable[[], None], restarted: bool) -> TargetSide: ...


class Migrations:
    """One per agent. Requests about one migration are taken one after another."""

    def __init__(
        self,
        journal: Journal,
        vault: Vault,
        tickets: Tickets,
        clock: Clock,
        sides: Sides,
        *,
        gates: Gates,
        room: Callable[[], Room],
    ) -> None:
        self._gates = gates
        self._room = room
        self._journal = journal
        self._vault = vault
        self._tickets = tickets
        self._clock = clock
        self._sides = sides
        self._entries: dict[str, Entry] = {}
        self._damaged: set[str] = set()
        self._lock = asyncio.Lock()
        self._revision = 0

    async def start(self) -> None:
        """Read the journal and take every migration up where it was."""
        starts = await asyncio.to_thread(self._journal.next_start)
        self._revision = starts * _REVISIONS_PER_START
        for uid in await asyncio.to_thread(self._journal.migrations):
            try:
                source = await asyncio.to_thread(self._journal.source, uid)
                target = await asyncio.to_thread(self._journal.target, uid)
            except JournalDamaged as error:
                log.error("migration %s: %s", uid, error)  # noqa: TRY400  # the message says it all
                self._damaged.add(uid)
                continue
            if source is not None:
                self._start_source(source, restarted=True)
            if target is not None:
                self._start_target(target, restarted=True)
        await self._sweep()

    async def stop(self) -> None:
        """Stop all loops; whatever is frozen or held stays so."""
        await asyncio.gather(*(side.stop() for entry in self._entries.values() for side in entry.sides))

    async def put_source(self, request: SourceRequest) -> MigrationReport:
        """Begin the source side, or go on with it.

        Raises:
            Conflict: another migration has the pod, or this one was asked for something else before.
        """
        uid, task = request.migration.uid, request.task
        async with self._lock:
            self._demand_undamaged(uid)
            entry = self._entries.get(uid)
            if entry is not None and entry.source is not None:
                if entry.source.record.request != task:
                    raise Conflict(f"migration {uid} was asked to move another pod or to another node before")
                if not entry.source.record.ended:
                    await self._keep(uid, request.shipping)
                entry.source.poke()
                return self.report(uid)
            holder = await asyncio.to_thread(self._journal.claim, request.pod_uid, uid)
            if holder != uid:
                raise Conflict(f"pod {request.pod_uid} is held by migration {holder}")
            await self._keep(uid, request.shipping)
            files = await self._place(uid, request.expected_bytes)
            boot_id = await asyncio.to_thread(self._clock.boot_id)
            record = SourceRecord(request=task, boot_id=boot_id, files=files, expected_bytes=request.expected_bytes)
            await asyncio.to_thread(self._journal.save, record)
            self._start_source(record, restarted=False)
            return self.report(uid)

    async def put_target(self, request: TargetRequest) -> MigrationReport:
        """Begin the target side, or go on with it.

        Raises:
            Conflict: the ticket is used up, this node has promised never to resume this migration, or this one was
                asked for something else before.
        """
        uid, task = request.migration.uid, request.task
        async with self._lock:
            self._demand_undamaged(uid)
            entry = self._entries.get(uid)
            if entry is not None and entry.target is not None:
                if entry.target.record.request != task:
                    raise Conflict(f"migration {uid} was asked to run in another pod or from another node before")
                if not entry.target.record.settled:
                    await self._keep(uid, request.shipping)
                entry.target.poke()
                return self.report(uid)
            if await asyncio.to_thread(self._journal.buried, uid):
                raise Conflict(
                    await self._turn_away(request, f"this node has promised never to resume migration {uid}")
                )
            await self._keep(uid, request.shipping)
            boot_id = await asyncio.to_thread(self._clock.boot_id)
            try:
                files = await self._place(uid, request.expected_bytes, durably=task.successor is not None)
                record = TargetRecord(
                    request=task,
                    boot_id=boot_id,
                    files=files,
                    expected_bytes=request.expected_bytes,
                    acknowledged=task.source_node is None,  # nobody is there who would have to hear the end
                )
                await self._make_ticket(record)
            except Conflict:
                await asyncio.to_thread(self._vault.wipe, uid)
                raise
            self._start_target(record, restarted=False)
            return self.report(uid)

    def report(self, uid: str) -> MigrationReport:
        """Return both sides as they are now.

        Raises:
            KeyError: this node knows nothing of it.
        """
        entry = self._entries[uid]
        return MigrationReport(
            uid=uid,
            revision=entry.revision,
            source=entry.source.report() if entry.source else None,
            target=entry.target.report() if entry.target else None,
        )

    async def wait(self, uid: str, after: int, seconds: float) -> MigrationReport:
        """Return the report when its revision exceeds `after`, or after `seconds`; raises as `report`."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._entries[uid].revision <= after:
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                break
            news = self._entries[uid].news
            try:
                async with asyncio.timeout(left):
                    await news.wait()
            except TimeoutError:
                break
        return self.report(uid)

    async def settle(self, uid: str) -> MigrationReport:
        """Look at the registers now and return what came of it; raises as `report`."""
        await asyncio.gather(*(side.looked(_POKE_SECONDS) for side in self._entries[uid].sides))
        return self.report(uid)

    async def forget(self, uid: str) -> None:
        """Remove a settled migration.

        Raises:
            Conflict: it is not settled.
        """
        async with self._lock:
            self._demand_undamaged(uid)
            entry = self._entries.get(uid)
            if entry is None:
                return
            if not entry.settled:
                raise Conflict(f"migration {uid} is not settled on this node")
            await self._remove(uid, entry)

    async def holder(self, pod_uid: str) -> str | None:
        """Return the migration that holds a pod."""
        return await asyncio.to_thread(self._journal.holder, pod_uid)

    async def housekeeping(self) -> None:
        """Remove what nobody needs any more: forgotten migrations, what never began, tickets of pods that are gone."""
        async with self._lock:
            for uid, entry in list(self._entries.items()):
                if entry.sides and all(side.forgotten for side in entry.sides):
                    log.info("migration %s is gone and settled: forgotten", uid)
                    await self._remove(uid, entry)
            await self._sweep()
            targets = [entry.target.record for entry in self._entries.values() if entry.target is not None]
            keep = {record.request.pod_uid or record.pod_uid or "" for record in targets if not record.settled}
            if not self._damaged:
                await asyncio.to_thread(self._tickets.sweep, keep)

    def source(self, uid: str) -> SourceSide | None:
        """Return the source side of a migration."""
        entry = self._entries.get(uid)
        return entry.source if entry is not None else None

    def target(self, uid: str) -> TargetSide | None:
        """Return the target side of a migration."""
        entry = self._entries.get(uid)
        return entry.target if entry is not None else None

    def is_damaged(self, uid: str) -> bool:
        """Say whether the journal cannot be read: nothing is known then, and nothing may be promised."""
        return uid in self._damaged

    async def promise_unless_known(self, uid: str) -> PeerState | None:
        """Promise on disk never to resume a migration; None, and no promise, when its target side is here."""
        async with self._lock:
            if uid in self._damaged or self.target(uid) is not None:
                return None
            return await self._settle_unknown(uid)

    def lender_of(self, uid: str) -> str | None:
        """Return the node that still has memory of containers that run here; may be called in any thread."""
        target = self.target(uid)
        record = target.record if target is not None else None
        return record.request.source_node if record and record.borrows else None

    async def memory_lost(self, uid: str, reason: str) -> None:
        """Take note that it has not."""
        target = self.target(uid)
        if target is not None:
            await target.memory_lost(reason)

    def idle(self) -> bool:
        """Say whether no migration is under way here; may be called in any thread."""
        return all(entry.settled for entry in list(self._entries.values())) and not self._damaged

    def frozen_containers(self) -> int:
        """Count the containers that stand still here; may be called in any thread."""
        sources = [entry.source for entry in list(self._entries.values()) if entry.source is not None]
        return sum(len(source.record.request.containers) for source in sources if source.report().frozen)

    def target_of(self, pod_uid: str) -> TargetSide | None:
        """Return the target side of a pod."""
        for entry in self._entries.values():
            if entry.target is not None and entry.target.pod_uid == pod_uid:
                return entry.target
        return None

    def expecting(self, uid: str) -> TargetSide | None:
        """Return the target side of that migration when it waits for its pod."""
        target = self.target(uid)
        return target if target is not None and target.succession is not None and target.succession.expects else None

    def _demand_undamaged(self, uid: str) -> None:
        if uid in self._damaged:
            raise Conflict(f"the journal of migration {uid} on this node is damaged; see the agent's log")

    async def _keep(self, uid: str, shipping: Shipping) -> None:
        try:
            await asyncio.to_thread(self._vault.keep, uid, shipping)
        except OtherKey as error:
            raise Conflict(str(error)) from error

    async def _place(self, uid: str, expected: int, *, durably: bool = False) -> Files:
        """Decide where the files of a migration that begins here will lie.

        Raises:
            Conflict: they must outlive a reboot, and the disk is full or not to be used.
        """
        records = [side.record for entry in self._entries.values() for side in entry.sides]
        promised = sum(it.expected_bytes for it in records if not it.settled and not it.files.on_disk)
        files = (await asyncio.to_thread(self._room)).files(expected, promised, durably=durably)
        if durably and not files.on_disk:
            raise Conflict(
                f"the checkpoint may take {expected >> 20} MiB, and the disk has no room for it, or none is allowed"
            )
        await asyncio.to_thread(self._journal.place_images, uid, on_disk=files.on_disk)
        return files

    async def _turn_away(self, request: TargetRequest, message: str) -> str:
        """Let those who wait at the gate hear it at once, and those who come later from the disk; return `message`."""
        if request.pod_uid and await asyncio.to_thread(self._tickets.state, request.pod_uid) is TicketState.NONE:
            await asyncio.to_thread(self._tickets.destroy, request.pod_uid, ticket_for(request))
            await self._gates.refuse_pod(request.pod_uid, message)
        return message

    async def _make_ticket(self, record: TargetRecord) -> None:
        """Journal the record and make its ticket; the record first, so that no ticket is ever without one."""
        request = record.request
        if request.pod_uid is None:
            await asyncio.to_thread(self._journal.save, record)  # which is the ticket, until the pod has come
            return
        other = self.target_of(request.pod_uid)
        if other is not None:
            raise Conflict(f"pod {request.pod_uid} is the target of migration {other.ref.uid}")
        held = await asyncio.to_thread(self._tickets.state, request.pod_uid)
        if held in {TicketState.RESUMING, TicketState.DESTROYED}:
            raise Conflict(f"the ticket of pod {request.pod_uid} is used up: it is {held}")
        await asyncio.to_thread(self._journal.save, record)
        try:
            await asyncio.to_thread(self._tickets.create, request.pod_uid, ticket_for(request))
        except TicketConflict as error:
            await asyncio.to_thread(self._journal.forget, request.migration.uid)
            raise Conflict(str(error)) from error

    async def _settle_unknown(self, uid: str) -> PeerState:
        """Answer for a migration without a journal: its ticket on disk still counts; else a tombstone comes first."""
        for pod_uid in await asyncio.to_thread(self._tickets.of_migration, uid):
            ticket = Ticket(migration=uid, containers=())
            state = await asyncio.to_thread(self._tickets.destroy, pod_uid, ticket)
            if state is TicketState.RESUMING:
                return PeerState.RESUMED
        await asyncio.to_thread(self._journal.bury, uid)
        return PeerState.DESTROYED

    async def _sweep(self) -> None:
        """Remove what a crash or a full disk left of migrations that never quite began, or had ended.

        Whoever calls it keeps requests away: one that is under way is unknown for a moment.
        """
        known = self._entries.keys() | self._damaged
        for uid in await asyncio.to_thread(self._journal.migrations):
            if uid not in known:
                await asyncio.to_thread(self._journal.forget, uid)
        await asyncio.to_thread(self._journal.drop_stale_claims)
        await asyncio.to_thread(self._vault.sweep, known)
        await asyncio.to_thread(self._journal.sweep_images, known)

    async def _remove(self, uid: str, entry: Entry) -> None:
        del self._entries[uid]
        await asyncio.gather(*(side.stop() for side in entry.sides))
        await asyncio.to_thread(self._journal.forget, uid)
        await asyncio.to_thread(self._vault.wipe, uid)
        if entry.source is not None:
            await asyncio.to_thread(self._journal.release_claim, entry.source.record.request.pod_uid, uid)
        entry.news.set()

    def _entry(self, uid: str) -> Entry:
        self._revision += 1
        return self._entries.setdefault(uid, Entry(self._revision))

    def _start_source(self, record: SourceRecord, *, restarted: bool) -> None:
        uid = record.request.migration.uid
        side = self._sides.source(record, changed=lambda: self._changed(uid), restarted=restarted)
        self._entry(uid).source = side
        side.start()

    def _start_target(self, record: TargetRecord, *, restarted: bool) -> None:
        uid = record.request.migration.uid
        side = self._sides.target(record, changed=lambda: self._changed(uid), restarted=restarted)
        self._entry(uid).target = side
        side.start()

    def _changed(self, uid: str) -> None:
        entry = self._entries.get(uid)
        if entry is None:
            return
        if entry.is_news(self.report(uid)):
            self._revision += 1
            entry.tell(self._revision)
