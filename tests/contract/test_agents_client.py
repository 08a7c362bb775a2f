"""The operator's client against the agent's own server, over HTTPS with the agent's own certificate."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from pydantic import SecretStr

from migration_agent.certificate import ensure_certificate
from migration_agent.migrations import Conflict
from migration_agent.ports import ApiUnreachable
from migration_agent.server import ApiServer, Doorkeeper
from migration_api.names import AGENT_AUDIENCE
from migration_api.node import MigrationNode
from migration_api.podman import PodmanFacts, PodmanQuestion
from migration_api.shipping import ProbeProblem, ProbeReport, ProbeStep, StoreAccess, StoreProbe
from migration_api.stored import KeepReport, KeepRequest, RemoveReport, RemoveRequest
from migration_api.transport import ObjectStore, SecretReference, SharedVolume
from migration_api.wire import (
    ContainerFacts,
    MigrationRef,
    MigrationReport,
    PodFacts,
    SourceReport,
    SourceRequest,
    SourceState,
    TargetReport,
    TargetRequest,
    TargetState,
)
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from support.agent import SHIPPING
from support.controller import SOURCE, SOURCE_UID, TARGET_UID, UID, migration_node

OPERATOR = "system:serviceaccount:container-migration:operator"
REF = MigrationRef(namespace="shop", name="move", uid=UID)
FACTS = PodFacts(
    pod_uid=SOURCE_UID,
    containers=(ContainerFacts(name="main", container_id="c1", memory_bytes=1, runtime="runc"),),
)


class Desk:
    """Answers as the agent's migrations do; a test sets what there is to report."""

    def __init__(self) -> None:
        self.report: MigrationReport | None = None
        self.changed = asyncio.Event()
        self.told: list[object] = []
        self.problem: Exception | None = None

    async def put_source(self, request: SourceRequest) -> MigrationReport:
        return self._put(request, MigrationReport(uid=UID, revision=1, source=SourceReport(state=SourceState.ACCEPTED)))

    async def put_target(self, request: TargetRequest) -> MigrationReport:
        return self._put(request, MigrationReport(uid=UID, revision=1, target=TargetReport(state=TargetState.PREPARED)))

    def _put(self, request: object, report: MigrationReport) -> MigrationReport:
        if self.problem:
            raise self.problem
        self.told.append(request)
        self.report = report
        return report

    async def wait(self, uid: str, after: int, seconds: float) -> MigrationReport:
        if self.report is None:
            raise KeyError(uid)
        if self.report.revision <= after:
            async with asyncio.timeout(seconds):
                await self.changed.wait()
        return self.report

    async def settle(self, uid: str) -> MigrationReport:
        self.told.append("settle")
        return await self.wait(uid, -1, 0)

    async def forget(self, uid: str) -> None:
        if self.problem:
            raise self.problem
        self.report = None

    async def holder(self, pod_uid: str) -> str | None:
        return None


def probe(asked: StoreProbe) -> ProbeReport:
    """Say what arrived, as no agent does."""
    secret = asked.store.credentials["secret_access_key"]
    return ProbeReport(problem=ProbeProblem.UNUSABLE, message=f"{asked.step} {secret.get_secret_value()}")


