"""Where everything lies: what is cached for ever, and what belongs to one running cluster."""

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from .plan import Plan, read
from .progress import note

RUN = Path("/run/container-migration-testbed")
STATE = Path("/var/lib/container-migration-testbed")

SOURCES = Path(__file__).resolve().parent.parent
"""The test bed's own folder."""

REPOSITORY = SOURCES.parent.parent

NEW_SECONDS = 60
"""A scratch folder this young may not be locked yet by the command that has just made it."""


@dataclass(frozen=True)
class Cluster:
    """The places of one cluster. Whatever exists under these paths was made by the test bed."""

    name: str
    plan: Plan = field(default_factory=Plan)

    @property
    def run(self) -> Path:
        return RUN / self.name

    @property
    def state(self) -> Path:
        """Docker's data: must lie on a real disk, overlay does not stack on overlay or tmpfs."""
        return STATE / self.name

    @property
    def shared(self) -> Path:
        """The folder that all nodes see at `kindcluster.SHARED`."""
        return self.state / "shared"

    @property
    def recorded_plan(self) -> Path:
        return self.run / "plan.json"

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
        roles = ["control-plane", "worker", *(f"worker{number}" for number in range(2, self.plan.workers + 1))]
        return tuple(f"{self.name}-{role}" for role in roles)

    @property
    def workers(self) -> tuple[str, ...]:
        return self.nodes[1:]


def recorded(name: str) -> Cluster:
    """The cluster of that name as it was last brought up; with the default plan when it is not there."""
    cluster = Cluster(name)
    plan = read(cluster.recorded_plan)
    return replace(cluster, plan=plan) if plan else cluster


def cache_root() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "container-migration"


def cache(*parts: str) -> Path:
    """A path in the cache; its parent exists."""
    path = cache_root().joinpath(*parts)
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
    parent = cache("making", "any").parent
    remove_forgotten(parent)
    folder = Path(tempfile.mkdtemp(dir=parent))
    folder.chmod(0o755)
    with held(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def held(folder: Path) -> Generator[bool]:
    """A lock that its holder's death releases: who gets it for a scratch folder knows that nobody uses it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def remove_forgotten(parent: Path) -> None:
    """Scratch folders of commands that were killed; one that another command ends with just now is left to it."""
    for folder in parent.iterdir():
        with suppress(FileNotFoundError):
            if time.time() - folder.stat().st_mtime > NEW_SECONDS:
                with held(folder) as forgotten:
                    if forgotten:
                        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def lock(name: str) -> Generator[None]:
    """One at a time, from whichever checkout: a second one waits for the first."""
    with cache("locks", name).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another command that holds the lock {name} ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
