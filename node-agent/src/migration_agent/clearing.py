"""Clears the stores of ended migrations, in a thread of its own: no thaw and no commit waits for a store."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable

from migration_agent.places import Places
from migration_agent.transport.store import StoreFailure
from migration_agent.vault import Vault

log = logging.getLogger(__name__)

_AGAIN_SECONDS = 30.0


class Clearing:
    """What is owed outlives the agent, but not the boot; after that a later migration sweeps it, by its age."""

    def __init__(self, vault: Vault, places: Places, live: Callable[[], Iterable[str]]) -> None:
        """`live`: the UIDs of this node's migrations."""
        self._vault, self._places, self._live = vault, places, live
        self._said: dict[str, str] = {}

    def start(self) -> None:
        threading.Thread(target=self._run, name="clearing", daemon=True).start()

    def once(self) -> bool:
        """Try to clear all that is owed; return whether nothing is owed any more."""
        done = True
        for uid, access in self._vault.owed().items():
            try:
                swept = self._places.clear(access, uid, self._live())
            except StoreFailure as failure:
                done = done and not failure.passing
                if self._said.get(uid) != str(failure):
                    log.warning("migration %s: its chunks cannot be removed from the store: %s", uid, failure)
                    self._said[uid] = str(failure)
                if failure.passing:
                    continue
            else:
                if swept:
                    log.info("removed what crashed migrations left in a store: %s", ", ".join(swept))
            self._said.pop(uid, None)
            self._vault.cleared(uid)
        return done

    def _run(self) -> None:
        while True:
            self._vault.owing.clear()
            try:
                done = self.once()
            except Exception:
                log.exception("a store could not be cleared; it is tried again")
                done = False
            self._vault.owing.wait(None if done else _AGAIN_SECONDS)
