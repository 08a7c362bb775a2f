"""What stands against the move of a Podman container, found before anything is touched. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from migration_api.migration import ContainerMigration
from migration_api.podman import PodmanContainerFacts, PodmanFacts
from migration_api.preflight_reasons import PreflightReason as Why
from migration_operator.estimates import (
    DUMP_BYTES_PER_SECOND,
    FREEZE_BASE_SECONDS,
    FREEZE_BYTES_PER_SECOND,
    ROOM_FACTOR,
)
from migration_operator.node_checks import Problem, mismatches, node_problems
from migration_operator.observation import PodmanPair, PreflightFacts
from migration_operator.rivals import ahead, is_unknown
from migration_operator.transport_checks import transport_problems

_MEBIBYTE = 1024 * 1024


def podman_problems(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> tuple[Problem, ...]:
    """Return everything that stands against the move; nothing when it may begin."""
    pair, asked = facts.podman, migration.spec.podman
    if pair is None or asked is None:
        raise AssertionError("the migration is of no Podman container")
    if not pair.allowed:
        what = f"the ContainerMigration is in namespace {migration.metadata.namespace}, not the operator's"
        return (Problem(Why.PODMAN_NAMESPACE, what),)
    found = [*_nodes(migration, facts, now)]
    if pair.here and not pair.here.problem and pair.container is None:
        what = f"node {asked.node_name} has no Podman container {asked.container}"
        found.append(Problem(Why.PODMAN_CONTAINER_NOT_FOUND, what))
    found += _podmans(migration, pair)
    if pair.container is not None:
        found += [*_container(pair.container), *_target(migration, pair, pair.container)]
        found += [*_rivals(migration, facts, pair.container), *_size(migration, facts, pair.container)]
    if facts.transport:
        found += transport_problems(facts.transport)
    return tuple(found)


def room_needed(it: PodmanContainerFacts) -> int:
    """Return what a node must have room for, in bytes."""
    return int((it.memory_bytes + it.changed_bytes) * ROOM_FACTOR)


def _nodes(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> Iterator[Problem]:
    source, target, asked = facts.source, facts.target, migration.spec.target.node_name
    if source is None or not source.exists:
        name = migration.spec.podman.node_name if migration.spec.podman else ""
        yield Problem(Why.PODMAN_CONTAINER_NOT_FOUND, f"there is no node {name}")
        return
    yield from node_problems(source, "the source", now, must_schedule=False)
    if asked == source.name:
        yield Problem(Why.TARGET_IS_SOURCE, f"{migration.subject} is asked to move to {asked}, where it is")
    elif target is None or not target.exists:
        yield Problem(Why.TARGET_NODE_NOT_FOUND, f"there is no node {asked}")
    else:
        yield from node_problems(target, "the target", now, must_schedule=True)
        yield from mismatches(source, target)


def _podmans(migration: ContainerMigration, pair: PodmanPair) -> Iterator[Problem]:
    asked = migration.spec.podman
    nodes = ((asked.node_name if asked else "", pair.here), (migration.spec.target.node_name or "", pair.there))
    usable: list[PodmanFacts] = []
    for node, facts in nodes:
        if facts is not None and facts.problem:
            yield Problem(Why.PODMAN_UNUSABLE, f"the Podman of node {node} cannot be used: {facts.problem}")
        elif facts is not None and not facts.criu_version:
            yield Problem(Why.PODMAN_UNUSABLE, f"the Podman of node {node} finds no CRIU")
        elif facts is not None:
            usable.append(facts)
    versions = [facts.criu_version for facts in usable]
    if len(set(versions)) > 1:
        what = f"Podman on {nodes[0][0]} has CRIU {versions[0]}, on {nodes[1][0]} CRIU {versions[1]}"
        yield Problem(Why.PODMAN_UNUSABLE, what)


def _container(it: PodmanContainerFacts) -> Iterator[Problem]:
    what = f"the Podman container {it.name}"
    if it.status != "running":
        yield Problem(Why.PODMAN_CONTAINER_NOT_RUNNING, f"{what} is {it.status}")
    if it.volumes:
        yield Problem(Why.PODMAN_VOLUMES, f"{what} has the volumes {', '.join(it.volumes)}")
    if it.dependencies or it.pod:
        needs = [*(f"container {other[:12]}" for other in it.dependencies), *([f"pod {it.pod[:12]}"] if it.pod else [])]
        yield Problem(Why.PODMAN_DEPENDENCIES, f"{what} depends on {', '.join(needs)}")
    if it.restart_policy or it.systemd_unit:
        why = f"the unit {it.systemd_unit}" if it.systemd_unit else f"the restart policy {it.restart_policy}"
        yield Problem(Why.PODMAN_STARTED_AGAIN, f"{what} has {why}")
    if it.auto_remove:
        yield Problem(Why.PODMAN_REMOVED, f"{what} has --rm")
    if not it.cgroups:
        yield Problem(Why.PODMAN_NO_CGROUP, f"{what} has no cgroup of its own")
    if it.connections.outside:
        yield Problem(Why.PODMAN_CONNECTIONS, f"{what} has {it.connections.outside} TCP connections with others")


def _target(migration: ContainerMigration, pair: PodmanPair, it: PodmanContainerFacts) -> Iterator[Problem]:
    there, node = pair.there, migration.spec.target.node_name
    if there is None or there.problem:
        return
    by_id = pair.there_by_id.container if pair.there_by_id else None
    if other := there.container or by_id:
        yield Problem(Why.PODMAN_NAME_TAKEN, f"node {node} has a Podman container {other.name} ({other.id[:12]})")
    if there.image_id != it.image_id:
        have = f"another one under that name ({there.image_id[:12]})" if there.image_id else "none of that name"
        yield Problem(
            Why.PODMAN_IMAGE_MISSING, f"the image {it.image_name} ({it.image_id[:12]}): node {node} has {have}"
        )
    if there.missing_paths:
        yield Problem(Why.PODMAN_BIND_MISSING, f"node {node} lacks {', '.join(there.missing_paths)}")


def _rivals(migration: ContainerMigration, facts: PreflightFacts, it: PodmanContainerFacts) -> Iterator[Problem]:
    for rival in ahead(migration, facts.rivals, it.id):
        what = f"the Podman container {it.name} is moved by the ContainerMigration {rival.metadata.name}"
        yield Problem(Why.ALREADY_MIGRATING, what)
    if is_unknown(it.migration, migration, facts.rivals):
        what = f"the agent still holds the Podman container {it.name} for the migration with UID {it.migration}"
        yield Problem(Why.ALREADY_MIGRATING, what)


def _size(migration: ContainerMigration, facts: PreflightFacts, it: PodmanContainerFacts) -> Iterator[Problem]:
    needed = room_needed(it)
    for node in (facts.source, facts.target):
        if node and node.facts and needed > node.facts.room_bytes:
            what = f"the checkpoint may take {needed // _MEBIBYTE} MiB, and node {node.name} has no room for it"
            yield Problem(Why.NO_ROOM, what)
    speed = DUMP_BYTES_PER_SECOND if migration.spec.leave_source_running else FREEZE_BYTES_PER_SECOND
    estimate = FREEZE_BASE_SECONDS + (it.memory_bytes + it.changed_bytes) / speed
    if estimate > migration.spec.freeze_budget_seconds:
        what = f"the Podman container {it.name} would stand still for about {estimate:.0f} s, longer than the budget"
        yield Problem(Why.FREEZE_TOO_LONG, f"{what} of {migration.spec.freeze_budget_seconds} s")
