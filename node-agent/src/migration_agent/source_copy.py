"""The one way forward at the source: fence, drop, pause, dump, send, each act journalled before it is done."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from migration_agent.checkpoint import criu
from migration_agent.filling import Filling
from migration_agent.freeze import FreezeFailure
from migration_agent.paths import MEMORY_LOG
from migration_agent.ports import GaveUp, PeerUnreachable, Progress, Sending, Stop, TransferFailed
from migration_agent.runtime.interface import Container, Copied, Dump, MemoryCopierLike, RuntimeFailure, Shared
from migration_agent.seen import Seen, Verdict, verdict
from migration_agent.source_rounds import another, limit
from migration_agent.transport.chunks import CHUNK_BYTES, FormatError
from migration_agent.transport.manifest import checkpoint_bytes
from migration_api.base import now
from migration_api.conditions import Reason
from migration_api.failpoints import Failpoint, reach, reach_in_thread
from migration_api.wire import Connections, SourceState

if TYPE_CHECKING:
    from migration_agent.source import SourceSide


log = logging.getLogger(__name__)

_CONNECT_SECONDS = 10.0
"""A gate that is reached gets old meanwhile, and a freeze begins only before a young one (docs/protocol.md)."""


_FILLING_SECONDS = 15.0
_FILLING_LOOK_SECONDS = 0.1
_CATCH_UP_LOOK_SECONDS = 0.05
_CALL_SECONDS = 15.0
_CALL_AGAIN_SECONDS = 0.1


class GivenUp(Exception):
    """The copy is not wanted any more."""


class CopyFailed(Exception):
    """The copy cannot be made; the message is for an admin."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class _Prepared:
    """What was found and made while the pod still ran."""

    containers: tuple[Container, ...]
    """All of the pod stand still, also those that do not move: they share volumes, and end with the pod."""
    shared: Shared
    dumps: tuple[Dump, ...]


