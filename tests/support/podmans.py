"""Containers that the nodes' own Podman runs, as the tests start, look at and move them."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from functools import cached_property

from support.cluster import SYSTEM, Kubectl, Manifest, condition, on_node, wait_for
from support.migration import WORKLOAD
from support.points import Points

COUNTER = "i=0; while :; do i=$((i+1)); echo $i >> /numbers; sleep 0.1; done"
"""Its only copy of where it is, is in memory."""

LOAD = f"""
podman image exists {WORKLOAD} && exit 0
ctr -n k8s.io images export /run/podman-image.tar {WORKLOAD} 2>/dev/null
podman load -q -i /run/podman-image.tar
rm -f /run/podman-image.tar
"""


UNIFIED = """
m=$(mktemp -d)
if mount -t cgroup2 none "$m"; then
  [ ! -d "$m/libpod_parent" ] || find "$m/libpod_parent" -depth -type d -exec rmdir {} +
  umount "$m"
fi
rmdir "$m"
"""
"""On a node with cgroup v1 a container of crun's is in no group of the unified hierarchy, which is not mounted there.
CRIU takes all groups of it for the container's, and makes each again, below a new one, with each restore."""


@dataclass(frozen=True)
class Podmans:
    """Podman on two nodes, and the migrations of its containers."""

    kubectl: Kubectl
    source: str
    target: str
    name: str = "counter"
    """Of the container that a test moves."""

    @cached_property
    def points(self) -> Points:
        """The agents' failpoints."""
        return Points(self.kubectl)

    def shell(self, node: str, script: str, timeout: float = 60) -> str:
        """Run a shell script in a node's own namespaces."""
        return on_node(self.kubectl, node, script, timeout)

    def on(self, node: str, *command: str, timeout: float = 60) -> str:
        """Run a command of Podman's on a node and return what it wrote."""
        return self.shell(node, f"{shlex.join(['podman', *command])} 2>/dev/null", timeout=timeout)

    def load(self) -> None:
        """Let both nodes have the image."""
        for node in (self.source, self.target):
            self.shell(node, LOAD, timeout=120)

    def run(self, *options: str, script: str = COUNTER, name: str = "", node: str = "") -> str:
        """Start a container on the source, or that node; return its ID."""
        words = ("run", "--detach", "--name", name or self.name, "--network", "none", *options, WORKLOAD)
        return self.on(node or self.source, *words, "bash", "-c", script).strip()

    def exec(self, node: str, *command: str) -> str:
        """Run a command in the container."""
        return self.on(node, "exec", self.name, *command)

    def status(self, node: str, name: str = "") -> str:
        """Return the container's status on a node; empty when it is not there."""
        words = ["podman", "container", "inspect", "--format", "{{.State.Status}}", name or self.name]
        return self.shell(node, f"{shlex.join(words)} 2>/dev/null || true").strip()

    def numbers(self, node: str) -> list[int]:
        """Return what the counter has written there."""
        return [int(line) for line in self.exec(node, "cat", "/numbers").split()]

    def counting(self, node: str) -> int:
        """Wait until it has written ten more numbers; return the last one. None is missing, and none came twice."""
        before = len(self.numbers(node))
        wait_for("ten more numbers", lambda: len(self.numbers(node)) >= before + 10, seconds=30)
        seen = self.numbers(node)
        assert seen == list(range(1, len(seen) + 1)), f"a gap or a repeat: {seen}"
        return seen[-1]

    def runs_only_at(self, node: str) -> None:
        """Demand that the container is at one node, and runs there."""
        other = self.target if node == self.source else self.source
        assert (self.status(node), self.status(other)) == ("running", "")

    def move(self, name: str = "", **spec: object) -> None:
        """Apply the ContainerMigration `podman-move`, in the operator's namespace."""
        self.kubectl.apply(self.migration(name, SYSTEM, **spec))

    def migration(self, name: str, namespace: str, **spec: object) -> Manifest:
        """Return the ContainerMigration `podman-move` of the container with that name."""
        return {
            "apiVersion": "containermigration.io/v1alpha1",
            "kind": "ContainerMigration",
            "metadata": {"name": "podman-move", "namespace": namespace},
            "spec": {
                "podman": {"nodeName": self.source, "container": name or self.name},
                "target": {"nodeName": self.target},
                "freezeBudgetSeconds": 120,  # a busy machine is no failure
                **spec,
            },
        }

    def finished(self, namespace: str = SYSTEM, seconds: float = 240) -> Manifest:
        """Wait for the migration's end and return it."""

        def ended() -> Manifest | None:
            it = self.kubectl.get("cmig", "podman-move", namespace)
            return it if condition(it, "Succeeded").get("status") in {"True", "False"} else None

        return wait_for("the end of the migration", ended, seconds=seconds)

    def succeeded(self) -> Manifest:
        """Wait for success; fail with its condition otherwise."""
        it = self.finished()
        verdict = condition(it, "Succeeded")
        assert verdict["status"] == "True", f"{verdict['reason']}: {verdict['message']}"
        return it

    def refusal(self, namespace: str = SYSTEM) -> str:
        """Wait until the preflight has refused the migration; return its message, and remove it."""
        verdict = condition(self.finished(namespace), "PreflightPassed")
        assert verdict["reason"] == "PreflightFailed", verdict
        self.forget(namespace)
        return verdict["message"]

    def forget(self, namespace: str = SYSTEM) -> None:
        """Remove the migration's object."""
        self.kubectl("delete", "cmig", "podman-move", "-n", namespace, "--ignore-not-found", timeout=120)

    def clear(self) -> None:
        """Leave nothing behind."""
        self.forget()
        self.points.clear()
        for node in (self.source, self.target):
            self.shell(node, "podman rm --all --force --time 0 >/dev/null 2>&1; true")
            self.shell(node, "podman volume rm --all --force >/dev/null 2>&1; true")
        self.shell(self.source, UNIFIED)  # it is the machine's own
