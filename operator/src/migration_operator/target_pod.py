"""The target pod, made from the source pod: the same to its users, on another node, started by the interposer."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Sequence

from migration_api.migration import ContainerMigration, Target
from migration_api.names import (
    ANNOTATION_MIGRATION,
    ANNOTATION_OWNER,
    ANNOTATION_PLACEMENT,
    LABEL_CLONE,
    LABEL_MIGRATION,
    RUNTIME_HANDLER,
)
from migration_operator.generated import add_generated, suffix, without_generated
from migration_operator.owners import HASH_LABEL, SET_BY_OTHERS, set_aside
from migration_operator.placement import NODE_NAME, REQUIRED, without_the_pin
from migration_operator.pods import Json, Pod, mapping, mappings

_NAME_LENGTH = 63
"""A pod's name becomes its host name."""

_LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_INJECTED_TOKEN = re.compile(r"kube-api-access-[a-z0-9]{5}")
_REPO_DIGEST = re.compile(r"[^@]+@sha256:[0-9a-f]{64}")


def name_for(migration: ContainerMigration, source: str, earlier_migration: str | None) -> str:
    """Return the target pod's name: as asked, else the source's with a suffix derived from the migration's UID.

    The suffix of an earlier migration is replaced, so that names do not grow. Two operators find the same name.
    """
    if migration.spec.target.pod_name:
        return migration.spec.target.pod_name
    if earlier_migration:
        source = source.removesuffix(f"-{suffix(earlier_migration)}")
    ours = suffix(migration.metadata.uid)
    return f"{source[: _NAME_LENGTH - len(ours) - 1].rstrip('-.')}-{ours}"


def target_pod(
    source: Pod,
    migration: ContainerMigration,
    name: str,
    *,
    excluded: Iterable[str],
    avoided: Iterable[str] = (),
    moved: Sequence[str] = (),
    late: bool = False,
) -> Json:
    """Return the manifest to create.

    Args:
        source: the running pod, or the one in a checkpoint.
        migration: what it is created for.
        name: the target pod's name.
        excluded: nodes that it must not be scheduled to: the source's, and those that could not restore it.
        avoided: nodes that it should be scheduled to only when no other fits: those that are busy.
        moved: the containers that go on with their state; none: what the migration says.
        late: whether it gets a late gate.
    """
    spec = copy.deepcopy(source.spec)
    for field in SET_BY_OTHERS:
        spec.pop(field, None)
    placement = _first_placement(source)
    _place(spec, placement, migration.spec.target, sorted(set(excluded)), sorted(set(avoided)))
    spec["runtimeClassName"] = RUNTIME_HANDLER
    _drop_injected_token(spec)
    if source.migration and "initContainers" in spec:
        spec["initContainers"] = without_generated(mappings(spec["initContainers"]), source.migration)
    for container in _all_containers(spec):
        _adapt_container(container, source)
    add_generated(spec, moved or migration.spec.containers or source.order, migration.metadata.uid, late=late)
    clone = migration.spec.leave_source_running or migration.restores
    owner = {} if clone else set_aside(source)
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": source.namespace,
            "labels": {**_labels(source, clone=clone, owned=bool(owner)), LABEL_MIGRATION: migration.metadata.uid},
            "annotations": {
                **_without({_LAST_APPLIED, ANNOTATION_OWNER}, source.metadata.get("annotations")),
                **owner,
                ANNOTATION_MIGRATION: migration.metadata.uid,
                ANNOTATION_PLACEMENT: json.dumps(placement, sort_keys=True, separators=(",", ":")),
            },
        },
        "spec": spec,
    }


def _labels(source: Pod, *, clone: bool, owned: bool) -> Json:
    """Return what others find the pod by. Nobody finds a clone: it would be counted, or sent traffic, as another one.

    A pod that a ReplicaSet owns is handed over later.
    """
    if clone:
        return {LABEL_CLONE: "true"}
    return _without({HASH_LABEL} if owned else set[str](), source.metadata.get("labels"))


def _without(names: set[str], of: object) -> Json:
    return {key: value for key, value in mapping(of).items() if key not in names}


