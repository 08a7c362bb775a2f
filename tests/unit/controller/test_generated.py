"""The init containers that the operator adds to a target pod."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from migration_operator.generated import late_gate_name, names_of, suffix
from migration_operator.pods import Pod
from migration_operator.target_pod import target_pod
from support.controller import SOURCE, UID, manifest, migration

GATE = late_gate_name(UID)


def container(name: str, image: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "image": image, "imagePullPolicy": "Never", **fields}


def made(
    containers: list[dict[str, Any]],
    init: list[dict[str, Any]],
    *,
    moving: list[str] | None = None,
    late: bool = False,
    uid: str = UID,
    **metadata: Any,
) -> dict[str, Any]:
    spec = {"containers": containers, **({"initContainers": init} if init else {})}
    source = Pod(manifest(spec=spec, metadata=metadata))
    of = migration(uid=uid, spec={"containers": moving} if moving else {})
    return target_pod(source, of, "redis-moved", excluded=[SOURCE], late=late)


def images(pod: dict[str, Any]) -> list[str]:
    """Return all containers in the kubelet's order: the generated ones by their image, the pod's own by name."""
    spec, ours = pod["spec"], set(names_of(UID, Pod(pod)))
    they = [*spec.get("initContainers", []), *spec["containers"]]
    return [f"{'gate' if c['name'] == GATE else 'pull'} {c['image']}" if c["name"] in ours else c["name"] for c in they]


SIDE = container("side", "s", restartPolicy="Always")
ONE, TWO, THREE, AGAIN = (container(n, i) for n, i in (("one", "1"), ("two", "2"), ("three", "3"), ("again", "1")))
BEFORE, AFTER = container("before", "b"), container("after", "a")


@pytest.mark.parametrize(
    ("containers", "init", "moving", "late", "expected"),
    [
        ([ONE], [], None, False, ["one"]),
        ([ONE, AGAIN], [], None, False, ["one", "again"]),
        ([ONE, TWO, THREE, AGAIN], [], None, False, ["pull 2", "pull 3", "one", "two", "three", "again"]),
        ([ONE], [BEFORE], None, False, ["before", "one"]),
        ([ONE], [BEFORE, SIDE, AFTER], None, False, ["pull a", "pull 1", "before", "side", "after", "one"]),
        ([ONE], [BEFORE, SIDE, AFTER], ["one"], False, ["before", "side", "after", "one"]),
        ([ONE, TWO], [], ["two"], False, ["one", "two"]),
        ([ONE, TWO], [], ["one"], False, ["pull 2", "one", "two"]),
        ([ONE], [], None, True, ["gate 1", "one"]),
        ([ONE, TWO], [BEFORE], None, True, ["pull 2", "before", "gate 1", "one", "two"]),
        ([ONE, TWO], [], ["two"], True, ["gate 2", "one", "two"]),
        ([ONE], [BEFORE, SIDE, AFTER], None, True, ["pull a", "pull 1", "before", "gate s", "side", "after", "one"]),
        ([ONE], [BEFORE, SIDE], ["one"], True, ["before", "side", "gate 1", "one"]),
    ],
)
def test_whatever_comes_after_the_gate_has_its_image_pulled_before_it(
    containers: list[dict[str, Any]],
    init: list[dict[str, Any]],
    moving: list[str] | None,
    late: bool,
    expected: list[str],
) -> None:
    assert images(made(containers, init, moving=moving, late=late)) == expected


def test_it_is_admitted_and_counted_like_the_container_whose_image_it_has() -> None:
    resources = {
        "requests": {"cpu": "100m", "memory": "64Mi", "ephemeral-storage": "1Gi"},
        "limits": {"cpu": "100m", "memory": "64Mi", "nvidia.com/gpu": "1"},
        "claims": [{"name": "gpu"}],
    }
    like = container(
        "two",
        "r.example/app:1",
        imagePullPolicy="Always",
        resources=resources,
        securityContext={"runAsNonRoot": True},
        env=[{"name": "SECRET", "value": "x"}],
        volumeMounts=[{"name": "data", "mountPath": "/data"}],
        lifecycle={"preStop": {}},
        livenessProbe={},
    )
    before = copy.deepcopy(like)
    [pull] = made([ONE, like], [])["spec"]["initContainers"]
    assert like == before
    assert pull == {
        "name": f"migration-pull-0-{suffix(UID)}",
        "command": ["/dev/.container-migration-noop"],
        "image": "r.example/app:1",
        "imagePullPolicy": "Always",
        "securityContext": {"runAsNonRoot": True},
        "resources": {
            "requests": {"cpu": "100m", "memory": "64Mi"},
            "limits": {"cpu": "100m", "memory": "64Mi"},
        },
    }


def test_a_second_move_has_its_own_and_no_others() -> None:
    first = made([ONE, TWO], [BEFORE, SIDE], late=True, uid="first")
    spec = first["spec"]
    second = made(spec["containers"], spec["initContainers"], annotations=first["metadata"]["annotations"], late=True)
    assert images(second) == ["pull 1", "pull 2", "before", "gate s", "side", "one", "two"]
    assert names_of("first", Pod(second)) == ()


def test_what_a_user_named_alike_is_not_taken_for_ours() -> None:
    alike = [container(f"migration-pull-0-{suffix('another')}", "x"), container("migration-late-gate-x", "y")]
    assert images(made([ONE], alike)) == [alike[0]["name"], alike[1]["name"], "one"]
