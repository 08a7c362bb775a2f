"""Other migrations of what is to move: which of them goes first. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from migration_api.migration import ContainerMigration


def ahead(
    migration: ContainerMigration, rivals: Collection[ContainerMigration], uid: str
) -> Iterator[ContainerMigration]:
    """Yield the rivals that go before a migration; `uid`: of the pod or container, which one may have begun with."""
    mine = _age(migration)
    return (it for it in rivals if _age(it) < mine or it.status.source.pod_uid == uid)


def is_unknown(holder: str | None, migration: ContainerMigration, rivals: Collection[ContainerMigration]) -> bool:
    """Say whether an agent holds it for a migration that is none of these, by its UID."""
    return bool(holder) and holder not in {migration.metadata.uid, *(it.metadata.uid for it in rivals)}


def _age(migration: ContainerMigration) -> tuple[str, str]:
    """The older goes first; of two in one second the one with the smaller UID."""
    created = migration.metadata.creation_timestamp
    return (created.isoformat() if created else "", migration.metadata.uid)
