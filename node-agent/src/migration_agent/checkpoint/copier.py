"""Memory that is copied while its processes run, by the interposer's binary (`copier.go`), into a log.

It lies beside the images. Each round appends what is not as the log has it; the last one, when the processes stand
still and are dumped, what CRIU has left in them and is not yet there. It only grows, so it travels while it is written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping

from pydantic import ValidationError

from migration_agent.checkpoint import memory
from migration_agent.checkpoint.criu import HOOK, images
from migration_agent.host import CommandFailed, Host
from migration_agent.paths import MEMORY_LOG
from migration_agent.processes import ProcessRef
from migration_agent.runtime.interface import Copied, Dump, RuntimeFailure
from migration_api.base import Model


class _Report(Model):
    """`copyReport`."""

    looked: int
    written: int


class MemoryCopier:
    """One container's. All methods block; `close` may be called in any thread."""

    def __init__(self, host: Host, dump: Dump, processes: Callable[[], Mapping[int, ProcessRef]]) -> None:
        """Start it; `processes`: the container's, as they are now, by the pids that images count.

        Raises:
            RuntimeFailure: it cannot be started.
        """
        self._dump = dump
        self._processes = processes
        try:
            command = [HOOK, "container-migration-copy", str(dump.directory / MEMORY_LOG)]
            self._dialogue = host.talk_on_host(command)
        except CommandFailed as error:
            raise RuntimeFailure(str(error)) from error

    def round(self, limit: int | None = None) -> Copied:
        """Copy what has changed; see `MemoryCopierLike`."""
        return self._ask(self._processes(), {} if limit is None else {"limit": limit})

    def last(self) -> Copied:
        """Make the copy exact; see `MemoryCopierLike`."""
        try:
            processes = memory.noted(self._dump.directory)
        except OSError as error:
            raise RuntimeFailure(str(error)) from error
        return self._ask(processes, {"images": str(images(self._dump))})

    def close(self) -> None:
        self._dialogue.close()

    def _ask(self, processes: Mapping[int, ProcessRef], more: Mapping[str, str | int]) -> Copied:
        pids = {str(inside): process.pid for inside, process in processes.items()}
        try:
            report = _Report.model_validate_json(self._dialogue.ask(json.dumps({"processes": pids, **more})))
        except (CommandFailed, ValidationError) as error:
            name = self._dump.container.name
            raise RuntimeFailure(f"the memory of container {name} could not be copied: {error}") from error
        return Copied(report.looked, report.written)
