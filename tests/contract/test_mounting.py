"""Pods that mount a claim, against an API server: started once, found again by whoever comes, and only they removed."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from kubernetes.aio import client

from migration_api.names import LABEL_MIGRATION, LABEL_MOUNT
from migration_api.node import MigrationNode
from migration_api.stored import RemoveReport, RemoveRequest
from migration_api.transport import SharedVolume, Transport, TransportType
from migration_operator.kube import Kube
from migration_operator.mounting import (
    NotCleared,
    NotMounted,
    claim_facts,
    clear_for,
    mount_for,
    mount_points,
    mounts_of,
    start_mounts,
    stop_mounts,
)
from migration_operator.mounts import Owner, mount_name, mount_pod
from migration_operator.observation import Observation
from migration_operator.transport_facts import ClaimFacts, MountPoint, TransportFacts, TransportRules
from support.controller import NOW, SOURCE, TARGET, agent, begun, migration, preflight_facts
from support.fake_api import FakeApi, Refusal

OWNER = Owner.of(migration())
ANOTHER = Owner.of(migration(uid="5f0c7c1e-0000-4000-8000-0000000000ee", name="another"))
CLAIM = Transport(type=TransportType.SHARED_VOLUME, shared_volume=SharedVolume(claim="checkpoints"))


@asynccontextmanager
async def world() -> AsyncGenerator[tuple[FakeApi, Kube]]:
    async with FakeApi().running() as api:
        kube = Kube(client.Configuration(host=api.url))
        try:
            yield api, kube
        finally:
            await kube.close()


async def start(kube: Kube, owner: Owner = OWNER) -> None:
    await start_mounts(kube, owner, "checkpoints", "agent:1", (SOURCE, TARGET))


async def test_two_operators_start_one_on_each_node_and_find_it_again() -> None:
    async with world() as (api, kube):
        await start(kube)
        await start(kube)
        assert {pod.name for pod in await mounts_of(kube, OWNER)} == {mount_name(OWNER, n) for n in (SOURCE, TARGET)}
        points = await mount_points(kube, OWNER, "checkpoints")
        assert {(point.node, point.pending, point.missing) for point in points} == {
            (node, True, False) for node in (SOURCE, TARGET)
        }
        assert any("labelSelector=" in request and LABEL_MOUNT.split("/")[1] in request for request in api.requests)


async def test_only_its_own_are_removed_and_nobody_else_s_count() -> None:
    async with world() as (api, kube):
        await start(kube)
        await start(kube, ANOTHER)
        labels = {LABEL_MOUNT: "true", LABEL_MIGRATION: OWNER.uid}
        forged: dict[str, Any] = {"metadata": {"name": "mine", "labels": labels}, "spec": {}}
        await api.do(lambda: api.create("pods", forged, "shop"))
        await stop_mounts(kube, OWNER)
        assert await mounts_of(kube, OWNER) == []
        assert len(await mounts_of(kube, ANOTHER)) == 2
        assert await api.fetch("pods", "mine") is not None


async def test_what_the_kubelet_says_is_known() -> None:
    async with world() as (api, kube):
        await start(kube)
        [pod, other] = await mounts_of(kube, OWNER)

        def event(name: str, uid: str, message: str, at: str) -> None:
            about = {"involvedObject": {"uid": uid}, "type": "Warning", "reason": "FailedMount"}
            api.create("events", {"metadata": {"name": name}, **about, "message": message, "lastTimestamp": at}, "shop")

        await api.do(lambda: event("b", pod.uid, "access denied", "2026-05-04T12:00:09Z"))
        await api.do(lambda: event("a", pod.uid, "older", "2026-05-04T12:00:01Z"))
        points = {point.pod_uid: point.waits_for for point in await mount_points(kube, OWNER, "checkpoints")}
        assert points == {pod.uid: "FailedMount: access denied", other.uid: ""}


@pytest.mark.parametrize("status", [403, 422])
async def test_a_pod_that_is_refused_is_said(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    async with world() as (_, kube):

        def refuse(*_: object) -> None:
            raise Refusal(status, "a quota is used up")

        monkeypatch.setattr(FakeApi, "create", refuse)
        with pytest.raises(NotMounted, match="a quota is used up"):
            await start(kube)


async def test_a_claim_is_known_also_before_it_is_bound() -> None:
    async with world() as (api, kube):
        assert await claim_facts(kube, "shop", CLAIM) is None
        spec: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "volumeMode": "Block"}
        claim: dict[str, Any] = {"metadata": {"name": "checkpoints"}, "spec": spec}
        await api.do(lambda: api.create("persistentvolumeclaims", claim, "shop"))
        assert await claim_facts(kube, "shop", CLAIM) == ClaimFacts(frozenset({"ReadWriteMany"}), block=True)
        bound: dict[str, Any] = {"status": {"accessModes": ["ReadWriteOnce"]}}
        await api.do(lambda: api.patch("persistentvolumeclaims", "checkpoints", bound, "shop", status=True))
        assert await claim_facts(kube, "shop", CLAIM) == ClaimFacts(frozenset({"ReadWriteOnce"}), block=True)


def test_the_names_are_those_that_the_api_server_accepts() -> None:
    manifest = mount_pod(OWNER, "checkpoints", "n" * 253, "agent:1")
    assert len(manifest["metadata"]["name"]) <= 63
    assert all(len(value) <= 63 for value in manifest["metadata"]["labels"].values())


@dataclass
class Agents:
    """Answers every order to remove; notes what opens the store."""

    report: RemoveReport = field(default_factory=RemoveReport)
    asked: list[tuple[str, RemoveRequest]] = field(default_factory=list[tuple[str, RemoveRequest]])

    async def remove(self, node: MigrationNode, request: RemoveRequest) -> RemoveReport:
        self.asked.append((node.metadata.name, request))
        return self.report


def ended(*mounts: MountPoint) -> Observation:
    """A migration through the claim that was given up and that both agents have forgotten."""
    of = migration(status=begun(decision="Abort", transport=CLAIM.dump()))
    return Observation(NOW, of, source_agent=agent(SOURCE), target_agent=agent(TARGET), mounts=mounts)


async def test_the_claim_is_cleared_by_an_agent_that_has_it_mounted() -> None:
    agents = Agents()
    o = ended(MountPoint(SOURCE, "m1"), MountPoint(TARGET, "m2", ready=True))
    await clear_for(agents, o)  # pyright: ignore[reportArgumentType]
    [(node, request)] = agents.asked
    assert (node, request.uid, request.store.mount_pod) == (TARGET, o.migration.metadata.uid, "m2")


async def test_a_claim_that_is_not_cleared_is_said_and_whether_time_may_help() -> None:
    away = Agents(RemoveReport(problem="the claim is away", passing=True))
    with pytest.raises(NotCleared, match="node node-b: the claim is away") as problem:
        await clear_for(away, ended(MountPoint(TARGET, "m2", ready=True)))  # pyright: ignore[reportArgumentType]
    assert problem.value.passing
    late = MountPoint(SOURCE, "m1", failure="the pod m is not ready after 60 s")
    with pytest.raises(NotCleared, match="not ready after 60 s") as problem:
        await clear_for(away, ended(late))  # pyright: ignore[reportArgumentType]
    assert not problem.value.passing
    with pytest.raises(NotCleared, match="no agent has it mounted"):
        await clear_for(away, ended())  # pyright: ignore[reportArgumentType]


async def test_before_it_begins_it_is_mounted_where_it_is_missing_and_at_the_end_on_one_node() -> None:
    async with world() as (_, kube):
        facts = TransportFacts(CLAIM, TransportRules(), mounts=(MountPoint(SOURCE, "m1"), MountPoint(TARGET)))
        o = Observation(NOW, migration(), preflight=preflight_facts(transport=facts))
        await mount_for(kube, "agent:1", o)
        assert [pod.name for pod in await mounts_of(kube, OWNER)] == [mount_name(OWNER, TARGET)]
        await stop_mounts(kube, OWNER)
        await mount_for(kube, "agent:1", ended())
        assert [pod.name for pod in await mounts_of(kube, OWNER)] == [mount_name(OWNER, SOURCE)]
