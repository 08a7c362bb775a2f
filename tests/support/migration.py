"""Migrations and their pods, as the tests and the demo apply and watch them."""

from __future__ import annotations

from dataclasses import dataclass

from support.cluster import Kubectl, Manifest, condition, on_node, wait_for, workers

WORKLOAD = "localhost/container-migration/workload:dev"


def pod(name: str, namespace: str, command: list[str], node: str, **spec: object) -> Manifest:
    """Return a bare pod with one container `main` on that node; `spec` adds to its specification."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "nodeName": node,  # no selector: that would bind the moved pod, too
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": WORKLOAD, "imagePullPolicy": "Never", "command": command}],
            **spec,
        },
    }


def container_id(it: Manifest) -> str:
    """Return the runtime's name of a pod's first container."""
    return it["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")


def migration(name: str, namespace: str, pod_name: str, **spec: object) -> Manifest:
    """Return a ContainerMigration of that pod; `spec` adds to its specification."""
    return {
        "apiVersion": "containermigration.io/v1alpha1",
        "kind": "ContainerMigration",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"podName": pod_name, **spec},
    }


@dataclass(frozen=True)
class Migrations:
    """The migrations and pods of one namespace."""

    kubectl: Kubectl
    namespace: str

    def get(self, name: str) -> Manifest | None:
        """Return the ContainerMigration."""
        return self.kubectl.get("cmig", name, self.namespace)

    def pod(self, name: str) -> Manifest | None:
        """Return the pod."""
        return self.kubectl.get("pod", name, self.namespace)

    def start(self, name: str, pod_name: str, **spec: object) -> None:
        """Apply a ContainerMigration."""
        self.kubectl.apply(migration(name, self.namespace, pod_name, **spec))

    def finished(self, name: str, seconds: float = 120) -> Manifest:
        """Wait until the migration has ended, one way or the other, and return it."""

        def ended() -> Manifest | None:
            it = self.get(name)
            return it if condition(it, "Succeeded").get("status") in {"True", "False"} else None

        return wait_for(f"the end of migration {name}", ended, seconds=seconds)

    def succeeded(self, name: str, seconds: float = 120) -> Manifest:
        """Wait for success and return the migration; fail with its condition otherwise."""
        it = self.finished(name, seconds)
        verdict = condition(it, "Succeeded")
        assert verdict["status"] == "True", f"{verdict['reason']}: {verdict['message']}"
        return it

    def run_pod(self, manifest: Manifest, seconds: float = 60) -> Manifest:
        """Apply a pod and wait until it runs."""
        self.kubectl.apply(manifest)
        return self.running(manifest["metadata"]["name"], seconds)

    def running(self, name: str, seconds: float = 60) -> Manifest:
        """Wait until the pod's containers are ready and return it."""

        def ready() -> Manifest | None:
            it = self.pod(name)
            return it if condition(it, "Ready").get("status") == "True" else None

        return wait_for(f"pod {name} to be ready", ready, seconds=seconds)

    def gone(self, name: str, seconds: float = 60) -> None:
        """Wait until there is no such pod."""
        wait_for(f"pod {name} to be gone", lambda: self.pod(name) is None, seconds=seconds)


LEFTOVERS = """
for d in /var/lib/kubelet/pods/*/etc-hosts; do [ -d "$d" ] && echo "fence $d"; done
for f in /var/lib/kubelet/pods/*/etc-hosts.container-migration; do [ -e "$f" ] && echo "moved aside $f"; done
ls -d /run/container-migration/images/* /var/lib/container-migration/images/* \
      /var/lib/container-migration/migrations/* /var/lib/container-migration/pods/* 2>/dev/null
for c in $(ls /run/containerd/runc/k8s.io 2>/dev/null); do
  runc --root /run/containerd/runc/k8s.io state "$c" 2>/dev/null | grep -q '"status": "paused"' && echo "paused $c"
done
for p in /proc/[0-9]*; do
  case "$(readlink $p/exe 2>/dev/null)" in */criu|*/runc-migratable) echo "process $(tr '\\0' ' ' < $p/cmdline)";; esac
done
true
"""
"""Prints whatever a migration may leave behind on a node: fences, journals, images, frozen containers, processes."""


def leftovers(kubectl: Kubectl) -> dict[str, str]:
    """Return what migrations have left behind on each node; a clean cluster gives an empty mapping."""
    found = {node: on_node(kubectl, node, LEFTOVERS).strip() for node in workers(kubectl)}
    return {node: text for node, text in found.items() if text}
