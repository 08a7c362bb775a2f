"""How long a source may stand still: what was asked for, or less, when the kubelet would kill it before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from migration_operator.pods import Pod, mapping

MARGIN_SECONDS = 2.0
"""From the end of the budget to the first answered probe: the agent looks every second, then thaws the source."""

_NETWORK_PROBES = ("httpGet", "tcpSocket", "grpc")
_PERIOD, _TIMEOUT, _THRESHOLD = 10, 1, 3
"""The API server's own defaults."""


@dataclass(frozen=True)
class FreezeBudget:
    """The effective budget, in seconds, and what sets it, in words."""

    seconds: float
    limited_by: str

    @property
    def whole_seconds(self) -> int:
        """As the agents are told: never more than there is, and at least a second."""
        return max(1, math.floor(self.seconds))


def effective_freeze_budget(spec_seconds: int, pod: Pod) -> FreezeBudget:
    """Return min(spec, (failureThreshold - 1) x period - timeout - margin) over the pod's network liveness probes.

    A frozen pod answers no HTTP, TCP or gRPC probe, and the kubelet kills the container at the last of
    `failureThreshold` failures. The first may be one that was under way when the pod froze, so that only
    failureThreshold - 1 periods are certain, and the last must still be answered within its timeout. Exec probes do not
    count: in a paused container they end in an error that the kubelet takes for no result (measured). All containers
    count, also those that are not moved: the network of the whole pod is cut off.
    """
    budgets = [FreezeBudget(float(spec_seconds), f"spec.freezeBudgetSeconds is {spec_seconds} s")]
    return min([*budgets, *_of_probes(pod)], key=lambda budget: budget.seconds)


def probes_budget(pod: Pod) -> FreezeBudget | None:
    """Return how long the pod may stand still before the kubelet kills it; None when nothing of it is probed so."""
    return min(_of_probes(pod), key=lambda budget: budget.seconds, default=None)


def _of_probes(pod: Pod) -> Iterator[FreezeBudget]:
    for container in pod.lasting:
        probe = mapping(container.get("livenessProbe"))
        if not any(kind in probe for kind in _NETWORK_PROBES):
            continue
        period = int(probe.get("periodSeconds") or _PERIOD)
        timeout = int(probe.get("timeoutSeconds") or _TIMEOUT)
        threshold = int(probe.get("failureThreshold") or _THRESHOLD)
        yield FreezeBudget(
            max(0.0, (threshold - 1) * period - timeout - MARGIN_SECONDS),
            f"the liveness probe of container {container.get('name')} kills it after {threshold} failures, "
            f"one every {period} s",
        )
