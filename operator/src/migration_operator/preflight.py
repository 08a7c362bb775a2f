"""What stands against a migration, found before anything is touched: everything at once, each with a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import cast

from migration_api.migration import ContainerMigration, Strategy, TcpConnections
from migration_api.names import IMAGES_DIR, RUNTIME_HANDLER
from migration_api.preflight_reasons import PreflightReason as Why
from migration_operator.estimates import (
    RESTORE_LIMIT_SECONDS,
    memory_bytes,
    memory_follows,
    restore_seconds,
    room_needed,
    stands_still,
)
from migration_operator.freeze_budget import effective_freeze_budget, probes_budget
from migration_operator.node_checks import Problem, mismatches, node_problems, unfit
from migration_operator.observation import NodeView, PreflightFacts
from migration_operator.owners import objection
from migration_operator.podman_preflight import podman_problems
from migration_operator.pods import Pod, mapping, mappings
from migration_operator.restore_preflight import restore_problems
from migration_operator.rivals import ahead, is_unknown
from migration_operator.successor_checks import successor_problems
from migration_operator.transport_checks import transport_problems

_MOVABLE_VOLUMES = {"configMap", "secret", "projected", "downwardAPI", "emptyDir"}
_SHARED_CLAIMS = {"ReadWriteMany", "ReadOnlyMany"}
_NETWORK_CAPABILITIES = {"NET_ADMIN", "NET_RAW", "SYS_ADMIN", "ALL"}
_HOST_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC")
_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class _Case:
    migration: ContainerMigration
    facts: PreflightFacts
    pod: Pod
    now: datetime


def problems(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> tuple[Problem, ...]:
    """Return everything that stands against the migration; nothing when it may begin."""
    spec = migration.spec
    if migration.restores:
        return restore_problems(migration, facts, now)
    if migration.of_podman:
        return podman_problems(migration, facts, now)
    if facts.pod is None:
        what = f"there is no pod {spec.pod_name} in namespace {migration.metadata.namespace}"
        return (Problem(Why.POD_NOT_FOUND, what),)
    case = _Case(migration, facts, facts.pod, now)
    return tuple(problem for check in _CHECKS for problem in check(case))


def taking_problems(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> tuple[Problem, ...]:
    """Return everything that stands against taking a checkpoint of a running pod, which stays where it is.

    Args:
        migration: what would move the pod in the same way; nothing of it but its specification exists.
        facts: what was found; no target.
        now: when.
    """
    if facts.pod is None:
        what = f"there is no pod {migration.spec.pod_name} in namespace {migration.metadata.namespace}"
        return (Problem(Why.POD_NOT_FOUND, what),)
    case = _Case(migration, facts, facts.pod, now)
    return tuple(problem for check in _TAKING_CHECKS for problem in check(case))


def _incarnation(case: _Case) -> Iterator[Problem]:
    asked = case.migration.spec.pod_uid
    if asked and asked != case.pod.uid:
        yield Problem(Why.POD_REPLACED, f"pod {case.pod.name} has the UID {case.pod.uid}, not {asked}")


def _running(case: _Case) -> Iterator[Problem]:
    pod = case.pod
    if pod.deleting:
        yield Problem(Why.POD_NOT_RUNNING, f"pod {pod.name} is being deleted")
    elif pod.phase != "Running":
        trouble = pod.trouble()
        yield Problem(
            Why.POD_NOT_RUNNING,
            f"pod {pod.name} is {pod.phase or 'not scheduled yet'}, not Running{f' ({trouble})' if trouble else ''}",
        )
    else:
        ended = [s for s in pod.container_statuses if "running" not in mapping(s.get("state"))]
        stopped = [str(s.get("name")) for s in ended if s.get("name") in pod.order]
        if stopped:
            yield Problem(
                Why.POD_NOT_RUNNING,
                f"of pod {pod.name} the container {', '.join(stopped)} does not run ({pod.trouble() or 'no details'})",
            )


def _owner(case: _Case) -> Iterator[Problem]:
    asked = case.migration.spec.target.pod_name
    if what := objection(case.pod, clone=case.migration.spec.leave_source_running, name=asked):
        yield Problem(Why.POD_OWNED, what)


def _containers(case: _Case) -> Iterator[Problem]:
    pod, names = case.pod, case.pod.order
    for name in case.migration.spec.containers or ():
        if name not in names:
            yield Problem(Why.CONTAINER_NOT_FOUND, f"pod {pod.name} has no container {name}; it has {', '.join(names)}")
    asked = case.migration.spec.containers or names
    for container in pod.lasting[:-1]:
        name = str(container.get("name"))
        if name not in asked and "postStart" in mapping(container.get("lifecycle")):
            yield Problem(Why.POST_START_HOOK, f"spec.containers leaves out {name}, which has a postStart hook")
    if found := [str(c.get("name")) for c in mappings(pod.spec.get("ephemeralContainers"))]:
        yield Problem(Why.EPHEMERAL_CONTAINERS, f"pod {pod.name} has ephemeral containers ({', '.join(found)})")


def _init_containers(case: _Case) -> Iterator[Problem]:
    for container in case.pod.init_containers:
        context = mapping(container.get("securityContext"))
        added = {str(it).removeprefix("CAP_") for it in _strings(mapping(context.get("capabilities")).get("add"))}
        found = sorted(added & _NETWORK_CAPABILITIES)
        what = (
            "is privileged" if context.get("privileged") else f"has the capability {', '.join(found)}" if found else ""
        )
        if what:
            yield Problem(Why.PRIVILEGED_INIT_CONTAINER, f"init container {container.get('name')} {what}")


def _strings(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _sidecars(case: _Case) -> Iterator[Problem]:
    for sidecar in case.pod.sidecars:
        if probes := [probe for probe in ("startupProbe", "livenessProbe") if sidecar.get(probe)]:
            yield Problem(Why.SIDECAR_WITH_PROBES, f"the sidecar {sidecar.get('name')} has a {' and a '.join(probes)}")


def _namespaces(case: _Case) -> Iterator[Problem]:
    if found := [field for field in _HOST_NAMESPACES if case.pod.spec.get(field)]:
        yield Problem(Why.HOST_NAMESPACE, f"pod {case.pod.name} sets {', '.join(found)}")
    if case.pod.spec.get("shareProcessNamespace"):
        yield Problem(Why.SHARED_PID_NAMESPACE, f"pod {case.pod.name} sets shareProcessNamespace")


def _volumes(case: _Case) -> Iterator[Problem]:
    for volume in mappings(case.pod.spec.get("volumes")):
        kinds = [key for key in volume if key != "name"]
        if claim := case.pod.claims.get(str(volume.get("name"))):
            yield from _claim(case, str(volume.get("name")), claim)
            continue
        huge = str(mapping(volume.get("emptyDir")).get("medium", "")).startswith("HugePages")
        if huge or not set(kinds) <= _MOVABLE_VOLUMES:
            yield Problem(
                Why.VOLUME_CANNOT_MOVE,
                f"the volume {volume.get('name')} ({', '.join(kinds)}) cannot move to another node; "
                f"only {', '.join(sorted(_MOVABLE_VOLUMES))} can",
            )
    mounts = [m for c in case.pod.lasting for m in mappings(c.get("volumeMounts"))]
    if any(str(m.get("mountPath", "")).rstrip("/") == "/etc/hosts" for m in mounts):
        yield Problem(Why.HOSTS_FILE_MOUNTED, f"pod {case.pod.name} mounts its own /etc/hosts")


def _claim(case: _Case, volume: str, claim: str) -> Iterator[Problem]:
    """What both nodes can mount at once stays where it is; the target pod mounts it as the source does."""
    modes = case.facts.claims.get(claim, frozenset())
    if case.facts.revision is not None and modes and not modes & _SHARED_CLAIMS:
        yield from _claim_that_follows(case, volume, claim)
    elif not modes & _SHARED_CLAIMS:
        yield Problem(
            Why.VOLUME_CANNOT_MOVE,
            f"the volume {volume} is the claim {claim} ({', '.join(sorted(modes)) or 'not bound'}), which the target's "
            f"node cannot mount before the source has gone; only {' and '.join(sorted(_SHARED_CLAIMS))} can",
        )
    elif case.migration.spec.leave_source_running and modes - {"ReadOnlyMany"} and case.pod.writes_to(volume):
        yield Problem(
            Why.SHARED_WRITERS, f"the volume {volume} is the claim {claim}, which pod {case.pod.name} may write"
        )


def _claim_that_follows(case: _Case, volume: str, claim: str) -> Iterator[Problem]:
    """The source is gone before the target pod mounts it; where it can be mounted, `successor_checks` looks."""
    spec = mapping(mapping(case.facts.volumes.get(claim)).get("spec"))
    if not spec or "hostPath" in spec:
        what = "a directory of each node (hostPath)" if spec else "not bound to a volume that can be looked at"
        yield Problem(Why.VOLUME_CANNOT_MOVE, f"the volume {volume} is the claim {claim}, which is {what}")


def _successor(case: _Case) -> Iterator[Problem]:
    yield from successor_problems(case.migration, case.facts)


def _runtime_class(case: _Case) -> Iterator[Problem]:
    name = case.pod.spec.get("runtimeClassName")
    if name not in (None, "", RUNTIME_HANDLER):
        yield Problem(Why.RUNTIME_CLASS, f"pod {case.pod.name} has the RuntimeClass {name}")


def _nodes(case: _Case) -> Iterator[Problem]:
    source, target = case.facts.source, case.facts.target
    if source:
        yield from node_problems(source, "the source", case.now, must_schedule=False)
    asked = case.migration.spec.target.node_name
    if asked and source and asked == source.name:
        yield Problem(Why.TARGET_IS_SOURCE, f"pod {case.pod.name} already runs on {asked}")
    elif asked and (target is None or not target.exists):
        yield Problem(Why.TARGET_NODE_NOT_FOUND, f"there is no node {asked}")
    elif target:
        yield from node_problems(target, "the target", case.now, must_schedule=True)
        yield from mismatches(source, target)
        yield from _room(case, target)
    elif source and source.exists:
        yield from _candidates(case, source)
    if source:
        yield from _room(case, source)


def _source_node(case: _Case) -> Iterator[Problem]:
    if case.facts.source:
        yield from node_problems(case.facts.source, "the pod's", case.now, must_schedule=False)
        yield from _room(case, case.facts.source)


def _candidates(case: _Case, source: NodeView) -> Iterator[Problem]:
    others = [node for node in case.facts.candidates if node.name != source.name]
    reasons = {node.name: unfit(source, node, case.now) for node in others}
    if all(reasons.values()):
        why = "; ".join(f"{name}: {reason}" for name, reason in reasons.items()) or "there is none with an agent"
        yield Problem(Why.NO_SUITABLE_NODE, f"no other node can take pod {case.pod.name}: {why}")


def _room(case: _Case, node: NodeView) -> Iterator[Problem]:
    facts, strategy = case.facts.pod_facts, case.migration.spec.strategy
    needed = room_needed(facts, strategy) if facts else 0
    if node.facts and needed > node.facts.room_bytes:
        disk = node.facts.disk_bytes_free
        on_disk = f"its disk {disk // _MEBIBYTE} MiB" if disk else "the chart allows none on its disk"
        yield Problem(
            Why.NO_ROOM,
            f"the checkpoint may take {needed // _MEBIBYTE} MiB, but {IMAGES_DIR} of node {node.name} has "
            f"{node.facts.run_bytes_free // _MEBIBYTE} MiB left, and {on_disk}",
        )


def _target_name(case: _Case) -> Iterator[Problem]:
    if case.facts.name_holder is not None:
        yield Problem(Why.TARGET_NAME_TAKEN, f"there is a pod {case.facts.target_name} already")


def _rivals(case: _Case) -> Iterator[Problem]:
    for rival in ahead(case.migration, case.facts.rivals, case.pod.uid):
        yield Problem(
            Why.ALREADY_MIGRATING,
            f"pod {case.pod.name} is being moved by the ContainerMigration {rival.metadata.name}",
        )
    held_by = case.facts.pod_facts.migration if case.facts.pod_facts else None
    if is_unknown(held_by, case.migration, case.facts.rivals):
        yield Problem(
            Why.ALREADY_MIGRATING,
            f"the agent on {case.pod.node_name} still holds pod {case.pod.name} for the migration with UID {held_by}",
        )


def _freeze(case: _Case) -> Iterator[Problem]:
    if case.facts.pod_facts is None:
        if not case.facts.agent_problem and case.pod.phase == "Running":
            yield Problem(
                Why.POD_NOT_RUNNING,
                f"the agent on {case.pod.node_name} finds no running container of pod {case.pod.name} there",
            )
        return
    pod_facts, strategy = case.facts.pod_facts, case.migration.spec.strategy
    memory = memory_bytes(pod_facts)
    estimate = stands_still(case.migration, case.pod, pod_facts, case.facts.way)
    budget = effective_freeze_budget(case.migration.spec.freeze_budget_seconds, case.pod)
    seconds, why = budget.seconds, budget.limited_by
    restore = restore_seconds(pod_facts, strategy)
    if restore > RESTORE_LIMIT_SECONDS:
        yield Problem(
            Why.FREEZE_TOO_LONG,
            f"to restore {memory // _MEBIBYTE} MiB of memory may take {restore:.0f} s, longer than the "
            f"{RESTORE_LIMIT_SECONDS:.0f} s that the kubelet allows a container's start",
        )
    elif estimate > seconds:
        yield Problem(
            Why.FREEZE_TOO_LONG,
            f"{memory // _MEBIBYTE} MiB of memory would stand still for about {estimate:.0f} s, longer than the "
            f"effective budget of {seconds:.0f} s ({why})",
        )


def _filled_in(case: _Case) -> Iterator[Problem]:
    """What is not restored with the container is filled in while it runs."""
    strategy = case.migration.spec.strategy
    if strategy is Strategy.STOP_AND_COPY:
        return
    why = Why.POST_COPY_NOT_POSSIBLE if strategy is Strategy.POST_COPY else Why.PRE_COPY_NOT_POSSIBLE
    for node in filter(None, (case.facts.source, case.facts.target)):
        if node.facts and not node.facts.post_copy:
            yield Problem(why, f"the kernel of node {node.name} cannot fill memory in later (userfaultfd)")


def _post_copy(case: _Case) -> Iterator[Problem]:
    """The source stands still after the commit, too, for as long as its memory is needed: nothing may kill it."""
    if case.migration.spec.strategy is not Strategy.POST_COPY:
        return
    if case.facts.revision is not None:
        what = f"the StatefulSet creates pod {case.pod.name} again only when the source, and its memory, are gone"
        yield Problem(Why.POST_COPY_NOT_POSSIBLE, what)
    if case.facts.pod_facts is None:
        return
    follows, limit = memory_follows(case.facts.pod_facts, case.facts.way), probes_budget(case.pod)
    if limit and follows > limit.seconds:
        yield Problem(
            Why.POST_COPY_NOT_POSSIBLE,
            f"the frozen source may be needed for {follows:.0f} s, longer than the {limit.seconds:.0f} s after which "
            f"{limit.limited_by}",
        )


def _connections(case: _Case) -> Iterator[Problem]:
    found = case.facts.pod_facts and case.facts.pod_facts.connections
    if case.migration.spec.tcp_connections is TcpConnections.REFUSE and found and found.outside:
        yield Problem(Why.CONNECTIONS_OPEN, f"pod {case.pod.name} has {found.outside} TCP connections with others")


def _transport(case: _Case) -> Iterator[Problem]:
    if case.facts.transport:
        yield from transport_problems(case.facts.transport)


_CHECKS: tuple[Callable[[_Case], Iterator[Problem]], ...] = (
    _incarnation,
    _running,
    _owner,
    _containers,
    _init_containers,
    _sidecars,
    _namespaces,
    _volumes,
    _runtime_class,
    _nodes,
    _successor,
    _target_name,
    _rivals,
    _freeze,
    _filled_in,
    _post_copy,
    _connections,
    _transport,
)

_TAKING_CHECKS: tuple[Callable[[_Case], Iterator[Problem]], ...] = (
    _incarnation,
    _running,
    _containers,
    _namespaces,
    _volumes,
    _runtime_class,
    _source_node,
    _rivals,
    _freeze,
    _transport,
)
