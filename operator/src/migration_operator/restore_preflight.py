"""What stands against a restore from a checkpoint, found before anything is created. Pure.

Only the object counts, which nobody but the operator writes: what lies in the store is believed by nobody before its
key has opened it.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from migration_api.migration import ContainerMigration
from migration_api.preflight_reasons import PreflightReason as Why
from migration_operator.checkpoint_plan import ready_status
from migration_operator.node_checks import Problem, mismatches, node_problems, unfit
from migration_operator.observation import NodeView, PreflightFacts
from migration_operator.transport_checks import transport_problems

_MEBIBYTE = 1024 * 1024


def restore_problems(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> tuple[Problem, ...]:
    """Return everything that stands against the restore; nothing when it may begin."""
    name = migration.spec.checkpoint_name
    if facts.checkpoint is None:
        what = f"there is no ContainerCheckpoint {name} in namespace {migration.metadata.namespace}"
        return (Problem(Why.CHECKPOINT_NOT_FOUND, what),)
    return tuple(_problems(migration, facts, now))


def _problems(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> Iterator[Problem]:
    checkpoint = facts.checkpoint
    if checkpoint is None:
        return
    name, status = checkpoint.metadata.name, checkpoint.status
    if checkpoint.deleting:
        yield Problem(Why.CHECKPOINT_NOT_READY, f"the ContainerCheckpoint {name} is being deleted")
    elif ready_status(checkpoint) != "True" or status.digest is None:
        what = f"the ContainerCheckpoint {name} is not Ready ({status.message or 'nobody has looked at it yet'})"
        yield Problem(Why.CHECKPOINT_NOT_READY, what)
    elif facts.pod is None:
        yield Problem(Why.CHECKPOINT_NOT_READY, f"the ContainerCheckpoint {name} does not say what its pod was like")
    if facts.key_trouble:
        yield Problem(Why.CHECKPOINT_KEY_UNUSABLE, facts.key_trouble)
    if facts.name_holder is not None:
        yield Problem(Why.TARGET_NAME_TAKEN, f"there is a pod {facts.target_name} already")
    yield from _nodes(migration, facts, now)
    if facts.transport:
        yield from transport_problems(facts.transport)


def _nodes(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> Iterator[Problem]:
    asked, target, size = migration.spec.target.node_name, facts.target, _size(facts)
    if asked and (target is None or not target.exists):
        yield Problem(Why.TARGET_NODE_NOT_FOUND, f"there is no node {asked}")
    elif target:
        yield from node_problems(target, "the target", now, must_schedule=True)
        yield from mismatches(facts.source, target)
        if not _has_room(target, size):
            what = f"the checkpoint has {size // _MEBIBYTE} MiB, and node {target.name} has no room for it"
            yield Problem(Why.NO_ROOM, what)
    elif facts.source:
        reasons = {
            n.name: unfit(facts.source, n, now) or ("" if _has_room(n, size) else "it has no room for it")
            for n in facts.candidates
        }
        if all(reasons.values()):
            why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is none with an agent"
            yield Problem(Why.NO_SUITABLE_NODE, f"no node can take {migration.subject}: {why}")


def _size(facts: PreflightFacts) -> int:
    return (facts.checkpoint.status.size_bytes if facts.checkpoint else None) or 0


def _has_room(node: NodeView, size: int) -> bool:
    return node.facts is None or size <= node.facts.room_bytes
