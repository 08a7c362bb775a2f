"""Layers as this project keeps them, with whiteouts, and plain tars beside a list of deletions as Podman keeps them."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError

from migration_agent.archive.forward import Source, forget, members
from migration_agent.archive.names import (
    DELETED,
    MEMBERS_MAX,
    OPAQUE,
    WHITEOUT,
    NotTransferable,
    relative,
)
from migration_agent.archive.stored import EntryReader, blocks
from migration_agent.transport.chunks import FormatError

_COPY_BYTES = 1 << 20
_PATHS = TypeAdapter(list[str])
_END = bytes(2 * tarfile.BLOCKSIZE)


class Sink(Protocol):
    """What a tar is written to."""

    def write(self, content: bytes, /) -> int: ...

    def tell(self) -> int: ...


@dataclass(frozen=True)
class Plain:
    """A layer without its whiteouts: which parts of it stay, and what it deletes."""

    reader: EntryReader
    parts: tuple[tuple[int, int], ...]
    """From, to; the end of the archive is not among them."""
    deleted: tuple[str, ...]
    """Absolute paths, as Podman writes them."""

    @property
    def size(self) -> int:
        return sum(end - start for start, end in self.parts) + len(_END)

    @property
    def empty(self) -> bool:
        return not self.parts

    def blocks(self) -> Iterator[bytes]:
        """Yield the tar."""
        for start, end in self.parts:
            yield from blocks(self.reader, start, end)
        yield _END


def plain(reader: EntryReader, what: str, *, exact: bool = False) -> Plain:
    """Return a layer, split into what Podman keeps in two files.

    Args:
        reader: the layer.
        what: its name in messages.
        exact: it is one of a volume, whose last member says that nothing else is in it.

    Raises:
        NotTransferable: it hides what the image has in a directory, which a list of names cannot say.
        FormatError: it cannot be read.
    """
    parts: list[tuple[int, int]] = []
    deleted: list[str] = []
    for member, end in _members(reader, what):
        directory, _, base = member.name.rpartition("/")
        if not base.startswith(WHITEOUT):
            if parts and parts[-1][1] == member.offset:
                parts[-1] = (parts[-1][0], end)
            else:
                parts.append((member.offset, end))
        elif base != OPAQUE:
            deleted.append("/" + f"{directory}/{base.removeprefix(WHITEOUT)}".lstrip("/"))
        elif not exact or directory:
            raise NotTransferable(
                f"{what}: the container replaced the image's directory /{directory} by one of its own, and the "
                f"archive's {DELETED} can list only single files that are gone; nothing was written"
            )
    return Plain(reader, tuple(parts), tuple(deleted))


def _members(reader: EntryReader, what: str) -> Iterator[tuple[tarfile.TarInfo, int]]:
    """Yield each member with the offset where the next one begins."""
    file: Any = reader
    try:
        with tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8") as tar:
            while (member := tar.next()) is not None:
                yield member, tar.offset
                forget(tar)
    except tarfile.TarError as error:
        raise FormatError(f"{what} is not an archive that can be read: {error}") from error


def new_tar(sink: Sink) -> tarfile.TarFile:
    """Return a tar that is written into a sink."""
    file: Any = sink
    return tarfile.TarFile(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", copybufsize=_COPY_BYTES)


class Rewriter:
    """Writes what an archive's tar holds anew, member by member: nothing in it is taken over unseen."""

    def __init__(self, what: str, sink: Sink | None, budget: Budget) -> None:
        """`sink`: None only looks."""
        self._what, self._budget = what, budget
        self._tar = None if sink is None else new_tar(sink)

    def copy(self, source: Source) -> Iterator[str]:
        """Copy the tar that a source holds; yields what cannot be taken over."""
        for tar, member in members(source, self._what):
            self._budget.count(member)
            try:
                problem = _problem(member)
            except ValueError as error:
                problem = str(error)
            if problem:
                yield f"{self._what}: {problem}"
            elif self._tar is not None:
                self._add(self._tar, member, tar)

    def delete(self, path: str) -> None:
        """Add a whiteout."""
        directory, _, base = path.rpartition("/")
        self.mark(f"{directory}/{WHITEOUT}{base}".lstrip("/"))

    def mark(self, name: str) -> None:
        """Add an empty file, which means something by its name."""
        if self._tar is not None:
            self._tar.addfile(tarfile.TarInfo(name))

    def close(self) -> None:
        """Write the end of the archive."""
        if self._tar is not None:
            self._tar.close()

    @staticmethod
    def _add(out: tarfile.TarFile, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(relative(member.name))
        info.type, info.mode, info.uid, info.gid = member.type, member.mode & 0o7777, member.uid, member.gid
        info.mtime = max(0, int(member.mtime))
        # Owners by number: a name means another one elsewhere. Holes are written as zeros, which cost nothing here.
        info.pax_headers = {
            key: value for key, value in member.pax_headers.items() if key == "mtime" or key.startswith("SCHILY.xattr.")
        }
        if member.issym():
            info.linkname = member.linkname
        elif member.islnk():
            info.linkname = relative(member.linkname)
        if member.isreg():
            info.type, info.size = tarfile.REGTYPE, member.size
            out.addfile(info, tar.extractfile(member))
        else:
            out.addfile(info)


@dataclass
class Budget:
    """What an archive may still hold; raises `NotTransferable` when it is used up."""

    bytes: int
    members: int = MEMBERS_MAX

    def count(self, member: tarfile.TarInfo) -> None:
        self.members -= 1
        self.bytes -= max(0, member.size)
        if self.members < 0:
            raise NotTransferable(f"the archive has more than {MEMBERS_MAX} members")
        if self.bytes < 0:
            raise NotTransferable("the archive unpacks to more than the limit: raise it with --limit")


def deletions(content: bytes) -> tuple[str, ...]:
    """Return the paths that Podman's list of deleted files names.

    Raises:
        NotTransferable: it is no such list, or a path leads out of the root file system.
    """
    try:
        found = tuple(relative(name.lstrip("/")) for name in _PATHS.validate_json(content, strict=True))
    except ValidationError as error:
        raise NotTransferable(f"{DELETED} is not a list of paths") from error
    except ValueError as error:
        raise NotTransferable(f"{DELETED}: {error}") from error
    if "." in found or any(name.rpartition("/")[2].startswith(WHITEOUT) for name in found):
        raise NotTransferable(f"{DELETED} names the root itself, or what means a deletion in a layer")
    return found


def _problem(member: tarfile.TarInfo) -> str:
    """Return why a member cannot be taken over; empty when it can."""
    name = relative(member.name)
    if name.rpartition("/")[2].startswith(WHITEOUT):
        return f"the file {name[:200]} has a name that means a deletion in a layer"
    if member.isdev() and not member.isfifo():
        return f"{name[:200]} is a device, which would be other hardware on another node"
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk() or member.isfifo()):
        return f"{name[:200]} is of a kind ({member.type!r}) that no root file system holds"
    if name == "." and not member.isdir():
        return "the root is not a directory"
    if member.islnk() and relative(member.linkname) in (name, "."):
        return f"{name[:200]} is a link to itself or to the root"
    return ""
