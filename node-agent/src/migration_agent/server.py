"""What the operator may ask over HTTPS (docs/protocol.md, section 5)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import ssl
import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Protocol, TypeVar

from aiohttp import web
from pydantic import ValidationError

from migration_agent.metrics import REFUSED
from migration_agent.migrations import Conflict
from migration_agent.paths import UnsafeName, checked_uid
from migration_agent.ports import ApiUnreachable
from migration_api.base import Model
from migration_api.names import AGENT_AUDIENCE
from migration_api.podman import PodmanFacts, PodmanQuestion
from migration_api.shipping import ProbeReport, StoreProbe
from migration_api.stored import KeepReport, KeepRequest, RemoveReport, RemoveRequest
from migration_api.wire import ErrorBody, MigrationReport, PodFacts, SourceRequest, TargetRequest

log = logging.getLogger(__name__)

BODY_BYTES = 64 * 1024
WAIT_SECONDS_MAX = 30.0
_TOKEN_SECONDS = 60.0
_TOKENS_MAX = 256

ModelT = TypeVar("ModelT", bound=Model)


class Desk(Protocol):
    """The part of `Migrations` that the operator reaches."""

    async def put_source(self, request: SourceRequest) -> MigrationReport: ...
    async def put_target(self, request: TargetRequest) -> MigrationReport: ...
    async def wait(self, uid: str, after: int, seconds: float) -> MigrationReport: ...
    async def settle(self, uid: str) -> MigrationReport: ...
    async def forget(self, uid: str) -> None: ...
    async def holder(self, pod_uid: str) -> str | None: ...


class Shelf(Protocol):
    """What the operator asks about checkpoints that stay in a store; blocks."""

    def keep(self, request: KeepRequest) -> KeepReport: ...
    def remove(self, request: RemoveRequest) -> RemoveReport: ...


class Problem(Exception):
    """An answer with status >= 400."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class Doorkeeper:
    """Lets only the operator in; a checked token is believed for at most 60 s."""

    def __init__(self, account: str, user_of: Callable[[str, str], Awaitable[str | None]]) -> None:
        """`user_of`: the user whom a token with an audience stands for, from the API server."""
        self._account = account
        self._user_of = user_of
        self._known: dict[bytes, tuple[float, str | None]] = {}

    async def admit(self, header: str | None) -> None:
        """Return when the token is the operator's.

        Raises:
            Problem: it is not, or the API server could not be asked.
        """
        scheme, _, token = (header or "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise Problem(HTTPStatus.UNAUTHORIZED, "a bearer token is needed")
        try:
            user = await self._user(token.strip())
        except ApiUnreachable as error:
            raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, f"the token could not be checked: {error}") from error
        if user is None:
            raise Problem(HTTPStatus.UNAUTHORIZED, f"the token is not valid for audience {AGENT_AUDIENCE}")
        if user != self._account:
            raise Problem(HTTPStatus.FORBIDDEN, f"{user} is not {self._account}")

    async def _user(self, token: str) -> str | None:
        digest = hashlib.sha256(token.encode()).digest()
        moment = time.monotonic()
        kept = self._known.get(digest)
        if kept is not None and moment - kept[0] < _TOKEN_SECONDS:
            return kept[1]
        user = await self._user_of(token, AGENT_AUDIENCE)
        if len(self._known) >= _TOKENS_MAX:
            self._known.clear()
        self._known[digest] = (moment, user)
        return user


