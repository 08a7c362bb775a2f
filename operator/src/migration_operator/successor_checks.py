"""What stands against a pod that its controller creates again under its own name (docs/protocol.md, section 12). Pure.

It is scheduled, and its claims are mounted, only when the source is gone. So what would keep it from its node is looked
for before anything is touched.
"""

from __future__ import annotations

from collections.abc import Iterator

from migration_api.migration import ContainerMigration
from migration_api.preflight_reasons import PreflightReason as Why
from migration_operator.node_checks import Problem
from migration_operator.observation import NodeView, PreflightFacts
from migration_operator.placement import objections, selects, undecidable
from migration_operator.pods import mapping


def successor_problems(migration: ContainerMigration, facts: PreflightFacts) -> Iterator[Problem]:
    """Find everything that stands against it; nothing when the target gets a name of its own."""
    if facts.revision is None or facts.pod is None:
        return
    hooks = [str(c.get("name")) for c in facts.pod.lasting if "postStart" in mapping(c.get("lifecycle"))]
    if hooks:
        what = f"the StatefulSet's new pod would run the postStart hook of {', '.join(hooks)} in what is restored"
        yield Problem(Why.POST_START_HOOK, what)
    if facts.target is None:
        yield from _nowhere(migration, facts)
        return
    for what in keeps_out(migration, facts, facts.target):
        yield Problem(Why.TARGET_NODE_UNFIT, what)
    if facts.target.facts is not None and not facts.target.facts.disk_bytes_free:
        what = f"the chart allows no checkpoint on the disk of node {facts.target.name}, where it must survive a reboot"
        yield Problem(Why.NO_ROOM, what)


def _nowhere(migration: ContainerMigration, facts: PreflightFacts) -> Iterator[Problem]:
    source = facts.source.name if facts.source else None
    found = [what for node in facts.candidates if node.name != source for what in keeps_out(migration, facts, node)]
    if found and migration.spec.target.node_name is None:
        yield Problem(Why.NO_SUITABLE_NODE, f"no other node can take it: {'; '.join(found)}")


def keeps_out(migration: ContainerMigration, facts: PreflightFacts, node: NodeView) -> Iterator[str]:
    """Find why the pod could not be scheduled to a node, or its claims not be mounted there."""
    pod, target = facts.pod, migration.spec.target
    if pod is None:
        return
    yield from objections(pod, target.node_selector or {}, node)
    named = target.node_name is not None
    if not named and (unknown := undecidable(pod)):
        yield f"only the scheduler can tell whether the pod's {unknown} allows node {node.name}: name a node that fits"
    for claim, volume in facts.volumes.items():
        required = mapping(mapping(mapping(volume.get("spec")).get("nodeAffinity")).get("required"))
        if required and not selects(required, node.name, node.labels):
            yield f"the volume of the claim {claim} cannot be mounted on node {node.name}"
