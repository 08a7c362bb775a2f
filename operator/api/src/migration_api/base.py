"""What all models have in common."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SecretStr,
    SerializationInfo,
    WithJsonSchema,
)
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A frozen value with camelCase names on the outside.

    Unknown fields are ignored, so that an older part survives a newer object; the API server refuses them to users.
    Attribute docstrings become the descriptions that `kubectl explain` shows.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )

    def dump(self, *, reveal: bool = False) -> dict[str, Any]:
        """Return the JSON form: camelCase names, absent instead of null; secrets are stars unless `reveal`."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, context={_REVEAL: reveal})


_REVEAL = "reveal"
"""In a serialization's context: secrets are written as they are."""


def _serialize_secret(value: SecretStr, info: SerializationInfo) -> str:
    context: dict[str, Any] = info.context or {}
    return value.get_secret_value() if context.get(_REVEAL) else str(value)


Secret = Annotated[SecretStr, PlainSerializer(_serialize_secret, return_type=str)]
"""Text that neither `repr` nor a log nor an ordinary dump shows; only `Model.dump(reveal=True)` does."""


def format_time(moment: datetime) -> str:
    """Return `moment` as Kubernetes writes a `date-time` with microseconds, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _parse_time(value: object) -> object:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


Time = Annotated[
    datetime,
    BeforeValidator(_parse_time),
    PlainSerializer(format_time, return_type=str),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""A moment, with a time zone; RFC 3339 on the outside."""


def now() -> datetime:
    """Return the current moment in UTC."""
    return datetime.now(UTC)
