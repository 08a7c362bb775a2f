"""ContainerCheckpoints as the operator's tests need them."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from migration_api.checkpoint import CheckpointSpec, CheckpointStatus, ContainerCheckpoint
from migration_api.migration import Metadata
from migration_api.names import CHECKPOINT_FINALIZER
from migration_operator.checkpoints import kept_pod
from support.controller import FACTS, NOW, SOURCE, SOURCE_UID, UID, source_pod

RESTORABLE: dict[str, Any] = {
    "digest": f"sha256:{64 * '0'}",
    "sizeBytes": 1 << 20,
    "node": FACTS.dump(),
    "pod": json.dumps(kept_pod(source_pod())),
}
"""What the status of one that can be restored has, beyond what every one has."""

VOLUME = {"type": "SharedVolume", "sharedVolume": {"path": "/mnt/shared/team"}}


def checkpoint(
    name: str = "redis-kept", *, ready: str = "Unknown", status: dict[str, Any] | None = None, **metadata: Any
) -> ContainerCheckpoint:
    """Return the checkpoint that the migration `move` kept; `spec` among the keywords adds to its specification."""
    spec = {"migration": {"name": "move", "uid": UID}, "transport": VOLUME, **metadata.pop("spec", {})}
    fields: dict[str, Any] = {
        "name": name,
        "namespace": "shop",
        "uid": f"uid-of-{name}",
        "generation": 1,
        "resource_version": "7",
        "creation_timestamp": NOW - timedelta(seconds=10),
        "finalizers": (CHECKPOINT_FINALIZER,),
        **metadata,
    }
    described: dict[str, Any] = {
        "uid": UID,
        "keySecret": f"checkpoint-key-{UID}",
        "series": "redis",
        "source": {"podName": "redis", "podUID": SOURCE_UID, "nodeName": SOURCE, "containers": ["main"]},
        "conditions": [
            {
                "type": "Ready",
                "status": ready,
                "observedGeneration": 1,
                "lastTransitionTime": NOW,
                "reason": "Complete",
                "message": "",
            }
        ],
        **(status or {}),
    }
    return ContainerCheckpoint(
        metadata=Metadata(**fields),
        spec=CheckpointSpec.model_validate({name: value for name, value in spec.items() if value is not None}),
        status=CheckpointStatus.model_validate({name: v for name, v in described.items() if v is not None}),
    )
