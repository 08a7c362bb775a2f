"""The containers that the tests and the demo move."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from support.cluster import Kubectl, Manifest
from support.migration import pod

COUNTER = "i=0; echo kept > /tmp/kept; while :; do i=$((i+1)); echo $i; echo $i > /tmp/count; sleep 0.1; done"

BALLAST = """
import os, sys, time
block = os.urandom(1 << 20)
memory = [bytes([i & 255]) + block[1:] for i in range({mebibytes})]
print("ready", flush=True)
n = 0
while True:
    n += 1
    print(n, flush=True)
    time.sleep(0.1)
"""


def counter(name: str, namespace: str, node: str) -> Manifest:
    """Return a pod that logs 1, 2, 3, … ten times a second and keeps the last number in a file."""
    return pod(name, namespace, ["bash", "-c", COUNTER], node)


def ballast(name: str, namespace: str, node: str, mebibytes: int) -> Manifest:
    """Return a pod that holds so much incompressible memory, and logs `ready`, 1, 2, 3, …

    Its checkpoint takes long enough for a test to do something in the middle.
    """
    return pod(name, namespace, ["python3", "-c", BALLAST.format(mebibytes=mebibytes)], node)


@dataclass(frozen=True)
class Redis:
    """A redis pod behind a Service, and the client pod that writes to it."""

    kubectl: Kubectl
    namespace: str
    service: str = "redis"
    client: str = "client"

    def start(self, node: str, client_node: str) -> None:
        """Start redis, its Service and an idle client pod; they are ready on return."""
        server = ["redis-server", "--save", "", "--protected-mode", "no", "--enable-debug-command", "yes"]
        manifest = pod("redis", self.namespace, server, node)
        container = manifest["spec"]["containers"][0]
        container["readinessProbe"] = {"tcpSocket": {"port": 6379}, "periodSeconds": 1}
        service: Manifest = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": self.service, "namespace": self.namespace},
            "spec": {"selector": {"app": "redis"}, "ports": [{"port": 6379}]},
        }
        client = pod(self.client, self.namespace, ["sleep", "infinity"], client_node)
        self.kubectl.apply(manifest, service, client)
        self.kubectl(
            *("wait", "pod/redis", f"pod/{self.client}", "-n", self.namespace, "--for=condition=Ready"),
            "--timeout=60s",
            timeout=70,
        )
        writer = (Path(__file__).parent / "redis_writer.py").read_text()
        self.kubectl(
            *("exec", "-i", self.client, "-n", self.namespace, "--", "sh", "-c", "cat > /tmp/writer.py"), stdin=writer
        )

    def cli(self, pod_name: str, *command: str) -> str:
        """Run redis-cli in the pod that redis runs in, and return its answer."""
        return self.kubectl.exec(pod_name, self.namespace, "redis-cli", *command, timeout=120).strip()

    def fill(self, pod_name: str, mebibytes: int) -> int:
        """Fill redis with keys of 1 KiB until its data has that size; return the number of keys."""
        keys = mebibytes * 1024 * 1024 // 1200  # 1 KiB of value and what redis needs around it
        self.cli(pod_name, "DEBUG", "POPULATE", str(keys), "key", "1024")
        return int(self.cli(pod_name, "DBSIZE"))

    def write(self) -> None:
        """Let the client write from now on."""
        command = (
            f"nohup python3 /tmp/writer.py {self.service} /tmp/acknowledged >/tmp/writer.log 2>&1 & echo $! > /tmp/pid"
        )
        self.kubectl.exec(self.client, self.namespace, "bash", "-c", command)

    def acknowledged(self) -> int:
        """Return how many writes have been acknowledged so far."""
        text = self.kubectl.exec(
            self.client, self.namespace, "sh", "-c", "[ ! -e /tmp/acknowledged ] || wc -l < /tmp/acknowledged"
        )
        return int(text or 0)

    def stop_and_check(self) -> dict[str, float]:
        """Stop the client, read every acknowledged write back; return what redis_writer.py's CHECK prints."""
        self.kubectl.exec(self.client, self.namespace, "sh", "-c", "kill $(cat /tmp/pid)")
        command = ("python3", "/tmp/writer.py", self.service, "/tmp/acknowledged", "CHECK")
        return json.loads(self.kubectl.exec(self.client, self.namespace, *command, timeout=120))
