"""Opens the stores that migrations name, clears them at the end, and tries them before anything is touched.

All functions block and are called in threads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from migration_agent.mounts import MountedClaim, Mounts
from migration_agent.transport.objects import Bucket
from migration_agent.transport.store import KEPT, Place, Store, StoreFailure
from migration_agent.transport.volume import Folder, Volume
from migration_api.shipping import ProbeProblem, ProbeReport, ProbeStep, Shipping, StoreAccess, StoreProbe

_WRITTEN = "probe"
"""What the node that begins a probe puts."""


@dataclass(frozen=True)
class Places:
    """The stores, as this node reaches them.

    Attributes:
        node: this node's name.
        shared_paths: the host's directories that this agent has mounted for shared volumes.
        leftover_seconds: how old what a crashed migration left must be to be removed by another one.
        mounts: the claims that are mounted on this node.
    """

    node: str
    shared_paths: tuple[Path, ...] = ()
    leftover_seconds: float = 48 * 3600.0
    mounts: Mounts | None = None

    def store(self, access: StoreAccess, uid: str) -> Store:
        """Return the store of one migration.

        Raises:
            StoreFailure: it cannot be opened as it is named.
        """
        return self._place(access).store(uid)

    def demand(self, access: StoreAccess) -> None:
        """Return when the volume or bucket is there, so that what it does not hold does not exist.

        Raises:
            StoreFailure: it is not.
        """
        self._place(access).demand()

    def store_of(self, uid: str, shipping: Shipping) -> Store | None:
        """Return where a migration's chunks lie between the nodes; None when they travel from agent to agent.

        Raises:
            StoreFailure: it cannot be opened as it is named.
        """
        return self.store(shipping.store, uid) if shipping.store is not None else None

    def clear(self, access: StoreAccess, uid: str, live: Iterable[str]) -> tuple[str, ...]:
        """Remove what an ended migration left in its store, and what others left there that crashed long ago.

        What is marked as kept stays. Returns the UIDs of those others.

        Raises:
            StoreFailure: it could not be removed.
        """
        place = self._place(access)
        store = place.store(uid)
        if KEPT not in store.list():
            store.wipe()
        return place.sweep(frozenset({uid, *live}), self.leftover_seconds)

    def sweep(self, access: StoreAccess, uid: str) -> tuple[str, ...]:
        """Remove what others than this migration left in a store that crashed long ago; return their UIDs.

        Raises:
            StoreFailure: it could not be removed.
        """
        return self._place(access).sweep(frozenset({uid}), self.leftover_seconds)

    def probe(self, probe: StoreProbe) -> ProbeReport:
        """Take one step of a probe; a store that cannot be used is an answer, not an error."""
        try:
            return self._probe(self.store(probe.store, probe.uid), probe)
        except StoreFailure as failure:
            return ProbeReport(problem=ProbeProblem.UNUSABLE, message=str(failure))

    def _probe(self, store: Store, probe: StoreProbe) -> ProbeReport:
        content = probe.content.encode()
        match probe.step:
            case ProbeStep.WRITE:
                return _kept(store, _WRITTEN, content)
            case ProbeStep.READ:
                if _WRITTEN not in store.list() or store.get(_WRITTEN) != content:
                    message = "it does not find what the source's node has put: it sees another volume or bucket"
                    return ProbeReport(problem=ProbeProblem.NOT_SHARED, message=message)
                return _kept(store, f"{_WRITTEN}-{hashlib.sha256(self.node.encode()).hexdigest()[:16]}", content)
            case ProbeStep.REMOVE:
                store.wipe()
                if left := store.list():
                    message = f"what was removed is still there: {', '.join(left)}"
                    return ProbeReport(problem=ProbeProblem.UNUSABLE, message=message)
                return ProbeReport()

    def _place(self, access: StoreAccess) -> Place:
        volume = access.shared_volume
        if volume is not None and volume.path is not None:
            return Volume(Folder(Path(volume.path), self.shared_paths))
        if volume is not None and volume.claim is not None and access.mount_pod is not None and self.mounts is not None:
            return Volume(MountedClaim(volume.claim, access.mount_pod, self.mounts))
        if access.object_store is not None:
            return Bucket(
                url=access.object_store.url,
                credentials={name: secret.get_secret_value() for name, secret in access.credentials.items()},
                endpoint=access.object_store.endpoint,
                region=access.object_store.region,
                authority=access.authority,
            )
        raise StoreFailure("neither a volume nor a bucket is named")


def _kept(store: Store, name: str, content: bytes) -> ProbeReport:
    store.put(name, content)
    if store.get(name) != content:
        return ProbeReport(problem=ProbeProblem.UNUSABLE, message="what was put there comes back as something else")
    return ProbeReport()
