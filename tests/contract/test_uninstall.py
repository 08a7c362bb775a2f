"""The pre-delete hook against an API server: who is asked to go back, who is waited for, whose finalizer goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from kubernetes.aio import client

from migration_api.base import format_time
from migration_api.names import CHECKPOINT_FINALIZER, CHECKPOINTS, FINALIZER, MIGRATIONS
from migration_operator.agents import Agents
from migration_operator.checkpoint_keeper import CheckpointKeeper
from migration_operator.kube import Kube
from migration_operator.rules import Rules
from migration_operator.uninstall import prepare
from support.controller import NOW
from support.fake_api import FakeApi, Json

SUCCEEDED = {
    "type": "Succeeded",
    "status": "False",
    "observedGeneration": 1,
    "lastTransitionTime": format_time(NOW),
    "reason": "RolledBack",
    "message": "",
}
ENDED: Json = {"conditions": [SUCCEEDED]}


async def stored(api: FakeApi, name: str, status: Json, *finalizers: str) -> None:
    raw = {"metadata": {"name": name, "finalizers": list(finalizers)}, "spec": {"podName": "it"}, "status": status}
    await api.do(lambda: api.create(MIGRATIONS, raw, "shop"))


async def kept(api: FakeApi, name: str, ready: str) -> None:
    condition = {**SUCCEEDED, "type": "Ready", "status": ready, "reason": "InProgress"}
    transport = {"type": "SharedVolume", "sharedVolume": {"path": "/mnt/kept"}}
    raw = {
        "metadata": {"name": name, "finalizers": [CHECKPOINT_FINALIZER, "somebody/else"]},
        "spec": {"podName": "it", "transport": transport},
        "status": {"conditions": [condition], "message": "it is being taken"},
    }
    await api.do(lambda: api.create(CHECKPOINTS, raw, "shop"))


@asynccontextmanager
async def kube_of(api: FakeApi) -> AsyncGenerator[Kube]:
    kube = Kube(client.Configuration(host=api.url))
    try:
        yield kube
    finally:
        await kube.close()


async def finalizers(api: FakeApi, name: str, plural: str = MIGRATIONS) -> list[str]:
    return ((await api.fetch(plural, name)) or {})["metadata"].get("finalizers", [])


async def test_nothing_to_do() -> None:
    async with FakeApi().running() as api, kube_of(api) as kube:
        await stored(api, "done", ENDED)
        assert await prepare(kube, 10) == []
        assert not [r for r in api.requests if r.startswith("PATCH")]


async def test_undecided_ones_go_back_committed_ones_are_waited_for_and_finalizers_go() -> None:
    async with FakeApi().running() as api, kube_of(api) as kube:
        await stored(api, "undecided", {}, FINALIZER)
        await stored(api, "committed", {"decision": "Commit"}, FINALIZER)
        await stored(api, "ended", ENDED, FINALIZER, "somebody/else")

        def operator(what: str, thing: Json) -> None:
            """End what was asked to go back, and after it the one that goes through."""
            name = thing["metadata"]["name"]
            if name == "undecided" and thing["spec"].get("cancel") and not thing.get("status"):
                for other in ("undecided", "committed"):
                    api.patch(MIGRATIONS, other, {"status": ENDED}, "shop", status=True)

        await api.do(lambda: api.on_change.append(operator))
        assert await prepare(kube, 30) == []
        committed: Any = await api.fetch(MIGRATIONS, "committed")
        assert "cancel" not in committed["spec"]
        assert await finalizers(api, "undecided") == await finalizers(api, "committed") == []
        assert await finalizers(api, "ended") == ["somebody/else"]


async def test_what_cannot_end_is_named_and_keeps_its_finalizer() -> None:
    async with FakeApi().running() as api, kube_of(api) as kube:
        await stored(api, "stuck", {"message": "the agent on node a does not answer"}, FINALIZER)
        [sentence] = await prepare(kube, 0.1)
        assert sentence == "ContainerMigration shop/stuck: the agent on node a does not answer"
        assert await finalizers(api, "stuck") == [FINALIZER]


async def test_kept_checkpoints_stay_without_our_finalizer_and_a_taking_is_waited_for() -> None:
    async with FakeApi().running() as api, kube_of(api) as kube:
        await kept(api, "complete", "True")
        await kept(api, "failed", "False")
        await kept(api, "taken", "Unknown")
        assert await prepare(kube, 0.1) == ["ContainerCheckpoint shop/taken: it is being taken"]
        assert await finalizers(api, "complete", CHECKPOINTS) == ["somebody/else"]
        assert await finalizers(api, "failed", CHECKPOINTS) == ["somebody/else"]
        assert await finalizers(api, "taken", CHECKPOINTS) == [CHECKPOINT_FINALIZER, "somebody/else"]


async def test_an_operator_that_is_installed_again_holds_them_as_before() -> None:
    async with FakeApi().running() as api, kube_of(api) as kube:
        await kept(api, "complete", "True")
        assert await prepare(kube, 10) == []
        found = await kube.checkpoint("shop", "complete")
        assert found
        keeper = CheckpointKeeper(kube, Agents(Path("no-token")), Rules())
        keeper.notice(found, gone=False)
        async with asyncio.timeout(10):
            while CHECKPOINT_FINALIZER not in await finalizers(api, "complete", CHECKPOINTS):  # noqa: ASYNC110  # another's
                await asyncio.sleep(0.01)
        await keeper.stop()


async def test_an_api_server_that_does_not_answer_is_no_success() -> None:
    kube = Kube(client.Configuration(host="http://127.0.0.1:9"))
    try:
        [sentence] = await asyncio.wait_for(prepare(kube, 0.1), 60)
    finally:
        await kube.close()
    assert "did not answer" in sentence
