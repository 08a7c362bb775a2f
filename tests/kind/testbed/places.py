"""Where everything lies: what is cached for ever, and what belongs to one running cluster."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent
"""The test bed's own folder."""

REPOSITORY = SOURCES.parent.parent

FORGOTTEN_SECONDS = 6 * 3600
"""No step takes that long."""


@dataclass(frozen=True)
class Cluster:
    """The places of one cluster. Whatever exists under these paths was made by the test bed."""

    name: str

    @property
    def run(self) -> Path:
        return Path("/run/container-migration-testbed") / self.name

    @property
    def state(self) -> Path:
        """Docker's data: must lie on a real disk, overlay does not stack on overlay or tmpfs."""
        return Path("/var/lib/container-migration-testbed") / self.name

    @property
    def netns(self) -> Path:
        return self.run / "netns"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    @property
    def socket(self) -> Path:
        return self.run / "docker.sock"

    @property
    def created(self) -> Path:
        """Exists once `kind create cluster` has succeeded: without it a cluster is a fragment."""
        return self.run / "created"

    @property
    def tools(self) -> Path:
        """Links to the tools this cluster was made with: first in the PATH of whatever works on it."""
        return self.run / "bin"

    @property
    def cgroup(self) -> str:
        """Below the root of every cgroup hierarchy; all our processes are in it, so it says what is ours."""
        return f"container-migration-testbed-{self.name}"

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(f"{self.name}-{role}" for role in ("control-plane", "worker", "worker2"))


def cache(*parts: str) -> Path:
    """A path in the cache; its parent exists."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "container-migration"
    path = root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def digest(*inputs: str | bytes | Path) -> str:
    """Names cached content by its inputs: strings as they are, paths by their files' content and mode."""
    total = hashlib.sha256()
    for item in inputs:
        for part in hash_parts(item):
            total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()[:16]


def hash_parts(item: str | bytes | Path) -> Iterator[bytes]:
    if not isinstance(item, Path):
        yield item.encode() if isinstance(item, str) else item
        return
    for file in sorted(files_below(item)):
        yield str(file.relative_to(item)).encode()
        yield b"x" if os.access(file, os.X_OK) else b"-"
        yield file.read_bytes()


def files_below(path: Path) -> Iterable[Path]:
    """Regular files, without hidden folders and compiled Python: neither is an input of anything."""
    if path.is_file():
        return [path]
    found = (Path(top) / name for top, _, names in walk_sources(path) for name in names)
    return [file for file in found if file.is_file() and file.suffix != ".pyc"]


def walk_sources(path: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for top, folders, names in os.walk(path):
        folders[:] = [folder for folder in folders if not folder.startswith(".") and folder != "__pycache__"]
        yield top, folders, names


@contextmanager
def finished(target: Path) -> Generator[Path]:
    """A scratch folder that becomes `target` when the block succeeds: what is in the cache is complete."""
    with scratch() as folder:
        yield folder
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)


@contextmanager
def scratch() -> Generator[Path]:
    """A folder on the cache's own disk (big trees do not fit into every /tmp), removed afterwards."""
    parent = cache("scratch", "any").parent
    remove_forgotten(parent)
    folder = Path(tempfile.mkdtemp(dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_forgotten(parent: Path) -> None:
    """Scratch folders of commands that were killed."""
    for folder in parent.iterdir():
        if time.time() - folder.stat().st_mtime > FORGOTTEN_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock(path: Path) -> Generator[None]:
    """One at a time: a second `up`, `down` or `build` waits for the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
