"""Where a migration's files go on this node: into memory where they fit, and else to the disk if that is allowed."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

from migration_agent.paths import Layout
from migration_api.wire import Files

_MEBIBYTE = 1 << 20
ROOM_LEFT_BYTES = 64 * _MEBIBYTE
"""What a checkpoint must leave free on either file system: others need it too."""


@dataclass(frozen=True)
class Room:
    """What is free, in bytes; `disk` is 0 when the disk is not to be used."""

    memory: int
    disk: int

    def files(self, expected: int, promised: int = 0) -> Files:
        """Return where `expected` bytes go. When they fit nowhere it is memory: what does not fit leaves no traces.

        `promised`: how much of the memory other migrations may take still.
        """
        wanted, left = expected + ROOM_LEFT_BYTES, max(0, self.memory - promised)
        if wanted <= left or wanted > self.disk:
            return Files()
        return Files(
            on_disk=True,
            why=f"the checkpoint may take {expected // _MEBIBYTE} MiB, and /run has {left // _MEBIBYTE} MiB left: "
            "its files lie on the disk until the migration has ended",
        )


@dataclass(frozen=True)
class RoomFinder:
    """Looks at the node. Blocks for microseconds."""

    layout: Layout
    disk_allowed: bool

    def look(self) -> Room:
        """Return what is free now."""
        disk = shutil.disk_usage(self.layout.state).free if self.disk_allowed else 0
        return Room(shutil.disk_usage(self.layout.run).free, disk)
