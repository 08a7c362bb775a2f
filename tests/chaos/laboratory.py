"""Prepares a cluster for harm, and makes it as it was: also after a laboratory that was killed itself."""

from __future__ import annotations

import json
import secrets
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from chaos.lab import Lab, program
from support.cluster import SYSTEM, Kubectl, Manifest, wait_for, workers
from support.migration import pod

OPERATOR = "container-migration-operator"
AT_ONCE = "8"
"""As many migrations as that run at the same time in a storm."""
LABEL = "containermigration.io/laboratory"
"""On the namespaces, so that the next laboratory finds what a killed one left."""
BEFORE = "containermigration.io/before-the-laboratory"
"""The annotation of the operator's Deployment that has the variables which were there before."""
POINTS = "failpoints"
_SETTINGS = {
    "FAILPOINTS": f"/{POINTS}",
    "PARALLEL_MIGRATIONS_PER_CLUSTER": AT_ONCE,
    "PARALLEL_MIGRATIONS_PER_NODE": AT_ONCE,
}

Named = list[dict[str, Any]]


@contextmanager
def laboratory(kubectl: Kubectl) -> Generator[Lab]:
    """Prepare the cluster for harm, and make it as it was."""
    wait_for("two nodes that can take part", lambda: len(workers(kubectl)) >= 2, seconds=90)
    first, second, *_ = workers(kubectl)
    lab = Lab(kubectl, f"chaos-{secrets.token_hex(3)}", (first, second), _third(kubectl, (first, second)))
    kubectl("create", "namespace", lab.namespace)
    kubectl("label", "namespace", lab.namespace, f"{LABEL}=")
    try:
        with _operator_points(kubectl):
            _prepare(lab)
            yield lab
            lab.disarm()
        lab.heal()  # a node that was full says so until its agent has looked again
    finally:
        lab.clear()


def _prepare(lab: Lab) -> None:
    kubectl = lab.kubectl
    made: list[Manifest] = []
    for number, node in enumerate((*lab.nodes, lab.third)):
        stays: list[Manifest] = [{"operator": "Exists"}]  # whatever is said of the node
        command = ["sleep", "infinity"]
        shell = pod(f"shell-{number}", lab.namespace, command, node, hostPID=True, tolerations=stays)
        shell["spec"]["containers"][0]["securityContext"] = {"privileged": True}
        made.append(shell)
        lab.shells[node] = shell["metadata"]["name"]
    made.append(pod("witness", lab.namespace, list(program("witness.py")), lab.third))
    kubectl.apply(*made)
    names = [f"pod/{it['metadata']['name']}" for it in made]
    kubectl("wait", *names, "-n", lab.namespace, "--for=condition=Ready", "--timeout=120s", timeout=130)
    lab.witness = (kubectl.get("pod", "witness", lab.namespace) or {})["status"]["podIP"]
    lab.disarm()
    for old in kubectl.list("namespaces", labels=LABEL):
        name = old["metadata"]["name"]
        if name != lab.namespace and "deletionTimestamp" not in old["metadata"]:
            Lab(kubectl, name, lab.nodes, lab.third).clear()
    lab.heal()


def _third(kubectl: Kubectl, nodes: tuple[str, str]) -> str:
    """Return the node that the API server runs on; a pod named to it needs no toleration."""
    names = [node["metadata"]["name"] for node in kubectl.list("nodes", labels="node-role.kubernetes.io/control-plane")]
    third = next((name for name in names if name not in nodes), None)
    assert third, "harm is done to two workers, and a node of the control plane stays well: there is none"
    return third


@contextmanager
def _operator_points(kubectl: Kubectl) -> Generator[None]:
    """Give the operator a directory for failpoints and room for many at once; that takes the rights of an admin.

    What was there before is kept on the Deployment itself: who is killed cannot undo anything, but the next one can.
    """
    undo(kubectl)
    it = _deployment(kubectl)
    container = it["spec"]["template"]["spec"]["containers"][0]
    kept = [entry for entry in container["env"] if entry["name"] in _SETTINGS]
    kubectl("annotate", "deployment", OPERATOR, "-n", SYSTEM, "--overwrite", f"{BEFORE}={json.dumps(kept)}")
    _replace(
        kubectl,
        env=with_settings(container["env"]),
        mounts=[*container.get("volumeMounts", []), {"name": POINTS, "mountPath": f"/{POINTS}"}],
        volumes=[*it["spec"]["template"]["spec"].get("volumes", []), {"name": POINTS, "emptyDir": {}}],
    )
    try:
        yield
    finally:
        undo(kubectl)


def undo(kubectl: Kubectl) -> None:
    """Make the operator's Deployment what it was before a laboratory; nothing when there was none."""
    it = _deployment(kubectl)
    kept = it["metadata"].get("annotations", {}).get(BEFORE)
    if kept is None:
        return
    spec = it["spec"]["template"]["spec"]
    container = spec["containers"][0]
    _replace(
        kubectl,
        env=without_settings(container["env"], json.loads(kept)),
        mounts=[mount for mount in container.get("volumeMounts", []) if mount["name"] != POINTS],
        volumes=[volume for volume in spec.get("volumes", []) if volume["name"] != POINTS],
    )
    kubectl("annotate", "deployment", OPERATOR, "-n", SYSTEM, f"{BEFORE}-")


def with_settings(env: Named) -> Named:
    """Return a container's variables with the laboratory's, in place of those of the same names."""
    names = {entry["name"] for entry in env}
    ours = {name: {"name": name, "value": value} for name, value in _SETTINGS.items()}
    return [ours.get(entry["name"], entry) for entry in env] + [ours[name] for name in ours if name not in names]


def without_settings(env: Named, kept: Named) -> Named:
    """Return a container's variables as they were, `kept` being what the laboratory replaced."""
    before = {entry["name"]: entry for entry in kept}
    return [
        before.get(entry["name"], entry) for entry in env if entry["name"] not in _SETTINGS or entry["name"] in before
    ]


def _deployment(kubectl: Kubectl) -> Manifest:
    it = kubectl.get("deployment", OPERATOR, SYSTEM)
    assert it, f"there is no Deployment {OPERATOR} in {SYSTEM}"
    return it


def _replace(kubectl: Kubectl, *, env: Named, mounts: Named, volumes: Named) -> None:
    lists = {"/containers/0/env": env, "/containers/0/volumeMounts": mounts, "/volumes": volumes}
    patch = [{"op": "replace", "path": f"/spec/template/spec{path}", "value": value} for path, value in lists.items()]
    kubectl("patch", "deployment", OPERATOR, "-n", SYSTEM, "--type=json", "-p", json.dumps(patch))
    kubectl("rollout", "status", f"deployment/{OPERATOR}", "-n", SYSTEM, "--timeout=120s", timeout=130)
