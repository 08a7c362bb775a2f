"""The generated CRDs: descriptions everywhere, write-once rules at the root, files up to date and readable as YAML."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from migration_api import crds
from migration_api.migration import MigrationSpec, Strategy
from migration_api.transport import TransportType

ROOT = Path(__file__).parents[3]
CRDS = {
    c["metadata"]["name"]: c for c in (crds.container_migration(), crds.container_checkpoint(), crds.migration_node())
}


def schema_of(crd: dict[str, Any]) -> dict[str, Any]:
    return crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]


def fields(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, field in node.get("properties", {}).items():
        yield f"{path}.{name}", field
        yield from fields(field, f"{path}.{name}")
        yield from fields(field.get("items", {}), f"{path}.{name}[]")


@pytest.mark.parametrize("name", sorted(CRDS))
def test_the_file_is_the_generated_crd(name: str) -> None:
    assert yaml.safe_load((ROOT / "crds" / f"{name}.yaml").read_text()) == CRDS[name]


@pytest.mark.parametrize("name", sorted(CRDS))
def test_every_field_has_a_description(name: str) -> None:
    missing = [p for p, f in fields(schema_of(CRDS[name])) if p != ".metadata" and not f.get("description")]
    assert missing == []


@pytest.mark.parametrize("name", sorted(CRDS))
def test_strings_and_lists_are_bounded(name: str) -> None:
    """Otherwise the CEL cost budget refuses the rules, and an object may grow without limit."""
    unbounded = [
        p
        for p, f in fields(schema_of(CRDS[name]))
        if p not in {".apiVersion", ".kind"}
        and (
            (f.get("type") == "string" and not {"maxLength", "enum", "format"} & f.keys())
            or (f.get("type") == "array" and "maxItems" not in f)
        )
    ]
    assert unbounded == []


def test_registers_and_identities_are_write_once_at_the_root() -> None:
    rules = schema_of(crds.container_migration())["x-kubernetes-validations"]
    messages = {r["message"] for r in rules}
    for path in (
        "decision",
        "target.outcome",
        "source.nodeName",
        "source.podUID",
        "source.checkpointUID",
        "target.nodeName",
        "target.podName",
        "target.podUID",
    ):
        assert f"status.{path} is write-once" in messages
    assert crds.write_once("status", "decision") in {r["rule"] for r in rules}


def test_every_spec_field_but_cancel_is_immutable() -> None:
    rules = " ".join(r["rule"] for r in schema_of(crds.container_migration())["x-kubernetes-validations"])
    properties = schema_of(crds.container_migration())["properties"]["spec"]["properties"]
    for name in properties.keys() - {"cancel"}:
        assert f"self.spec.{name} == oldSelf.spec.{name}" in rules


def test_only_what_works_is_offered() -> None:
    properties = schema_of(crds.container_migration())["properties"]["spec"]["properties"]
    assert properties["strategy"]["enum"] == [s.value for s in Strategy] == ["StopAndCopy", "PostCopy", "PreCopy"]
    types = properties["transport"]["properties"]["type"]["enum"]
    assert types == [t.value for t in TransportType] == ["Direct", "SharedVolume", "ObjectStore"]


def test_the_model_and_the_schema_agree_on_defaults() -> None:
    properties = schema_of(crds.container_migration())["properties"]["spec"]["properties"]
    model = MigrationSpec(pod_name="redis-0").dump()
    defaults = {name: p["default"] for name, p in properties.items() if "default" in p}
    assert defaults == {name: model[name] for name in defaults}
    assert {"strategy", "freezeBudgetSeconds", "deadlineSeconds", "cancel"} <= defaults.keys()
