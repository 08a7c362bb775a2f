"""What the agents of one migration are told about their checkpoint's way: its key, its store, the credentials.

The key rests in a Secret that the migration owns: made once, the same after a restart of the operator, and gone with
the object. Nothing of a Secret's values leaves this module but in models that no log, error or status shows.
"""

from __future__ import annotations

import base64
import binascii
import os

from pydantic import SecretStr, ValidationError

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration
from migration_api.names import API_VERSION, LABEL_MIGRATION
from migration_api.shipping import KEY_BYTES, Shipping, Stays, StoreAccess
from migration_api.transport import (
    AUTHORITY,
    CREDENTIALS,
    KEY_SECRET_FIELD,
    KEY_SECRET_TYPE,
    SECRET_TYPE,
    ObjectStore,
    Transport,
)
from migration_operator.kube import ConflictError, Kube
from migration_operator.pods import Json, mapping
from migration_operator.transport_facts import SecretFacts


class NoAccess(Exception):
    """The key or the credentials cannot be had; the message is for an admin and holds no values."""


class NoKey(NoAccess):
    """The Secret with a checkpoint's key is not there."""


async def shipping(
    kube: Kube, migration: ContainerMigration, transport: Transport, mount: str | None = None
) -> Shipping:
    """Return what both agents of a migration get; its key is made when there is none.

    `mount`: see `store_access`.

    Raises:
        NoAccess: a Secret is not what it must be, or is missing.
        KubeError: the API server could not be asked.
    """
    return Shipping(
        key=await _key(kube, migration),
        store=await store_access(kube, migration.metadata.namespace, transport, mount),
        stays=Stays.WHEN_IT_ENDED_WELL if migration.spec.retain else Stays.NEVER,
        bytes_per_second=transport.bytes_per_second,
    )


async def stored_shipping(kube: Kube, checkpoint: ContainerCheckpoint, mount: str | None = None) -> Shipping:
    """Return what a target gets that fetches a kept checkpoint: it leaves what lies in the store as it is.

    `mount`: see `store_access`.

    Raises:
        NoAccess: a Secret is not what it must be, or is missing.
        KubeError: the API server could not be asked.
    """
    return Shipping(
        key=await stored_key(kube, checkpoint),
        store=await store_access(kube, checkpoint.metadata.namespace, checkpoint.spec.transport, mount),
        stays=Stays.ALWAYS,
    )


async def store_access(
    kube: Kube, namespace: str, transport: Transport, mount: str | None = None
) -> StoreAccess | None:
    """Return what opens the transport's store; None when it has none.

    Args:
        kube: the API server.
        namespace: where Secrets are.
        transport: names the store.
        mount: with a claim, the UID of the pod that mounts it on the node whose agent gets this.

    Raises:
        NoAccess: the Secret with the credentials is missing, or not what it must be; or the claim is not mounted.
        KubeError: the API server could not be asked.
    """
    if transport.claim is not None and mount is None:
        raise NoAccess(f"no pod mounts the claim {transport.claim} on the node that is to use it")
    if transport.shared_volume:
        return StoreAccess(shared_volume=transport.shared_volume, mount_pod=mount if transport.claim else None)
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


async def copy_key(kube: Kube, migration: ContainerMigration, checkpoint: ContainerCheckpoint) -> str:
    """Give a kept checkpoint a Secret of its own with its key, and return the Secret's name.

    The checkpoint owns it: the Secret outlives the migration, and goes with the checkpoint.

    Raises:
        NoAccess: the migration's key is not there any more, or another Secret has the name.
        KubeError: the API server could not be asked, or refuses it.
    """
    theirs = key_secret_name(migration.metadata.uid)
    secret = await kube.secret(migration.metadata.namespace, theirs)
    ours = await kube.secret(checkpoint.metadata.namespace, f"checkpoint-key-{checkpoint.uid.lower()}")
    if secret is None and ours is None:
        raise NoAccess(f"the Secret {theirs} with its key was deleted: nobody can read the checkpoint any more")
    key = "" if secret is None else _checked_key(theirs, checkpoint.uid, secret).get_secret_value()
    return await make_key(kube, checkpoint, key)


async def make_key(kube: Kube, checkpoint: ContainerCheckpoint, key: str) -> str:
    """Give a checkpoint that is about to be taken a Secret with this key, unless it has one; return its name.

    Raises:
        NoAccess: another Secret has the name.
        KubeError: the API server could not be asked, or refuses it.
    """
    metadata = checkpoint.metadata
    name = f"checkpoint-key-{checkpoint.uid.lower()}"
    found = await kube.secret(metadata.namespace, name)
    if found is None:
        owner = {"kind": "ContainerCheckpoint", "name": metadata.name, "uid": metadata.uid}
        try:
            found = await kube.create_secret(_secret(name, metadata.namespace, checkpoint.uid, owner, key))
        except ConflictError:
            found = await kube.secret(metadata.namespace, name)
    if found is None:
        raise NoAccess(f"the Secret {name} with its key was deleted while it was being made")
    _checked_key(name, checkpoint.uid, found)
    return name


async def stored_key(kube: Kube, checkpoint: ContainerCheckpoint) -> SecretStr:
    """Return the key of a checkpoint that lies in a store, in base64.

    Raises:
        NoKey: its Secret is not there.
        NoAccess: the Secret is not what it must be.
        KubeError: the API server could not be asked.
    """
    name = checkpoint.status.key_secret or ""
    secret = await kube.secret(checkpoint.metadata.namespace, name)
    if secret is None:
        what = f"there is no Secret {name} in namespace {checkpoint.metadata.namespace}: it holds the checkpoint's key"
        raise NoKey(f"{what}; create it anew from your copy, see docs/checkpoints.md")
    return _checked_key(name, checkpoint.uid, secret)


def key_secret_name(uid: str) -> str:
    """Return the name of the Secret with a migration's key."""
    return f"migration-key-{uid.lower()}"


def _key_secret(migration: ContainerMigration, key: str) -> Json:
    metadata = migration.metadata
    owner = {"kind": "ContainerMigration", "name": metadata.name, "uid": metadata.uid}
    return _secret(key_secret_name(metadata.uid), metadata.namespace, metadata.uid, owner, key)


def _secret(name: str, namespace: str, uid: str, owner: Json, key: str) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {LABEL_MIGRATION: uid},
            "ownerReferences": [{"apiVersion": API_VERSION, **owner}],
        },
        "type": KEY_SECRET_TYPE,
        "immutable": True,
        "data": {KEY_SECRET_FIELD: key},
    }


def _checked_key(name: str, uid: str, secret: Json) -> SecretStr:
    labels = mapping(mapping(secret.get("metadata")).get("labels"))
    if secret.get("type") != KEY_SECRET_TYPE or labels.get(LABEL_MIGRATION) != uid:
        what = f"must have the type {KEY_SECRET_TYPE} and the label {LABEL_MIGRATION}={uid}"
        raise NoAccess(f"the Secret {name} was not made by the operator, or for another key: it {what}")
    key = str(mapping(secret.get("data")).get(KEY_SECRET_FIELD) or "")
    try:
        size = len(base64.b64decode(key, validate=True))
    except (binascii.Error, ValueError):
        size = 0
    if size != KEY_BYTES:
        raise NoAccess(
            f"the Secret {name} holds no key of {KEY_BYTES} bytes in its field {KEY_SECRET_FIELD}; delete it"
        )
    return SecretStr(key)


def _text(value: object) -> str:
    return base64.b64decode(str(value), validate=True).decode()
