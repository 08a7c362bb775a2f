"""How long a container will stand still, and how much room its checkpoint needs: estimates, on the careful side."""

from __future__ import annotations

from migration_api.migration import ContainerMigration, Strategy
from migration_api.transport import Transport
from migration_api.wire import LAZY_FROM_BYTES, PodFacts
from migration_operator.observation import PreflightFacts
from migration_operator.pods import Pod, mappings

FREEZE_BASE_SECONDS = 1.0
FREEZE_STEP_SECONDS = 1.0
"""For each sidecar and init container behind the gate: the kubelet looks once a second at what has started or ended."""

FREEZE_BYTES_PER_SECOND = 100 * 1024 * 1024
"""What dump, transfer and restore together were seen to reach on modest nodes."""

DUMP_BYTES_PER_SECOND = 200 * 1024 * 1024
"""What the dump alone was seen to reach there, at the slowest: a source that is left running stands still for that."""

LATE_GATE_SECONDS = 60.0
"""Beyond it the kubelet's 2 minutes for a container's start may not suffice for copy and restore: by default the
containers' start begins then when the copy is complete."""

RESTORE_BYTES_PER_SECOND = 200 * 1024 * 1024
"""What the restore alone was seen to reach on modest nodes, at the slowest."""

RESTORE_LIMIT_SECONDS = 90.0
"""Of the 110 s that a container's start may take, those that are left for the restore of all."""

ROOM_FACTOR = 1.2
"""How much more than its memory a checkpoint may take: descriptors and changed files."""

POST_COPY_BYTES_PER_SECOND = 2 * 1024 * 1024 * 1024
"""With the memory left where it is, a dump only lists its pages; what it was seen to reach on modest nodes."""


PRE_COPY_ROOM = 2.5
"""How often the memory is copied at most, while it changes and in the end: the older copies stay (`COPIES_MAX`)."""


def memory_bytes(facts: PodFacts) -> int:
    """Return the memory of a pod's containers and shared volumes, in bytes."""
    return sum(c.memory_bytes for c in facts.containers) + facts.shared_bytes


def checkpoint_bytes(facts: PodFacts, strategy: Strategy) -> int:
    """Return what is copied while the container stands still, in bytes; what is looked at for changes not counted."""
    if strategy is not Strategy.STOP_AND_COPY:
        return sum(min(c.memory_bytes, LAZY_FROM_BYTES) for c in facts.containers) + facts.shared_bytes
    return memory_bytes(facts)


def freeze_estimate(migration: ContainerMigration, pod: Pod, facts: PodFacts, transport: Transport | None) -> float:
    """Return the seconds that may pass from the freeze until the container runs, its checkpoint travelling that way."""
    init = [str(c.get("name")) for c in mappings(pod.spec.get("initContainers"))]
    moved = migration.spec.containers or pod.order
    behind_the_gate = init[next((i for i, name in enumerate(init) if name in moved), len(init)) :]
    steps = len(behind_the_gate) * FREEZE_STEP_SECONDS
    copied = checkpoint_bytes(facts, migration.spec.strategy)
    listed = memory_bytes(facts) - copied
    return FREEZE_BASE_SECONDS + steps + copied / _rate(transport) + listed / POST_COPY_BYTES_PER_SECOND


def stands_still(migration: ContainerMigration, pod: Pod, facts: PodFacts, transport: Transport | None) -> float:
    """Return how long the source may stand still before it is decided who goes on, in seconds."""
    if migration.spec.leave_source_running:
        return FREEZE_BASE_SECONDS + memory_bytes(facts) / DUMP_BYTES_PER_SECOND
    return freeze_estimate(migration, pod, facts, transport)


def expected_freeze(migration: ContainerMigration, facts: PreflightFacts) -> float | None:
    """Return how long the source will stand still at most, in seconds; None when there is none, or nobody knows."""
    if migration.restores or facts.pod is None or facts.pod_facts is None:
        return None
    return stands_still(migration, facts.pod, facts.pod_facts, facts.way)


def memory_follows(facts: PodFacts, transport: Transport | None) -> float:
    """Return how long a frozen source may be needed for its memory after the commit, in seconds."""
    return (memory_bytes(facts) - checkpoint_bytes(facts, Strategy.POST_COPY)) / _rate(transport)


def _rate(transport: Transport | None) -> float:
    limit = transport.bytes_per_second if transport else None
    return min(FREEZE_BYTES_PER_SECOND, limit or FREEZE_BYTES_PER_SECOND)


def restore_seconds(facts: PodFacts, strategy: Strategy) -> float:
    """Return how long the restore of a complete checkpoint may take."""
    return checkpoint_bytes(facts, strategy) / RESTORE_BYTES_PER_SECOND


def room_needed(facts: PodFacts, strategy: Strategy = Strategy.STOP_AND_COPY) -> int:
    """Return what a node must have room for, in bytes."""
    copied = memory_bytes(facts) * PRE_COPY_ROOM if strategy is Strategy.PRE_COPY else checkpoint_bytes(facts, strategy)
    return int(copied * ROOM_FACTOR)
