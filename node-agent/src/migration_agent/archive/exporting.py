"""Writes a checkpoint as `podman container checkpoint --export` does: a tar, compressed with zstd."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, BinaryIO

import zstandard

from migration_agent.archive import names
from migration_agent.archive.layers import Plain, Sink, new_tar, plain
from migration_agent.archive.stored import EntryReader, StoredCheckpoint
from migration_agent.paths import ONLY_LOOPBACK, SHARED_DIRECTORY
from migration_agent.transport.manifest import DESCRIPTIONS

_ZSTD_LEVEL = 3


class Compression(StrEnum):
    """Of the whole archive, as Podman names it."""

    ZSTD = "zstd"
    GZIP = "gzip"
    NONE = "none"


@dataclass(frozen=True)
class Exported:
    """What an archive holds, and what it could not."""

    container: str
    files: int
    left_out: tuple[str, ...]


def chosen(checkpoint: StoredCheckpoint, container: str | None) -> str:
    """Return the container that an archive will hold: there is room for one.

    Raises:
        NotTransferable: there are several and none was named, or there is none of that name.
    """
    found = checkpoint.containers
    if container is None and len(found) == 1:
        return found[0]
    if container in found:
        return container
    listed = ", ".join(found)
    if container is None:
        raise names.NotTransferable(f"an archive holds one container, and the checkpoint has {listed}: name one")
    raise names.NotTransferable(f"the checkpoint has no container {container}; it has {listed}")


def export(checkpoint: StoredCheckpoint, container: str, out: BinaryIO, compression: Compression) -> Exported:
    """Write the archive of one container.

    Raises:
        NotTransferable: the archive cannot hold it; then nothing was written.
        FormatError: the checkpoint is damaged; then what was written is of no use.
        StoreFailure: a chunk cannot be fetched.
        OSError: it cannot be written.
    """
    parts = _Parts(checkpoint, container)
    with ExitStack() as stack:
        tar = stack.enter_context(new_tar(stack.enter_context(_Counted(_packed(out, compression)))))
        files = 0
        for name, content in parts.members():
            info = tarfile.TarInfo(name)
            info.mtime = parts.made_at
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o700
            else:
                info.mode, info.size = 0o600, content.size
                files += 1
            file: Any = content
            tar.addfile(info, file)
    return Exported(container, files, parts.left_out)


class _Parts:
    """What goes into the archive; all that can stand against it is found before its first byte."""

    def __init__(self, checkpoint: StoredCheckpoint, container: str) -> None:
        self._checkpoint, self._container = checkpoint, container
        paths = checkpoint.paths
        prefix = f"{container}/images/"
        self._images = tuple(path for path in paths if path.startswith(prefix))
        missing = [name for name in (names.CONFIG, names.SPEC) if f"{container}/{name}" not in paths]
        if f"{prefix}inventory.img" not in paths:
            missing.append("images/inventory.img")
        if missing:
            raise names.NotTransferable(
                f"the checkpoint of container {container} has no {', '.join(missing)}, which an archive must have"
            )
        self._changes = self._plain(f"{container}/{names.CHANGES}")
        self._shared_memory = self._plain(f"{SHARED_DIRECTORY}/shm.tar", exact=True)
        self._volumes = {
            path.removeprefix(f"{SHARED_DIRECTORY}/volume-"): self._plain(path, exact=True)
            for path in paths
            if path.startswith(f"{SHARED_DIRECTORY}/volume-")
        }
        self.made_at = _made_at(self._small(names.CONFIG))
        others = tuple(name for name in checkpoint.containers if name != container)
        loopback = f"{SHARED_DIRECTORY}/{ONLY_LOOPBACK}" in paths
        self.left_out = (
            *(f"container {name}: an archive holds one container" for name in others),
            *(["that all TCP connections are within the pod: they will be closed at a restore"] if loopback else []),
        )

    def members(self) -> Iterator[tuple[str, Content | None]]:
        """Yield names and contents; a directory has none."""
        descriptions = [name for name in DESCRIPTIONS if f"{self._container}/{name}" in self._checkpoint.paths]
        for name in descriptions:
            yield name, self._checkpoint.reader(f"{self._container}/{name}")
        if names.NETWORK not in descriptions:
            yield names.NETWORK, _Memory(b"{}")  # a pod has its addresses from its node
        yield names.CHECKPOINT, None
        for path in self._images:
            yield f"{names.CHECKPOINT}/{path.rpartition('/')[2]}", self._checkpoint.reader(path)
        if self._changes and not self._changes.empty:
            yield names.CHANGES, _Tar(self._changes)
        if self._changes and self._changes.deleted:
            yield names.DELETED, _Memory(json.dumps(self._changes.deleted, indent=2).encode())
        if self._shared_memory:
            yield names.SHARED_MEMORY, _Tar(self._shared_memory)
        if self._volumes:
            yield names.VOLUMES, None
        for name, content in sorted(self._volumes.items()):
            if content:
                yield f"{names.VOLUMES}/{name}", _Tar(content)

    def _plain(self, path: str, *, exact: bool = False) -> Plain | None:
        if path not in self._checkpoint.paths:
            return None
        return plain(self._checkpoint.reader(path), f"entry {path}", exact=exact)

    def _small(self, name: str) -> bytes:
        reader = self._checkpoint.reader(f"{self._container}/{name}")
        return b"" if reader.size > names.FILE_BYTES else reader.read()


class _Memory(io.BytesIO):
    """A small file."""

    @property
    def size(self) -> int:
        return len(self.getbuffer())


class _Tar:
    """A tar within the archive, as `tarfile` reads it: from front to back."""

    def __init__(self, content: Plain) -> None:
        self.size = content.size
        self._blocks = content.blocks()
        self._rest = b""

    def read(self, count: int) -> bytes:
        while len(self._rest) < count and (block := next(self._blocks, None)) is not None:
            self._rest += block
        part, self._rest = self._rest[:count], self._rest[count:]
        return part


Content = EntryReader | _Memory | _Tar


class _Counted:
    """Where the tar is written to; counts, since a compressor does not say how far it is."""

    def __init__(self, file: Any) -> None:
        self._file, self._at = file, 0

    def write(self, content: bytes, /) -> int:
        self._file.write(content)
        self._at += len(content)
        return len(content)

    def tell(self) -> int:
        return self._at

    def __enter__(self) -> Sink:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class _Open(io.RawIOBase):
    """A file that stays open when what is written through it is closed."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self._file = file

    def writable(self) -> bool:
        return True

    def write(self, content: Any, /) -> int:
        return self._file.write(content)


def _packed(out: BinaryIO, compression: Compression) -> Any:
    match compression:
        case Compression.ZSTD:
            return zstandard.ZstdCompressor(level=_ZSTD_LEVEL).stream_writer(out, closefd=False)
        case Compression.GZIP:
            return gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=0)
        case Compression.NONE:
            return _Open(out)


def _made_at(config: bytes) -> int:
    """Return when the checkpoint was made, in seconds; 0 when it does not say."""
    try:
        return max(0, int(datetime.fromisoformat(json.loads(config)["checkpointedTime"]).timestamp()))
    except (ValueError, TypeError, KeyError, OverflowError):
        return 0
