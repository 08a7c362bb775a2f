"""A cluster to do harm to: a shell on each node, a witness outside, and failpoints in every part."""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.witness import PORT
from support.cluster import SYSTEM, Kubectl, Manifest, condition, wait_for, workers
from support.migration import LEFTOVERS, container_id, pod

HERE = Path(__file__).parent
COMPONENT = "app.kubernetes.io/component"
PROBED = 8080
"""Where a counter answers probes."""
AGENT_POINTS = "/run/container-migration/failpoints"
_TRY_SECONDS = 20
"""How long one command on a node may take; one that began while its containerd was ill may never end."""
RUNC = "runc --root /run/containerd/runc/k8s.io"

MORE_LEFTOVERS = """
ls -d /run/container-migration/shipping/* /run/container-migration/clearing/* 2>/dev/null
grep -o ' /[^ ]*container-migration/images/[^ ]*' /proc/mounts
grep -o ' /[^ ]*criu.cgyard[^ ]*' /proc/mounts
for p in /proc/[0-9]*; do
  [ "$(readlink $p/ns/net)" = "$(readlink /proc/1/ns/net)" ] && continue
  [ "$(cat $p/comm 2>/dev/null)" = pause ] || continue
  nsenter -t ${p#/proc/} -n nft list tables 2>/dev/null | grep -q container-migration && echo "packets dropped $p"
done
true
"""
"""What `LEFTOVERS` does not look for: keys, mounts, and packet filters in pods that live."""


class OnNodeError(AssertionError):
    """A command could not be run on a node."""


@dataclass(frozen=True)
class Spot:
    """Where failpoints of one part are armed."""

    node: str
    folder: str


