"""Init containers that the operator adds to a target pod. They run a program that does nothing (docs/protocol.md, 3).

Two kinds: one *pulls* an image that the kubelet would otherwise pull while the source stands still; the *late gate*
keeps the kubelet from the containers that move until the copy is complete.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Collection, Iterator

from migration_operator.pods import Json, Pod, mapping, mappings

NOOP = "/dev/.container-migration-noop"
"""What the interposer puts there; without it no container of the pod is created anyway."""

_SUFFIX_LENGTH = 8
_COUNTED = ("cpu", "memory")
"""What makes a pod's QoS class; a device would be allocated for nothing."""


def suffix(uid: str) -> str:
    """Return what a migration adds to names: nobody knows it before the migration is created."""
    return hashlib.sha256(uid.encode()).hexdigest()[:_SUFFIX_LENGTH]


def late_gate_name(uid: str) -> str:
    """Return the name of the migration's late gate."""
    return f"migration-late-gate-{suffix(uid)}"


def names_of(uid: str, pod: Pod) -> tuple[str, ...]:
    """Return the init containers of `pod` that were added for the migration with this UID."""
    return tuple(name for name in pod.init_names if _is_generated(uid, name))


def without_generated(containers: list[Json], uid: str) -> list[Json]:
    """Return the init containers without those that an earlier migration added."""
    return [c for c in containers if not _is_generated(uid, str(c.get("name")))]


def _is_generated(uid: str, name: str) -> bool:
    return name == late_gate_name(uid) or (name.startswith("migration-pull-") and name.endswith(f"-{suffix(uid)}"))


def add_generated(spec: Json, moved: Collection[str], uid: str, *, late: bool) -> None:
    """Add them to a target pod's specification.

    The kubelet waits at the first container that moves. Whatever comes after it has its image pulled before all else;
    the late gate takes the place right before it, with its image.
    """
    init = mappings(spec.get("initContainers"))
    in_order = [*init, *mappings(spec.get("containers"))]
    stop = next((i for i, c in enumerate(in_order) if c.get("name") in moved), len(in_order) - 1)
    if late:
        init.insert(min(stop, len(init)), _doing_nothing(late_gate_name(uid), in_order[stop]))
    later = _first_of_each_image(in_order[stop + 1 :], known={str(c.get("image")) for c in in_order[: stop + 1]})
    pulls = [_doing_nothing(f"migration-pull-{i}-{suffix(uid)}", it) for i, it in enumerate(later)]
    if pulls or init:
        spec["initContainers"] = [*pulls, *init]


def _first_of_each_image(containers: list[Json], known: set[str]) -> Iterator[Json]:
    for container in containers:
        image = str(container.get("image"))
        if image not in known:
            known.add(image)
            yield container


def _doing_nothing(name: str, like: Json) -> Json:
    """Return an init container with the image of `like`, which is admitted and scheduled wherever `like` is.

    With the resources of a container that is in the pod anyway neither the pod's QoS class nor what it requests
    changes: an init container counts only as far as it asks for more than all others together.
    """
    kept = {key: copy.deepcopy(like[key]) for key in ("image", "imagePullPolicy", "securityContext") if key in like}
    resources = {
        kind: counted
        for kind, amounts in mapping(like.get("resources")).items()
        if (counted := {key: value for key, value in mapping(amounts).items() if key in _COUNTED})
    }
    return {"name": name, "command": [NOOP], **kept, **({"resources": resources} if resources else {})}
