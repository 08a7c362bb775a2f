"""What the agents of one migration are told about their checkpoint's way: its key, its store, the credentials.

The key rests in a Secret that the migration owns: made once, the same after a restart of the operator, and gone with
the object. Nothing of a Secret's values leaves this module but in models that no log, error or status shows.
"""

from __future__ import annotations

import base64
import binascii
import os

from pydantic import SecretStr, ValidationError

from migration_api.migration import ContainerMigration
from migration_api.names import API_VERSION, LABEL_MIGRATION
from migration_api.transport import (
    AUTHORITY,
    CREDENTIALS,
    KEY_SECRET_FIELD,
    KEY_SECRET_TYPE,
    SECRET_TYPE,
    ObjectStore,
    Transport,
)
from migration_api.wire import KEY_BYTES, Shipping, StoreAccess
from migration_operator.kube import ConflictError, Kube
from migration_operator.pods import Json, mapping
from migration_operator.transport_facts import SecretFacts


class NoAccess(Exception):
    """The key or the credentials cannot be had; the message is for an admin and holds no values."""


async def shipping(kube: Kube, migration: ContainerMigration, transport: Transport) -> Shipping:
    """Return what both agents of a migration get; its key is made when there is none.

    Raises:
        NoAccess: a Secret is not what it must be, or is missing.
        KubeError: the API server could not be asked.
    """
    return Shipping(
        key=await _key(kube, migration),
        store=await store_access(kube, migration.metadata.namespace, transport),
        bytes_per_second=transport.bytes_per_second,
    )


async def store_access(kube: Kube, namespace: str, transport: Transport) -> StoreAccess | None:
    """Return what opens the transport's store; None when it has none.

    Raises:
        NoAccess: the Secret with the credentials is missing, or not what it must be.
        KubeError: the API server could not be asked.
    """
    if transport.shared_volume:
        return StoreAccess(shared_volume=transport.shared_volume)
    if transport.object_store:
        return await _bucket_access(kube, namespace, transport.object_store)
    return None


async def secret_facts(kube: Kube, namespace: str, transport: Transport) -> SecretFacts | None:
    """Return what may be told of the Secret with the credentials; None when there is none, or none is needed."""
    if transport.object_store is None:
        return None
    secret = await kube.secret(namespace, transport.object_store.secret_ref.name)
    if secret is None:
        return None
    return SecretFacts(str(secret.get("type") or ""), frozenset(k for k, v in mapping(secret.get("data")).items() if v))


async def _bucket_access(kube: Kube, namespace: str, bucket: ObjectStore) -> StoreAccess:
    name = bucket.secret_ref.name
    secret = await kube.secret(namespace, name)
    if secret is None:
        raise NoAccess(f"there is no Secret {name} in namespace {namespace}")
    if secret.get("type") != SECRET_TYPE:
        raise NoAccess(f"the Secret {name} has not the type {SECRET_TYPE}")
    data = mapping(secret.get("data"))
    known = CREDENTIALS[bucket.scheme]
    if missing := known.missing(key for key, value in data.items() if value):
        raise NoAccess(f"the Secret {name} has no key {missing}")
    try:
        return StoreAccess(
            object_store=bucket,
            credentials={c.setting: SecretStr(_text(data[c.key])) for c in known.all if data.get(c.key)},
            authority=_text(data[AUTHORITY]) if data.get(AUTHORITY) else None,
        )
    except (ValueError, ValidationError):
        raise NoAccess(f"the Secret {name} has values that are no text") from None


async def _key(kube: Kube, migration: ContainerMigration) -> SecretStr:
    """Return the migration's key in base64, made when there is none; two operators get the same: only one creates."""
    metadata = migration.metadata
    name = key_secret_name(metadata.uid)
    found = await kube.secret(metadata.namespace, name)
    if found is None:
        made = _key_secret(migration, base64.b64encode(os.urandom(KEY_BYTES)).decode())
        try:
            found = await kube.create_secret(made)
        except ConflictError:
            found = await kube.secret(metadata.namespace, name)
    if found is None:
        raise NoAccess(f"the Secret {name} with the migration's key was deleted while it was being read")
    return _checked_key(name, metadata.uid, found)


def key_secret_name(uid: str) -> str:
    """Return the name of the Secret with a migration's key."""
    return f"migration-key-{uid.lower()}"


def _key_secret(migration: ContainerMigration, key: str) -> Json:
    metadata = migration.metadata
    owner = {"apiVersion": API_VERSION, "kind": "ContainerMigration", "name": metadata.name, "uid": metadata.uid}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": key_secret_name(metadata.uid),
            "namespace": metadata.namespace,
            "labels": {LABEL_MIGRATION: metadata.uid},
            "ownerReferences": [owner],
        },
        "type": KEY_SECRET_TYPE,
        "immutable": True,
        "data": {KEY_SECRET_FIELD: key},
    }


def _checked_key(name: str, uid: str, secret: Json) -> SecretStr:
    labels = mapping(mapping(secret.get("metadata")).get("labels"))
    if secret.get("type") != KEY_SECRET_TYPE or labels.get(LABEL_MIGRATION) != uid:
        raise NoAccess(f"the Secret {name} was not made by the operator; delete it")
    key = str(mapping(secret.get("data")).get(KEY_SECRET_FIELD) or "")
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != KEY_BYTES:
        raise NoAccess(f"the Secret {name} holds no key of {KEY_BYTES} bytes; delete it and create the migration anew")
    return SecretStr(key)


def _text(value: object) -> str:
    return base64.b64decode(str(value), validate=True).decode()
