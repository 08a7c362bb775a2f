"""Pods of several containers, and what they show of themselves."""

from __future__ import annotations

from dataclasses import dataclass

from support.cluster import Kubectl, Manifest, condition, on_node, wait_for
from support.follower import Follower
from support.migration import WORKLOAD, Migrations, pod

COUNTER = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"


def container(name: str, *command: str, **fields: object) -> Manifest:
    """Return a container of the workload's image."""
    return {"name": name, "image": WORKLOAD, "imagePullPolicy": "Never", "command": list(command), **fields}


def pod_of(name: str, namespace: str, node: str, *containers: Manifest, **spec: object) -> Manifest:
    """Return a pod of these containers on that node."""
    return pod(name, namespace, [], node, containers=list(containers), **spec)


def counters(name: str, namespace: str, node: str, *names: str) -> Manifest:
    """Return a pod whose containers all log 1, 2, 3, …"""
    return pod_of(name, namespace, node, *(container(it, "bash", "-c", COUNTER) for it in names))


@dataclass(frozen=True)
class Several:
    """The containers of one namespace's pods, by name."""

    kubectl: Kubectl
    migrations: Migrations

    def log(self, pod_name: str, container_name: str) -> list[str]:
        """Return the lines that a container has written."""
        return self.kubectl.logs(pod_name, self.migrations.namespace, container=container_name)

    def numbers(self, pod_name: str, container_name: str) -> list[int]:
        return [int(line) for line in self.log(pod_name, container_name) if line.isdigit()]

    def run(self, pod_name: str, container_name: str, script: str) -> str:
        """Run a shell script in a container and return its output."""
        namespace = self.migrations.namespace
        return self.kubectl("exec", pod_name, "-n", namespace, "-c", container_name, "--", "sh", "-c", script).stdout

    def init_statuses(self, pod: str) -> dict[str, Manifest]:
        """Return the pod's init container statuses by name."""
        it = self.migrations.pod(pod)
        assert it is not None
        return {status["name"]: status for status in it["status"].get("initContainerStatuses", [])}

    def restarts(self, pod_name: str) -> dict[str, int]:
        it = self.migrations.pod(pod_name)
        statuses: list[Manifest] = (it or {}).get("status", {}).get("containerStatuses", [])
        return {status["name"]: status["restartCount"] for status in statuses}

    def container_id(self, pod_name: str, container_name: str) -> str:
        """Return the runtime's ID of a running container."""
        it = self.migrations.pod(pod_name)
        assert it is not None
        found = [s for s in it["status"]["containerStatuses"] if s["name"] == container_name]
        return found[0]["containerID"].removeprefix("containerd://")


def follow(several: Several, pod: str, *names: str) -> dict[str, Follower]:
    """Follow the logs of counters that have begun to count."""
    logs = {name: Follower(pod, several.migrations.namespace, name) for name in names}
    wait_for("numbers of all", lambda: all(len(log.lines) >= 10 for log in logs.values()), seconds=30)
    return logs


def no_gap(several: Several, logs: dict[str, Follower], moved: str) -> None:
    """Every container's log goes on at the very next number."""
    for name, log in logs.items():
        seen = log.numbers()
        assert seen, name
        wait_for(f"ten more of {name}", lambda name=name: len(several.numbers(moved, name)) >= 10, seconds=20)
        seen += several.numbers(moved, name)
        assert seen == list(range(1, len(seen) + 1)), f"the log of {name} has a gap or a repeat"


KILL_SANDBOX = """
for c in /run/containerd/io.containerd.runtime.v2.task/k8s.io/*; do
  grep -q '"io.kubernetes.cri.container-type":"sandbox"' $c/config.json 2>/dev/null || continue
  grep -q '"io.kubernetes.cri.sandbox-uid":"{uid}"' $c/config.json && kill -9 $(cat $c/init.pid) && echo killed
done
true
"""


def in_a_new_sandbox(several: Several, pod_name: str, node: str, uid: str) -> None:
    """Kill the pause process of a pod's sandbox, and wait until its container `main` was made anew and is ready."""
    first = several.container_id(pod_name, "main")
    assert on_node(several.kubectl, node, KILL_SANDBOX.format(uid=uid)).strip() == "killed"

    def again() -> bool:
        it = several.migrations.pod(pod_name)
        return condition(it, "Ready").get("status") == "True" and several.container_id(pod_name, "main") != first

    wait_for("the pod to run again", again, seconds=90)
