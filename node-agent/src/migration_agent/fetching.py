"""A target without a source: this agent itself fetches a checkpoint that was kept in a store, and verifies it.

What lies here counts only when its manifest is the very one that was kept, authentic, and every chunk is the one that
the manifest lists (I6). What an interrupted fetch has brought is not fetched again.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from migration_agent.archive.stored import StoredCheckpoint
from migration_agent.peer import Admission, Refused
from migration_agent.side import MESSAGE_LENGTH
from migration_agent.transport.chunks import FormatError, Record, Seal
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.transport.outgoing import held_chunks
from migration_agent.transport.store import Store, StoreFailure, StoreOf
from migration_agent.transport.workspace import Workspace
from migration_api.base import now
from migration_api.conditions import Reason
from migration_api.wire import Failure, StoredRef

if TYPE_CHECKING:
    from migration_agent.target import TargetSide

log = logging.getLogger(__name__)

_THREADS = 4
_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class Fetched:
    """A checkpoint that lies here, complete and verified."""

    entries: tuple[ManifestEntry, ...]
    chunk_bytes: int


@dataclass
class Fetch:
    """One fetch, in a few threads; it blocks."""

    store: Store
    admission: Admission
    stored: StoredRef
    _failure: Exception | None = None
    _over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _bytes: int = 0

    def run(self) -> Fetched:
        """Fetch what is missing.

        Raises:
            FormatError: something is missing, damaged or another; the message names entry and chunk.
            StoreFailure: the store refuses; one that is away is tried again.
            Refused: the migration was given up.
            OSError: a file could not be written.
        """
        checkpoint = self._opened()
        manifest = checkpoint.manifest
        if set(checkpoint.containers) != set(self.admission.containers):
            raise FormatError(f"the checkpoint is of {', '.join(checkpoint.containers)}, not of these containers")
        seal = Seal(self.admission.shipping.key_bytes, self.stored.uid)
        workspace = Workspace(self.admission.directory, self.admission.containers, seal, manifest.chunk_bytes)
        try:
            self._bytes = workspace.bytes_kept
            self._fill(checkpoint, workspace)
            workspace.complete(manifest)
        finally:
            workspace.close()
        return Fetched(manifest.entries, manifest.chunk_bytes)

    def _opened(self) -> StoredCheckpoint:
        while True:
            try:
                found = StoredCheckpoint(self.store, self.admission.shipping.key_bytes, self.stored.uid)
            except StoreFailure as failure:
                self._wait_for_the_store(failure)
                continue
            if found.digest != self.stored.digest:
                raise FormatError("the manifest in the store is not the one that was kept")
            return found

    def _fill(self, checkpoint: StoredCheckpoint, workspace: Workspace) -> None:
        held = held_chunks(workspace.have())
        jobs: queue.SimpleQueue[tuple[str, int, Record] | None] = queue.SimpleQueue()
        for entry in checkpoint.manifest.entries:
            for index, record in enumerate(entry.records):
                if held.get((entry.path, index)) != record:
                    jobs.put((entry.path, index, record))
        threads = [
            threading.Thread(target=self._work, args=(checkpoint, workspace, jobs), name="fetch", daemon=True)
            for _ in range(_THREADS)
        ]
        for thread in threads:
            jobs.put(None)
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _work(
        self,
        checkpoint: StoredCheckpoint,
        workspace: Workspace,
        jobs: queue.SimpleQueue[tuple[str, int, Record] | None],
    ) -> None:
        opener = checkpoint.opener()
        try:
            while (job := jobs.get()) is not None and not self._over.is_set():
                path, index, record = job
                while True:
                    try:
                        plain = checkpoint.chunk(path, index, record, opener)
                        break
                    except StoreFailure as failure:
                        self._wait_for_the_store(failure)
                workspace.keep(path, index, plain, record)
                with self._lock:
                    self._bytes += len(plain)
                    count = self._bytes
                self.admission.progress(count, None)
        except Exception as error:  # noqa: BLE001  # whatever it is, `run` must end with it
            with self._lock:
                self._failure = self._failure or error
            self._over.set()

    def _wait_for_the_store(self, failure: StoreFailure) -> None:
        """Return when it is worth another try."""
        if not failure.passing:
            raise failure
        log.warning("%s; it is tried again", failure)
        self._over.wait(_PAUSE_SECONDS)
        if self._failure is not None:
            raise self._failure
        self.admission.progress(self._bytes, None)


class Fetching:
    """The fetch of one target side, in the background of its loop."""

    def __init__(self, side: TargetSide, store_of: StoreOf) -> None:
        self._side = side
        self._store_of = store_of
        self._task: asyncio.Task[None] | None = None

    def due(self) -> bool:
        """Say whether the checkpoint is to be fetched, and is not here, not on its way, and not refused."""
        record, intake = self._side.record, self._side.intake
        wanted = record.request.stored is not None and record.entries is None and record.failure is None
        return wanted and not intake.receiving and not intake.closed and not record.settled

    async def begin(self) -> None:
        side = self._side
        shipping = await asyncio.to_thread(side.tools.vault.shipping, side.ref.uid)
        try:
            admission = side.intake.admit(shipping)
        except Refused as refused:
            await self._fail(str(refused))
            return
        side.intake.began_at = side.intake.began_at or now()
        self._task = asyncio.create_task(self._run(admission), name=f"fetch-{side.ref.uid}")

    async def stop(self) -> None:
        """End it; what is here stays."""
        if self._task is not None:
            self._side.intake.closed = True
            await asyncio.wait([self._task])

    async def _run(self, admission: Admission) -> None:
        side, stored = self._side, self._side.record.request.stored
        if stored is None:
            raise AssertionError("nothing is to be fetched")
        try:
            store = self._store_of(stored.uid, admission.shipping)
            if store is None:
                raise FormatError("no store is named to fetch it from")  # noqa: TRY301  # one way out
            fetched = await asyncio.to_thread(Fetch(store, admission, stored).run)
            await side.save(chunk_bytes=fetched.chunk_bytes)
            await side.admitted_done(fetched.entries, None, again=False)
        except Refused as refused:
            await side.admitted_done(None, str(refused), again=True)
        except (FormatError, StoreFailure, OSError) as error:
            await side.admitted_done(None, str(error), again=False)
            await self._fail(str(error))
        except Exception as error:
            log.exception("migration %s: the fetch failed", side.ref.uid)
            await side.admitted_done(None, str(error), again=False)
            await self._fail(f"{type(error).__name__}: {error}")

    async def _fail(self, text: str) -> None:
        side = self._side
        message = f"Node {side.tools.node} could not fetch the checkpoint: {text}"
        await side.save(failure=Failure(reason=Reason.TRANSFER_FAILED, message=message[:MESSAGE_LENGTH]))
        side.poke()
