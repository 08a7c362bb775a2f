"""`registers.Api` against an HTTP server that behaves as the API server does with the CRD's rules."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio.client import ApiClient, Configuration

from migration_agent.ports import ApiUnreachable, PodState
from migration_agent.registers import Api
from migration_agent.seen import Gone, Seen
from migration_api.conditions import Reason
from migration_api.migration import Decision, Outcome
from migration_api.node import MigrationNodeStatus
from migration_api.wire import Failure
from support.agent import MIGRATION, REF, SOURCE_POD, TARGET_POD

GROUP = "/apis/containermigration.io/v1alpha1"
PATH = f"{GROUP}/namespaces/default/containermigrations/move"


class Kube:
    """Holds objects by path; registers are write-once; `fail` answers before anything else."""

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {
            PATH: {"metadata": {"name": "move", "namespace": "default", "uid": MIGRATION}, "spec": {"podName": "p"}}
        }
        self.url = ""
        self.fail: list[int] = []
        self.lose_next_answer = False
        self.requests: list[tuple[str, str, Any]] = []

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.json() if request.can_read_body else None
        self.requests.append((request.method, request.path_qs, body))
        if self.fail:
            return self.status(self.fail.pop(0), "told to fail")
        answer = self.answer(request.method, request.path, body, request.content_type)
        if self.lose_next_answer and request.method == "PATCH":
            self.lose_next_answer = False
            return self.status(504, "the answer is lost")
        return answer

    def status(self, code: int, message: str) -> web.Response:
        return web.json_response({"kind": "Status", "message": message}, status=code)

    def answer(  # noqa: PLR0911  # one branch per request
        self, method: str, path: str, body: Any, content_type: str
    ) -> web.Response:
        if method == "POST" and path.endswith("/tokenreviews"):
            good = body["spec"] == {"token": "good", "audiences": ["a"]}
            user = {"authenticated": good, "audiences": ["a"] if good else [], "user": {"username": "operator"}}
            return web.json_response({"status": user})
        if method == "POST":
            self.objects[f"{path}/{body['metadata']['name']}"] = {**body, "status": {}}
            return web.json_response(body, status=201)
        if method == "GET" and path.endswith("/migrationnodes"):
            return web.json_response({"items": [v for k, v in self.objects.items() if k.startswith(path)]})
        kept = self.objects.get(path.removesuffix("/status"))
        if kept is None:
            return self.status(404, "not found")
        if method == "DELETE":
            if body["preconditions"]["uid"] != kept["metadata"]["uid"]:
                return self.status(409, "another UID")
            del self.objects[path]
        if method == "PATCH":
            assert content_type == "application/merge-patch+json"
            return self.patch(kept, body)
        return web.json_response(kept)

    def patch(self, kept: dict[str, Any], body: dict[str, Any]) -> web.Response:
        if body.get("metadata", {}).get("uid", kept["metadata"].get("uid")) != kept["metadata"].get("uid"):
            return self.status(409, "another UID")
        new = copy.deepcopy(kept)
        merge(new.setdefault("status", {}), body["status"])
        old = kept.get("status", {})
        for path in (("decision",), ("target", "outcome")):
            before, after = dig(old, path), dig(new["status"], path)
            if before is not None and before != after:
                return self.status(422, f"{path} is write-once")
        kept.clear()
        kept.update(new)
        return web.json_response(kept)


def merge(into: dict[str, Any], change: dict[str, Any]) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            merge(into.setdefault(key, {}), cast("dict[str, Any]", value))
        else:
            into[key] = value


def dig(it: dict[str, Any], path: tuple[str, ...]) -> Any:
    for key in path:
        it = it.get(key, {})
    return it or None


@pytest.fixture
async def kube() -> AsyncIterator[Kube]:
    it = Kube()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", it.handle)
    async with TestServer(application) as server:
        it.url = str(server.make_url("")).rstrip("/")
        yield it


@pytest.fixture
async def api(kube: Kube) -> AsyncIterator[Api]:
    configuration = Configuration()
    configuration.host = kube.url
    it = Api(ApiClient(configuration))
    yield it
    await it.close()


def status(kube: Kube) -> dict[str, Any]:
    return kube.objects[PATH].get("status", {})


async def test_reading_is_live_and_knows_the_object_by_its_uid(kube: Kube, api: Api) -> None:
    assert await api.read(REF) == Seen()
    assert kube.requests == [("GET", PATH, None)]  # no resourceVersion
    kube.objects[PATH]["spec"]["cancel"] = True
    seen = await api.read(REF)
    assert isinstance(seen, Seen)
    assert seen.given_up
    kube.objects[PATH]["metadata"]["uid"] = "another"
    assert await api.read(REF) == Gone()
    del kube.objects[PATH]
    assert await api.read(REF) == Gone()


async def test_the_winner_gets_its_value_and_the_loser_the_winners(kube: Kube, api: Api) -> None:
    failure = Failure(reason=Reason.FREEZE_BUDGET_EXCEEDED, message="too long")
    aborted = await api.propose(REF, Decision.ABORT, failure)
    assert isinstance(aborted, Seen)
    assert aborted.decision is Decision.ABORT
    assert status(kube)["source"] == {"reason": "FreezeBudgetExceeded", "message": "too long"}
    assert kube.requests[0][2]["metadata"] == {"uid": MIGRATION}
    loser = await api.propose(REF, Decision.COMMIT)
    assert isinstance(loser, Seen)
    assert loser.decision is Decision.ABORT


async def test_a_loser_leaves_no_reason_behind(kube: Kube, api: Api) -> None:
    await api.propose(REF, Decision.COMMIT)
    after = await api.propose(REF, Decision.ABORT, Failure(reason=Reason.SOURCE_LOST, message="x"))
    assert isinstance(after, Seen)
    assert after.decision is Decision.COMMIT
    assert "source" not in status(kube)


async def test_another_incarnation_is_never_written_to(kube: Kube, api: Api) -> None:
    kube.objects[PATH]["metadata"]["uid"] = "another"
    assert await api.propose(REF, Decision.COMMIT) == Gone()
    assert await api.write_outcome(REF, Outcome.RESUMED) == Gone()
    assert status(kube) == {}


async def test_a_write_whose_answer_is_lost_is_found_by_reading(kube: Kube, api: Api) -> None:
    kube.lose_next_answer = True
    after = await api.propose(REF, Decision.COMMIT)
    assert isinstance(after, Seen)
    assert after.decision is Decision.COMMIT


async def test_a_write_that_is_refused_without_a_winner_is_no_answer(kube: Kube, api: Api) -> None:
    kube.fail = [403]
    with pytest.raises(ApiUnreachable, match="told to fail"):
        await api.propose(REF, Decision.COMMIT)


async def test_trouble_is_tried_again_and_then_said(kube: Kube, api: Api) -> None:
    kube.fail = [503, 500]
    assert await api.read(REF) == Seen()
    kube.fail = [503] * 3
    with pytest.raises(ApiUnreachable, match="503"):
        await api.read(REF)
    kube.fail = [403]
    with pytest.raises(ApiUnreachable, match="403"):
        await api.read(REF)


async def test_outcome(kube: Kube, api: Api) -> None:
    await api.propose(REF, Decision.COMMIT)
    after = await api.write_outcome(REF, Outcome.RETURNED, "why")
    assert isinstance(after, Seen)
    assert after.outcome is Outcome.RETURNED
    assert status(kube)["target"] == {"outcome": "Returned", "message": "why"}
    late = await api.write_outcome(REF, Outcome.RESUMED)
    assert isinstance(late, Seen)
    assert late.outcome is Outcome.RETURNED


async def test_pods(kube: Kube, api: Api) -> None:
    path = "/api/v1/namespaces/default/pods/moved"
    assert await api.pod("default", "moved", TARGET_POD) is PodState.GONE
    kube.objects[path] = {"metadata": {"uid": TARGET_POD}, "status": {"phase": "Pending"}}
    assert await api.pod("default", "moved", TARGET_POD) is PodState.LIVE
    assert await api.pod("default", "moved", "another") is PodState.GONE
    kube.objects[path]["status"]["phase"] = "Failed"
    assert await api.pod("default", "moved", TARGET_POD) is PodState.GONE
    await api.delete_pod("default", "moved", SOURCE_POD)
    assert path in kube.objects
    await api.delete_pod("default", "moved", TARGET_POD)
    assert path not in kube.objects
    await api.delete_pod("default", "moved", TARGET_POD)


async def test_publishing_creates_and_peers_are_read(kube: Kube, api: Api) -> None:
    assert await api.own("node-a") is None
    await api.publish("node-a", MigrationNodeStatus(peer_endpoint="10.0.0.1:9444", certificate="nonsense"))
    own = await api.own("node-a")
    assert own is not None
    assert own.status.peer_endpoint == "10.0.0.1:9444"
    assert await api.peers() == ()  # its certificate is none


async def test_tokens(api: Api) -> None:
    assert await api.user_of("good", "a") == "operator"
    assert await api.user_of("bad", "a") is None
