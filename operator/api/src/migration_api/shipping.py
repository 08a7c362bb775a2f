"""How a checkpoint travels, as the operator tells agents: its key, what opens its store, and how they try that."""

from __future__ import annotations

import base64
import binascii
from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from migration_api.base import Model, Secret
from migration_api.migration import Message, Uid
from migration_api.transport import ObjectStore, SharedVolume

KEY_BYTES = 32


class StoreAccess(Model):
    """A volume or bucket, with what opens it. It holds secrets."""

    shared_volume: SharedVolume | None = None
    mount_pod: Uid | None = None
    """For a claim: the pod on the agent's own node that mounts it."""
    object_store: ObjectStore | None = None
    credentials: Annotated[dict[str, Secret], Field(max_length=16)] = Field(default_factory=dict)
    """For a bucket: by the names of its client's settings, see `migration_api.transport.CREDENTIALS`."""
    authority: str | None = None
    """For a bucket: certificates in PEM to trust instead of the public ones."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.shared_volume is None) == (self.object_store is None):
            raise ValueError("either a shared volume or an object store must be given")
        if (self.mount_pod is not None) != (self.shared_volume is not None and self.shared_volume.claim is not None):
            raise ValueError("mountPod must be given with a claim, and only with it")
        return self


class Stays(StrEnum):
    """When the agents leave in the store what lies there of a migration that has ended."""

    NEVER = "Never"
    WHEN_IT_ENDED_WELL = "WhenItEndedWell"
    """Kept by the migration: at any other end it is removed."""
    ALWAYS = "Always"
    """Kept earlier: whoever restores from it removes nothing."""


class Shipping(Model):
    """How a checkpoint travels and what protects it on the way; both sides of a migration get the same.

    It holds secrets: agents keep it in memory and on tmpfs, never in the journal.
    """

    key: Secret
    """Base64 of 32 random bytes, made for this migration alone: AES-256-GCM of every chunk and of the manifest."""
    compression: bool = True
    """Compress chunks with zstd when it pays; the sender finds out by itself."""
    store: StoreAccess | None = None
    """Where the sealed chunks lie between the nodes. Absent: they travel from agent to agent."""
    stays: Stays = Stays.NEVER
    """Whether the agents leave it in the store at the end."""
    bytes_per_second: Annotated[int, Field(ge=1)] | None = None
    """The most that the source sends for this migration."""

    @field_validator("key")
    @classmethod
    def _is_a_key(cls, key: SecretStr) -> SecretStr:
        try:
            size = len(base64.b64decode(key.get_secret_value(), validate=True))
        except (binascii.Error, ValueError):
            size = None
        if size != KEY_BYTES:
            raise ValueError(f"the key is not {KEY_BYTES} bytes in base64")
        return key

    @property
    def key_bytes(self) -> bytes:
        return base64.b64decode(self.key.get_secret_value())


class ProbeStep(StrEnum):
    """What an agent does to find out whether a store can be used from its node."""

    WRITE = "Write"
    """Put a blob and fetch it; it stays."""
    READ = "Read"
    """Fetch what the other node has put; put a blob and fetch it."""
    REMOVE = "Remove"
    """Remove both blobs; none are left."""


class StoreProbe(Model):
    """POST /v1/stores/probe: find out whether a store can be used from this node."""

    model_config = ConfigDict(hide_input_in_errors=True)  # an error is answered and logged; credentials must not be

    uid: Uid
    """Of the probe, made for it alone: nothing of any migration is touched."""
    step: ProbeStep
    content: Annotated[str, Field(min_length=16, max_length=128)]
    """Of the blobs; random, so that a node that finds it has found what the other one has put."""
    store: StoreAccess


class ProbeProblem(StrEnum):
    """Why a store cannot be used."""

    UNUSABLE = "Unusable"
    """This node cannot put, fetch or remove."""
    NOT_SHARED = "NotShared"
    """This node can, but it does not find what the other one has put: it is another directory or bucket."""


class ProbeReport(Model):
    """The answer to a `StoreProbe`."""

    problem: ProbeProblem | None = None
    message: Message = ""
    """Why, for an admin; without secrets."""
