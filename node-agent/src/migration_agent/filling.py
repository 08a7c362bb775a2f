"""Which restored containers do not have all of their memory yet: see `pager.go`, and docs/protocol.md, section 4.

Until it is complete such a container cannot be checkpointed, since CRIU would take what is missing for zeroes, and its
own checkpoint is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pydantic import ValidationError

from migration_agent.paths import Layout
from migration_agent.processes import Processes, ProcessRef
from migration_api.base import Model

_RECORD_BYTES = 4096
_SUFFIX = ".filling"


class _Record(Model):
    """What the interposer writes beside the pod's ticket when it starts a pager."""

    pid: int
    start: int
    boot_id: str


@dataclass(frozen=True)
class Filling:
    """Looks for pagers that live. All methods block for a few files."""

    layout: Layout
    processes: Processes
    boot_id: Callable[[], str]

    def containers(self, pod_uid: str) -> tuple[str, ...]:
        """Return the pod's containers whose memory is still being filled in."""
        found = sorted(self.layout.ticket(pod_uid).glob(f"*{_SUFFIX}"))
        records = ((path, _read(path.read_bytes()[:_RECORD_BYTES])) for path in found)
        return tuple(path.name.removesuffix(_SUFFIX) for path, record in records if record and self._lives(record))

    def _lives(self, record: _Record) -> bool:
        this_boot = record.boot_id == self.boot_id()
        return this_boot and self.processes.alive(ProcessRef(pid=record.pid, start=record.start))


def _read(content: bytes) -> _Record | None:
    try:
        return _Record.model_validate_json(content)
    except ValidationError:
        return None
