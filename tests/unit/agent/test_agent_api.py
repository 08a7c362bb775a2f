"""The agent's HTTPS API for the operator, its certificate, its settings, and what it publishes."""

# fakes have the signatures of what they stand for

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import aiohttp
import pytest
from aiohttp.test_utils import unused_port
from cryptography import x509

from migration_agent.certificate import ensure_certificate
from migration_agent.kept import Kept
from migration_agent.metrics import REGISTRY
from migration_agent.migrations import Conflict
from migration_agent.places import Places
from migration_agent.ports import ApiUnreachable
from migration_agent.publisher import ready
from migration_agent.server import BODY_BYTES, ApiServer, Doorkeeper
from migration_agent.settings import Settings, SettingsError
from migration_agent.transport.store import HOME
from migration_api.podman import PodmanFacts
from migration_api.shipping import ProbeProblem, ProbeReport
from migration_api.wire import (
    ErrorBody,
    MigrationReport,
    PodFacts,
    SourceReport,
    SourceRequest,
    SourceState,
    TargetRequest,
)
from support.agent import MIGRATION, SHIPPING, SOURCE_POD, source_request

OPERATOR = "system:serviceaccount:cm:container-migration-operator"
GOOD = "good"
REPORT = MigrationReport(uid=MIGRATION, revision=7, source=SourceReport(state=SourceState.SENT))


class Desk:
    """Knows one migration."""

    def __init__(self) -> None:
        self.waits: list[tuple[int, float]] = []
        self.settled = False

    async def put_source(self, request: SourceRequest) -> MigrationReport:
        if request.pod_uid != SOURCE_POD:
            raise Conflict(f"pod {request.pod_uid} is held by migration other")
        return REPORT

    async def put_target(self, request: TargetRequest) -> MigrationReport:
        return REPORT

    async def wait(self, uid: str, after: int, seconds: float) -> MigrationReport:
        self.waits.append((after, seconds))
        return {MIGRATION: REPORT}[uid]

    async def settle(self, uid: str) -> MigrationReport:
        return {MIGRATION: REPORT}[uid]

    async def forget(self, uid: str) -> None:
        if not self.settled:
            raise Conflict("not settled")

    async def holder(self, pod_uid: str) -> str | None:
        return MIGRATION if pod_uid == SOURCE_POD else None