class SourceCopy:
    """One attempt; there is only one per migration."""

    def __init__(self, side: SourceSide) -> None:
        self.progress = Progress()
        self.paused = False
        self._side = side
        self._connections: Connections | None = None
        self._stop = threading.Event()
        self._end_of_sending = Stop()
        self._complete = threading.Event()
        self._sending: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()
        self._copiers: dict[str, MemoryCopierLike] = {}
        """Of containers whose memory is copied before the freeze, by name."""

    def give_up(self) -> None:
        """Stop at the next possible point; whatever is frozen stays frozen."""
        self._stop.set()
        self._end_of_sending.set()
        if self._copiers:
            asyncio.get_running_loop().run_in_executor(None, self._close_copiers)

    async def run(self) -> None:
        """Copy.

        Raises:
            GivenUp: `give_up` was called, or the object does not want it (the next round sees why).
            CopyFailed: something went wrong.
            ApiUnreachable: the object could not be read; nothing was touched.
        """
        async with AsyncExitStack() as freeze:
            try:
                prepared = await self._prepare()
                await self._begin_to_send()
                await self._connect()
                await self._copy_memory(prepared)
                await freeze.enter_async_context(self._side.tools.turn.mine(self._go_on))
                await self._freeze(prepared)
                await self._dump(prepared)
            except (RuntimeFailure, FreezeFailure, FormatError, OSError) as error:
                await self._end_sending()
                self._go_on()
                raise CopyFailed(Reason.CHECKPOINT_FAILED, f"The source could not be checkpointed: {error}") from error
            except BaseException:
                await self._end_sending()
                raise
            finally:
                await asyncio.to_thread(self._close_copiers)
            await self._sent()

    async def send(self) -> None:
        """Send what an earlier life of the agent has dumped; raises as `run`."""
        self._complete.set()
        self.progress.expected = self._side.record.bytes_total or 0
        await self._begin_to_send()
        await self._sent()

    async def _prepare(self) -> _Prepared:
        """Do all that needs no standstill."""
        side = self._side
        request = side.record.request
        containers = await asyncio.to_thread(side.tools.freezer.find, request.all_containers)
        shared = await asyncio.to_thread(side.tools.freezer.shared)
        await self._demand_all_memory()
        layout, uid = side.tools.journal.layout, side.ref.uid
        moving = (container for container in containers if container.name in request.containers)
        dumps = tuple(Dump(it, layout.image(uid, it.name), uid, side.memory.stays(it)) for it in moving)
        for dump in dumps:
            await asyncio.to_thread(side.tools.freezer.prepare, dump)
        return _Prepared(containers, shared, dumps)

    async def _demand_all_memory(self) -> None:
        """After an earlier migration: what is not filled in yet would be dumped as zeroes."""
        side = self._side
        filling = Filling(side.tools.journal.layout, side.tools.freezer.processes, side.tools.clock.boot_id)
        deadline = asyncio.get_running_loop().time() + _FILLING_SECONDS
        while names := await asyncio.to_thread(filling.containers, side.record.request.pod_uid):
            self._go_on()
            if asyncio.get_running_loop().time() > deadline:
                text = f"the memory of container {', '.join(names)} is still being filled in after its last migration"
                raise CopyFailed(Reason.CHECKPOINT_FAILED, f"{text}; nothing was frozen. Try again later")
            await asyncio.sleep(_FILLING_LOOK_SECONDS)

    async def _copy_memory(self, prepared: _Prepared) -> None:
        """Copy memory while it changes, until what is left to be copied in the freeze does not get less."""
        side, rounds = self._side, list[Copied]()
        if not side.record.request.pre_copy:
            return
        logs = [dump for dump in prepared.dumps if dump.memory_stays]
        for dump in logs:
            self._copiers[dump.container.name] = await asyncio.to_thread(side.tools.freezer.copier, dump)
        while logs and another(rounds):
            rounds.append(await self._round(logs, limit(rounds) if rounds else None))
        if logs and await self._call_target() and limit(rounds):
            await self._round(logs, limit(rounds))  # what has changed meanwhile

    async def _round(self, logs: Sequence[Dump], most: int | None) -> Copied:
        found = [await asyncio.to_thread(it.round, most) for it in self._copiers.values()]
        copied = Copied(sum(it.looked for it in found), sum(it.written for it in found))
        await self._catch_up([dump.directory / MEMORY_LOG for dump in logs])
        await reach(Failpoint.SOURCE_ROUND)
        log.info("migration %s: %d MiB of memory copied while it runs", self._side.ref.uid, copied.written >> 20)
        return copied

    async def _call_target(self) -> bool:
        """Let the target's pod come to the gate, which may take the kubelet seconds, and say whether it was waited for.

        Only to make the freeze shorter: when it does not come in time the freeze begins all the same.
        """
        side, node = self._side, self._side.record.request.target_node
        deadline = asyncio.get_running_loop().time() + _CALL_SECONDS
        waited = False
        while node is not None and asyncio.get_running_loop().time() < deadline:
            self._go_on()
            try:
                if await asyncio.to_thread(side.tools.peers.ready, node, side.ref.uid):
                    break
            except PeerUnreachable as error:
                log.warning("migration %s: %s", side.ref.uid, error)
            waited = True
            await asyncio.sleep(_CALL_AGAIN_SECONDS)
        return waited

    async def _catch_up(self, logs: Sequence[Path]) -> None:
        """Wait until the target has what was copied, but for pieces of chunks."""
        sizes = await asyncio.to_thread(lambda: [log.stat().st_size for log in logs])
        while self.progress.done < sum(size - size % CHUNK_BYTES for size in sizes):
            self._go_on()
            if self._sending is not None and self._sending.done():
                await self._arrive()
                raise CopyFailed(Reason.TRANSFER_FAILED, f"{self._where()} says that all is there, which is not so")
            await asyncio.sleep(_CATCH_UP_LOOK_SECONDS)
        self._go_on()

    def _close_copiers(self) -> None:
        for copier in self._copiers.values():
            copier.close()

    async def _freeze(self, prepared: _Prepared) -> None:
        """Fence, drop, pause; right after a live look at the object."""
        side = self._side
        boot_id = await asyncio.to_thread(side.tools.clock.boot_id)
        seen = await side.tools.registers.read(side.ref)
        if not isinstance(seen, Seen) or verdict(seen) is not Verdict.UNDECIDED or not side.wanted(seen):
            raise GivenUp
        self._go_on()
        await side.save(state=SourceState.FENCED, containers=prepared.containers, boot_id=boot_id)
        await reach(Failpoint.SOURCE_FENCING)
        await asyncio.to_thread(side.tools.freezer.fence)
        await reach(Failpoint.SOURCE_FENCED)
        self._go_on()
        await side.save(state=SourceState.FROZEN, frozen_at_ns=side.tools.clock.boottime_ns(), frozen_at=now())
        await reach(Failpoint.SOURCE_FREEZING)
        await asyncio.to_thread(side.tools.freezer.drop, prepared.shared)
        await reach(Failpoint.SOURCE_DROPPED)
        await asyncio.to_thread(side.tools.freezer.pause, prepared.containers)
        self.paused = True
        await reach(Failpoint.SOURCE_PAUSED)

    async def _dump(self, prepared: _Prepared) -> None:
        side, dumps = self._side, prepared.dumps
        layout = side.tools.journal.layout
        directory = layout.shared_image(side.ref.uid)

        def copy_shared() -> None:
            reach_in_thread(Failpoint.SOURCE_DUMPING)
            self._go_on()
            self._connections = side.tools.freezer.copy_shared(prepared.shared, directory)

        await self._demand_no_connections(prepared.shared)
        owner = await asyncio.to_thread(side.tools.freezer.memory_owner, [dump.container for dump in dumps])
        for dump in dumps:
            self._go_on()
            if self._sending is not None and self._sending.done():
                return  # the target refused it
            work = copy_shared if dump is dumps[-1] else self._go_on
            await asyncio.to_thread(side.tools.freezer.dump, dump, while_frozen=work)
            if copier := self._copiers.get(dump.container.name):
                await asyncio.to_thread(copier.last)
            if dump.container is not owner:
                await asyncio.to_thread(criu.drop_shared_ipc, dump.directory)
        if not await asyncio.to_thread(side.tools.freezer.frozen, side.record.containers):
            raise RuntimeFailure("a container is not paused any more after its dump")
        self._go_on()
        await reach(Failpoint.SOURCE_DUMPED)
        total = await asyncio.to_thread(checkpoint_bytes, layout.images(side.ref.uid))
        await side.save(state=SourceState.DUMPED, dumped_at=now(), bytes_total=total, connections=self._connections)
        if side.record.apart:
            await side.let_go()  # before the rest is sent: so the copy never runs while the source stands still
        self._complete.set()

    async def _demand_no_connections(self, shared: Shared) -> None:
        """New ones may have come after the preflight; from now on the packets are held back."""
        side = self._side
        if not side.record.request.refuse_connections:
            return
        found = await asyncio.to_thread(side.tools.freezer.connections, shared)
        if found.outside:
            text = f"the pod has {found.outside} TCP connections with others, and spec.tcpConnections is Refuse"
            raise CopyFailed(Reason.CHECKPOINT_FAILED, text)

    async def _begin_to_send(self) -> None:
        """Let the transfer follow the dump; it ends after `_complete` is set."""
        side = self._side
        shipping = await asyncio.to_thread(side.tools.vault.shipping, side.ref.uid)
        if shipping is None:
            text = f"Node {side.tools.node} does not have the migration's key any more: it was rebooted."
            raise CopyFailed(Reason.TRANSFER_FAILED, text)
        directory: Path = side.tools.journal.layout.images(side.ref.uid)
        loop = asyncio.get_running_loop()

        def connected() -> None:
            loop.call_soon_threadsafe(self._connected.set)

        sending = Sending(
            side.record.request.target_node,
            side.ref.uid,
            directory,
            shipping,
            complete=self._complete,
            stop=self._end_of_sending,
            progress=self.progress,
            connected=connected,
        )
        self._sending = asyncio.create_task(asyncio.to_thread(side.tools.peers.send, sending), name="send")

    async def _connect(self) -> None:
        """Wait until the way is open: nobody is frozen for a target or a store that is not there."""
        connected = asyncio.create_task(self._connected.wait())
        tasks = {it for it in (self._sending, connected) if it is not None}
        await asyncio.wait(tasks, timeout=_CONNECT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        connected.cancel()
        if self._sending is not None and self._sending.done():
            await self._arrive()
        self._go_on()
        if not self._connected.is_set():
            text = f"{self._where()} could not be reached within {_CONNECT_SECONDS:.0f} s, so nothing was frozen"
            trouble = f": {self.progress.trouble}" if self.progress.trouble else ""
            raise CopyFailed(Reason.TRANSFER_FAILED, f"{text}{trouble}")

    async def _sent(self) -> None:
        """Wait until the target has verified all of it."""
        await self._arrive()
        await reach(Failpoint.SOURCE_SENT)
        await self._side.save(state=SourceState.SENT, sent_at=now())

    async def _arrive(self) -> None:
        if self._sending is None:
            raise AssertionError("nothing is being sent")
        try:
            await self._sending
        except GaveUp as error:
            raise GivenUp from error
        except (TransferFailed, OSError) as error:
            self._go_on()
            raise CopyFailed(
                Reason.TRANSFER_FAILED,
                f"The checkpoint did not reach {self._where()}: {error}",
            ) from error

    def _where(self) -> str:
        node = self._side.record.request.target_node
        return f"node {node}" if node else "its store"

    async def _end_sending(self) -> None:
        """End a transfer whose checkpoint will never be complete."""
        if self._sending is not None:
            self._end_of_sending.set()
            await asyncio.wait([self._sending])
            with suppress(Exception):
                self._sending.result()

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise GivenUp
