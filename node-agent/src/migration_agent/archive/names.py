"""What lies where in an archive of `podman container checkpoint --export`, and what may be how large."""

from __future__ import annotations

import re

CHECKPOINT = "checkpoint"
"""The directory of CRIU's images."""
CONFIG = "config.dump"
SPEC = "spec.dump"
NETWORK = "network.status"
STATISTICS = "stats-dump"
CHANGES = "rootfs-diff.tar"
"""What the container added to its root file system, or changed there; deletions are listed beside it."""
DELETED = "deleted.files"
SHARED_MEMORY = "devshm-checkpoint.tar"
VOLUMES = "volumes"

LEFT_OUT = {
    "ctr.log": "the container's log",
    "dump.log": "CRIU's log",
    "artifacts": "the container's log and attachments",
    "bind.mounts": "where bind mounts came from",
}
"""What an archive may hold and a checkpoint does not need."""

PRE_CHECKPOINT = "pre-checkpoint"
POD = ("pod.options", "pod.dump")

FILE_BYTES = 8 * 1024 * 1024
"""The most that a description may have."""
TOTAL_BYTES = 256 << 30
"""The most that an archive may unpack to, unless the user says otherwise; what the interposer takes of a layer."""
MEMBERS_MAX = 2 << 20

VOLUME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
NAME_BYTES, PATH_BYTES = 255, 4096


class NotTransferable(Exception):
    """A checkpoint that the other format cannot hold; one problem a line, for an admin."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def relative(name: str) -> str:
    """Return a path in an archive without `./` and a last `/`; the root is ".".

    Raises:
        ValueError: it is absolute, leaves the archive, or is longer than a file system allows.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    if name.startswith("/") or "\0" in name or not name or len(encoded) > PATH_BYTES:
        raise ValueError(f"{name[:200]!r} is not a relative path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise ValueError(f"the path {name[:200]!r} leads out of the archive")
    if any(len(part.encode("utf-8", "surrogateescape")) > NAME_BYTES for part in parts):
        raise ValueError(f"a name in {name[:200]!r} is too long")
    return "/".join(parts) or "."
