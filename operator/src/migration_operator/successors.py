"""What is to be found out about a pod that its controller creates again under its own name: its node, and its pin."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from migration_api.migration import ContainerMigration
from migration_api.names import RUNTIME_HANDLER
from migration_operator.generated import suffix
from migration_operator.kube import Kube, KubeError
from migration_operator.node_checks import unfit
from migration_operator.observation import Observation, PreflightFacts
from migration_operator.owners import likeness
from migration_operator.placement import REQUIRED, selects
from migration_operator.pods import Json, Pod, mapping, mappings
from migration_operator.successor_checks import keeps_out

_REFUSED = (403, 422)


def with_a_node(migration: ContainerMigration, facts: PreflightFacts, now: datetime) -> PreflightFacts:
    """Return the facts with the node that is taken when nobody has named one: the first that fits, by its name.

    The scheduler cannot pick it: there is no pod before the source is gone.
    """
    if facts.revision is None or facts.target is not None or facts.source is None:
        return facts
    others = sorted((it for it in facts.candidates if it.name != facts.source.name), key=lambda it: it.name)
    fit = (it for it in others if not unfit(facts.source, it, now) and not any(keeps_out(migration, facts, it)))
    return replace(facts, target=next(fit, None))


async def with_its_pin(kube: Kube, o: Observation) -> Observation:
    """Return the observation with whether the API server pins the pod that will get the name, as it answers now.

    Asked right before the source is frozen, for what nobody pins starts afresh on any node, and its memory is lost.
    """
    due = o.same_name and o.decision is None and o.target is not None and o.source is None
    if not due or o.source_pod is None:
        return o
    name = f"{o.source_pod.name[:40].rstrip('-.')}-{suffix(o.migration.metadata.uid)}"
    try:
        found = await kube.as_admitted(likeness(o.source_pod, name))
    except KubeError as error:
        if error.status not in _REFUSED:
            raise
        return replace(o, unpinned=f"the API server does not admit one like it: {error}")
    return replace(o, unpinned=_unpinned(found, o))


def _unpinned(found: Pod, o: Observation) -> str:
    node = o.migration.status.target.node_name or ""
    affinity = mapping(mapping(found.spec.get("affinity")).get("nodeAffinity"))
    required = mapping(affinity.get(REQUIRED))
    # By the field alone: whatever labels other nodes may have.
    pinned = selects(required, node, {}) and len(mappings(required.get("nodeSelectorTerms"))) == 1
    marked = found.migration == o.migration.metadata.uid and found.spec.get("runtimeClassName") == RUNTIME_HANDLER
    if pinned and marked:
        return ""
    return "its MutatingAdmissionPolicy container-migration-same-name is missing, or not in force yet"


async def volumes_of(kube: Kube, pod: Pod) -> dict[str, Json]:
    """Return the volumes that a pod's claims are bound to, by the claims' names."""
    found: dict[str, Json] = {}
    for name in sorted(set(pod.claims.values())):
        claim = await kube.claim(pod.namespace, name)
        bound = mapping((claim or {}).get("spec")).get("volumeName")
        volume = await kube.volume(str(bound)) if bound else None
        if volume is not None:
            found[name] = volume
    return found
