"""The schema generator: what a CRD cannot express is an error, never dropped."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from migration_api.base import Model
from migration_api.structural import StructuralError, structural


def test_optional_means_absent_not_null() -> None:
    class Sample(Model):
        node_name: str | None = None

    assert structural(Sample) == {"type": "object", "properties": {"nodeName": {"type": "string"}}}


def test_one_value_becomes_an_enum() -> None:
    class Sample(Model):
        kind: Literal["Direct"] = "Direct"

    assert structural(Sample)["properties"]["kind"] == {"type": "string", "enum": ["Direct"], "default": "Direct"}


def test_exclusive_bounds_are_booleans() -> None:
    class Sample(Model):
        count: Annotated[int, Field(gt=0)]

    assert structural(Sample)["properties"]["count"] == {"type": "integer", "minimum": 0, "exclusiveMinimum": True}


def test_nested_models_are_inlined_and_have_no_default() -> None:
    class Inner(Model):
        name: str = "x"

    class Outer(Model):
        inner: Inner = Inner()

    inner = structural(Outer)["properties"]["inner"]
    assert inner["properties"] == {"name": {"type": "string", "default": "x"}}
    assert "default" not in inner
    assert "$ref" not in inner


def test_unions_are_refused() -> None:
    class Sample(Model):
        port: int | str = 1

    with pytest.raises(StructuralError, match=r"Sample\.port.*anyOf"):
        structural(Sample)


def test_untyped_fields_are_refused() -> None:
    class Sample(Model):
        anything: Any

    with pytest.raises(StructuralError, match="no type"):
        structural(Sample)


def test_recursion_is_refused() -> None:
    class Node(Model):
        children: "tuple[Node, ...]" = ()

    Node.model_rebuild(_types_namespace={"Node": Node})
    with pytest.raises(StructuralError, match="recursive"):
        structural(Node)
