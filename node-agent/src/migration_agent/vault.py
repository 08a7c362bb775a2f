"""The migrations' secrets on this node: in 0600 files on tmpfs, so that they outlive the agent but not the boot.

All functions block for microseconds: nothing is brought to a disk.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from migration_agent.paths import Layout
from migration_api.base import Model
from migration_api.shipping import Shipping, Stays, StoreAccess

_SHIPPING_BYTES = 1024 * 1024


class OtherKey(Exception):
    """A migration has one key; the message is for an admin."""


@dataclass(frozen=True)
class Vault:
    """Keeps what a migration's requests said about its checkpoint's way."""

    layout: Layout
    owing: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when a store is to be cleared."""

    def keep(self, uid: str, shipping: Shipping) -> None:
        """Keep it in place of what was kept; the key stays the same for a migration's life.

        Raises:
            OtherKey: the migration has another key already.
        """
        kept = self.shipping(uid)
        if kept == shipping:
            return
        if kept is not None and kept.key != shipping.key:
            raise OtherKey(f"migration {uid} has another key on this node already")
        self.layout.clearing(uid).unlink(missing_ok=True)  # of a request that crashed: what comes now must not be lost
        _write(self.layout.shipping(uid), shipping)

    def shipping(self, uid: str) -> Shipping | None:
        """Return what was kept; None when nothing was, or the node was rebooted since."""
        try:
            with self.layout.shipping(uid).open("rb") as file:
                return Shipping.model_validate_json(file.read(_SHIPPING_BYTES))
        except (FileNotFoundError, ValidationError):
            return None

    def wipe(self, uid: str, *, well: bool = False) -> None:
        """Forget a migration's key; what opens its store is kept until the store is cleared.

        `well`: it has ended as it should: then a checkpoint that is to be kept is not cleared.
        """
        kept = self.shipping(uid)
        stays = kept is not None and (kept.stays is Stays.ALWAYS or (kept.stays is Stays.WHEN_IT_ENDED_WELL and well))
        # What lies in a claim is removed when the operator says so: it runs the pod without which nobody could.
        ours = kept is not None and kept.store is not None and kept.store.mount_pod is None
        if kept is not None and kept.store is not None and ours and not stays:
            _write(self.layout.clearing(uid), kept.store)
            self.owing.set()
        self.layout.shipping(uid).unlink(missing_ok=True)

    def sweep(self, keep: Container[str]) -> None:
        """Forget those of all other migrations: a crash came between their end and `wipe`."""
        path: Path
        for path in self.layout.run.glob("shipping/*"):
            if path.name.startswith("."):
                path.unlink(missing_ok=True)
            elif path.name not in keep:
                self.wipe(path.name)

    def owed(self) -> dict[str, StoreAccess]:
        """Return the stores that are still to be cleared, by the UIDs of their migrations."""
        found: dict[str, StoreAccess] = {}
        for path in sorted(self.layout.run.glob("clearing/*")):
            try:
                found[path.name] = StoreAccess.model_validate_json(path.read_bytes()[:_SHIPPING_BYTES])
            except (FileNotFoundError, ValidationError):
                path.unlink(missing_ok=True)
        return found

    def cleared(self, uid: str) -> None:
        """Forget what opens the store of an ended migration."""
        self.layout.clearing(uid).unlink(missing_ok=True)


def _write(path: Path, secrets: Model) -> None:
    """Replace a file that root alone can read."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        json.dump(secrets.dump(reveal=True), file)
    new.replace(path)
