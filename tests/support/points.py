"""Failpoints of the agents, armed on their nodes (migration_api.failpoints)."""

from __future__ import annotations

from dataclasses import dataclass, field

from support.cluster import Kubectl, on_node, wait_for

FAILPOINTS = "/run/container-migration/failpoints"
"""On a node: what its agent, interposer and pager do when they reach a point."""


@dataclass
class Points:
    """All that a test arms; `clear` takes it away again, and lets go who hangs."""

    kubectl: Kubectl
    _nodes: set[str] = field(default_factory=set[str])

    def arm(self, node: str, point: str, deed: str) -> None:
        """Let the agent on that node do this when it reaches the point: `kill`, `hang`, `fail`, `delay SECONDS`."""
        self._nodes.add(node)
        on_node(self.kubectl, node, f"mkdir -p {FAILPOINTS} && echo '{deed}' > {FAILPOINTS}/{point}")

    def reached(self, node: str, point: str, seconds: float = 60) -> None:
        """Wait until the agent has reached the point."""
        wait_for(f"{point} on {node}", lambda: self.was_reached(node, point), seconds=seconds)

    def was_reached(self, node: str, point: str) -> bool:
        return "yes" in on_node(self.kubectl, node, f"[ ! -e {FAILPOINTS}/{point}.hit ] || echo yes")

    def clear(self) -> None:
        """Disarm all and let everybody go on."""
        for node in sorted(self._nodes):
            on_node(self.kubectl, node, f"rm -rf {FAILPOINTS}")
        self._nodes.clear()
