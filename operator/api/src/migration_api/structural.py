"""pydantic models to structural CRD schemas (apiextensions v1), loudly.

What a CRD cannot express is an error here, never silently dropped. Source of the rules: Kubernetes documentation,
"Extend the Kubernetes API with CustomResourceDefinitions", section "Specifying a structural schema".
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue, JsonSchemaWarningKind

ALLOWED = frozenset(
    (
        *("additionalProperties", "default", "description", "enum", "exclusiveMaximum", "exclusiveMinimum", "format"),
        *("items", "maximum", "maxItems", "maxLength", "maxProperties", "minimum", "minItems", "minLength"),
        *("minProperties", "multipleOf", "pattern", "properties", "required", "type"),
    )
)
"""The fields of JSONSchemaProps that this API uses; unions and negations are not among them."""


class StructuralError(ValueError):
    """A model uses something that a CRD schema cannot express."""


class _Generator(GenerateJsonSchema):
    """JSON schema in the dialect of CRDs: optional means absent, never null; a constant is a one-value enum."""

    def emit_warning(self, kind: JsonSchemaWarningKind, detail: str) -> None:
        raise StructuralError(f"{kind}: {detail}")

    def nullable_schema(self, schema: Any) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: Any) -> JsonSchemaValue:
        out = super().default_schema(schema)
        if out.get("default", ...) is None:
            del out["default"]
        return out

    def literal_schema(self, schema: Any) -> JsonSchemaValue:
        return _constant_as_enum(super().literal_schema(schema))

    def enum_schema(self, schema: Any) -> JsonSchemaValue:
        out = _constant_as_enum(super().enum_schema(schema))
        out.pop("description", None)  # the enum's own docstring is for readers of the code
        return out

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - the interface's signature
        return False


def _constant_as_enum(schema: JsonSchemaValue) -> JsonSchemaValue:
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]
    return schema


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """Return the structural schema of `model`, everything inlined.

    Raises:
        StructuralError: the model uses something that a CRD cannot express.
    """
    raw = model.model_json_schema(by_alias=True, schema_generator=_Generator, mode="validation")
    definitions: dict[str, Any] = raw.pop("$defs", {})
    return _inline(raw, definitions, model.__name__, ())


def _inline(node: dict[str, Any], defs: dict[str, Any], path: str, seen: tuple[str, ...]) -> dict[str, Any]:
    node = dict(node)
    if ref := node.pop("$ref", None):
        name: str = ref.removeprefix("#/$defs/")
        if name in seen:
            raise StructuralError(f"{path}: recursive type {name}")
        node = {**_inline(defs[name], defs, path, (*seen, name)), **node}
    node.pop("title", None)
    _numbers(node)
    _objects(node)
    for key in ("items", "additionalProperties"):
        if isinstance(node.get(key), dict):
            node[key] = _inline(node[key], defs, f"{path}.{key}", seen)
    if "properties" in node:
        node["properties"] = {k: _inline(v, defs, f"{path}.{k}", seen) for k, v in node["properties"].items()}
        node.pop("default", None)  # nested defaults are filled in by our own models, not by the API server
    _check(node, path)
    return node


def _numbers(node: dict[str, Any]) -> None:
    """OpenAPI 3.0 has boolean exclusive bounds."""
    for bound in ("Minimum", "Maximum"):
        value = node.get(f"exclusive{bound}")
        if value is not None and not isinstance(value, bool):
            node[bound.lower()], node[f"exclusive{bound}"] = value, True


def _objects(node: dict[str, Any]) -> None:
    if node.get("additionalProperties") is False:
        del node["additionalProperties"]  # pruning does it; forbidden next to properties
    if node.get("default") == [] or node.get("default") == {}:
        del node["default"]


def _check(node: dict[str, Any], path: str) -> None:
    unknown = {key for key in node if key not in ALLOWED and not key.startswith("x-kubernetes-")}
    if unknown:
        raise StructuralError(f"{path}: not expressible in a CRD: {sorted(unknown)}")
    if "type" not in node:
        raise StructuralError(f"{path}: no type")
