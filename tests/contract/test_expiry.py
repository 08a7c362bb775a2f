"""`ttlSecondsAfterFinished` against an API server: who is deleted, when, and after a restart of the operator, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from kubernetes.aio import client

from migration_api.base import format_time, now
from migration_api.migration import ContainerMigration
from migration_api.names import MIGRATIONS
from migration_operator.expiry import Expiry, expires_at
from migration_operator.kube import Kube
from support.controller import NOW, migration
from support.fake_api import FakeApi


def ended(ago: float = 0, **spec: Any) -> ContainerMigration:
    condition = {
        "type": "Succeeded",
        "status": "True",
        "observedGeneration": 1,
        "lastTransitionTime": format_time(now() - timedelta(seconds=ago)),
        "reason": "Succeeded",
        "message": "",
    }
    return migration(status={"conditions": [condition]}, spec=spec)


def test_only_what_has_ended_and_says_so_expires() -> None:
    assert expires_at(migration(spec={"ttlSecondsAfterFinished": 0})) is None
    assert expires_at(ended()) is None
    of = ended(ttlSecondsAfterFinished=60)
    assert expires_at(of) == of.status.conditions[0].last_transition_time + timedelta(seconds=60)
    deleting = of.model_copy(update={"metadata": of.metadata.model_copy(update={"deletion_timestamp": NOW})})
    assert expires_at(deleting) is None


@asynccontextmanager
async def expiring(api: FakeApi) -> AsyncGenerator[Expiry]:
    kube = Kube(client.Configuration(host=api.url))
    expiry = Expiry(kube)
    task = asyncio.create_task(expiry.run())
    try:
        yield expiry
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()


async def stored(api: FakeApi, of: ContainerMigration) -> ContainerMigration:
    raw = {"metadata": {"name": of.metadata.name}, "spec": of.spec.dump(), "status": of.status.dump()}
    return ContainerMigration.model_validate(await api.do(lambda: api.create(MIGRATIONS, raw, "shop")))


async def gone(api: FakeApi, name: str) -> None:
    for _ in range(400):
        if await api.fetch(MIGRATIONS, name) is None:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} is still there")


async def test_an_expired_migration_is_deleted_and_others_are_kept() -> None:
    async with FakeApi().running() as api, expiring(api) as expiry:
        old = await stored(api, ended(ago=100, ttlSecondsAfterFinished=60))
        others = [ended(ago=100), ended(ttlSecondsAfterFinished=3600), migration(spec={"ttlSecondsAfterFinished": 0})]
        for number, other in enumerate(others):
            named = other.model_copy(update={"metadata": other.metadata.model_copy(update={"name": f"kept-{number}"})})
            expiry.notice(await stored(api, named))
        expiry.notice(old)
        await gone(api, old.metadata.name)
        assert [await api.fetch(MIGRATIONS, f"kept-{n}") is not None for n in range(len(others))] == [True] * 3


async def test_another_object_of_the_same_name_is_left_alone() -> None:
    async with FakeApi().running() as api, expiring(api) as expiry:
        await stored(api, ended())
        deletions = len(api.requests)
        expiry.notice(ended(ago=100, ttlSecondsAfterFinished=1))  # with another UID
        for _ in range(400):
            if any(r.startswith("DELETE") for r in api.requests[deletions:]):
                break
            await asyncio.sleep(0.05)
        assert any(r.startswith("DELETE") for r in api.requests[deletions:])
        assert await api.fetch(MIGRATIONS, "move") is not None


@pytest.mark.parametrize("ttl", [0, 1])
async def test_a_new_operator_finds_what_the_old_one_left(ttl: int) -> None:
    async with FakeApi().running() as api:
        of = await stored(api, ended(ttlSecondsAfterFinished=ttl))
        async with expiring(api) as expiry:
            expiry.notice(of)
        if await api.fetch(MIGRATIONS, "move") is None:
            return  # the first one was fast enough
        async with expiring(api) as expiry:
            expiry.notice(of)
            await gone(api, "move")
