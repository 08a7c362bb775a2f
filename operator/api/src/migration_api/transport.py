"""How a checkpoint travels: what a user asks for, and which keys a Secret with a store's credentials must have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Self

from pydantic import ConfigDict, Field, model_validator

from migration_api.base import Model

SECRET_TYPE = "containermigration.io/object-store"  # noqa: S105  the name of a type
"""The type of a Secret with the credentials of an object store. The operator hands on no Secret of another type: who
may create migrations but not read Secrets must not have them sent to an endpoint of his choice."""

KEY_SECRET_TYPE = "containermigration.io/migration-key"  # noqa: S105  the name of a type
"""The type of the Secret that holds the key of one migration, made by the operator."""

KEY_SECRET_FIELD = "key"  # noqa: S105  the name of a field

AUTHORITY = "ca.crt"
"""In a Secret with credentials, optional: the certificates to trust, in PEM."""


_DNS_NAME = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"


class TransportType(StrEnum):
    """How the checkpoint travels."""

    DIRECT = "Direct"
    """From agent to agent over mutual TLS."""
    SHARED_VOLUME = "SharedVolume"
    """Through a directory or a claim that both nodes mount."""
    OBJECT_STORE = "ObjectStore"
    """Through a bucket of S3, GCS or Azure."""


class SecretReference(Model):
    """Names a Secret in the namespace of the ContainerMigration."""

    name: Annotated[
        str,
        Field(min_length=1, max_length=253, pattern=_DNS_NAME),
    ]
    """The name of the Secret."""


class SharedVolume(Model):
    """What both nodes mount: a directory at the same path, or a claim."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.path) != has(self.claim)",
                    "message": "exactly one of path and claim must be given",
                }
            ]
        }
    )

    path: Annotated[str, Field(min_length=2, max_length=1024, pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9._-]*)+$")] | None = (
        None
    )
    """The directory on the nodes, the same on both; it must be one that the chart's value
    `transport.sharedVolume.allowedPaths` names, or be below one."""
    claim: Annotated[str, Field(min_length=1, max_length=253, pattern=_DNS_NAME)] | None = None
    """In place of a path: a PersistentVolumeClaim in this object's namespace that many nodes can mount
    (ReadWriteMany). While it is needed the operator runs a small pod on each node that mounts it there."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if (self.path is None) == (self.claim is None):
            raise ValueError("exactly one of path and claim must be given")
        return self

    def __str__(self) -> str:
        return self.path or f"the claim {self.claim}"


class ObjectStore(Model):
    """A bucket, or a part of it."""

    url: Annotated[
        str,
        Field(
            min_length=6,
            max_length=1024,
            pattern=r"^(s3|gs|az)://[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*$",
        ),
    ]
    """`s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`; the prefix may be left out."""
    endpoint: (
        Annotated[str, Field(max_length=512, pattern=r"^https?://[A-Za-z0-9.:\[\]_-]+(/[A-Za-z0-9._/-]*)?$")] | None
    ) = None
    """The address of a server other than the provider's own, such as `https://s3.example.org`; it must be one that the
    chart's value `transport.objectStore.allowedEndpoints` names. `http://` means without TLS."""
    region: Annotated[str, Field(max_length=64, pattern=r"^[A-Za-z0-9-]+$")] | None = None
    """The region of an S3 bucket. Absent: us-east-1."""
    secret_ref: SecretReference
    """The Secret with the credentials, in this object's namespace, of type `containermigration.io/object-store`. Keys:
    for s3 `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and, if there is one, `AWS_SESSION_TOKEN`; for gs
    `GOOGLE_SERVICE_ACCOUNT_KEY`; for az `AZURE_STORAGE_ACCOUNT_NAME` and `AZURE_STORAGE_ACCOUNT_KEY` or
    `AZURE_STORAGE_SAS_TOKEN`; for all, optional, `ca.crt` with the certificates to trust."""

    @property
    def scheme(self) -> str:
        return self.url.partition(":")[0]


_MEMBERS = {"sharedVolume": TransportType.SHARED_VOLUME, "objectStore": TransportType.OBJECT_STORE}


class Transport(Model):
    """How the checkpoint travels."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": f"has(self.{member}) == (self.type == '{type_}')",
                    "message": f"{member} must be given with the type {type_}, and only with it",
                }
                for member, type_ in _MEMBERS.items()
            ]
        }
    )

    type: TransportType
    """`Direct`: from agent to agent over mutual TLS. `SharedVolume`: through a directory or a claim that both
    nodes mount. `ObjectStore`: through a bucket. In all of them every chunk is encrypted with the migration's own
    key."""
    shared_volume: SharedVolume | None = None
    """With the type `SharedVolume`: the directory or claim."""
    object_store: ObjectStore | None = None
    """With the type `ObjectStore`: the bucket."""
    bytes_per_second: Annotated[int, Field(ge=65536, json_schema_extra={"format": "int64"})] | None = None
    """The most that the source's node sends for this migration, in bytes per second, after compression. Absent: only
    the node's own limit counts (the chart's value `transport.bytesPerSecondPerNode`)."""

    @property
    def claim(self) -> str | None:
        """The claim that must be mounted on the nodes; None when it needs none."""
        return self.shared_volume.claim if self.shared_volume else None

    @model_validator(mode="after")
    def _has_its_own_member(self) -> Self:
        for given, type_ in (
            (self.shared_volume, TransportType.SHARED_VOLUME),
            (self.object_store, TransportType.OBJECT_STORE),
        ):
            if (given is not None) != (self.type is type_):
                raise ValueError(f"the settings of {type_} must be given with that type, and only with it")
        return self


@dataclass(frozen=True)
class Credential:
    """A key of a Secret, and the name that the object store's client has for it."""

    key: str
    setting: str


@dataclass(frozen=True)
class Credentials:
    """What a Secret for one kind of object store must have: all of `needed`, one of `one_of`, and may have."""

    needed: tuple[Credential, ...]
    one_of: tuple[Credential, ...] = ()
    optional: tuple[Credential, ...] = ()

    @property
    def all(self) -> tuple[Credential, ...]:
        return (*self.needed, *self.one_of, *self.optional)

    def missing(self, keys: Iterable[str]) -> str:
        """Return what a Secret with these keys lacks, in words; empty when it is complete."""
        found = set(keys)
        lacking = [c.key for c in self.needed if c.key not in found]
        if self.one_of and not any(c.key in found for c in self.one_of):
            lacking.append(" or ".join(c.key for c in self.one_of))
        return ", ".join(lacking)


CREDENTIALS = {
    "s3": Credentials(
        needed=(
            Credential("AWS_ACCESS_KEY_ID", "access_key_id"),
            Credential("AWS_SECRET_ACCESS_KEY", "secret_access_key"),
        ),
        optional=(Credential("AWS_SESSION_TOKEN", "session_token"),),
    ),
    "gs": Credentials(needed=(Credential("GOOGLE_SERVICE_ACCOUNT_KEY", "service_account_key"),)),
    "az": Credentials(
        needed=(Credential("AZURE_STORAGE_ACCOUNT_NAME", "account_name"),),
        one_of=(
            Credential("AZURE_STORAGE_ACCOUNT_KEY", "account_key"),
            Credential("AZURE_STORAGE_SAS_TOKEN", "sas_key"),
        ),
    ),
}
"""By the scheme of the bucket's URL."""
