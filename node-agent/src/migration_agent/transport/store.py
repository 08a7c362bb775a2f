"""Where sealed chunks may lie between two nodes: what every store can do, and the names that it uses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Protocol

from migration_api.shipping import Shipping

HOME = "container-migration"
"""Below it everything of ours lies: HOME/MIGRATION-UID/BLOB. Nothing else in a store is ever listed or removed."""

KEPT = "kept"
"""The blob that marks a checkpoint as one that stays: nothing but an order to remove this very one removes it."""

BLOB_BYTES = 64 * 1024 * 1024
"""No blob is larger: whatever lies in a store is read into memory."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")
_MIGRATION = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class StoreFailure(Exception):
    """The store did not do it; the message is for an admin and holds no secrets.

    Attributes:
        passing: another try may help: the store is away, or busy.
    """

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


class BlobMissing(StoreFailure):
    """There is no blob of that name (yet)."""


class Store(Protocol):
    """The blobs of one migration. All methods block, may be called in several threads, and raise `StoreFailure`."""

    def put(self, name: str, blob: bytes | bytearray | memoryview) -> None:
        """Keep a blob; whoever sees its name sees all of it. Again under the same name: the new one is kept."""
        ...

    def get(self, name: str) -> bytes:
        """Return a blob; raises `BlobMissing` when there is none of that name."""
        ...

    def list(self) -> tuple[str, ...]:
        """Return the names of all blobs."""
        ...

    def wipe(self) -> None:
        """Remove all blobs; nothing when there are none."""
        ...


class Place(Protocol):
    """A volume or bucket, for the checkpoints of all migrations. All methods raise `StoreFailure`."""

    def store(self, uid: str) -> Store:
        """Return the store of one migration."""
        ...

    def demand(self) -> None:
        """Return when it is there, whether or not it holds anything."""
        ...

    def sweep(self, keep: frozenset[str], seconds: float) -> tuple[str, ...]:
        """Remove what crashed migrations left, and return their UIDs; what is marked as kept stays, however old.

        Args:
            keep: the UIDs of migrations that are not touched.
            seconds: how long nothing must have been written for a migration.
        """
        ...


StoreOf = Callable[[str, Shipping], "Store | None"]
"""Returns the store of a migration, by its UID; None when its chunks travel from agent to agent."""


def no_store(_migration: str, _shipping: Shipping) -> Store | None:
    """Return None: `StoreOf` of an agent that knows no stores."""
    return None


def checked_name(name: str) -> str:
    """Return the name of a blob when it is one.

    Raises:
        StoreFailure: it is not.
    """
    if not is_name(name):
        raise StoreFailure(f"{name[:80]!r} is not the name of a blob")
    return name


def is_name(name: str) -> bool:
    """Say whether a blob of ours can have that name."""
    return _NAME.fullmatch(name) is not None


def is_migration(name: str) -> bool:
    """Say whether a directory of a migration can have that name: a UID as the API server makes them."""
    return _MIGRATION.fullmatch(name) is not None


def checked_migration(uid: str) -> str:
    """Return the UID of a migration when it is one.

    Raises:
        StoreFailure: it is not.
    """
    if not is_migration(uid):
        raise StoreFailure(f"{uid[:80]!r} is not the UID of a migration")
    return uid
