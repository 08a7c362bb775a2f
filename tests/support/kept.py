"""The ContainerCheckpoints of a namespace, as the tests make, watch and restore them."""

from __future__ import annotations

from support.cluster import Kubectl, Manifest, condition, wait_for
from support.migration import Migrations


class Kept:
    """The ContainerCheckpoints of a test's namespace, and restores from them."""

    def __init__(self, kubectl: Kubectl, migrations: Migrations) -> None:
        self.kubectl, self.migrations, self.namespace = kubectl, migrations, migrations.namespace

    def get(self, name: str) -> Manifest | None:
        return self.kubectl.get("ccp", name, self.namespace)

    def ready(self, name: str) -> Manifest:
        def found() -> Manifest | None:
            it = self.get(name)
            return it if condition(it, "Ready").get("status") in {"True", "False"} else None

        it = wait_for(f"checkpoint {name} to be looked at", found, seconds=40)
        verdict = condition(it, "Ready")
        assert verdict["status"] == "True", f"{verdict['reason']}: {verdict['message']}"
        return it

    def by_migration(self, name: str, pod: str, target: str, **spec: object) -> Manifest:
        """Move the pod with `retain` and return the ContainerCheckpoint."""
        self.migrations.start(name, pod, target={"nodeName": target}, retain=True, **spec)
        done = self.migrations.succeeded(name)
        return self.ready(done["status"]["checkpoint"]["name"])

    def restore(self, name: str, checkpoint: str, **spec: object) -> None:
        self.kubectl.apply(
            {
                "apiVersion": "containermigration.io/v1alpha1",
                "kind": "ContainerMigration",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"checkpointName": checkpoint, **spec},
            }
        )

    def restored(self, name: str) -> str:
        """Wait for the end of the restore and return the pod's name."""
        return self.migrations.succeeded(name)["status"]["target"]["podName"]

    def delete(self, name: str) -> None:
        self.kubectl("delete", "ccp", name, "-n", self.namespace, "--wait=true", timeout=60)
