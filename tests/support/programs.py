"""Real programs of the image `workload-full`, as pods: what the tests of workloads move."""

from __future__ import annotations

from dataclasses import dataclass

from support.cluster import Kubectl, Manifest
from support.migration import Migrations, pod

IMAGE = "localhost/container-migration/workload-full:dev"


def program(name: str, namespace: str, node: str, *command: str, **fields: object) -> Manifest:
    """Return a pod that runs a command of the image and has an emptyDir volume at /data."""
    volumes: list[Manifest] = [{"name": "data", "emptyDir": {}}]
    manifest = pod(name, namespace, list(command), node, volumes=volumes)
    [container] = manifest["spec"]["containers"]
    container |= {"image": IMAGE, "volumeMounts": [{"name": "data", "mountPath": "/data"}], **fields}
    return manifest


def service(name: str, namespace: str, port: int) -> Manifest:
    """Return the Service of the pod of that name, and of the one that it becomes."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": port}]},
    }


CLIENT = """
import json, os, subprocess, sys, time
command, done, failed = sys.argv[2], 0, 0
numbers = open(sys.argv[1], "w", buffering=1)
state = sys.argv[1] + ".state"
n, last, gap = 0, time.monotonic(), 0.0
while not os.path.exists(sys.argv[1] + ".stop"):
    n += 1
    asked = subprocess.run(["bash", "-c", command.replace("NUMBER", str(n))], capture_output=True)
    if asked.returncode == 0:
        done += 1
        numbers.write(f"{n}\\n")
        gap, last = max(gap, time.monotonic() - last), time.monotonic()
    else:
        failed += 1
    open(state + ".new", "w").write(json.dumps({"done": done, "failed": failed, "gap": round(gap, 3)}))
    os.replace(state + ".new", state)
"""
"""Runs a command again and again with the next NUMBER, and remembers those for which it ended with 0."""


@dataclass(frozen=True)
class Client:
    """A pod that asks a program through its Service all the time, from outside its pod."""

    kubectl: Kubectl
    migrations: Migrations
    name: str = "client"

    def start(self, node: str, command: str) -> None:
        """Run the shell's command, with NUMBER counted up, until `stop`."""
        namespace = self.migrations.namespace
        self.migrations.run_pod(program(self.name, namespace, node, "sleep", "infinity"))
        self.kubectl("exec", "-i", self.name, "-n", namespace, "--", "sh", "-c", "cat > /tmp/client.py", stdin=CLIENT)
        script = 'nohup python3 /tmp/client.py /tmp/numbers "$1" >/tmp/client.log 2>&1 &'
        self.kubectl.exec(self.name, namespace, "bash", "-c", script, "client", command)

    def done(self) -> int:
        """Return how many commands have ended with 0."""
        namespace = self.migrations.namespace
        text = self.kubectl.exec(self.name, namespace, "sh", "-c", "[ ! -e /tmp/numbers ] || wc -l < /tmp/numbers")
        return int(text or 0)

    def stop(self) -> list[int]:
        """End the client, and return the numbers for which the command ended with 0."""
        namespace = self.migrations.namespace
        wait = "touch /tmp/numbers.stop; while pgrep -f client.py >/dev/null; do sleep 0.1; done; cat /tmp/numbers"
        return [int(line) for line in self.kubectl.exec(self.name, namespace, "sh", "-c", wait, timeout=60).split()]
