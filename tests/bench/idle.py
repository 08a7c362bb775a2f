"""What operator and agents use when nothing happens: `make bench-idle`, on the cluster that KUBECONFIG names.

Memory is the kubelet's working set (what an out-of-memory decision counts), the largest value seen; processor time is
the difference over the whole time. Both come from the kubelets' resource metrics, so it works on any cluster.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from support.cluster import SYSTEM, Kubectl

MEBIBYTE = 1024 * 1024
LIMITS_MIB = {"operator": 120.0, "agent": 80.0}
LIMIT_CPU = 0.01
_SAMPLE = re.compile(
    r'^container_(memory_working_set_bytes|cpu_usage_seconds_total)\{container="(operator|agent)",'
    rf'namespace="{SYSTEM}",pod="([^"]+)"\}} (\S+) (\d+)$',
    re.MULTILINE,
)


@dataclass
class Usage:
    """One pod's container. Processor samples are (kubelet's time in seconds, seconds used)."""

    component: str
    memory: float
    cpu: list[tuple[float, float]]

    @property
    def share(self) -> float:
        """Of one processor, from the first to the last sample."""
        (began, before), (ended, after) = self.cpu[0], self.cpu[-1]
        return (after - before) / (ended - began) if ended > began else 0.0


def look(kubectl: Kubectl, nodes: list[str], usages: dict[str, Usage]) -> None:
    """Add one sample of each container."""
    for node in nodes:
        text = kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/metrics/resource").stdout
        for what, component, pod, value, at in _SAMPLE.findall(text):
            usage = usages.setdefault(pod, Usage(component, 0.0, []))
            if what.startswith("memory"):
                usage.memory = max(usage.memory, float(value))
            else:
                usage.cpu.append((int(at) / 1000, float(value)))


def main() -> int:
    """Measure; the exit code says whether all is below its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=60)
    options = parser.parse_args()
    kubectl, usages = Kubectl(), dict[str, Usage]()
    nodes = [node["metadata"]["name"] for node in kubectl.list("nodes")]
    until = time.monotonic() + options.seconds
    look(kubectl, nodes, usages)
    while time.monotonic() < until:
        time.sleep(10)
        look(kubectl, nodes, usages)
    table = Table(title=f"idle for {options.seconds} s")
    for name in ("pod", "memory, MiB", "limit", "processor", "limit"):
        table.add_column(name, justify="left" if name == "pod" else "right")
    good = bool(usages)
    for pod, usage in sorted(usages.items()):
        memory, limit = usage.memory / MEBIBYTE, LIMITS_MIB[usage.component]
        good = good and memory < limit and usage.share < LIMIT_CPU
        table.add_row(pod, f"{memory:.1f}", f"{limit:.0f}", f"{usage.share:.2%}", f"{LIMIT_CPU:.0%}")
    Console(width=100).print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
