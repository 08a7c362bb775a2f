"""Deletes finished migrations whose `ttlSecondsAfterFinished` is over.

Nothing is remembered across a restart: the first list of all objects brings every finished migration back here.
"""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime, timedelta

from migration_api.base import now
from migration_api.conditions import ConditionType
from migration_api.migration import ContainerMigration
from migration_operator.kube import Kube, KubeError
from migration_operator.observation import is_finished

log = logging.getLogger(__name__)

PERIOD_SECONDS = 2.0


def expires_at(migration: ContainerMigration) -> datetime | None:
    """Return when the object is to be deleted; None while it has not ended, or when it is kept."""
    ttl = migration.spec.ttl_seconds_after_finished
    if ttl is None or not is_finished(migration) or migration.metadata.deletion_timestamp is not None:
        return None
    ended = next(c.last_transition_time for c in migration.status.conditions if c.type == ConditionType.SUCCEEDED)
    return ended + timedelta(seconds=ttl)


class Expiry:
    """Holds what is to be deleted and when, until it is cancelled."""

    def __init__(self, kube: Kube) -> None:
        self.turned_at = asyncio.get_running_loop().time()
        """When it looked last, by the loop's clock."""
        self._kube = kube
        self._due: dict[str, tuple[datetime, ContainerMigration]] = {}

    def notice(self, migration: ContainerMigration) -> None:
        """Take the object as it is now."""
        due = expires_at(migration)
        if due is None:
            self._due.pop(migration.metadata.uid, None)
        else:
            self._due[migration.metadata.uid] = (due, migration)

    async def run(self) -> None:
        while True:
            self.turned_at = asyncio.get_running_loop().time()
            for due, migration in list(self._due.values()):
                if due <= now():
                    await self._delete(migration)
            await asyncio.sleep(PERIOD_SECONDS)

    async def _delete(self, migration: ContainerMigration) -> None:
        """Delete this very object; when that fails it is tried again."""
        name = f"{migration.metadata.namespace}/{migration.metadata.name}"
        try:
            await self._kube.delete_migration(migration)
        except KubeError as error:
            log.warning("%s has expired but was not deleted: %s", name, error)
        except Exception:
            log.exception("%s has expired but was not deleted", name)
        else:
            self._due.pop(migration.metadata.uid, None)
            log.info("%s has expired: deleted", name)
