"""Real programs of the image `workload-full`, as pods: what the tests of workloads move."""

from __future__ import annotations

import json
from dataclasses import dataclass

from support.cluster import Kubectl, Manifest, wait_for
from support.migration import Migrations, pod

IMAGE = "localhost/container-migration/workload-full:dev"
HERE = "/opt/workloads"
"""Where our own programs are in the image."""


def container(name: str, *command: str, **fields: object) -> Manifest:
    """Return a container of the image, with the pod's volumes at /data and /memory."""
    mounts = [{"name": it, "mountPath": f"/{it}"} for it in ("data", "memory")]
    basic: Manifest = {"name": name, "image": IMAGE, "imagePullPolicy": "Never", "command": list(command)}
    return {**basic, "volumeMounts": mounts, **fields}


def pod_of(name: str, namespace: str, node: str, *containers: Manifest, **spec: object) -> Manifest:
    """Return a pod of these containers, with an emptyDir volume on disk and one in memory."""
    volumes: list[Manifest] = [
        {"name": "data", "emptyDir": {}},
        {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}},
    ]
    return pod(name, namespace, [], node, containers=list(containers), volumes=volumes, **spec)


def service(name: str, namespace: str, port: int) -> Manifest:
    """Return the Service of the pod of that name, and of the one that it becomes."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}]},
    }


@dataclass(frozen=True)
class Told:
    """What a client saw.

    Attributes:
        numbers: those for which the command ended with 0.
        failed: how often it ended otherwise.
        longest_gap_seconds: between two that ended with 0.
    """

    numbers: list[int]
    failed: int
    longest_gap_seconds: float


@dataclass(frozen=True)
class Client:
    """A pod that asks a program through its Service all the time, from outside its pod."""

    kubectl: Kubectl
    migrations: Migrations
    name: str = "client"

    def start(self, node: str, command: str) -> None:
        """Run the shell's command, with NUMBER counted up, until `stop`."""
        namespace = self.migrations.namespace
        command_line = ("python3", f"{HERE}/client.py", "/data/numbers", command)
        self.migrations.run_pod(pod_of(self.name, namespace, node, container("main", *command_line)))

    def done(self) -> int:
        """Return how many commands have ended with 0."""
        return len(self._read("numbers").split())

    def goes_on(self, more: int, seconds: float = 60) -> None:
        """Wait until so many more commands have ended with 0."""
        before = self.done()
        wait_for("answers to the client", lambda: self.done() >= before + more, seconds=seconds)

    def stop(self) -> Told:
        """End the client, and return what it saw."""
        self.kubectl.exec(self.name, self.migrations.namespace, "touch", "/data/numbers.stop")
        state = wait_for("the client's end", lambda: self._read("numbers.state") or None, seconds=30)
        return Told([int(line) for line in self._read("numbers").split()], **json.loads(state))

    def _read(self, file: str) -> str:
        script = f"[ ! -e /data/{file} ] || cat /data/{file}"
        return self.kubectl.exec(self.name, self.migrations.namespace, "sh", "-c", script)
