"""The key of a migration and the credentials of its store, against an API server: made once, read, and never shown."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from kubernetes.aio import client

from migration_api.names import LABEL_MIGRATION
from migration_api.transport import KEY_SECRET_TYPE, SECRET_TYPE, Transport, TransportType
from migration_operator.kube import Kube
from migration_operator.shipping import NoAccess, key_secret_name, secret_facts, shipping, store_access
from migration_operator.transport_facts import SecretFacts
from support.controller import UID, migration
from support.fake_api import FakeApi

DIRECT = Transport(type=TransportType.DIRECT, bytes_per_second=1_000_000)
BUCKET = Transport.model_validate(
    {"type": "ObjectStore", "objectStore": {"url": "s3://checkpoints", "secretRef": {"name": "s3"}}}
)
HUSH = "hush-hush-hush"


@pytest.fixture
async def api() -> AsyncIterator[FakeApi]:
    async with FakeApi().running() as it:
        yield it


@pytest.fixture
async def kube(api: FakeApi) -> AsyncIterator[Kube]:
    it = Kube(client.Configuration(host=api.url))
    yield it
    await it.close()


async def store(api: FakeApi, name: str, type_: str, **data: str) -> None:
    encoded = {key: base64.b64encode(value.encode()).decode() for key, value in data.items()}
    raw: dict[str, Any] = {"metadata": {"name": name}, "type": type_, "data": encoded}
    await api.do(lambda: api.create("secrets", raw, "shop"))


def keys(access_key: str = "me", secret_key: str = HUSH) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key}


async def test_the_key_is_made_once_and_owned_by_the_migration(api: FakeApi, kube: Kube) -> None:
    first = await shipping(kube, migration(), DIRECT)
    assert len(first.key_bytes) == 32
    assert first.bytes_per_second == 1_000_000
    assert first.store is None
    assert await shipping(kube, migration(), DIRECT) == first, "an operator that restarts gets the same key"
    secret = api.objects["secrets", "shop", key_secret_name(UID)]
    assert (secret["type"], secret["immutable"]) == (KEY_SECRET_TYPE, True)
    assert secret["metadata"]["labels"] == {LABEL_MIGRATION: UID}
    [owner] = secret["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("ContainerMigration", "move", UID)
    other = migration(uid="5f0c7c1e-0000-4000-8000-000000000002", name="other")
    assert (await shipping(kube, other, DIRECT)).key != first.key


async def test_two_operators_at_once_get_the_same_key(api: FakeApi, kube: Kube) -> None:
    found = await asyncio.gather(*(shipping(kube, migration(), DIRECT) for _ in range(8)))
    assert len({it.key.get_secret_value() for it in found}) == 1
    assert [name for plural, _, name in api.objects if plural == "secrets"] == [key_secret_name(UID)]


async def test_a_secret_that_the_operator_did_not_make_is_no_key(api: FakeApi, kube: Kube) -> None:
    await store(api, key_secret_name(UID), "Opaque", key=32 * "x")
    with pytest.raises(NoAccess, match="was not made by the operator"):
        await shipping(kube, migration(), DIRECT)


async def test_credentials_are_read_by_the_bucket_s_kind(api: FakeApi, kube: Kube) -> None:
    await store(api, "s3", SECRET_TYPE, **keys(), **{"ca.crt": "PEM", "else": "what"})
    access = await store_access(kube, "shop", BUCKET)
    assert access is not None
    revealed = access.dump(reveal=True)
    assert revealed["credentials"] == {"access_key_id": "me", "secret_access_key": HUSH}
    assert revealed["authority"] == "PEM"
    assert await secret_facts(kube, "shop", BUCKET) == SecretFacts(SECRET_TYPE, frozenset({*keys(), "ca.crt", "else"}))


@pytest.mark.parametrize(
    ("type_", "data", "message"),
    [
        ("Opaque", keys(), "has not the type"),
        (SECRET_TYPE, {"AWS_ACCESS_KEY_ID": "me"}, "no key AWS_SECRET_ACCESS_KEY"),
        (SECRET_TYPE, keys(secret_key=""), "no key AWS_SECRET_ACCESS_KEY"),
    ],
)
async def test_credentials_that_are_none(
    api: FakeApi, kube: Kube, type_: str, data: dict[str, str], message: str
) -> None:
    await store(api, "s3", type_, **data)
    with pytest.raises(NoAccess, match=message):
        await store_access(kube, "shop", BUCKET)


async def test_no_secret_no_access(kube: Kube) -> None:
    with pytest.raises(NoAccess, match="no Secret s3 in namespace shop"):
        await store_access(kube, "shop", BUCKET)
    assert await secret_facts(kube, "shop", BUCKET) is None
    assert await secret_facts(kube, "shop", DIRECT) is None


async def test_i7_neither_key_nor_credentials_are_logged_or_shown(
    api: FakeApi, kube: Kube, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await store(api, "s3", SECRET_TYPE, **keys())
    it = await shipping(kube, migration(), BUCKET)
    shown = repr(it) + str(it) + it.model_dump_json() + json.dumps(it.dump()) + caplog.text
    for secret in (it.key.get_secret_value(), HUSH, base64.b64encode(HUSH.encode()).decode()):
        assert secret not in shown