class ApiServer:
    """The agent's HTTPS API."""

    def __init__(
        self,
        desk: Desk,
        doorkeeper: Doorkeeper,
        pod_facts: Callable[[str, str | None], PodFacts | None],
        probe: Callable[[StoreProbe], ProbeReport],
        shelf: Shelf,
        *,
        podman: Callable[[PodmanQuestion], PodmanFacts],
    ) -> None:
        """Nothing is served before `start`.

        Args:
            desk: knows the migrations.
            doorkeeper: knows the operator.
            pod_facts: by pod UID and the migration that holds it; None when the pod is not here; blocks.
            probe: tries a store; blocks.
            shelf: keeps and removes what lies in a store; blocks.
            podman: answers for the node's Podman; blocks.
        """
        self._podman = podman
        self._probe = probe
        self._shelf = shelf
        self._desk = desk
        self._doorkeeper = doorkeeper
        self._pod_facts = pod_facts
        self._runner: web.AppRunner | None = None

    def application(self) -> web.Application:
        """Return the routes."""
        application = web.Application(client_max_size=BODY_BYTES, middlewares=[self._guard])
        application.add_routes(
            [
                web.get("/healthz", self._healthz),
                web.get("/v1/pods/{uid}", self._pod),
                web.post("/v1/podman", self._podmans),
                web.post("/v1/stores/probe", self._store),
                web.post("/v1/stored/keep", self._keep),
                web.post("/v1/stored/remove", self._remove),
                web.put("/v1/migrations/{uid}/source", self._source),
                web.put("/v1/migrations/{uid}/target", self._target),
                web.get("/v1/migrations/{uid}", self._report),
                web.post("/v1/migrations/{uid}/settle", self._settle),
                web.delete("/v1/migrations/{uid}", self._forget),
            ]
        )
        return application

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> None:
        """Listen."""
        self._runner = web.AppRunner(self.application(), access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port, ssl_context=context).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Check who asks, and turn whatever goes wrong into an `ErrorBody`."""
        try:
            if request.path != "/healthz":
                await self._doorkeeper.admit(request.headers.get("Authorization"))
            if "uid" in request.match_info:
                checked_uid(request.match_info["uid"])
            return await handler(request)
        except Problem as error:
            return _error(error.status, str(error))
        except Conflict as error:
            return _error(HTTPStatus.CONFLICT, str(error))
        except UnsafeName as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        except web.HTTPException as error:
            return _error(HTTPStatus(error.status), error.reason)
        except Exception as error:
            log.exception("%s %s failed", request.method, request.path)
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{type(error).__name__}: {error}")

    async def _healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _pod(self, request: web.Request) -> web.Response:
        uid = request.match_info["uid"]
        holder = await self._desk.holder(uid)
        facts = await asyncio.to_thread(self._pod_facts, uid, holder)
        if facts is None:
            raise Problem(HTTPStatus.NOT_FOUND, f"pod {uid} has no containers on this node")
        return _answer(facts)

    async def _podmans(self, request: web.Request) -> web.Response:
        return _answer(await asyncio.to_thread(self._podman, await _body(request, PodmanQuestion)))

    async def _store(self, request: web.Request) -> web.Response:
        return _answer(await asyncio.to_thread(self._probe, await _body(request, StoreProbe)))

    async def _keep(self, request: web.Request) -> web.Response:
        return _answer(await asyncio.to_thread(self._shelf.keep, await _body(request, KeepRequest)))

    async def _remove(self, request: web.Request) -> web.Response:
        return _answer(await asyncio.to_thread(self._shelf.remove, await _body(request, RemoveRequest)))

    async def _source(self, request: web.Request) -> web.Response:
        body = await _body(request, SourceRequest)
        _demand_same_uid(request, body.migration.uid)
        return _answer(await self._desk.put_source(body))

    async def _target(self, request: web.Request) -> web.Response:
        body = await _body(request, TargetRequest)
        _demand_same_uid(request, body.migration.uid)
        return _answer(await self._desk.put_target(body))

    async def _report(self, request: web.Request) -> web.Response:
        after = _number(request, "after", -1.0)
        seconds = min(max(_number(request, "wait", 0.0), 0.0), WAIT_SECONDS_MAX)
        return await _known(request, lambda uid: self._desk.wait(uid, int(after), seconds))

    async def _settle(self, request: web.Request) -> web.Response:
        return await _known(request, self._desk.settle)

    async def _forget(self, request: web.Request) -> web.Response:
        await self._desk.forget(request.match_info["uid"])
        return web.Response(status=HTTPStatus.NO_CONTENT)


async def _known(request: web.Request, ask: Callable[[str], Awaitable[MigrationReport]]) -> web.Response:
    uid = request.match_info["uid"]
    try:
        return _answer(await ask(uid))
    except KeyError:
        raise Problem(HTTPStatus.NOT_FOUND, f"this node knows nothing of migration {uid}") from None


async def _body(request: web.Request, model: type[ModelT]) -> ModelT:
    try:
        return model.model_validate_json(await request.read())
    except ValidationError as error:
        raise Problem(HTTPStatus.BAD_REQUEST, f"the body is not a {model.__name__}: {error}") from error


def _demand_same_uid(request: web.Request, uid: str) -> None:
    if request.match_info["uid"] != uid:
        raise Problem(HTTPStatus.BAD_REQUEST, "the UID in the path is not the one in the body")


def _number(request: web.Request, name: str, default: float) -> float:
    try:
        return float(request.query.get(name, default))
    except ValueError:
        raise Problem(HTTPStatus.BAD_REQUEST, f"{name} is not a number") from None


def _answer(model: Model) -> web.Response:
    return web.json_response(text=model.model_dump_json(by_alias=True, exclude_none=True))


def _error(status: HTTPStatus, message: str) -> web.Response:
    if status is not HTTPStatus.NOT_FOUND:  # an ordinary answer
        REFUSED.labels("operator", str(status.value)).inc()
    body = ErrorBody(message=message[:30000])
    return web.json_response(status=status, text=body.model_dump_json(by_alias=True))
