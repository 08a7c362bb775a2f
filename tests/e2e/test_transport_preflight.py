"""What stands against a checkpoint's way is found before anything is touched: on real nodes, with a real S3 server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest

from migration_api.preflight_reasons import PreflightReason as Why
from migration_api.transport import KEY_SECRET_TYPE
from support.cluster import Kubectl, Manifest, condition, on_node
from support.migration import Migrations, migration, pod
from support.stores import SECRET, Bucket
from support.testbed import SHARED, Testbed
from support.writers import all_writers

pytestmark = pytest.mark.testbed


@dataclass(frozen=True)
class Stage:
    """Where a case is played."""

    kubectl: Kubectl
    namespace: str
    nodes: tuple[str, str]
    bucket: Bucket


@dataclass(frozen=True)
class Case:
    """One way to be refused.

    Attributes:
        reason: the constant that must be found.
        words: what the message must name.
        transport: the migration's, of a stage.
        secret: how the Secret differs from a good one; None for no Secret.
        around: what else is so while the migration is looked at.
    """

    reason: Why
    words: str
    transport: Callable[[Stage], dict[str, Any]]
    secret: dict[str, Any] | None = field(default_factory=dict[str, Any])
    around: Callable[[Stage], AbstractContextManager[None]] = lambda _: nullcontext()


def volume(path: str) -> Callable[[Stage], dict[str, Any]]:
    return lambda _: {"type": "SharedVolume", "sharedVolume": {"path": path}}


def bucket(**changes: Any) -> Callable[[Stage], dict[str, Any]]:
    def transport(stage: Stage) -> dict[str, Any]:
        return {"type": "ObjectStore", "objectStore": {**stage.bucket.spec["objectStore"], **changes}}

    return transport


def mounted(options: str, then: str = "true") -> Callable[[Stage], AbstractContextManager[None]]:
    """Mount another file system over a directory of the shared folder, on the source's node alone."""

    @contextmanager
    def around(stage: Stage) -> Generator[None]:
        path = f"{SHARED}/over"
        node = stage.nodes[0]
        on_node(
            stage.kubectl, node, f"mkdir -p {path} && mount -t tmpfs -o {options} tmpfs {path} && cd {path} && {then}"
        )
        try:
            yield
        finally:
            on_node(stage.kubectl, node, f"umount {path} && rm -rf {path}")

    return around


CASES = [
    Case(Why.PATH_NOT_ALLOWED, "/etc is not in or below", volume("/etc")),
    Case(Why.STORE_UNUSABLE, "is not there: mount it", volume(f"{SHARED}/nowhere")),
    Case(Why.STORE_NOT_SHARED, "another volume", volume(f"{SHARED}/over"), around=mounted("size=1m")),
    Case(Why.STORE_UNUSABLE, "read-only", volume(f"{SHARED}/over"), around=mounted("ro")),
    Case(
        Why.STORE_UNUSABLE,
        "is full",
        volume(f"{SHARED}/over"),
        around=mounted("size=64k", "dd if=/dev/zero of=rest bs=4k 2>/dev/null; true"),
    ),
    Case(Why.ENDPOINT_NOT_ALLOWED, "http://192.0.2.1 is not", bucket(endpoint="http://192.0.2.1")),
    Case(Why.STORE_SECRET_NOT_FOUND, f"no Secret {SECRET}", bucket(), secret=None),
    Case(Why.STORE_SECRET_INVALID, "has the type Opaque", bucket(), secret={"type_": "Opaque"}),
    Case(
        Why.STORE_SECRET_INVALID,
        "no key AWS_SECRET_ACCESS_KEY",
        bucket(),
        secret={"AWS_SECRET_ACCESS_KEY": None},
    ),
    Case(
        Why.STORE_UNUSABLE,
        "403 Forbidden (SignatureDoesNotMatch)",
        bucket(),
        secret={"AWS_SECRET_ACCESS_KEY": "not-the-secret"},
    ),
    Case(Why.STORE_UNUSABLE, "404 Not Found (NoSuchBucket)", bucket(url="s3://no-such-bucket")),
]


@pytest.fixture
def stage(kubectl: Kubectl, namespace: str, nodes: tuple[str, str], testbed: Testbed) -> Stage:
    it = Bucket(f"e2e-{secrets.token_hex(4)}", testbed.variables("s3"))
    it.create()
    return Stage(kubectl, namespace, nodes, it)