class Agent:
    """A served API and a client that trusts exactly its certificate."""

    def __init__(self, session: aiohttp.ClientSession, url: str, desk: Desk) -> None:
        self.session, self.url, self.desk = session, url, desk
        self.reviews: list[str] = []
        self.away = False

    async def user_of(self, token: str, audience: str) -> str | None:
        assert audience == "container-migration-agent"
        if self.away:
            raise ApiUnreachable("away")
        self.reviews.append(token)
        return {"good": OPERATOR, "other": "system:serviceaccount:default:default"}.get(token)

    async def ask(self, method: str, path: str, token: str | None = GOOD, body: str | None = None) -> tuple[int, str]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with self.session.request(method, self.url + path, headers=headers, data=body) as response:
            return response.status, await response.text()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    certificate, key = tmp_path / "crt", tmp_path / "key"
    pem = ensure_certificate(certificate, key, "node-a", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    port, desk = unused_port(), Desk()
    trusting = ssl.create_default_context(cadata=pem)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
        it = Agent(session, f"https://127.0.0.1:{port}", desk)

        def facts(uid: str, migration: str | None) -> PodFacts | None:
            return PodFacts(pod_uid=uid, containers=(), migration=migration) if uid == SOURCE_POD else None

        places = Places("node-a", (tmp_path,))
        doorkeeper = Doorkeeper(OPERATOR, it.user_of)
        server = ApiServer(
            desk, doorkeeper, facts, places.probe, Kept(places), podman=lambda _: PodmanFacts(problem="none")
        )
        await server.start("127.0.0.1", port, context)
        yield it
        await server.stop()


async def test_health_needs_no_token_and_everything_else_does(agent: Agent) -> None:
    assert await agent.ask("GET", "/healthz", token=None) == (200, "ok")
    for token, status in ((None, 401), ("bad", 401), ("other", 403)):
        code, body = await agent.ask("GET", f"/v1/migrations/{MIGRATION}", token=token)
        assert code == status
        assert ErrorBody.model_validate_json(body).message
    agent.away = True
    assert (await agent.ask("GET", f"/v1/migrations/{MIGRATION}", token="new"))[0] == 503


def refused(why: str) -> float:
    name = "container_migration_agent_refused_requests_total"
    return REGISTRY.get_sample_value(name, {"asked_by": "operator", "why": why}) or 0


async def test_refusals_are_counted_and_what_is_not_here_is_none(agent: Agent) -> None:
    before = {why: refused(why) for why in ("401", "403", "404", "409")}
    await agent.ask("GET", f"/v1/migrations/{MIGRATION}", token=None)
    await agent.ask("GET", f"/v1/migrations/{MIGRATION}", token="other")
    await agent.ask("GET", f"/v1/pods/{MIGRATION}")
    await agent.ask("DELETE", f"/v1/migrations/{MIGRATION}")
    assert {why: refused(why) - count for why, count in before.items()} == {"401": 1, "403": 1, "404": 0, "409": 1}


async def test_a_token_is_checked_once_a_minute(agent: Agent) -> None:
    for _ in range(3):
        assert (await agent.ask("GET", f"/v1/migrations/{MIGRATION}"))[0] == 200
    assert agent.reviews == ["good"]


async def test_requests_and_reports(agent: Agent) -> None:
    body = json.dumps(source_request().dump(reveal=True))
    code, answer = await agent.ask("PUT", f"/v1/migrations/{MIGRATION}/source", body=body)
    assert code == 200
    assert MigrationReport.model_validate_json(answer) == REPORT
    assert (await agent.ask("GET", f"/v1/migrations/{MIGRATION}?after=3&wait=900"))[0] == 200
    assert agent.desk.waits == [(3, 30.0)]
    assert (await agent.ask("POST", f"/v1/migrations/{MIGRATION}/settle"))[0] == 200
    code, answer = await agent.ask("GET", f"/v1/pods/{SOURCE_POD}")
    assert PodFacts.model_validate_json(answer).migration == MIGRATION


async def test_conflicts_and_unknowns(agent: Agent) -> None:
    other = json.dumps(source_request().model_copy(update={"pod_uid": "other"}).dump(reveal=True))
    assert (await agent.ask("PUT", f"/v1/migrations/{MIGRATION}/source", body=other))[0] == 409
    assert (await agent.ask("DELETE", f"/v1/migrations/{MIGRATION}"))[0] == 409
    agent.desk.settled = True
    assert (await agent.ask("DELETE", f"/v1/migrations/{MIGRATION}"))[0] == 204
    for path in ("/v1/migrations/unknown", "/v1/pods/unknown", "/nowhere"):
        assert (await agent.ask("GET", path))[0] == 404


async def test_i8_bad_input_is_refused(agent: Agent) -> None:
    path = f"/v1/migrations/{MIGRATION}/source"
    good = source_request()
    key = SHIPPING.key.get_secret_value()
    two = json.dumps(good.model_copy(update={"containers": ("b", "a"), "order": ("a", "b")}).dump(reveal=True))
    short = json.dumps(good.dump(reveal=True)).replace(key, key[:40])
    nameless = json.dumps({**good.dump(reveal=True), "podName": None})
    for body in ("", "{}", "[]", two, short, nameless):
        code, answer = await agent.ask("PUT", path, body=body)
        assert code == 400
        assert key[:40] not in answer, "I7: an error message shows the key"
    body = json.dumps(good.dump(reveal=True))
    assert (await agent.ask("PUT", "/v1/migrations/other/source", body=body))[0] == 400
    assert (await agent.ask("PUT", path, body="x" * (BODY_BYTES + 1)))[0] == 413
    assert (await agent.ask("GET", "/v1/migrations/..%2f..%2fetc"))[0] == 400
    assert (await agent.ask("GET", f"/v1/migrations/{MIGRATION}?after=x"))[0] == 400


async def test_a_store_is_tried(agent: Agent, tmp_path: Path) -> None:
    uid = "5f0c7c1e-0000-4000-8000-0000000000ff"
    probe = {"uid": uid, "step": "Write", "content": "0" * 32, "store": {"sharedVolume": {"path": str(tmp_path)}}}
    code, answer = await agent.ask("POST", "/v1/stores/probe", body=json.dumps(probe))
    assert (code, ProbeReport.model_validate_json(answer)) == (200, ProbeReport())
    assert (tmp_path / HOME / uid / "probe").read_bytes() == b"0" * 32
    elsewhere = {**probe, "store": {"sharedVolume": {"path": "/etc"}}}
    code, answer = await agent.ask("POST", "/v1/stores/probe", body=json.dumps(elsewhere))
    assert ProbeReport.model_validate_json(answer).problem is ProbeProblem.UNUSABLE
    assert "allowedPaths" in answer
    store = {"objectStore": {"url": "s3://b"}, "credentials": {"secret_access_key": ["hush-hush"]}}
    code, answer = await agent.ask("POST", "/v1/stores/probe", body=json.dumps({**probe, "store": store}))
    assert code == 400
    assert "hush" not in answer, "I7: an error message shows credentials"


def test_a_certificate_is_kept_and_renewed_before_it_ends(tmp_path: Path) -> None:
    certificate, key = tmp_path / "crt", tmp_path / "key"
    first = ensure_certificate(certificate, key, "node-a", "10.0.0.1")
    assert ensure_certificate(certificate, key, "node-a", "10.0.0.1") == first
    assert key.stat().st_mode & 0o777 == 0o600
    later = datetime.now(UTC) + timedelta(days=340)
    renewed = ensure_certificate(certificate, key, "node-a", "10.0.0.1", at=later)
    assert renewed != first
    moved = ensure_certificate(certificate, key, "node-a", "10.0.0.2", at=later)
    assert moved != renewed
    constraints = x509.load_pem_x509_certificate(moved.encode()).extensions.get_extension_for_class(
        x509.BasicConstraints
    )
    assert not constraints.value.ca
    key.write_bytes(b"damaged")
    assert ensure_certificate(certificate, key, "node-a", "10.0.0.2", at=later) != moved


def test_settings() -> None:
    environ = {"NODE_NAME": "node-a", "POD_IP": "fd00::1", "NAMESPACE": "cm"}
    it = Settings.from_environment(environ)
    assert it.operator_account == OPERATOR
    assert it.endpoint(it.peer_port) == "[fd00::1]:9444"
    for name in environ:
        with pytest.raises(SettingsError, match=name):
            Settings.from_environment({k: v for k, v in environ.items() if k != name})
    more = {"SHARED_PATHS": "/mnt/a,/mnt/b", "LEFTOVER_SECONDS": "90000", "BYTES_PER_SECOND": "1000000"}
    more["LOG_LEVEL"] = "debug"
    chosen = Settings.from_environment({**environ, **more})
    assert chosen.shared_paths == (Path("/mnt/a"), Path("/mnt/b"))
    assert (chosen.leftover_seconds, chosen.bytes_per_second) == (90000, 1000000)
    assert (it.log_level, chosen.log_level) == ("INFO", "DEBUG")
    assert (it.shared_paths, it.bytes_per_second) == ((), None)
    with pytest.raises(SettingsError, match="BYTES_PER_SECOND"):
        Settings.from_environment({**environ, "BYTES_PER_SECOND": "0"})
    with pytest.raises(SettingsError, match="API_PORT"):
        Settings.from_environment({**environ, "API_PORT": "99999"})


def test_ready_says_everything_that_is_missing_and_keeps_its_time() -> None:
    bad = ready((), ("CRIU is missing.", "The handler is missing."), 1)
    assert (bad.status, bad.message) == ("False", "CRIU is missing. The handler is missing.")
    still = ready((bad,), ("CRIU is missing.",), 1)
    assert still.last_transition_time == bad.last_transition_time
    assert ready((still,), (), 1).status == "True"
