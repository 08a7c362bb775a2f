"""Where a pod may run, as far as the operator must find out before the scheduler is asked. Pure.

A pod that its controller creates again is scheduled only when the source is gone: too late to find that its node does
not take it. What cannot be told here is said, and left to whoever names the node.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Protocol

from migration_operator.pods import Json, Pod, mapping, mappings

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
NODE_NAME = "metadata.name"
"""The only field of a node that an affinity may select by."""
_KEEPS_OUT = ("NoSchedule", "NoExecute")


def without_the_pin(placement: Json) -> Json:
    """Return an affinity and node selector without what pins a pod that was created again to the node it moved to."""
    own = copy.deepcopy(placement)
    node = mapping(mapping(own.get("affinity")).get("nodeAffinity"))
    terms = mappings(mapping(node.get(REQUIRED)).get("nodeSelectorTerms"))
    if terms and all(_names_a_node(term) for term in terms):
        del node[REQUIRED]
    return own


def _names_a_node(term: Json) -> bool:
    return any(it.get("key") == NODE_NAME for it in mappings(term.get("matchFields")))


class Node(Protocol):
    """As much of a node as counts here."""

    @property
    def name(self) -> str: ...

    @property
    def labels(self) -> Mapping[str, str]: ...

    @property
    def taints(self) -> tuple[Json, ...]: ...


def objections(pod: Pod, wanted: Mapping[str, str], node: Node) -> Iterator[str]:
    """Find why the scheduler would not put a pod on a node; `wanted`: labels beside those that the pod asks for."""
    name, labels = node.name, node.labels
    own = {key: pod.spec[key] for key in ("affinity", "nodeSelector") if key in pod.spec}
    own = without_the_pin(own) if pod.migration else own
    selector = {**mapping(own.get("nodeSelector")), **wanted}
    missing = sorted(f"{key}={value}" for key, value in selector.items() if labels.get(key) != value)
    if missing:
        yield f"node {name} has not the labels {', '.join(missing)}"
    required = mapping(mapping(mapping(own.get("affinity")).get("nodeAffinity")).get(REQUIRED))
    if required and not selects(required, name, labels):
        yield f"node {name} does not match the pod's node affinity"
    kept_out = [t for t in node.taints if t.get("effect") in _KEEPS_OUT and not _tolerated(pod, t)]
    if kept_out:
        yield f"the pod does not tolerate the taint {', '.join(str(t.get('key')) for t in kept_out)} of node {name}"


def undecidable(pod: Pod) -> str:
    """Return what of a pod's specification only the scheduler can judge; empty when there is nothing."""
    affinity = mapping(pod.spec.get("affinity"))
    found = [key for key in ("podAffinity", "podAntiAffinity") if mapping(affinity.get(key)).get(REQUIRED)]
    spread = mappings(pod.spec.get("topologySpreadConstraints"))
    if any(it.get("whenUnsatisfiable") == "DoNotSchedule" for it in spread):
        found.append("topologySpreadConstraints")
    return ", ".join(found)


def selects(selector: Json, name: str, labels: Mapping[str, str]) -> bool:
    """Return whether a NodeSelector (alternative terms) matches a node."""
    return any(_matches(term, name, labels) for term in mappings(selector.get("nodeSelectorTerms")))


def _matches(term: Json, name: str, labels: Mapping[str, str]) -> bool:
    """An empty term matches no node."""
    expressions, fields = mappings(term.get("matchExpressions")), mappings(term.get("matchFields"))
    if not expressions and not fields:
        return False
    by_label = all(_holds(it, labels.get(str(it.get("key")))) for it in expressions)
    return by_label and all(_holds(it, name if it.get("key") == NODE_NAME else None) for it in fields)


def _holds(requirement: Json, value: str | None) -> bool:
    operator, values = requirement.get("operator"), [str(it) for it in requirement.get("values") or ()]
    match operator:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case _:
            return _compares(str(operator), value, values)


def _compares(operator: str, value: str | None, values: list[str]) -> bool:
    try:
        left, right = int(value or ""), int(values[0])
    except (ValueError, IndexError):
        return False
    return left > right if operator == "Gt" else operator == "Lt" and left < right


def _tolerated(pod: Pod, taint: Json) -> bool:
    return any(_tolerates(it, taint) for it in mappings(pod.spec.get("tolerations")))


def _tolerates(toleration: Json, taint: Json) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (taint.get("value") or "")