class Shelf:
    """Says what arrived, as no agent does."""

    def keep(self, request: KeepRequest) -> KeepReport:
        return KeepReport(problem=f"{request.uid} {request.key.get_secret_value()}", passing=True)

    def remove(self, request: RemoveRequest) -> RemoveReport:
        return RemoveReport(problem=f"{request.uid} {request.store.shared_volume}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as it:
        return it.getsockname()[1]


async def user_of(token: str, audience: str) -> str | None:
    assert audience == AGENT_AUDIENCE
    if token == "nobody-knows":
        raise ApiUnreachable("the API server is away")
    return {"good": OPERATOR, "renewed": OPERATOR, "other": "system:serviceaccount:shop:default"}.get(token)


def podman(question: PodmanQuestion) -> PodmanFacts:
    return PodmanFacts(criu_version=question.container)


@asynccontextmanager
async def serving(desk: Desk, directory: Path) -> AsyncGenerator[MigrationNode]:
    """Run the agent's server; yield its MigrationNode."""
    files = directory / "agent.crt", directory / "agent.key"
    pem = ensure_certificate(*files, SOURCE, "127.0.0.1")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    doorkeeper = Doorkeeper(OPERATOR, user_of)
    server = ApiServer(
        desk, doorkeeper, lambda uid, _: FACTS if uid == SOURCE_UID else None, probe, Shelf(), podman=podman
    )
    port = free_port()
    await server.start("127.0.0.1", port, context)
    try:
        yield migration_node(SOURCE, endpoint=f"https://127.0.0.1:{port}", certificate=pem)
    finally:
        await server.stop()


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
async def node(desk: Desk, tmp_path: Path) -> AsyncIterator[MigrationNode]:
    async with serving(desk, tmp_path) as it:
        yield it


@pytest.fixture
async def agents(tmp_path: Path) -> AsyncIterator[Agents]:
    token = tmp_path / "token"
    token.write_text("good\n")
    client = Agents(token)
    yield client
    await client.close()


def target_request() -> TargetRequest:
    return TargetRequest(
        migration=REF,
        pod_name="redis-moved",
        pod_uid=TARGET_UID,
        containers=("main",),
        source_node=SOURCE,
        freeze_budget_seconds=30,
        shipping=SHIPPING,
    )


def source_request() -> SourceRequest:
    return SourceRequest(
        migration=REF,
        pod_name="redis",
        pod_uid=SOURCE_UID,
        containers=("main",),
        target_node="node-b",
        freeze_budget_seconds=30,
        shipping=SHIPPING,
    )


async def test_a_pod_and_one_that_is_not_there(agents: Agents, node: MigrationNode) -> None:
    assert await agents.pod(node, SOURCE_UID) == FACTS
    assert await agents.pod(node, TARGET_UID) is None


async def test_requests_arrive_as_they_were_made(agents: Agents, node: MigrationNode, desk: Desk) -> None:
    assert await agents.report(node, UID) is None
    await agents.put_target(node, target_request())
    report = await agents.report(node, UID)
    assert report is not None
    assert report.target == TargetReport(state=TargetState.PREPARED)
    await agents.put_source(node, source_request())
    await agents.settle(node, UID)
    assert desk.told == [target_request(), source_request(), "settle"]
    await agents.forget(node, UID)
    assert await agents.report(node, UID) is None


async def test_a_probe_arrives_with_its_secrets_and_shows_them_nowhere(agents: Agents, node: MigrationNode) -> None:
    bucket = ObjectStore(url="s3://checkpoints", secret_ref=SecretReference(name="s3"))
    access = StoreAccess(object_store=bucket, credentials={"secret_access_key": SecretStr("hush")})
    asked = StoreProbe(uid=UID, step=ProbeStep.WRITE, content="0" * 32, store=access)
    answer = await agents.probe(node, asked)
    assert answer == ProbeReport(problem=ProbeProblem.UNUSABLE, message="Write hush")
    assert "hush" not in repr(asked) + str(asked) + asked.model_dump_json() + str(asked.dump())


async def test_a_report_is_waited_for(agents: Agents, node: MigrationNode, desk: Desk) -> None:
    await agents.put_source(node, source_request())
    waiting = asyncio.create_task(agents.report(node, UID, after=1, wait=20))
    await asyncio.sleep(0)
    assert not waiting.done()
    desk.report = MigrationReport(uid=UID, revision=2, source=SourceReport(state=SourceState.FROZEN))
    desk.changed.set()
    report = await waiting
    assert report is not None
    assert report.revision == 2


async def test_a_refusal_has_the_agent_s_own_words(agents: Agents, node: MigrationNode, desk: Desk) -> None:
    desk.problem = Conflict("migration X holds this pod")
    with pytest.raises(AgentRefused, match="migration X holds this pod"):
        await agents.put_source(node, source_request())
    with pytest.raises(AgentRefused, match="migration X holds this pod"):
        await agents.forget(node, UID)


async def test_an_unexpected_failure_is_worth_another_try(agents: Agents, node: MigrationNode, desk: Desk) -> None:
    desk.problem = OSError("disk full")
    with pytest.raises(AgentUnreachable, match="disk full"):
        await agents.put_source(node, source_request())


async def test_only_the_published_certificate_is_trusted(agents: Agents, node: MigrationNode, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    pem = ensure_certificate(other / "crt", other / "key", SOURCE, "127.0.0.1")
    with pytest.raises(AgentUnreachable, match=r"(?i)certificate"):
        await agents.report(migration_node(SOURCE, endpoint=node.status.endpoint, certificate=pem), UID)
    assert await agents.report(node, UID) is None


async def test_the_token_is_read_for_each_request(agents: Agents, node: MigrationNode, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("expired")
    with pytest.raises(AgentUnreachable, match="not valid for audience"):
        await agents.report(node, UID)
    token.write_text("renewed")
    assert await agents.report(node, UID) is None
    token.write_text("other")
    with pytest.raises(AgentRefused, match="is not system:serviceaccount"):
        await agents.report(node, UID)
    token.write_text("nobody-knows")
    with pytest.raises(AgentUnreachable, match="the API server is away"):
        await agents.report(node, UID)
    token.unlink()
    with pytest.raises(AgentUnreachable, match="No such file"):
        await agents.report(node, UID)


async def test_nobody_listens(agents: Agents, tmp_path: Path, desk: Desk) -> None:
    async with serving(desk, tmp_path) as node:
        pass
    with pytest.raises(AgentUnreachable, match="Cannot connect"):
        await agents.report(node, UID)
    nowhere = migration_node(SOURCE, endpoint=None)
    with pytest.raises(AgentUnreachable, match="not published"):
        await agents.report(nowhere, UID)


async def test_what_is_kept_and_removed_arrives_and_no_secret_is_shown(agents: Agents, node: MigrationNode) -> None:
    key = SecretStr(base64.b64encode(bytes(range(32))).decode())
    access = StoreAccess(shared_volume=SharedVolume(path="/mnt/shared"))
    request = KeepRequest(uid=UID, key=key, store=access)
    report = await agents.keep(node, request)
    assert (report.problem, report.passing) == (f"{UID} {key.get_secret_value()}", True)
    assert key.get_secret_value() not in repr(request)
    assert "/mnt/shared" in (await agents.remove(node, RemoveRequest(uid=UID, store=access))).problem
