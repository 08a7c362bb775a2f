"""What the operator asks of agents about checkpoints that stay in a store: to mark one as kept, to remove one."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, SecretStr, field_validator

from migration_api.base import Model, Secret
from migration_api.migration import Bytes, ContainerName, Message, Uid
from migration_api.shipping import Shipping, StoreAccess


class KeepRequest(Model):
    """POST /v1/stored/keep: see whether a checkpoint is complete in its store, and mark it as one that stays.

    The mark keeps the agents' sweeps of leftovers away. It holds secrets.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    uid: Uid
    """Under which it lies there."""
    key: Secret
    """Base64 of its key."""
    store: StoreAccess

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, key: SecretStr) -> SecretStr:
        Shipping(key=key)
        return key

    @property
    def key_bytes(self) -> bytes:
        return Shipping(key=self.key).key_bytes


class KeepReport(Model):
    """The answer: what was found, or why there is nothing to keep."""

    problem: Message = ""
    """Why it cannot be kept; empty when it is."""
    passing: bool = False
    """Another try may help: the store is away."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[0-9a-f]{64})?$")] = ""
    """SHA-256 of the sealed manifest."""
    size_bytes: Bytes = 0
    """Before compression."""
    containers: Annotated[tuple[ContainerName, ...], Field(max_length=16)] = ()


class RemoveRequest(Model):
    """POST /v1/stored/remove: remove a checkpoint from its store, kept or not; nothing when there is none."""

    model_config = ConfigDict(hide_input_in_errors=True)

    uid: Uid
    store: StoreAccess


class RemoveReport(Model):
    """The answer."""

    problem: Message = ""
    """Why it was not removed; empty when nothing is left."""
    passing: bool = False
    """Another try may help."""
    found: bool = False
    """Something was there. Where nothing was, the node may not see the volume that others see."""
