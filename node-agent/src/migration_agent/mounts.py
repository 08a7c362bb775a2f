"""Claims as this node has them mounted: in a pod that the operator runs here for nothing else.

A DaemonSet cannot mount a claim of another namespace, and what the kubelet keeps of a volume depends on its kind: some
have no directory there. What the pod's own process sees is what the kubelet has mounted, whatever kind it is of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.processes import ProcessRef
from migration_agent.runtime.interface import Runtime, RuntimeFailure
from migration_agent.transport.store import StoreFailure
from migration_api.names import MOUNT_CONTAINER, MOUNT_PATH

_ENTERED = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass
class Mounts:
    """Opens what mount pods mount; may be used in several threads.

    Attributes:
        runtime: finds the pod's process.
        start: when a process started; None when there is none.
        proc: where processes are.
    """

    runtime: Runtime
    start: Callable[[int], int | None]
    proc: Path = Path("/proc")
    _known: dict[str, ProcessRef] = field(default_factory=dict[str, ProcessRef])

    def open(self, pod_uid: str) -> int:
        """Return a descriptor of the directory that the pod mounts.

        Raises:
            StoreFailure: the pod does not run here.
            OSError: the directory cannot be opened.
        """
        known = self._known.get(pod_uid)
        if known is not None and (descriptor := self._enter(known)) is not None:
            return descriptor
        found = self._find(pod_uid)  # its container may have been started again
        if found is not None and (descriptor := self._enter(found)) is not None:
            self._known[pod_uid] = found
            return descriptor
        self._known.pop(pod_uid, None)
        message = f"the pod with the UID {pod_uid}, which mounts the claim for this node, does not run here"
        raise StoreFailure(message, passing=True)

    def _find(self, pod_uid: str) -> ProcessRef | None:
        try:
            containers = self.runtime.containers(pod_uid)
        except RuntimeFailure as failure:
            raise StoreFailure(f"the pod that mounts the claim was not found: {failure}", passing=True) from failure
        return next((it.init for it in containers if it.name == MOUNT_CONTAINER), None)

    def _enter(self, process: ProcessRef) -> int | None:
        """Return the directory's descriptor; None when that very process is gone."""
        try:
            found = os.open(self.proc / str(process.pid), _ENTERED)
        except FileNotFoundError:
            return None
        try:
            # Looked at after it was opened: what is open cannot become another process.
            if self.start(process.pid) != process.start:
                return None
            try:
                root = os.open("root", _ENTERED, dir_fd=found)  # the kernel's own link into the pod's file system
            except (FileNotFoundError, ProcessLookupError):
                return None
        finally:
            os.close(found)
        try:
            return os.open(MOUNT_PATH.lstrip("/"), _DIRECTORY, dir_fd=root)
        finally:
            os.close(root)


@dataclass(frozen=True)
class MountedClaim:
    """A claim, mounted here by a pod. Implements `volume.Directory`."""

    claim: str
    pod_uid: str
    mounts: Mounts

    remedy = "look at the pod that mounts it here"

    @contextmanager
    def opened(self) -> Generator[int, None, None]:
        """Open it. See `Directory`."""
        descriptor = self.mounts.open(self.pod_uid)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def __str__(self) -> str:
        return f"the claim {self.claim}"
