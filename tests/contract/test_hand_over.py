"""A pod of a Deployment is handed over, against an API server: the source's price first, then the target's owner."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.aio import client

from migration_api.conditions import Reason
from migration_api.names import ANNOTATION_MIGRATION
from migration_operator.act import Turn, act
from migration_operator.kube import ConflictError, Kube
from migration_operator.observation import Observation
from migration_operator.owners import COST_ANNOTATION, HASH_LABEL, awaits_owner, devalue, set_aside
from migration_operator.plan import plan
from migration_operator.pods import Pod, mapping
from migration_operator.step import Action, Step
from migration_operator.transport_facts import TransportRules
from support.controller import NOW, UID, begun, is_ready, manifest, migration, of_deployment, source_pod
from support.fake_api import FakeApi


async def stored(api: FakeApi, **of: Any) -> Pod:
    raw = manifest(**of)
    del raw["metadata"]["uid"]
    return Pod(await api.do(lambda: api.create("pods", raw, "shop")))


@pytest.mark.parametrize("source_is_gone", [False, True])
async def test_the_replica_set_gets_the_target(*, source_is_gone: bool) -> None:
    async with FakeApi().running() as api:
        kube = Kube(client.Configuration(host=api.url))
        source = await stored(api, metadata=of_deployment(), status=is_ready(ready=False))
        aside = set_aside(source_pod(metadata=of_deployment()))
        annotations = {ANNOTATION_MIGRATION: UID, "team": "shop", **aside}
        target = await stored(api, name="redis-moved", metadata={"annotations": annotations, "labels": {"app": "web"}})
        of = migration(status=begun(decision="Commit", target={"outcome": "Resumed"}))
        o = Observation(NOW, of, source_pod=source, target_pod=target)
        step = plan(o)
        assert step.action is Action.HAND_OVER
        nobody: Any = None  # no agent is asked, and nothing waits for a place
        turn = Turn(
            kube=kube, agents=nobody, rules=TransportRules(), queue=nobody, o=o, step=step, status=of.status, report={}
        )
        if source_is_gone:
            await api.do(lambda: api.remove("pods", "redis", "shop"))
        for _ in range(2):  # the operator may die between the act and its next look
            await act(turn)
        theirs = Pod(await api.fetch("pods", "redis-moved") or {})
        assert theirs.metadata["labels"] == {"app": "web", HASH_LABEL: "6d4"}
        assert theirs.metadata["annotations"] == annotations
        assert [owner["name"] for owner in theirs.metadata["ownerReferences"]] == ["web-6d4"]
        assert not awaits_owner(theirs)
        left = await api.fetch("pods", "redis")
        if not source_is_gone:
            assert left is not None
            assert mapping(left["metadata"]["annotations"])[COST_ANNOTATION] == "-2147483648"
            patches = [request for request in api.requests if request.startswith("PATCH")]
            assert patches[0].endswith("/redis"), "the price of the source comes first"
        await kube.close()


@pytest.mark.parametrize("recorded", [False, True])
async def test_i4_a_target_pod_that_no_agent_was_told_of_goes_with_its_object(*, recorded: bool) -> None:
    """Forced away in the moment in which the pod was created: nobody else would ever know of it."""
    async with FakeApi().running() as api:
        kube = Kube(client.Configuration(host=api.url))
        target = await stored(api, name="redis-moved", metadata={"annotations": {ANNOTATION_MIGRATION: UID}})
        of = migration(status=begun(target_uid=target.uid if recorded else None, target_node=None))
        o = Observation(NOW, of, source_pod=source_pod(), target_pod=target)
        step = Step(Action.RECORD_TARGET, Reason.PREPARING_TARGET, "the target pod was created")
        nobody: Any = None
        turn = Turn(
            kube=kube, agents=nobody, rules=TransportRules(), queue=nobody, o=o, step=step, status=of.status, report={}
        )
        await act(turn)
        left = await api.fetch("pods", "redis-moved") or {"metadata": {"deletionTimestamp": "it is gone"}}
        assert ("deletionTimestamp" in left["metadata"]) is not recorded
        await kube.close()


async def test_another_pod_of_that_name_is_left_alone() -> None:
    async with FakeApi().running() as api:
        kube = Kube(client.Configuration(host=api.url))
        await stored(api)
        with pytest.raises(ConflictError):
            await kube.patch_pod(source_pod(), devalue())
        await kube.close()