def _first_placement(source: Pod) -> Json:
    """Return where the very first pod of this chain of moves was allowed to run.

    Without it the pin of one move would forbid the next.
    """
    kept = mapping(source.metadata.get("annotations")).get(ANNOTATION_PLACEMENT)
    if source.migration and isinstance(kept, str):
        try:
            return mapping(json.loads(kept))
        except ValueError:
            pass  # edited by hand: what the pod has now is the best that is known
    own = {key: copy.deepcopy(source.spec[key]) for key in ("affinity", "nodeSelector") if key in source.spec}
    return without_the_pin(own) if source.migration else own


def _place(spec: Json, placement: Json, target: Target, excluded: list[str], avoided: list[str]) -> None:
    """Let the scheduler put the pod on the node asked for, or on any but the excluded ones."""
    pins = [_named("In", target.node_name)] if target.node_name else [_named("NotIn", node) for node in excluded]
    affinity = copy.deepcopy(mapping(placement.get("affinity")))
    node_affinity = affinity.setdefault("nodeAffinity", {})
    if pins:  # an empty term would match no node at all
        required = node_affinity.setdefault(REQUIRED, {})
        # Terms are alternatives: the pin belongs in each of them.
        terms = mappings(required.get("nodeSelectorTerms")) or [{}]
        for term in terms:
            term["matchFields"] = [*mappings(term.get("matchFields")), *pins]
        required["nodeSelectorTerms"] = terms
    if avoided and not target.node_name:
        quiet = {"weight": 100, "preference": {"matchFields": [_named("NotIn", node) for node in avoided]}}
        preferred = "preferredDuringSchedulingIgnoredDuringExecution"
        node_affinity[preferred] = [*mappings(node_affinity.get(preferred)), quiet]
    spec["affinity"] = affinity
    selector = {**mapping(placement.get("nodeSelector")), **(target.node_selector or {})}
    spec.pop("nodeSelector", None)
    if selector:
        spec["nodeSelector"] = selector


def _named(operator: str, node: str) -> Json:
    return {"key": NODE_NAME, "operator": operator, "values": [node]}


def _all_containers(spec: Json) -> list[Json]:
    return [*mappings(spec.get("initContainers")), *mappings(spec.get("containers"))]


def _drop_injected_token(spec: Json) -> None:
    """Remove the API server's own token volume: it injects a new one into the new pod."""
    volumes = mappings(spec.get("volumes"))
    injected = {v["name"] for v in volumes if "projected" in v and _INJECTED_TOKEN.fullmatch(str(v.get("name", "")))}
    if not injected:
        return
    spec["volumes"] = [v for v in volumes if v.get("name") not in injected]
    for container in _all_containers(spec):
        mounts = mappings(container.get("volumeMounts"))
        container["volumeMounts"] = [m for m in mounts if m.get("name") not in injected]


def _adapt_container(container: Json, source: Pod) -> None:
    """The start hook has run already; the image is the very one that runs, when a registry can name it."""
    lifecycle = mapping(container.get("lifecycle"))
    lifecycle.pop("postStart", None)
    if not lifecycle:
        container.pop("lifecycle", None)
    name = container.get("name")
    image_ids = [str(s.get("imageID", "")) for s in source.container_statuses if s.get("name") == name]
    policy = str(container.get("imagePullPolicy", ""))
    container["image"] = pinned_image(str(container.get("image", "")), image_ids[0] if image_ids else "", policy)


def pinned_image(image: str, image_id: str, pull_policy: str) -> str:
    """Return `image` by digest when the runtime's `imageID` names it in the same repository, else as it is.

    Images that were loaded by hand have a bare digest, or one of another name, that no registry knows.
    """
    image_id = image_id.removeprefix("docker-pullable://")
    if pull_policy == "Never" or not _REPO_DIGEST.fullmatch(image_id):
        return image
    repository, _, _ = image_id.partition("@")
    return image_id if repository == _repository(image) else image


def _repository(image: str) -> str:
    """Return the full name of an image's repository, as the runtime reports it."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = f"{head}{slash}{last.partition(':')[0]}"
    registry, slash, _ = name.partition("/")
    if not slash:
        return f"docker.io/library/{name}"
    return name if "." in registry or ":" in registry or registry == "localhost" else f"docker.io/{name}"
