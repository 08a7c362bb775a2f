"""The chart's objects, as its tests look at them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

Manifest = dict[str, Any]
Helm = Callable[..., subprocess.CompletedProcess[str]]
"""Runs helm in the chart's folder: `helm("lint", ".", check=False)`."""
Render = Callable[..., list[Manifest]]
"""Renders the chart: `render("image.agent.tag=dev", namespace="other")`."""


def of_kind(manifests: list[Manifest], kind: str) -> dict[str, Manifest]:
    """Return the objects of that kind by name."""
    return {m["metadata"]["name"]: m for m in manifests if m["kind"] == kind}


def pod_spec(manifests: list[Manifest], component: str) -> Manifest:
    """Return the pod specification of `operator` or `agent`."""
    workloads = [m for m in manifests if "template" in m.get("spec", {})]
    [found] = [m for m in workloads if m["metadata"]["labels"]["app.kubernetes.io/component"] == component]
    return found["spec"]["template"]["spec"]


def container(manifests: list[Manifest], component: str) -> Manifest:
    """Return the only container of `operator` or `agent`."""
    [found] = pod_spec(manifests, component)["containers"]
    return found
