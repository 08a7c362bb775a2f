"""A directory or claim that both nodes mount, as a store: a directory per migration, a file per blob.

Everything is reached by descriptors, one name at a time, without following symbolic links: whoever can write into the
volume cannot make the agent read or write anywhere else.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from migration_agent.transport.store import (
    BLOB_BYTES,
    HOME,
    KEPT,
    BlobMissing,
    StoreFailure,
    checked_migration,
    checked_name,
    is_migration,
    is_name,
)

_FULL = {errno.ENOSPC, errno.EDQUOT}
_PASSING = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.ECONNRESET, errno.EHOSTDOWN}
"""What a network file system says while its server is away."""

_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | _OPEN
_UNFINISHED = ".new-"
"""Before the name of a blob that is being written."""


class Directory(Protocol):
    """What a volume lies in; as text, what an admin calls it."""

    @property
    def remedy(self) -> str:
        """What to do when it is not there."""
        ...

    def opened(self) -> AbstractContextManager[int]:
        """Open it: a descriptor.

        Raises:
            StoreFailure: it may not be used, or is away.
            OSError: it cannot be opened, or something on the way is a symbolic link.
        """
        ...


@dataclass(frozen=True)
class Folder:
    """A directory of the host. Implements `Directory`.

    Attributes:
        path: the directory, the same on the host and in the agent's container.
        allowed: the directories that it may be, or be below.
    """

    path: Path
    allowed: tuple[Path, ...]

    remedy = "mount it on this node"

    @contextmanager
    def opened(self) -> Generator[int, None, None]:
        """Open it, one name after another. See `Directory`."""
        root = next((root for root in self.allowed if self.path == root or root in self.path.parents), None)
        if root is None or ".." in self.path.parts:
            raise StoreFailure(
                f"{self.path} is not below a directory that the chart's value transport.sharedVolume.allowedPaths names"
            )
        with ExitStack() as stack:
            directory = _entered(stack, os.open(root, _DIRECTORY))
            for name in self.path.relative_to(root).parts:
                directory = _entered(stack, os.open(name, _DIRECTORY, dir_fd=directory))
            yield directory

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class Volume:
    """A directory for the checkpoints of all migrations. Implements `store.Place`."""

    directory: Directory

    def store(self, uid: str) -> VolumeStore:
        """Return the store of one migration. See `Place`."""
        return VolumeStore(self, checked_migration(uid))

    def demand(self) -> None:
        """Return when the directory is there. See `Place`."""
        with _explained(self), self.opened():
            pass

    def sweep(self, keep: frozenset[str], seconds: float) -> tuple[str, ...]:
        """Remove what crashed migrations left. See `Place`."""
        with _explained(self):
            try:
                with self.opened(HOME) as home:
                    found = sorted(uid for uid in _names(home) if is_migration(uid) and uid not in keep)
                    stale = (uid for uid in found if _age(home, uid) > seconds and not _kept(home, uid))
                    return tuple(uid for uid in stale if _remove(home, uid))
            except FileNotFoundError:
                return ()

    @contextmanager
    def opened(self, *names: str, make: bool = False) -> Generator[int, None, None]:
        """Open a directory of ours in the volume; `make`: and make it.

        Raises:
            StoreFailure: the volume may not be used, or is away.
            OSError: it cannot be opened, or something on the way is a symbolic link.
        """
        with ExitStack() as stack:
            directory = stack.enter_context(self.directory.opened())
            for name in names:
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=directory)
                        os.fsync(directory)
                directory = _entered(stack, os.open(name, _DIRECTORY, dir_fd=directory))
            yield directory

    def __str__(self) -> str:
        return f"the shared volume {self.directory}"


@dataclass(frozen=True)
class VolumeStore:
    """The blobs of one migration in a volume. Implements `store.Store`."""

    volume: Volume
    uid: str

    def put(self, name: str, blob: bytes | bytearray | memoryview) -> None:
        """Keep a blob, on the disk when this returns. See `Store`."""
        checked_name(name)
        with _explained(self.volume), self.volume.opened(HOME, self.uid, make=True) as directory:
            unfinished = f"{_UNFINISHED}{name}"
            try:
                _write(directory, unfinished, memoryview(blob))
                os.rename(unfinished, name, src_dir_fd=directory, dst_dir_fd=directory)
            except OSError:
                with suppress(OSError):
                    os.unlink(unfinished, dir_fd=directory)
                raise
            os.fsync(directory)

    def get(self, name: str) -> bytes:
        """Return a blob. See `Store`."""
        checked_name(name)
        with _explained(self.volume):
            try:
                with self.volume.opened(HOME, self.uid) as directory:
                    descriptor = os.open(name, os.O_RDONLY | _OPEN, dir_fd=directory)
            except FileNotFoundError:
                raise BlobMissing(f"{self.volume} has no blob {name} of migration {self.uid}") from None
            with os.fdopen(descriptor, "rb", buffering=0) as file:
                status = os.fstat(descriptor)
                if not stat.S_ISREG(status.st_mode) or status.st_size > BLOB_BYTES:
                    raise StoreFailure(f"{name} in {self.volume} is not a file of at most {BLOB_BYTES} bytes")
                return file.read()

    def list(self) -> tuple[str, ...]:
        """Return the names of all blobs. See `Store`."""
        with _explained(self.volume):
            try:
                with self.volume.opened(HOME, self.uid) as directory:
                    return tuple(sorted(name for name in _names(directory) if is_name(name)))
            except FileNotFoundError:
                return ()

    def wipe(self) -> None:
        """Remove all blobs. See `Store`."""
        with _explained(self.volume), suppress(FileNotFoundError), self.volume.opened(HOME) as home:
            _remove(home, self.uid)


def _entered(stack: ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


def _write(directory: int, name: str, blob: memoryview) -> None:
    """Write a new file that nobody else can read, down to the disk."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)  # of an attempt that crashed
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _OPEN, 0o600, dir_fd=directory)
    with os.fdopen(descriptor, "wb", buffering=0):
        done = 0
        while done < len(blob):
            done += os.write(descriptor, blob[done:])
        os.fsync(descriptor)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _age(home: int, uid: str) -> float:
    """Return for how many seconds nothing was written for a migration: every blob changes its directory."""
    with suppress(FileNotFoundError):
        status = os.stat(uid, dir_fd=home, follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            return time.time() - status.st_mtime
    return 0.0


def _kept(home: int, uid: str) -> bool:
    """Say whether the checkpoint is marked as one that stays."""
    try:
        directory = os.open(uid, _DIRECTORY, dir_fd=home)
    except FileNotFoundError:
        return False
    try:
        os.stat(KEPT, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    finally:
        os.close(directory)
    return True


def _remove(home: int, uid: str) -> bool:
    """Remove the blobs of one migration, and its directory when nothing else is in it."""
    try:
        directory = os.open(uid, _DIRECTORY, dir_fd=home)
    except FileNotFoundError:
        return False
    try:
        for name in _names(directory):
            if is_name(name.removeprefix(_UNFINISHED)):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
    finally:
        os.close(directory)
    with suppress(OSError):  # somebody put something else into it
        os.rmdir(uid, dir_fd=home)
    return True


@contextmanager
def _explained(volume: Volume) -> Generator[None, None, None]:
    """Turn what the file system says into what an admin can use."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StoreFailure(f"{volume} is full: free some of it, or make it larger") from error
        if error.errno == errno.EROFS:
            raise StoreFailure(f"{volume} is read-only: mount it for writing on this node") from error
        if error.errno in {errno.ELOOP, errno.ENOTDIR}:
            raise StoreFailure(f"{volume}: a symbolic link or file stands where a directory is needed") from error
        if error.errno == errno.ENOENT:
            raise StoreFailure(f"{volume} is not there: {volume.directory.remedy}") from error
        passing = error.errno in _PASSING
        raise StoreFailure(f"{volume} cannot be used: {error.strerror}", passing=passing) from error
