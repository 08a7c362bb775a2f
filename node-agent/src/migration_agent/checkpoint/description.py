"""Describes a checkpoint for whoever reads it later: the files that Podman and containerd put beside theirs.

Nothing is restored from them here. They may hold secrets (the environment), and are sealed like all of a checkpoint.
"""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from migration_agent.checkpoint.criu import write_private
from migration_agent.host import Host
from migration_agent.runtime.bundle import Bundle, specification

_NEVER = "0001-01-01T00:00:00Z"
_IMAGE = "io.kubernetes.cri.image-name"


def describe(host: Host, bundle: Bundle, directory: Path) -> None:
    """Write `spec.dump`, the container's OCI specification, and `config.dump`, what it was.

    Raises:
        OSError: it could not be read or written.
        ValueError: the specification is none.
    """
    text = specification(host, bundle)
    write_private(directory / "spec.dump", text)
    image = str(json.loads(text).get("annotations", {}).get(_IMAGE, ""))
    config = {
        "id": bundle.container_id,
        "name": bundle.name,
        "rootfsImage": image,
        "rootfsImageRef": image,
        "rootfsImageName": image,
        "runtime": Path(bundle.runtime).name,
        "createdTime": datetime.fromtimestamp(bundle.created_ns / 1e9, UTC).isoformat(),
        "checkpointedTime": datetime.now(UTC).isoformat(),
        "restoredTime": _NEVER,
        "restored": False,
    }
    write_private(directory / "config.dump", json.dumps(config))


def keep_statistics(work: Path, directory: Path) -> None:
    """Keep CRIU's own statistics of the dump, which it writes beside its log; nothing when there are none.

    Raises:
        OSError: they could not be copied.
    """
    statistics = work / "stats-dump"
    if statistics.exists():
        target = directory / "stats-dump"
        shutil.copyfile(statistics, target, follow_symlinks=False)
        target.chmod(0o600)
