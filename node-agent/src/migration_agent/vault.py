"""The migrations' secrets on this node: in 0600 files on tmpfs, so that they outlive the agent but not the boot.

All functions block for microseconds: nothing is brought to a disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from migration_agent.paths import Layout
from migration_api.wire import Shipping

_SHIPPING_BYTES = 1024 * 1024


class OtherKey(Exception):
    """A migration has one key; the message is for an admin."""


@dataclass(frozen=True)
class Vault:
    """Keeps what a migration's requests said about its checkpoint's way."""

    layout: Layout

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
        path = self.layout.shipping(uid)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            json.dump(shipping.dump(reveal=True), file)
        new.replace(path)

    def shipping(self, uid: str) -> Shipping | None:
        """Return what was kept; None when nothing was, or the node was rebooted since."""
        try:
            with self.layout.shipping(uid).open("rb") as file:
                return Shipping.model_validate_json(file.read(_SHIPPING_BYTES))
        except (FileNotFoundError, ValidationError):
            return None

    def wipe(self, uid: str) -> None:
        """Forget a migration's secrets."""
        self.layout.shipping(uid).unlink(missing_ok=True)

    def sweep(self, keep: Container[str]) -> None:
        """Forget those of all other migrations: a crash came between their end and `wipe`."""
        path: Path
        for path in self.layout.run.glob("shipping/*"):
            if path.name not in keep:
                path.unlink(missing_ok=True)