@dataclass
class Lab:
    """The cluster, while it is prepared for harm."""

    kubectl: Kubectl
    namespace: str
    nodes: tuple[str, str]
    third: str
    """A node that no harm is done to, but that its API server may be out of reach."""
    witness: str = ""
    """The witness's address."""
    shells: dict[str, str] = field(default_factory=dict[str, str])
    """The pod with a shell on each node."""

    def sh(self, node: str, script: str, seconds: float = 30) -> str:
        """Run a script in a node's own namespaces; tried again while kubelet or containerd are away.

        So it may run twice. Its way leads through kubelet and containerd: what kills them must be done by `detached`.
        """
        shell = ("exec", self.shells[node], "-n", self.namespace, "--", "nsenter", "-t", "1", "-a", "--", "sh", "-c")
        deadline = time.monotonic() + seconds
        while True:
            try:
                done = self.kubectl(*shell, script, check=False, timeout=min(seconds, _TRY_SECONDS))
                if done.returncode == 0:
                    return done.stdout
                error = done.stderr
            except subprocess.TimeoutExpired:
                error = "timed out"
            if time.monotonic() > deadline:
                raise OnNodeError(f"on node {node}: {script[:80]}: {error}")
            time.sleep(0.5)

    def detached(self, node: str, script: str, *, after: float = 0.3) -> None:
        """Let a script begin in so many seconds, when nobody listens any more; it is not tried again then."""
        self.sh(node, f"setsid sh -c {shlex.quote(f'sleep {after}; {script}')} </dev/null >/dev/null 2>&1 &")

    def kill_unit(self, node: str, unit: str, seconds: float = 60) -> None:
        """Kill a service's main process, once, and wait until systemd has started another."""
        ask = f"systemctl show --property=MainPID --value {unit}"
        before = self.sh(node, ask).strip()
        self.detached(node, f"kill -KILL {before}")
        wait_for(
            f"{unit} on node {node}, killed as {before}, to be started again",
            lambda: self.sh(node, ask).strip() not in {before, "0"},
            seconds=seconds,
            every=0.5,
        )

    def other(self, node: str) -> str:
        """Return the node that a migration from this one goes to."""
        first, second = self.nodes
        return second if node == first else first

    # The parts

    def part(self, component: str, node: str = "") -> Manifest | None:
        """Return the living pod of a component, on that node; None while there is none."""
        pods = self.kubectl.list("pods", SYSTEM, labels=f"{COMPONENT}={component}")
        alive = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
        return next((p for p in alive if not node or p["spec"].get("nodeName") == node), None)

    def crash(self, component: str, node: str = "") -> None:
        """Kill a component's container as a bug or the kernel would; nothing when it does not run now."""
        it = self.part(component, node)
        statuses = (it or {}).get("status", {}).get("containerStatuses", [])
        if it and statuses and "running" in statuses[0]["state"]:
            self.sh(it["spec"]["nodeName"], f"{RUNC} kill {container_id(it)} KILL || true")

    def heal(self) -> None:
        """Wait until all parts are ready; what the kubelet restarts with growing pauses gets a new pod."""
        for component in ("operator", "agent"):
            for it in self.kubectl.list("pods", SYSTEM, labels=f"{COMPONENT}={component}"):
                statuses = it["status"].get("containerStatuses", [{}])
                if statuses[0].get("restartCount", 0) > 0:
                    name = it["metadata"]["name"]
                    self.kubectl("delete", "pod", name, "-n", SYSTEM, "--grace-period=1", "--wait=true", check=False)
        wait_for("all parts", self.well, seconds=120)

    def well(self) -> bool:
        """Say whether operator and agents are ready, and both nodes can take part."""
        return self.ready("operator") == 1 and self.ready("agent") >= 2 and len(workers(self.kubectl)) >= 2

    def ready(self, component: str) -> int:
        """Return how many pods of a component are ready."""
        pods = self.kubectl.list("pods", SYSTEM, labels=f"{COMPONENT}={component}")
        return sum(condition(p, "Ready").get("status") == "True" for p in pods)

    def relieve(self) -> None:
        """Replace what waits for its next restart."""
        for it in self.kubectl.list("pods", SYSTEM, labels=COMPONENT):
            for status in it["status"].get("containerStatuses", []):
                if status["state"].get("waiting", {}).get("reason") == "CrashLoopBackOff":
                    delete = ("delete", "pod", it["metadata"]["name"], "-n", SYSTEM)
                    self.kubectl(*delete, "--grace-period=1", "--wait=false", check=False)

    # Failpoints

    def spot(self, point: str, source: str, target: str) -> Spot | None:
        """Return where a failpoint is armed for a migration between these nodes; None while there is no operator."""
        if point.startswith("operator."):
            it = self.part("operator")
            if it is None or "nodeName" not in it["spec"]:
                return None
            volumes = f"/var/lib/kubelet/pods/{it['metadata']['uid']}/volumes"
            return Spot(it["spec"]["nodeName"], f"{volumes}/kubernetes.io~empty-dir/failpoints")
        at_source = point.startswith("source.") or point in {"hook.post-dump", "hook.copied"}
        return Spot(source if at_source else target, AGENT_POINTS)

    def arm(self, spot: Spot, point: str, deed: str) -> None:
        """Let the next that comes there do that deed."""
        new = f"{spot.folder}/.{point}"
        self.sh(
            spot.node,
            f"mkdir -p {spot.folder} && rm -f {spot.folder}/{point}.hit && echo {shlex.quote(deed)} > {new} "
            f"&& mv {new} {spot.folder}/{point}",
        )

    def hit(self, spot: Spot, point: str, seconds: float) -> None:
        """Wait, on the node, until somebody came there.

        Raises:
            NotInTimeError: nobody did.
        """
        file = f"{spot.folder}/{point}.hit"
        look = (
            f"i=0; while [ ! -e {file} ] && [ $i -lt 100 ]; do sleep 0.1; i=$((i+1)); done; [ ! -e {file} ] || echo hit"
        )
        wait_for(f"{point} is reached", lambda: self.sh(spot.node, look).strip() == "hit", seconds=seconds)

    def release(self, spot: Spot, point: str) -> None:
        """Let who hangs there go on."""
        self.sh(spot.node, released(spot, point))

    def disarm(self) -> None:
        """Take all failpoints away."""
        for node in self.nodes:
            operators = "/var/lib/kubelet/pods/*/volumes/kubernetes.io~empty-dir/failpoints"
            self.sh(node, f"rm -rf {AGENT_POINTS}; rm -f {operators}/* {operators}/.[a-z]*")

    def clear(self) -> None:
        """Remove all that was made here."""
        for kind in ("cmig", "pods"):  # the pods when nothing moves any more
            here = ("-n", self.namespace, "--grace-period=1", "--timeout=60s")
            self.kubectl("delete", kind, "--all", *here, check=False, timeout=90)
        self.kubectl("delete", "namespace", self.namespace, "--wait=false")

    # What is seen

    def seen(self, counter: str) -> dict[str, Any]:
        """Return what the witness saw of a counter."""
        report = self.kubectl("exec", "witness", "-n", self.namespace, "--", *program("witness.py"), "REPORT").stdout
        return json.loads(report).get(counter, {"number": 0, "doubled": [], "lost": [], "gaps": [], "recent": []})

    def leftovers(self) -> list[str]:
        """Return what migrations have left behind anywhere."""
        found = [
            f"{node}: {line}" for node in self.nodes for line in self.sh(node, LEFTOVERS + MORE_LEFTOVERS).splitlines()
        ]
        secrets_ = self.kubectl("get", "secrets", "-n", self.namespace, "-o", "name").stdout.splitlines()
        return found + secrets_


def released(spot: Spot, point: str) -> str:
    """Return the script that lets who hangs at a failpoint go on."""
    return f"rm -f {spot.folder}/{point}.hit"


def program(name: str) -> tuple[str, ...]:
    """Return the command that runs one of the programs here in a pod."""
    return ("python3", "-c", (HERE / name).read_text(encoding="utf-8"))


def counter_pod(lab: Lab, name: str, node: str, mebibytes: int) -> Manifest:
    """Return a pod that counts, with so much incompressible memory."""
    command = [*program("counter.py"), name, lab.witness, str(PORT), str(mebibytes), str(PROBED)]
    return pod(name, lab.namespace, command, node)
