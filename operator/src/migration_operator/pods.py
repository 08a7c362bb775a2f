"""A pod as the API server returned it, and the few questions that this operator asks about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from migration_api.names import ANNOTATION_MIGRATION

Json = dict[str, Any]


def mapping(value: object) -> Json:
    """Return `value` when it is a JSON object, else an empty one: what is read from outside may lack anything."""
    return cast("Json", value) if isinstance(value, dict) else {}


def mappings(value: object) -> list[Json]:
    """Return the JSON objects of a list, else nothing."""
    return [mapping(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _never_ends(container: Json) -> bool:
    return container.get("restartPolicy") == "Always"


@dataclass(frozen=True)
class Pod:
    """One pod.

    Attributes:
        manifest: the API server's own JSON. A client's model would drop the fields that it does not know, and a target
            pod must not lose any.
    """

    manifest: Mapping[str, Any]

    @property
    def metadata(self) -> Json:
        return mapping(self.manifest.get("metadata"))

    @property
    def spec(self) -> Json:
        return mapping(self.manifest.get("spec"))

    @property
    def status(self) -> Json:
        return mapping(self.manifest.get("status"))

    @property
    def name(self) -> str:
        return str(self.metadata.get("name", ""))

    @property
    def namespace(self) -> str:
        return str(self.metadata.get("namespace", ""))

    @property
    def uid(self) -> str:
        return str(self.metadata.get("uid", ""))

    @property
    def node_name(self) -> str | None:
        """Where it was scheduled to; None before."""
        return self.spec.get("nodeName") or None

    @property
    def phase(self) -> str:
        return str(self.status.get("phase", ""))

    @property
    def ready(self) -> bool:
        """What its kubelet said last."""
        conditions = mappings(self.status.get("conditions"))
        return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)

    @property
    def deleting(self) -> bool:
        return bool(self.metadata.get("deletionTimestamp"))

    @property
    def ended(self) -> bool:
        """No container of it will ever run again."""
        return self.phase in {"Failed", "Succeeded"}

    @property
    def migration(self) -> str | None:
        """The UID of the migration that this pod was created for."""
        return mapping(self.metadata.get("annotations")).get(ANNOTATION_MIGRATION)

    @property
    def claims(self) -> dict[str, str]:
        """The PersistentVolumeClaims that it mounts, by the names of its volumes."""
        found = {
            str(v.get("name")): mapping(v.get("persistentVolumeClaim")) for v in mappings(self.spec.get("volumes"))
        }
        return {volume: str(claim["claimName"]) for volume, claim in found.items() if claim.get("claimName")}

    def writes_to(self, volume: str) -> bool:
        """Return whether a container of it, an init container among them, can write to the volume of that name."""
        named = [v for v in mappings(self.spec.get("volumes")) if v.get("name") == volume]
        if any(mapping(v.get("persistentVolumeClaim")).get("readOnly") for v in named):
            return False
        every = [*mappings(self.spec.get("initContainers")), *mappings(self.spec.get("containers"))]
        mounts = [m for c in every for m in mappings(c.get("volumeMounts")) if m.get("name") == volume]
        devices = [d for c in every for d in mappings(c.get("volumeDevices")) if d.get("name") == volume]
        return bool(devices) or not all(m.get("readOnly") for m in mounts)

    @property
    def sidecars(self) -> list[Json]:
        """The native sidecars: init containers that never end."""
        return [c for c in mappings(self.spec.get("initContainers")) if _never_ends(c)]

    @property
    def init_containers(self) -> list[Json]:
        """The init containers that end."""
        return [c for c in mappings(self.spec.get("initContainers")) if not _never_ends(c)]

    @property
    def init_names(self) -> tuple[str, ...]:
        return tuple(str(c.get("name", "")) for c in self.init_containers)

    @property
    def lasting(self) -> list[Json]:
        """The containers that live as long as the pod, in the order in which the kubelet starts them."""
        return [*self.sidecars, *mappings(self.spec.get("containers"))]

    @property
    def order(self) -> tuple[str, ...]:
        """The names of `lasting`."""
        return tuple(str(c.get("name", "")) for c in self.lasting)

    @property
    def container_statuses(self) -> list[Json]:
        """Of all containers, init containers among them."""
        return [status for key in ("initContainerStatuses", "containerStatuses") for status in self._statuses(key)]

    def _statuses(self, key: str) -> list[Json]:
        return mappings(self.status.get(key))

    def trouble(self) -> str:
        """Return what scheduler or kubelet say is in the way, in their own words; empty when they say nothing."""
        said = [
            f"{c.get('reason', '')}: {c['message']}"
            for c in mappings(self.status.get("conditions"))
            if c.get("type") == "PodScheduled" and c.get("status") == "False" and c.get("message")
        ]
        for status in self.container_statuses:
            waiting = mapping(mapping(status.get("state")).get("waiting"))
            if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
                said.append(f"{waiting['reason']}: {waiting.get('message', 'no details')}")
        if self.phase == "Failed":
            said.append(f"{self.status.get('reason', 'Failed')}: {self.status.get('message', 'no details')}")
        return "; ".join(said)[:2000]
