"""Where everything lies on a node (docs/protocol.md, section 2); names are checked before they become paths."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from migration_api.migration import UID
from migration_api.names import RUN_DIR, STATE_DIR

_UID = re.compile(UID)
_CONTAINER = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_KUBELET_PODS = "var/lib/kubelet/pods"
MEMORY_LOG = "memory.log"
"""Beside a container's images: memory that was copied while it changed (docs/checkpoint-format.md)."""
SHARED_DIRECTORY = "_pod"
"""No container can have this name."""
ONLY_LOOPBACK = "only-loopback"
"""Beside the shared volumes: the pod has TCP connections, and all are within it, so that they can move."""


class UnsafeName(ValueError):
    """A name from outside that must not become a path."""


def checked_uid(uid: str) -> str:
    """Return `uid` when it can be one file name, and nothing else.

    Raises:
        UnsafeName: it cannot.
    """
    if not _UID.fullmatch(uid):
        raise UnsafeName(f"{uid[:80]!r} is not a UID")
    return uid


def checked_container(name: str) -> str:
    """Return the name of a container when it is one.

    Raises:
        UnsafeName: it is not.
    """
    if not _CONTAINER.fullmatch(name):
        raise UnsafeName(f"{name[:80]!r} is not the name of a container")
    return name


@dataclass(frozen=True)
class Layout:
    """The node's files; tests give it another root directory."""

    root: Path = Path("/")

    @property
    def state(self) -> Path:
        return self.root / STATE_DIR.lstrip("/")

    @property
    def run(self) -> Path:
        return self.root / RUN_DIR.lstrip("/")

    @property
    def images_home(self) -> Path:
        """Where migrations' files lie in memory; a mount of its own where the agent could make it."""
        return self.run / "images"

    @property
    def migrations(self) -> Path:
        return self.state / "migrations"

    @property
    def pods(self) -> Path:
        return self.state / "pods"

    @property
    def tombstones(self) -> Path:
        return self.state / "tombstones"

    @property
    def tickets(self) -> Path:
        return self.state / "tickets"

    @property
    def peers(self) -> Path:
        """The last list of agents that the API server gave: trust must not end with the API server."""
        return self.state / "peers.json"

    @property
    def starts(self) -> Path:
        """How often the agent was started here: revisions grow over restarts."""
        return self.state / "starts"

    @property
    def certificate(self) -> Path:
        return self.state / "agent.crt"

    @property
    def key(self) -> Path:
        return self.state / "agent.key"

    @property
    def socket(self) -> Path:
        return self.run / "agent.sock"

    @property
    def pages_socket(self) -> Path:
        """Where pagers ask for memory that stays at a source."""
        return self.run / "pages.sock"

    @property
    def failpoints(self) -> Path:
        """Only tests make it: see `migration_api.failpoints`."""
        return self.run / "failpoints"

    def migration(self, uid: str) -> Path:
        return self.migrations / checked_uid(uid)

    def claim(self, pod_uid: str) -> Path:
        return self.pods / checked_uid(pod_uid)

    def tombstone(self, uid: str) -> Path:
        return self.tombstones / checked_uid(uid)

    def ticket(self, pod_uid: str) -> Path:
        return self.tickets / checked_uid(pod_uid)

    def images(self, uid: str) -> Path:
        """Return where a migration's files lie: in memory, or on the disk when that was chosen for it."""
        on_disk = self.images_on_disk(uid)
        return on_disk if on_disk.is_dir() else self.images_in_memory(uid)

    def images_in_memory(self, uid: str) -> Path:
        return self.images_home / checked_uid(uid)

    def images_on_disk(self, uid: str) -> Path:
        """Return the directory that is there only when a migration's files lie on the disk."""
        return self.state / "images" / checked_uid(uid)

    def clearing(self, uid: str) -> Path:
        """Return where it stands which store is still to be cleared of an ended migration."""
        return self.run / "clearing" / checked_uid(uid)

    def shipping(self, uid: str) -> Path:
        """Return where a migration's key and other secrets lie: on tmpfs."""
        return self.run / "shipping" / checked_uid(uid)

    def image(self, uid: str, container: str) -> Path:
        return self.images(uid) / checked_container(container)

    def shared_image(self, uid: str) -> Path:
        """Return where the archives of a pod's shared volumes lie, beside its containers' checkpoints."""
        return self.images(uid) / SHARED_DIRECTORY

    def kubelet_pod(self, pod_uid: str) -> Path:
        return self.root / _KUBELET_PODS / checked_uid(pod_uid)

    def prepare(self) -> None:
        """Make the directories, readable by root alone."""
        for directory in (self.state, self.migrations, self.pods, self.tombstones, self.tickets):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.run, self.images_home, self.state / "images"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (self.state, self.run):
            directory.chmod(0o700)


def sync_directory(directory: Path) -> None:
    """Bring a directory's names to the disk."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replace a file at once: whoever reads it, also after a crash, finds the whole old or the whole new content."""
    new = path.with_name(f".{path.name}.new")
    _write_new(new, content, mode)
    new.replace(path)
    sync_directory(path.parent)


def create_durably(path: Path, content: bytes, mode: int = 0o600) -> bool:
    """Create a file with its whole content, once; False when a file of that name is there."""
    new = path.with_name(f".{path.name}.new")
    _write_new(new, content, mode)
    try:
        os.link(new, path)
    except FileExistsError:
        return False
    finally:
        new.unlink()
    sync_directory(path.parent)
    return True


def _write_new(path: Path, content: bytes, mode: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
