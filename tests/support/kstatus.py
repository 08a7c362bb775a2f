"""The rules of sigs.k8s.io/cli-utils/pkg/kstatus for a custom resource: what Flux and kpt see."""

from __future__ import annotations

from support.cluster import Manifest


def kstatus(thing: Manifest) -> str:
    """Return `Terminating`, `InProgress`, `Failed` or `Current`.

    In this order: deletion; a generation that was not observed; the first of `Reconciling` and `Stalled` that is True;
    then `Ready`, where there is such a condition; else it is taken for done.
    """
    metadata, status = thing["metadata"], thing.get("status", {})
    if "deletionTimestamp" in metadata:
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    for condition in status.get("conditions", []):
        if (condition["type"], condition["status"]) == ("Reconciling", "True"):
            return "InProgress"
        if (condition["type"], condition["status"]) == ("Stalled", "True"):
            return "Failed"
    ready = [c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"]
    return "InProgress" if ready and ready[0] != "True" else "Current"
