"""What stands against a migration, found before anything is touched: everything at once, each with a way out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from migration_api.conditions import PreflightReason
from migration_api.migration import ContainerMigration
from migration_api.names import RUNTIME_HANDLER
from migration_api.node import NodeFacts
from migration_operator.observation import NodeView, PreflightFacts, agent_trouble
from migration_operator.pods import Pod, mapping, mappings

FREEZE_BASE_SECONDS = 1.0
FREEZE_BYTES_PER_SECOND = 100 * 1024 * 1024
"""What dump, transfer and restore together were seen to reach on modest nodes."""

FREEZE_LIMIT_SECONDS = 60.0
"""Beyond it the kubelet's 2 minutes for a container's start may not suffice."""

ROOM_FACTOR = 1.2
"""How much more than its memory a checkpoint may take: descriptors and changed files."""

_MOVABLE_VOLUMES = {"configMap", "secret", "projected", "downwardAPI", "emptyDir"}
_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class Problem:
    """One thing that stands against the migration: a documented constant, and a sentence with a way out."""

    reason: PreflightReason
    message: str


@dataclass(frozen=True)
class _Case:
    migration: ContainerMigration
    facts: PreflightFacts
    pod: Pod
    now: datetime


def problems(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> tuple[Problem, ...]:
    """Return everything that stands against the migration; nothing when it may begin."""
    spec = migration.spec
    if facts.pod is None:
        message = f"there is no pod {spec.pod_name} in namespace {migration.metadata.namespace}"
        return (Problem(PreflightReason.POD_NOT_FOUND, message),)
    case = _Case(migration, facts, facts.pod, now)
    return tuple(problem for check in _CHECKS for problem in check(case))


def _incarnation(case: _Case) -> Iterator[Problem]:
    asked = case.migration.spec.pod_uid
    if asked and asked != case.pod.uid:
        yield Problem(
            PreflightReason.POD_REPLACED,
            f"pod {case.pod.name} has the UID {case.pod.uid}, not {asked}: it was replaced since; "
            "create a new ContainerMigration for the pod of today",
        )


def _running(case: _Case) -> Iterator[Problem]:
    pod = case.pod
    if pod.deleting:
        yield Problem(PreflightReason.POD_NOT_RUNNING, f"pod {pod.name} is being deleted")
    elif pod.phase != "Running":
        trouble = pod.trouble()
        yield Problem(
            PreflightReason.POD_NOT_RUNNING,
            f"pod {pod.name} is {pod.phase or 'not scheduled yet'}, not Running{f' ({trouble})' if trouble else ''}",
        )
    else:
        stopped = [str(s.get("name")) for s in pod.container_statuses if "running" not in mapping(s.get("state"))]
        if stopped:
            yield Problem(
                PreflightReason.POD_NOT_RUNNING,
                f"of pod {pod.name} the container {', '.join(stopped)} does not run ({pod.trouble() or 'no details'})",
            )


def _owner(case: _Case) -> Iterator[Problem]:
    for owner in mappings(case.pod.metadata.get("ownerReferences")):
        if owner.get("controller"):
            yield Problem(
                PreflightReason.POD_OWNED,
                f"pod {case.pod.name} belongs to the {owner.get('kind')} {owner.get('name')}, "
                "which would start a replacement; only pods without a controller can be moved yet",
            )


def _containers(case: _Case) -> Iterator[Problem]:
    names = case.pod.container_names
    for name in case.migration.spec.containers or ():
        if name not in names:
            yield Problem(
                PreflightReason.CONTAINER_NOT_FOUND,
                f"pod {case.pod.name} has no container {name}; it has {', '.join(names)}",
            )
    asked = case.migration.spec.containers or names
    for container in mappings(case.pod.spec.get("containers"))[:-1]:
        name = str(container.get("name"))
        if name not in asked and "postStart" in mapping(container.get("lifecycle")):
            yield Problem(
                PreflightReason.SEVERAL_CONTAINERS,
                f"spec.containers leaves out {name}, whose postStart hook would run before the commit; "
                "move it too, or make it the pod's last container",
            )
    for field, kind, reason in (
        ("initContainers", "init", PreflightReason.INIT_CONTAINERS),
        ("ephemeralContainers", "ephemeral", PreflightReason.EPHEMERAL_CONTAINERS),
    ):
        if found := [str(c.get("name")) for c in mappings(case.pod.spec.get(field))]:
            yield Problem(
                reason,
                f"pod {case.pod.name} has {kind} containers ({', '.join(found)}); pods with them cannot be moved yet",
            )


def _namespaces(case: _Case) -> Iterator[Problem]:
    found = [f for f in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace") if case.pod.spec.get(f)]
    if found:
        yield Problem(
            PreflightReason.HOST_NAMESPACE,
            f"pod {case.pod.name} sets {', '.join(found)}: its processes are tied to more than their own container",
        )


def _volumes(case: _Case) -> Iterator[Problem]:
    for volume in mappings(case.pod.spec.get("volumes")):
        kinds = [key for key in volume if key != "name"]
        huge = str(mapping(volume.get("emptyDir")).get("medium", "")).startswith("HugePages")
        if huge or not set(kinds) <= _MOVABLE_VOLUMES:
            yield Problem(
                PreflightReason.VOLUME_CANNOT_MOVE,
                f"the volume {volume.get('name')} ({', '.join(kinds)}) cannot move to another node yet; "
                f"only {', '.join(sorted(_MOVABLE_VOLUMES))} can",
            )
    mounts = [m for c in mappings(case.pod.spec.get("containers")) for m in mappings(c.get("volumeMounts"))]
    if any(str(m.get("mountPath", "")).rstrip("/") == "/etc/hosts" for m in mounts):
        yield Problem(
            PreflightReason.HOSTS_FILE_MOUNTED,
            f"pod {case.pod.name} mounts its own /etc/hosts; the frozen pod could not be kept from being started again "
            "(use hostAliases instead)",
        )


def _runtime_class(case: _Case) -> Iterator[Problem]:
    name = case.pod.spec.get("runtimeClassName")
    if name not in (None, "", RUNTIME_HANDLER):
        yield Problem(
            PreflightReason.RUNTIME_CLASS,
            f"pod {case.pod.name} has the RuntimeClass {name}; only pods of the default one and {RUNTIME_HANDLER} move",
        )


def _nodes(case: _Case) -> Iterator[Problem]:
    source, target = case.facts.source, case.facts.target
    if source:
        yield from _node(source, "the source", case.now, must_schedule=False)
    asked = case.migration.spec.target.node_name
    if asked and source and asked == source.name:
        yield Problem(PreflightReason.TARGET_IS_SOURCE, f"pod {case.pod.name} already runs on {asked}")
    elif asked and (target is None or not target.exists):
        message = f"there is no node {asked} (spec.target.nodeName)"
        yield Problem(PreflightReason.TARGET_NODE_NOT_FOUND, message)
    elif target:
        yield from _node(target, "the target", case.now, must_schedule=True)
        yield from (Problem(PreflightReason.NODE_NOT_CAPABLE, m) for m in mismatches(source, target))
        yield from _room(case, target)
    elif source and source.exists:
        yield from _candidates(case, source)
    if source:
        yield from _room(case, source)


def _node(node: NodeView, role: str, now: datetime, *, must_schedule: bool) -> Iterator[Problem]:
    if not node.ready:
        yield Problem(PreflightReason.NODE_NOT_READY, f"{role} node {node.name} is not Ready")
    elif must_schedule and not node.schedulable:
        yield Problem(
            PreflightReason.NODE_NOT_READY, f"{role} node {node.name} is cordoned; uncordon it or pick another"
        )
    if trouble := agent_trouble(node.agent, now):
        yield Problem(PreflightReason.NODE_NOT_CAPABLE, f"{role} node {node.name} cannot take part: {trouble}")


def _candidates(case: _Case, source: NodeView) -> Iterator[Problem]:
    others = [node for node in case.facts.candidates if node.name != source.name]
    if not any(suits(source, node, case.now) for node in others):
        why = "; ".join(f"{n.name}: {_unfit(source, n, case.now)}" for n in others) or "there is none with an agent"
        yield Problem(PreflightReason.NODE_NOT_CAPABLE, f"no other node can take the pod: {why}")


def suits(source: NodeView, target: NodeView, now: datetime) -> bool:
    """Return whether the scheduler may pick `target` for what runs on `source`."""
    return not _unfit(source, target, now)


def _unfit(source: NodeView, target: NodeView, now: datetime) -> str:
    found = [p.message for p in _node(target, "the", now, must_schedule=True)]
    return "; ".join([*found, *mismatches(source, target)])


def mismatches(source: NodeView | None, target: NodeView | None) -> list[str]:
    """Return why what was checkpointed on one node could not be restored on the other, as sentences."""
    here, there = source.facts if source else None, target.facts if target else None
    if source is None or target is None or here is None or there is None:
        return []
    found: list[str] = []
    if here.architecture != there.architecture:
        found.append(f"{target.name} is {there.architecture}, {source.name} is {here.architecture}")
    elif missing := _missing_flags(here, there):
        found.append(f"the CPU of {target.name} lacks what the CPU of {source.name} has: {missing}")
    if here.criu_version != there.criu_version:
        found.append(
            f"{target.name} has CRIU {there.criu_version}, {source.name} has {here.criu_version}; "
            "wait until the agents on both nodes have the same version"
        )
    return found


def _missing_flags(here: NodeFacts, there: NodeFacts) -> str:
    missing = sorted(set(here.cpu_flags) - set(there.cpu_flags))
    more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""  # noqa: PLR2004  a message stays readable
    return ", ".join(missing[:10]) + more


def _memory(case: _Case) -> int:
    facts = case.facts.pod_facts
    return sum(c.memory_bytes for c in facts.containers) + facts.shared_bytes if facts else 0


def _room(case: _Case, node: NodeView) -> Iterator[Problem]:
    needed = int(_memory(case) * ROOM_FACTOR)
    if node.facts and needed > node.facts.run_bytes_free:
        yield Problem(
            PreflightReason.NODE_NOT_CAPABLE,
            f"the checkpoint may take {needed // _MEBIBYTE} MiB, but /run of node {node.name} has "
            f"{node.facts.run_bytes_free // _MEBIBYTE} MiB left",
        )


def _target_name(case: _Case) -> Iterator[Problem]:
    if case.facts.name_holder is not None:
        yield Problem(
            PreflightReason.TARGET_NAME_TAKEN,
            f"there is a pod {case.facts.target_name} already; set spec.target.podName to a free name or leave it out",
        )


def _rivals(case: _Case) -> Iterator[Problem]:
    mine = _age(case.migration)
    for rival in case.facts.rivals:
        if _age(rival) < mine or rival.status.source.pod_uid == case.pod.uid:
            yield Problem(
                PreflightReason.ALREADY_MIGRATING,
                f"pod {case.pod.name} is being moved by the ContainerMigration {rival.metadata.name}; wait for its end",
            )
    held_by = case.facts.pod_facts.migration if case.facts.pod_facts else None
    if held_by and held_by not in {case.migration.metadata.uid, *(r.metadata.uid for r in case.facts.rivals)}:
        yield Problem(
            PreflightReason.ALREADY_MIGRATING,
            f"the agent on {case.pod.node_name} still holds pod {case.pod.name} for the migration with UID {held_by}",
        )


def _age(migration: ContainerMigration) -> tuple[str, str]:
    """Order migrations of one pod: the older goes first; of two in one second the one with the smaller UID."""
    created = migration.metadata.creation_timestamp
    return (created.isoformat() if created else "", migration.metadata.uid)


def _freeze(case: _Case) -> Iterator[Problem]:
    if case.facts.pod_facts is None:
        if not case.facts.agent_problem and case.pod.phase == "Running":
            yield Problem(
                PreflightReason.POD_NOT_RUNNING,
                f"the agent on {case.pod.node_name} finds no running container of pod {case.pod.name} there",
            )
        return
    memory = _memory(case)
    estimate = FREEZE_BASE_SECONDS + memory / FREEZE_BYTES_PER_SECOND
    budget = case.migration.spec.freeze_budget_seconds
    if estimate > min(budget, FREEZE_LIMIT_SECONDS):
        limit = (
            f"the budget of {budget} s (spec.freezeBudgetSeconds)"
            if budget < FREEZE_LIMIT_SECONDS
            else f"{FREEZE_LIMIT_SECONDS:.0f} s, the most that is possible yet"
        )
        yield Problem(
            PreflightReason.FREEZE_TOO_LONG,
            f"{memory // _MEBIBYTE} MiB of memory would stand still for about {estimate:.0f} s, longer than {limit}",
        )


_CHECKS: tuple[Callable[[_Case], Iterator[Problem]], ...] = (
    _incarnation,
    _running,
    _owner,
    _containers,
    _namespaces,
    _volumes,
    _runtime_class,
    _nodes,
    _target_name,
    _rivals,
    _freeze,
)
