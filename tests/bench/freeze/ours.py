"""This project: a pod, moved by a ContainerMigration."""

from __future__ import annotations

import json
import subprocess
import time

from bench.freeze.ends import End
from bench.freeze.method import (
    FILL_SECONDS,
    FINDINGS,
    FINDINGS_SECONDS,
    NAME,
    READY,
    Findings,
    MoveFailed,
    Outcome,
    command,
)
from support.cluster import SYSTEM, Kubectl, Manifest, agents, condition
from support.migration import Migrations, pod

POD = "workload"
MOVE = "move"
SECONDS = 900
PATIENCE = {"freezeBudgetSeconds": 120, "deadlineSeconds": SECONDS}
"""The estimate before a freeze counts with a slower network than this one."""


class Ours:
    """One strategy."""

    def __init__(self, source: End, target: End, strategy: str) -> None:
        self.name = f"ours-{strategy}"
        self.strategy = strategy
        self.source, self.target = source, target
        self.kubectl = Kubectl()
        self.migrations = Migrations(self.kubectl, NAME)

    def prepare(self) -> None:
        """Nothing: operator and agents are there."""

    def versions(self) -> dict[str, str]:
        """Return the agent's image."""
        name = agents(self.kubectl)[self.source.node]
        it = self.kubectl.get("pod", name, SYSTEM)
        assert it
        return {"agent": it["spec"]["containers"][0]["image"]}

    def move(self, mebibytes: int) -> Outcome:
        """See `Method`."""
        self._remove()
        try:
            return self._move(mebibytes)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            raise MoveFailed(str(error)) from error
        finally:
            self._remove()

    def _move(self, mebibytes: int) -> Outcome:
        manifest = pod(POD, NAME, command(mebibytes), self.source.node)
        manifest["spec"]["containers"][0]["resources"] = {"requests": {"cpu": "500m"}}  # as fair as what is in no pod
        running = self.migrations.run_pod(manifest)
        read(self.source, running, READY, FILL_SECONDS)
        containers = [(end, self._agent(end)) for end in (self.source, self.target)]
        for end, container in containers:
            end("watch_memory", container=container)
        marks, before = {"command": time.time_ns()}, self.source.counters()
        target = {"nodeName": self.target.node}
        spec = {"target": target, "strategy": self.strategy, "transport": {"type": "Direct"}, **PATIENCE}
        self.migrations.start(MOVE, POD, **spec)
        self._await()
        marks["succeeded"], after = time.time_ns(), self.source.counters()
        peak = max(int(end("peak_memory", container=container)["bytes"]) for end, container in containers)
        status = self.migrations.succeeded(MOVE)["status"]
        moved = self.migrations.running(status["target"]["podName"])
        return Outcome(
            marks=marks,
            findings=Findings.parse(read(self.target, moved, FINDINGS, FINDINGS_SECONDS)),
            sent_bytes=after.sentBytes - before.sentBytes,
            processor_seconds=after.processorSeconds - before.processorSeconds,
            agents_peak_bytes=peak,
            timings=status["timings"],
        )

    def _await(self) -> None:
        """Wait for the migration's end by one watch: asking again and again would cost the processor time."""
        path = '{.status.conditions[?(@.type=="Succeeded")].status}{"\\n"}'
        words = ("kubectl", "get", "cmig", MOVE, "-n", NAME, "--watch", "-o", f"jsonpath={path}")
        with subprocess.Popen(("timeout", str(SECONDS), *words), stdout=subprocess.PIPE, text=True) as watch:
            assert watch.stdout
            try:
                ended = next((line for line in watch.stdout if line.strip() in {"True", "False"}), None)
            finally:
                watch.terminate()
        if ended is None:
            raise MoveFailed(f"the migration did not end within {SECONDS} s: {self._status()}")

    def _agent(self, end: End) -> str:
        """Return the id of the agent's container on that node."""
        it = self.kubectl.get("pod", agents(self.kubectl)[end.node], SYSTEM)
        assert it
        return container_id(it)

    def _status(self) -> str:
        return json.dumps(condition(self.migrations.get(MOVE), "Succeeded"))

    def _remove(self) -> None:
        """Remove migration and pods, and wait until they are gone: their memory is needed."""
        self.kubectl("delete", "cmig", MOVE, "-n", NAME, "--ignore-not-found", "--timeout=120s", timeout=130)
        self.kubectl("delete", "pods", "-l", f"app={POD}", "-n", NAME, "--timeout=120s", timeout=130)


def container_id(it: Manifest) -> str:
    """Return the id of a pod's one container."""
    return it["status"]["containerStatuses"][0]["containerID"].split("//")[1]


def read(end: End, it: Manifest, file: str, seconds: float) -> str:
    """Wait for a file of the workload; by the node's end, since `kubectl exec` would disturb it."""
    pid = end("pid_of", container=container_id(it))["pid"]
    return end("wait", pid=pid, file=file, seconds=seconds)["content"]
