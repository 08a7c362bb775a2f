"""Pods that a controller owns, watched all the time."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from support.cluster import Kubectl, Manifest, condition, wait_for


def workload(kind: str, name: str, namespace: str, template: Manifest, **spec: object) -> Manifest:
    """Return a Deployment, StatefulSet, DaemonSet or Job of the pod's specification; its pods have the label `app`."""
    labels = {"app": name}
    selector = {} if kind == "Job" else {"selector": {"matchLabels": labels}}
    return {
        "apiVersion": "batch/v1" if kind == "Job" else "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {**selector, "template": {"metadata": {"labels": labels}, "spec": template}, **spec},
    }


def live(pods: list[Manifest]) -> list[Manifest]:
    """Return the pods that count for a controller: they have not ended and are not being deleted."""
    return [
        pod
        for pod in pods
        if "deletionTimestamp" not in pod["metadata"] and pod["status"].get("phase") not in {"Failed", "Succeeded"}
    ]


def is_owned(pod: Manifest) -> bool:
    return any(owner.get("controller") for owner in pod["metadata"].get("ownerReferences", []))


@dataclass
class Watch:
    """Every change of a namespace's pods, in order.

    Attributes:
        names: of all pods that there ever were.
        fewest: the smallest number of live pods with an owner at any moment.
        fewest_ready: the smallest number of ready pods, which a Service would have found.
    """

    names: set[str] = field(default_factory=set[str])
    fewest: int = 1 << 30
    fewest_ready: int = 1 << 30
    _pods: dict[str, Manifest] = field(default_factory=dict[str, Manifest])

    def see(self, event: Manifest) -> None:
        pod = event["object"]
        name = pod["metadata"]["name"]
        self.names.add(name)
        self._pods.pop(name, None)
        if event["type"] != "DELETED":
            self._pods[name] = pod
        pods = live(list(self._pods.values()))
        self.fewest = min(self.fewest, sum(is_owned(it) for it in pods))
        ready = [it for it in pods if condition(it, "Ready").get("status") == "True"]
        self.fewest_ready = min(self.fewest_ready, len(ready))


@contextmanager
def watching(kubectl: Kubectl, namespace: str, label: str) -> Generator[Watch]:
    """Watch the pods with that label from now on; those that are there already have been seen on entry."""
    watch, there = Watch(), {pod["metadata"]["name"] for pod in kubectl.list("pods", namespace, labels=label)}
    command = ("kubectl", "get", "pods", "-n", namespace, "-l", label, "--watch", "--output-watch-events", "-o", "json")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        thread = threading.Thread(target=_read, args=(process, watch), daemon=True)
        thread.start()
        try:
            wait_for("the pods that are there", lambda: there <= watch.names, seconds=30)
            watch.fewest = watch.fewest_ready = len(there)
            yield watch
        finally:
            process.kill()
            thread.join(10)


def _read(process: subprocess.Popen[str], watch: Watch) -> None:
    """Take the stream of JSON objects apart: each may stand on any number of lines."""
    assert process.stdout is not None
    decoder, text = json.JSONDecoder(), ""
    for line in process.stdout:
        text = (text + line).lstrip()
        while text:
            try:
                event, end = decoder.raw_decode(text)
            except ValueError:
                break
            watch.see(event)
            text = text[end:].lstrip()
