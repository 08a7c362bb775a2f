"""What this machine must have. Everything that is missing is told in one message, before anything is changed."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import debian, host, machine, versions
from .places import STATE, cache_root

KERNEL_CHECKPOINTS = Path("/proc/sys/kernel/ns_last_pid")
"""There only in a kernel with CONFIG_CHECKPOINT_RESTORE."""

MEMORY_GIB = 3.0
"""Available: the control plane and two idle workers take 1, compiling Kubernetes takes 2.6 before that."""
WORKER_GIB = 0.3
CACHE_COLD_GIB, CACHE_WARM_GIB = 12.0, 3.0
NODE_GIB = 1.5


@dataclass(frozen=True)
class Facts:
    """What was found; memory and disk in GiB."""

    root: bool
    go: tuple[int, int] | None
    apt: bool
    keyring: bool
    checkpoint_restore: bool
    overlay: bool
    memory: float
    cache_disk: float
    state_disk: float
    same_disk: bool
    cold: bool
    """Kubernetes is still to be compiled."""


def facts() -> Facts:
    there, disk_of_state = nearest(cache_root()), nearest(STATE)
    return Facts(
        root=is_root(),
        go=go_version(),
        apt=shutil.which("apt-get") is not None,
        keyring=debian.KEYRING.is_file(),
        checkpoint_restore=KERNEL_CHECKPOINTS.exists(),
        overlay=has_overlay(),
        memory=machine.available_memory(),
        cache_disk=free_disk(there),
        state_disk=free_disk(disk_of_state),
        same_disk=there.stat().st_dev == disk_of_state.stat().st_dev,
        cold=not any((cache_root() / "bin").glob("kubernetes-*")),
    )


def missing_tools(found: Facts, *, packages: bool) -> list[str]:
    """For building anything at all; `packages` when Debian packages take the place of a registry."""
    least = ".".join(map(str, versions.GO))
    missing = [] if found.root else ["root: run it with sudo"]
    if found.go is None:
        missing.append(f"Go >= {least} in PATH: https://go.dev/dl")
    elif found.go < versions.GO:
        missing.append(f"Go >= {least}: the one in PATH is {found.go[0]}.{found.go[1]}")
    if packages and not found.apt:
        missing.append("apt: without Docker or Podman that can pull images, the test bed needs a Debian-like machine")
    if packages and found.apt and not found.keyring:
        missing.append(f"{debian.KEYRING}: install debian-archive-keyring")
    return missing


def missing_for_cluster(found: Facts, *, packages: bool, workers: int) -> list[str]:
    """For bringing a cluster up, beyond the tools."""
    missing: list[str] = []
    if not found.checkpoint_restore:
        missing.append(f"a kernel with CONFIG_CHECKPOINT_RESTORE ({KERNEL_CHECKPOINTS} does not exist): CRIU needs it")
    if not found.overlay:
        missing.append("a kernel with overlayfs: containers' file systems are made with it")
    memory = MEMORY_GIB + WORKER_GIB * (workers - 2)
    if found.memory < memory:
        missing.append(f"{memory:.1f} GiB of available memory: there are {found.memory:.1f}")
    if packages:
        missing += missing_disk(found, workers)
    return missing


def missing_disk(found: Facts, workers: int) -> list[str]:
    for_cache = CACHE_COLD_GIB if found.cold else CACHE_WARM_GIB
    for_state = NODE_GIB * (workers + 1)
    if found.same_disk:
        for_cache, for_state = for_cache + for_state, 0.0
    wanted = [(cache_root(), for_cache, found.cache_disk), (STATE, for_state, found.state_disk)]
    return [
        f"{need:.1f} GiB of free disk for {place}: there are {free:.1f}" for place, need, free in wanted if free < need
    ]


def require_root() -> None:
    refuse([] if is_root() else ["root: run it with sudo"])


def require_tools(*, packages: bool) -> None:
    """For building images, and for a cluster that runs already."""
    refuse(missing_tools(facts(), packages=packages))
    if packages:
        debian.install_missing()


def require_for_cluster(*, packages: bool, workers: int) -> None:
    """For a new cluster."""
    found = facts()
    for_cluster = missing_for_cluster(found, packages=packages, workers=workers)
    refuse(missing_tools(found, packages=packages) + for_cluster)
    if packages:
        debian.install_missing()


def is_root() -> bool:
    return os.geteuid() == 0


def refuse(missing: list[str]) -> None:
    if missing:
        raise host.TestbedError("This machine lacks:\n" + "\n".join(f"  - {item}" for item in missing))


def go_version() -> tuple[int, int] | None:
    if not shutil.which("go"):
        return None
    found = re.match(r"go(\d+)\.(\d+)", host.run(["go", "env", "GOVERSION"]))
    return (int(found[1]), int(found[2])) if found else None


def has_overlay() -> bool:
    """Built in or loaded, or a module that docker will load."""
    if "\toverlay\n" in Path("/proc/filesystems").read_text():
        return True
    return shutil.which("modprobe") is not None and host.succeeds(["modprobe", "--dry-run", "overlay"])


def free_disk(path: Path) -> float:
    return shutil.disk_usage(path).free / 2**30


def nearest(path: Path) -> Path:
    """The path, or what of it exists already."""
    return path if path.exists() else nearest(path.parent)