@pytest.mark.parametrize("case", CASES, ids=[f"{case.reason}-{case.words.split()[0]}" for case in CASES])
def test_a_transport_that_is_refused(stage: Stage, migrations: Migrations, case: Case) -> None:
    source, target = stage.nodes
    migrations.run_pod(pod("it", stage.namespace, ["sleep", "infinity"], source))
    if case.secret is not None:
        stage.kubectl.apply(stage.bucket.secret(stage.namespace, **case.secret))
    with case.around(stage):
        migrations.start("move", "it", target={"nodeName": target}, transport=case.transport(stage))
        done = migrations.finished("move", seconds=60)
    verdict = condition(done, "PreflightPassed")
    assert (verdict["status"], verdict["reason"]) == ("False", "PreflightFailed")
    assert f"{case.reason}: " in verdict["message"]
    assert case.words in verdict["message"]
    assert case.reason.remedy in verdict["message"]
    assert "source" not in done["status"]
    for secret in (*stage.bucket.secret_values, "not-the-secret"):
        assert secret not in str(done)
    assert stage.bucket.objects() == {}
    assert on_node(stage.kubectl, source, f"find {SHARED} -type f -path '*container-migration*'") == ""


def test_everything_is_said_at_once(stage: Stage, migrations: Migrations) -> None:
    migrations.run_pod(pod("it", stage.namespace, ["sleep", "infinity"], stage.nodes[0]))
    transport = bucket(endpoint="http://192.0.2.1")(stage)
    migrations.start("move", "it", target={"nodeName": stage.nodes[0]}, containers=["other"], transport=transport)
    message = condition(migrations.finished("move"), "PreflightPassed")["message"]
    for reason in (
        Why.TARGET_IS_SOURCE,
        Why.CONTAINER_NOT_FOUND,
        Why.ENDPOINT_NOT_ALLOWED,
        Why.STORE_SECRET_NOT_FOUND,
    ):
        assert f"{reason}: " in message


@pytest.mark.parametrize(
    ("transport", "words"),
    [
        ({"type": "SharedVolume"}, "sharedVolume must be given with the type SharedVolume"),
        ({"type": "Direct", "sharedVolume": {"path": "/mnt"}}, "only with it"),
        ({"type": "SharedVolume", "sharedVolume": {"path": "/mnt/../etc"}}, "should match"),
        ({"type": "SharedVolume", "sharedVolume": {"path": "/mnt", "claim": "c"}}, "exactly one of path and claim"),
        ({"type": "SharedVolume", "sharedVolume": {}}, "exactly one of path and claim"),
        ({"type": "ObjectStore", "objectStore": {"url": "file:///etc", "secretRef": {"name": "s"}}}, "should match"),
        ({"sharedVolume": {"path": "/mnt"}}, "transport.type: Required value"),
        ({"type": "Direct", "bytesPerSecond": 1}, "greater than or equal to 65536"),
    ],
)
def test_i8_the_api_server_refuses_what_makes_no_sense(
    kubectl: Kubectl, namespace: str, transport: dict[str, Any], words: str
) -> None:
    with pytest.raises(AssertionError) as refusal:
        kubectl.apply(migration("move", namespace, "it", transport=transport))
    assert words in str(refusal.value)


def test_the_operator_creates_no_secrets_but_keys_and_agents_read_none(
    kubectl: Kubectl, namespace: str, nodes: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    writers = all_writers(kubectl, *nodes, tmp_path_factory.mktemp("kubeconfigs"))
    owner = {"apiVersion": "containermigration.io/v1alpha1", "kind": "ContainerMigration", "name": "x", "uid": "x"}
    key: Manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "migration-key-x", "namespace": namespace, "ownerReferences": [owner]},
        "type": KEY_SECRET_TYPE,
    }
    directory = tmp_path_factory.mktemp("secrets")
    for name, secret, allowed in (
        ("key", key, True),
        ("typeless", {**key, "type": "Opaque"}, False),
        ("ownerless", {**key, "metadata": {"name": "migration-key-x", "namespace": namespace}}, False),
    ):
        file = directory / name
        file.write_text(json.dumps(secret))
        done = writers.operator("create", "-f", str(file), "--dry-run=server")
        assert (done.returncode == 0) is allowed, done.stderr
        if not allowed:
            assert "only Secrets of type containermigration.io/migration-key" in done.stderr
    kubectl("create", "secret", "generic", "any", "-n", namespace)
    for who in ("source", "target"):
        done = writers[who]("get", "secret", "any", "-n", namespace)
        assert "is forbidden" in done.stderr
    assert "is forbidden" in writers.operator("get", "secrets", "-n", namespace).stderr, "it lists none"
