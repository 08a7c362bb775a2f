"""A cluster as the tests and the demo see it: kubectl, waiting, and what happened when something does not come.

Nothing here knows kind: the same tests run on any cluster that the current KUBECONFIG names.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from support.apiserver import Manifest, api_server
from support.shells import SHELLS, ShellGoneError

SYSTEM = "container-migration"
"""The namespace that operator and agents run in."""

T = TypeVar("T")


class NotInTimeError(AssertionError):
    """Something awaited did not come; the message says what was there instead."""


def wait_for(what: str, probe: Callable[[], T | None], *, seconds: float, every: float = 0.2) -> T:
    """Return the first value of `probe` that is neither None nor False.

    Raises:
        NotInTimeError: it did not come within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        value = probe()
        if value is not None and value is not False:
            return value
        if time.monotonic() > deadline:
            raise NotInTimeError(f"{what}: not within {seconds:.0f} s")
        time.sleep(every)


@dataclass(frozen=True)
class Kubectl:
    """What kubectl does with the environment's KUBECONFIG; who others are is in `support.writers`."""

    def __call__(
        self, *args: str, stdin: str | None = None, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run `kubectl ARGS`; a failure's message has stderr."""
        done = subprocess.run(
            ("kubectl", *args), input=stdin, capture_output=True, text=True, check=False, timeout=timeout
        )
        if check and done.returncode != 0:
            raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    def apply(self, *manifests: Manifest) -> None:
        """Server-side apply, with strict field validation, as an admin or a GitOps tool would."""
        for it in manifests:
            api_server().apply(it, "tests")

    def get(self, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """Return the object, or None when there is none."""
        return api_server().get(kind, name, namespace)

    def list(self, kind: str, namespace: str = "", *, labels: str = "", fields: str = "") -> list[Manifest]:
        """Return the objects of a namespace, or of all, that both selectors select."""
        return api_server().list(kind, namespace, labels=labels, fields=fields)

    def logs(self, pod: str, namespace: str, **query: str) -> list[str]:
        """Return the lines that the pod's container has written; see `ApiServer.log`."""
        return api_server().log(pod, namespace, **query).splitlines()

    def exec(self, pod: str, namespace: str, *command: str, timeout: float = 60) -> str:
        """Run a command in a pod and return its output."""
        return self("exec", pod, "-n", namespace, "--", *command, timeout=timeout).stdout


def condition(thing: Manifest | None, type_: str) -> Manifest:
    """Return the condition of that type, or an empty one."""
    conditions: list[Manifest] = (thing or {}).get("status", {}).get("conditions", [])
    empty: Manifest = {}
    return next((c for c in conditions if c["type"] == type_), empty)


def agents(kubectl: Kubectl) -> dict[str, str]:
    """Return the agent's pod of each node."""
    pods = kubectl.list("pods", SYSTEM, labels="app.kubernetes.io/component=agent")
    return {
        p["spec"]["nodeName"]: p["metadata"]["name"]
        for p in pods
        if p["status"]["phase"] == "Running" and "deletionTimestamp" not in p["metadata"]
    }


def on_node(kubectl: Kubectl, node: str, script: str, timeout: float = 60) -> str:
    """Run a shell script in a node's own namespaces, through its agent's pod; waits for one that is just restarted."""

    refused = ""

    def asked() -> subprocess.CompletedProcess[str] | None:
        nonlocal refused
        agent = agents(kubectl).get(node)
        if agent is None:
            return None
        inside = ("nsenter", "-t", "1", "-a", "--", "sh")
        try:
            return SHELLS.run(("kubectl", "exec", "-i", agent, "-n", SYSTEM, "--", *inside), script, timeout)
        except ShellGoneError as error:
            refused = str(error)
            return None

    try:
        done = wait_for(f"a shell on node {node}, through its agent", asked, seconds=60)
    except NotInTimeError as error:
        raise NotInTimeError(f"{error}: {refused or 'no agent runs there'}") from error
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip()
        raise AssertionError(f"on node {node}: {script}: exit code {done.returncode}: {said}")
    return done.stdout


def schedulable(kubectl: Kubectl) -> list[str]:
    """Return the names of the Ready nodes that ordinary pods are scheduled to."""
    return sorted(
        node["metadata"]["name"]
        for node in kubectl.list("nodes")
        if condition(node, "Ready").get("status") == "True" and not node["spec"].get("taints")
    )


def workers(kubectl: Kubectl) -> list[str]:
    """Return the names of the nodes that can take part in a migration."""
    return sorted(n["metadata"]["name"] for n in kubectl.list("nodes", labels="containermigration.io/target=true"))


def able(kubectl: Kubectl, seconds: float = 120) -> None:
    """Wait until two nodes can take part and their agents run."""
    enough = "two nodes that can take part"
    wait_for(enough, lambda: len(workers(kubectl)) >= 2 and len(agents(kubectl)) >= 2, seconds=seconds)


def what_happened(kubectl: Kubectl, namespaces: Iterable[str]) -> str:
    """Return conditions, pods, events and the components' last log lines, for the message of a failure."""
    parts: list[str] = []

    def add(title: str, *args: str) -> None:
        done = kubectl(*args, check=False)
        parts.append(f"--- {title}\n{(done.stdout + done.stderr).strip()}")

    for namespace in namespaces:
        add(f"migrations in {namespace}", "get", "cmig", "-n", namespace, "-o", "yaml", "--show-managed-fields=false")
        add(f"pods in {namespace}", "get", "pods", "-n", namespace, "-o", "wide")
        add(f"events in {namespace}", "get", "events", "-n", namespace, "--sort-by=.lastTimestamp")
    add("migration nodes", "get", "migrationnodes", "-o", "wide")
    add("system pods", "get", "pods", "-n", SYSTEM, "-o", "wide")
    component = "app.kubernetes.io/component"
    add("operator", "logs", "-n", SYSTEM, "-l", f"{component}=operator", "--tail=60", "--prefix")
    add("agents", "logs", "-n", SYSTEM, "-l", f"{component}=agent", "--tail=80", "--prefix")
    return "\n".join(parts)
