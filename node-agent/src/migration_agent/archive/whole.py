"""The archive of a Podman container that travels as one entry: what must be in it, and what lies beside it.

Podman made it and Podman restores from it; here it is only looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from migration_agent.archive import names
from migration_agent.archive.forward import Seeking, explained, members
from migration_agent.archive.names import NotTransferable, relative
from migration_agent.transport.manifest import INVENTORY

_WHAT = "Podman's archive"
_INVENTORY = f"{names.CHECKPOINT}/inventory.img"
_BESIDE = {_INVENTORY: INVENTORY, names.CONFIG: names.CONFIG, names.SPEC: names.SPEC}
"""What is looked at: where it is in the archive, and where it lies beside it."""


def put_beside(archive: Path, directory: Path) -> None:
    """Write what describes an archive into a checkpoint's directory.

    Raises:
        NotTransferable: it is cut off or damaged, or lacks what a restore needs.
        OSError: a file could not be written.
    """
    for name, content in _small(archive).items():
        path = directory / _BESIDE[name]
        path.touch(mode=0o600, exist_ok=False)
        path.write_bytes(content)


def demand_whole(archive: Path, container_id: str, name: str) -> None:
    """Demand that an archive is whole, and of this very container.

    Raises:
        NotTransferable: it is not.
    """
    try:
        config: Any = json.loads(_small(archive)[names.CONFIG])
    except ValueError as error:
        raise NotTransferable(f"{names.CONFIG} in Podman's archive is not JSON: {error}") from error
    fields = cast("dict[str, object]", config) if isinstance(config, dict) else {}
    if (fields.get("id"), fields.get("name")) != (container_id, name):
        raise NotTransferable("Podman's archive is of another container than the one that was asked for")


def _small(archive: Path) -> dict[str, bytes]:
    found = dict(_wanted(archive))
    if missing := [name for name in _BESIDE if name not in found]:
        raise NotTransferable(f"Podman's archive has no {' and no '.join(missing)}: it is incomplete")
    return found


def _wanted(archive: Path) -> Iterator[tuple[str, bytes]]:
    with explained(_WHAT), archive.open("rb") as file:
        for count, (tar, member) in enumerate(members(Seeking(file), _WHAT)):
            try:
                name = relative(member.name)
            except ValueError as error:
                raise NotTransferable(f"Podman's archive: {error}") from error
            if count > names.MEMBERS_MAX:
                raise NotTransferable("Podman's archive has too many members")
            if name in _BESIDE:
                content = tar.extractfile(member) if member.isreg() and member.size <= names.FILE_BYTES else None
                if content is None:
                    raise NotTransferable(f"{name} in Podman's archive is no plain file, or too large")
                yield name, content.read()
