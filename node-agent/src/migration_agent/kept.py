"""Checkpoints that stay in a store: one is looked at and marked as kept, another is removed. No migration is involved.

All functions block and are called in threads. A store that does not do it is an answer, not an error.
"""

from __future__ import annotations

from dataclasses import dataclass

from migration_agent.archive.stored import StoredCheckpoint
from migration_agent.places import Places
from migration_agent.transport.chunks import FormatError, blob_name
from migration_agent.transport.manifest import chunk_count
from migration_agent.transport.store import KEPT, StoreFailure
from migration_api.stored import KeepReport, KeepRequest, RemoveReport, RemoveRequest


@dataclass(frozen=True)
class Kept:
    """What the operator asks of this node about them."""

    places: Places

    def keep(self, request: KeepRequest) -> KeepReport:
        """Mark a checkpoint as kept when it is complete: its manifest is authentic and every chunk is there.

        The chunks themselves are verified by whoever restores or exports it.
        """
        try:
            self.places.demand(request.store)
            store = self.places.store(request.store, request.uid)
            found = StoredCheckpoint(store, request.key_bytes, request.uid)
            names = frozenset(store.list())
            for entry in found.manifest.entries:
                for index in range(chunk_count(entry.size, found.manifest.chunk_bytes)):
                    if blob_name(entry.path, index) not in names:
                        return KeepReport(problem=f"entry {entry.path}, chunk {index} is missing")
            if KEPT not in names:
                store.put(KEPT, b"kept\n")
        except FormatError as error:
            return KeepReport(problem=str(error))
        except StoreFailure as failure:
            return KeepReport(problem=str(failure), passing=True)
        return KeepReport(
            digest=found.digest,
            size_bytes=sum(entry.size for entry in found.manifest.entries),
            containers=found.containers,
        )

    def remove(self, request: RemoveRequest) -> RemoveReport:
        """Remove a checkpoint, and with it its mark."""
        try:
            self.places.demand(request.store)
            store = self.places.store(request.store, request.uid)
            found = bool(store.list())
            store.wipe()
            left = store.list()
            if request.store.mount_pod is not None and not left:
                # Whoever ends in a bucket or directory sweeps it (see `clearing`); of a claim the operator says when.
                self.places.sweep(request.store, request.uid)
        except StoreFailure as failure:
            return RemoveReport(problem=str(failure), passing=failure.passing)
        problem = f"{len(left)} blobs are still there" if left else ""
        return RemoveReport(problem=problem, passing=True, found=found)
