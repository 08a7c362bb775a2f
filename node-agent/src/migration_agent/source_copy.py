"""The one way forward at the source: fence, drop, pause, dump, send, each act journalled before it is done."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from migration_agent.checkpoint import criu
from migration_agent.freeze import FreezeFailure
from migration_agent.ports import PeerUnreachable, Sending, TransferFailed
from migration_agent.runtime.interface import Dump, RuntimeFailure, Shared
from migration_agent.seen import Seen, Verdict, verdict
from migration_agent.transport.manifest import ManifestError, checkpoint_bytes
from migration_api.base import now
from migration_api.conditions import Reason
from migration_api.wire import SourceState

if TYPE_CHECKING:
    from migration_agent.source import SourceSide


class GivenUp(Exception):
    """The copy is not wanted any more."""


class CopyFailed(Exception):
    """The copy cannot be made; the message is for an admin."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SourceCopy:
    """One attempt; there is only one per migration."""

    def __init__(self, side: SourceSide) -> None:
        self.bytes_sent = 0
        self.paused = False
        self._side = side
        self._shared: Shared | None = None
        self._stop = threading.Event()

    def give_up(self) -> None:
        """Stop at the next possible point; whatever is frozen stays frozen."""
        self._stop.set()

    async def run(self) -> None:
        """Copy.

        Raises:
            GivenUp: `give_up` was called, or the object does not want it (the next round sees why).
            CopyFailed: something went wrong.
            ApiUnreachable: the object could not be read; nothing was touched.
        """
        try:
            await self._freeze()
            await self._dump()
        except (RuntimeFailure, FreezeFailure, ManifestError, OSError) as error:
            self._go_on()
            raise CopyFailed(Reason.CHECKPOINT_FAILED, f"The source could not be checkpointed: {error}") from error
        try:
            await self._send()
        except (TransferFailed, PeerUnreachable, OSError) as error:
            self._go_on()
            raise CopyFailed(
                Reason.TRANSFER_FAILED,
                f"The checkpoint did not reach node {self._side.record.request.target_node}: {error}",
            ) from error

    async def _freeze(self) -> None:
        """Fence, drop, pause; right after a live look at the object."""
        side = self._side
        request = side.record.request
        # All of the pod stand still, also those that do not move: they share volumes, and end with the pod.
        containers = await asyncio.to_thread(side.tools.freezer.find, request.all_containers)
        self._shared = await asyncio.to_thread(side.tools.freezer.shared)
        boot_id = await asyncio.to_thread(side.tools.clock.boot_id)
        seen = await side.tools.registers.read(side.ref)
        if not isinstance(seen, Seen) or verdict(seen) is not Verdict.UNDECIDED or not side.wanted(seen):
            raise GivenUp
        self._go_on()
        await side.save(state=SourceState.FENCED, containers=containers, boot_id=boot_id)
        await asyncio.to_thread(side.tools.freezer.fence)
        self._go_on()
        await side.save(state=SourceState.FROZEN, frozen_at_ns=side.tools.clock.boottime_ns(), frozen_at=now())
        await asyncio.to_thread(side.tools.freezer.drop)
        await asyncio.to_thread(side.tools.freezer.pause, containers)
        self.paused = True

    async def _dump(self) -> None:
        side = self._side
        layout = side.tools.journal.layout
        directory = layout.shared_image(side.ref.uid)

        def copy_shared() -> None:
            self._go_on()
            if self._shared is not None:
                side.tools.freezer.copy_shared(self._shared, directory)

        moving = side.record.request.containers
        containers = [container for container in side.record.containers if container.name in moving]
        owner = await asyncio.to_thread(side.tools.freezer.memory_owner, containers)
        for container in containers:
            self._go_on()
            dump = Dump(container, layout.image(side.ref.uid, container.name), side.ref.uid)
            work = copy_shared if container is containers[-1] else self._go_on
            await asyncio.to_thread(side.tools.freezer.dump, dump, while_frozen=work)
            if container is not owner:
                await asyncio.to_thread(criu.drop_shared_ipc, dump.directory)
        if not await asyncio.to_thread(side.tools.freezer.frozen, side.record.containers):
            raise RuntimeFailure("a container is not paused any more after its dump")
        self._go_on()
        total = await asyncio.to_thread(checkpoint_bytes, layout.images(side.ref.uid))
        await side.save(state=SourceState.DUMPED, dumped_at=now(), bytes_total=total)

    async def _send(self) -> None:
        side = self._side
        self._go_on()
        directory: Path = side.tools.journal.layout.images(side.ref.uid)
        sending = Sending(side.record.request.target_node, side.ref.uid, directory, self._sent, self._stop)
        await asyncio.to_thread(side.tools.peers.send, sending)
        await side.save(state=SourceState.SENT, sent_at=now())

    def _sent(self, count: int) -> None:
        self.bytes_sent = count

    def _go_on(self) -> None:
        if self._stop.is_set():
            raise GivenUp
