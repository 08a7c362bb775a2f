"""Where a migration's files go on this node: into memory where they fit, and else to the disk if that is allowed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from migration_agent.paths import Layout
from migration_api.names import IMAGES_DIR
from migration_api.wire import Files

_MEBIBYTE = 1 << 20
ROOM_LEFT_BYTES = 64 * _MEBIBYTE
"""What a checkpoint must leave free on either file system: others need it too."""

_ONLY_ONE = "the source is gone before its successor can be restored: until then the checkpoint lies on the disk"


@dataclass(frozen=True)
class Room:
    """What is free, in bytes; `disk` is 0 when the disk is not to be used."""

    memory: int
    disk: int

    def files(self, expected: int, promised: int = 0, *, durably: bool = False) -> Files:
        """Return where `expected` bytes go. When they fit nowhere it is memory: what does not fit leaves no traces.

        `promised`: how much of the memory other migrations may take still. `durably`: they must outlive a reboot.
        """
        wanted, left = expected + ROOM_LEFT_BYTES, max(0, self.memory - promised)
        if durably:
            return Files(on_disk=True, why=_ONLY_ONE) if wanted <= self.disk else Files()
        if wanted <= left or wanted > self.disk:
            return Files()
        return Files(
            on_disk=True,
            why=f"the checkpoint may take {expected // _MEBIBYTE} MiB, and {IMAGES_DIR} has "
            f"{left // _MEBIBYTE} MiB left: its files lie on the disk until the migration has ended",
        )


@dataclass(frozen=True)
class RoomFinder:
    """Looks at the node. Blocks for microseconds."""

    layout: Layout
    disk_allowed: bool

    def look(self) -> Room:
        """Return what is free now."""
        disk = shutil.disk_usage(self.layout.state).free if self.disk_allowed else 0
        memory = shutil.disk_usage(self.layout.images_home).free
        return Room(min(memory, _available_bytes()), disk)


def _available_bytes() -> int:
    """Return what the kernel can give without taking it from others: a tmpfs may be larger than that."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
