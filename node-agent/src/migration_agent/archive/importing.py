"""Reads an archive of `podman container checkpoint --export` into a store, as a checkpoint with a key of its own.

Two passes: the first one looks at everything and lists all that cannot be imported, so that nothing is written then;
the second one writes. What an archive holds is believed in neither.
"""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass, field
from typing import IO, BinaryIO

from migration_agent.archive import names
from migration_agent.archive.forward import explained, members, unpacked
from migration_agent.archive.layers import Budget, Rewriter, deletions
from migration_agent.archive.names import NotTransferable, relative
from migration_agent.archive.stored import EntryWriter, StoreWriter
from migration_agent.paths import SHARED_DIRECTORY
from migration_agent.transport.chunks import FormatError
from migration_agent.transport.manifest import INVENTORY, checked_path

_COPY_BYTES = 1 << 20


@dataclass
class Survey:
    """What the first pass found."""

    problems: list[str] = field(default_factory=list[str])
    left_out: list[str] = field(default_factory=list[str])
    deleted: tuple[str, ...] = ()
    found: set[str] = field(default_factory=set[str])
    """The paths of the entries."""


def survey(archive: BinaryIO, container: str, limit: int = names.TOTAL_BYTES) -> Survey:
    """Look at an archive.

    Returns what can be imported of it, or all that stands against it.

    Raises:
        NotTransferable: it cannot be read at all, or holds more than `limit` bytes.
    """
    found = Survey()
    _Pass(container, Budget(limit), found, None).run(archive)
    listed = {path.partition("/")[2] for path in found.found}
    missing = [name for name in (INVENTORY, names.CONFIG, names.SPEC) if name not in listed]
    if missing and not found.problems:
        found.problems.append(f"there is no {', '.join(missing)}: it is no whole checkpoint of one container")
    return found


def import_archive(
    archive: BinaryIO, container: str, writer: StoreWriter, limit: int = names.TOTAL_BYTES
) -> tuple[str, ...]:
    """Import a container's archive and return what was left out.

    Raises:
        NotTransferable: it cannot be imported; the error lists why, and nothing was written.
        StoreFailure: it cannot be stored; what was written counts for nothing.
    """
    found = survey(archive, container, limit)
    if found.problems:
        raise NotTransferable(*found.problems)
    archive.seek(0)
    again = Survey(deleted=found.deleted)
    _Pass(container, Budget(limit), again, writer).run(archive)
    if again.found != found.found or again.problems:
        raise NotTransferable("the archive was changed while it was read", *again.problems)
    if found.deleted and f"{container}/{names.CHANGES}" not in found.found:
        entry = writer.entry(f"{container}/{names.CHANGES}")
        _finish_changes(Rewriter(names.CHANGES, entry, Budget(0)), found.deleted)
        entry.close()
    writer.finish()
    return tuple(found.left_out)


@dataclass
class _Pass:
    """Goes through an archive once."""

    container: str
    budget: Budget
    found: Survey
    writer: StoreWriter | None
    """None: only look."""

    def run(self, archive: BinaryIO) -> None:
        for tar, member in members(unpacked(archive), "the archive"):
            try:
                name = relative(member.name)
            except ValueError as error:
                self.found.problems.append(str(error))
                continue
            path = _destination(name, member, self.container, self.found)
            content = tar.extractfile(member) if path is not None else None
            if path is None or content is None:
                continue
            self.budget.count(member)
            if path in self.found.found:
                self.found.problems.append(f"{name} is there twice")
                continue
            self.found.found.add(path)
            with explained(name):
                if name == names.DELETED:
                    self.found.deleted = deletions(_small(name, content))
                else:
                    self._copy(name, path, content)

    def _copy(self, name: str, path: str, content: IO[bytes]) -> None:
        entry = None if self.writer is None else self.writer.entry(path)
        match name.partition("/")[0]:
            case names.CHANGES:
                self.found.problems += _layer(name, content, entry, self.budget, self.found.deleted)
            case names.SHARED_MEMORY | names.VOLUMES:
                self.found.problems += _layer(name, content, entry, self.budget, None)
            case names.CONFIG | names.SPEC:
                text = _small(name, content)
                self.found.problems += _not_an_object(name, text)
                _write(entry, text)
            case _:
                while block := content.read(_COPY_BYTES):
                    _write(entry, block)
        if entry is not None:
            entry.close()


def _write(entry: EntryWriter | None, content: bytes) -> None:
    if entry is not None:
        entry.write(content)


def _layer(
    name: str, content: IO[bytes], entry: EntryWriter | None, budget: Budget, deleted: tuple[str, ...] | None
) -> list[str]:
    """Rewrite a tar; `deleted`: what it deletes of the image, None: it is all that there is of a volume."""
    rewriter = Rewriter(name, entry, budget)
    problems = list(rewriter.copy(content))
    if deleted is None:
        rewriter.mark(names.OPAQUE)
        rewriter.close()
    else:
        _finish_changes(rewriter, deleted)
    return problems


def _finish_changes(rewriter: Rewriter, deleted: tuple[str, ...]) -> None:
    for path in deleted:
        rewriter.delete(path)
    rewriter.close()


def _destination(name: str, member: tarfile.TarInfo, container: str, found: Survey) -> str | None:
    """Return the entry that a member becomes; None when it becomes none, which is noted."""
    top, _, rest = name.partition("/")
    if name == "." or (member.isdir() and name in (names.CHECKPOINT, names.VOLUMES)):
        return None
    if top in names.LEFT_OUT:
        found.left_out.append(f"{name}: {names.LEFT_OUT[top]}")
        return None
    problem = _refusal(name, top, rest, member)
    if problem:
        found.problems.append(problem)
        return None
    if name == names.DELETED:
        return names.DELETED
    path = {
        names.CHECKPOINT: f"{container}/images/{rest}",
        names.SHARED_MEMORY: f"{SHARED_DIRECTORY}/shm.tar",
        names.VOLUMES: f"{SHARED_DIRECTORY}/volume-{rest}",
    }.get(top, f"{container}/{name}")
    try:
        return checked_path(path, (container,))
    except FormatError:
        found.problems.append(f"{name[:200]} is not a part of a container's checkpoint")
        return None


def _refusal(name: str, top: str, rest: str, member: tarfile.TarInfo) -> str:
    if top in names.POD:
        return f"{name}: this is the archive of a pod with several containers; make one of each container"
    if top == names.PRE_CHECKPOINT or name == f"{names.CHECKPOINT}/parent":
        return f"{name}: the checkpoint builds on an earlier one (--with-previous, --pre-checkpoint); make a whole one"
    if top == names.VOLUMES and not names.VOLUME.fullmatch(rest.removesuffix(".tar")):
        return f"volume {rest[:200]}: no volume of a pod can have this name; make the archive with --ignore-volumes"
    if not member.isreg():
        return f"{name[:200]} is not a plain file"
    if member.issparse():
        return f"{name[:200]} is stored with holes, which Podman does not do"
    return ""


def _small(name: str, content: IO[bytes]) -> bytes:
    text = content.read(names.FILE_BYTES + 1)
    if len(text) > names.FILE_BYTES:
        raise NotTransferable(f"{name} has more than {names.FILE_BYTES} bytes")
    return text


def _not_an_object(name: str, content: bytes) -> list[str]:
    try:
        known = isinstance(json.loads(content), dict)
    except (ValueError, RecursionError):
        known = False
    return [] if known else [f"{name} is not what Podman writes there"]
