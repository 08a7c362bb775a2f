"""The one module that talks to the node agents: HTTPS, trusting exactly the certificate that a MigrationNode shows."""

from __future__ import annotations

import asyncio
import ssl
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import aiohttp
from pydantic import ValidationError

from migration_api.base import Model
from migration_api.node import MigrationNode
from migration_api.podman import PodmanFacts, PodmanQuestion
from migration_api.shipping import ProbeReport, StoreProbe
from migration_api.stored import KeepReport, KeepRequest, RemoveReport, RemoveRequest
from migration_api.wire import ErrorBody, MigrationReport, PodFacts, SourceRequest, TargetRequest

M = TypeVar("M", bound=Model)

REQUEST_SECONDS = 8.0
"""For a request that does not wait: an agent answers at once and works afterwards."""

_STORE_SECONDS = 30.0
"""For a request that waits for a store."""

_CONNECT_SECONDS = 3.0
_ANSWER_BYTES = 1024 * 1024
_NOT_FOUND = 404
_REFUSALS = (400, 403, 409, 422)
"""The same request would be refused again; everything else that is not an answer is worth another try."""


class AgentUnreachable(Exception):
    """The agent did not answer, or not as an agent does; the message says why."""


class AgentRefused(Exception):
    """The agent will not do it; the message is its own."""


class Agents:
    """The requests of docs/protocol.md, section 5. One object for all agents; `close` it at the end.

    Args:
        token_file: holds the token that agents are shown; it is read for each request, because the kubelet renews it.
    """

    def __init__(self, token_file: Path) -> None:
        self._token_file = token_file
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def pod(self, node: MigrationNode, pod_uid: str) -> PodFacts | None:
        """Return what the agent finds of that pod; None when it is not on that node."""
        text = await self._ask(node, "GET", f"/v1/pods/{pod_uid}")
        return None if text is None else _parse(PodFacts, text)

    async def podman(self, node: MigrationNode, question: PodmanQuestion) -> PodmanFacts:
        """Return what the node's Podman says; it may have to look at every file of a container."""
        return await self._post(node, "/v1/podman", question, PodmanFacts)

    async def report(
        self, node: MigrationNode, uid: str, *, after: int | None = None, wait: float = 0
    ) -> MigrationReport | None:
        """Return what the agent knows of that migration; None when nothing.

        With `after` it answers when its revision exceeds that number, or after `wait` seconds.
        """
        query = f"?after={after}&wait={wait:.0f}" if after is not None else ""
        text = await self._ask(node, "GET", f"/v1/migrations/{uid}{query}", seconds=REQUEST_SECONDS + wait)
        return None if text is None else _parse(MigrationReport, text)

    async def put_target(self, node: MigrationNode, request: TargetRequest) -> None:
        """Let the agent expect the migration's checkpoint for that pod."""
        await self._tell(node, "PUT", f"/v1/migrations/{request.migration.uid}/target", request)

    async def put_source(self, node: MigrationNode, request: SourceRequest) -> None:
        """Let the agent freeze, checkpoint and send."""
        await self._tell(node, "PUT", f"/v1/migrations/{request.migration.uid}/source", request)

    async def probe(self, node: MigrationNode, probe: StoreProbe) -> ProbeReport:
        """Let the agent find out whether a store can be used from its node."""
        return await self._post(node, "/v1/stores/probe", probe, ProbeReport)

    async def keep(self, node: MigrationNode, request: KeepRequest) -> KeepReport:
        """Let the agent see whether a checkpoint is complete in its store, and mark it."""
        return await self._post(node, "/v1/stored/keep", request, KeepReport)

    async def remove(self, node: MigrationNode, request: RemoveRequest) -> RemoveReport:
        """Let the agent remove a checkpoint from its store."""
        return await self._post(node, "/v1/stored/remove", request, RemoveReport)

    async def settle(self, node: MigrationNode, uid: str) -> None:
        """Let the agent look at the registers now."""
        await self._ask(node, "POST", f"/v1/migrations/{uid}/settle")

    async def forget(self, node: MigrationNode, uid: str) -> None:
        """Let the agent remove what it kept of a settled migration."""
        await self._ask(node, "DELETE", f"/v1/migrations/{uid}")

    async def _post(self, node: MigrationNode, path: str, body: Model, answer: type[M]) -> M:
        text = await self._ask(node, "POST", path, body=body, seconds=_STORE_SECONDS)
        if text is None:
            raise AgentUnreachable(f"POST {path}: not found; is the agent of another version?")
        return _parse(answer, text)

    async def _tell(self, node: MigrationNode, method: str, path: str, body: Model) -> None:
        if await self._ask(node, method, path, body=body) is None:
            raise AgentUnreachable(f"{method} {path}: not found; is the agent of another version?")

    async def _ask(
        self,
        node: MigrationNode,
        method: str,
        path: str,
        *,
        body: Model | None = None,
        seconds: float = REQUEST_SECONDS,
    ) -> bytes | None:
        """Return the answer's body; None for 404."""
        if not node.status.endpoint or not node.status.certificate:
            raise AgentUnreachable("it has not published its endpoint and certificate")
        try:
            headers = {"Authorization": f"Bearer {await asyncio.to_thread(self._token)}"}
            if self._session is None:
                self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit_per_host=16))
            async with self._session.request(
                method,
                f"{node.status.endpoint}{path}",
                json=body.dump(reveal=True) if body else None,
                headers=headers,
                ssl=_trust_exactly(node.status.certificate),
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=seconds, connect=_CONNECT_SECONDS),
            ) as response:
                text = await _read(response)
                status = response.status
        except TimeoutError as error:
            raise AgentUnreachable(f"no answer within {seconds:.0f} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AgentUnreachable(str(error) or type(error).__name__) from error
        return _judge(status, text)

    def _token(self) -> str:
        return self._token_file.read_text().strip()


@lru_cache(maxsize=512)
def _trust_exactly(certificate: str) -> ssl.SSLContext:
    """Return a context for which this one certificate is all there is to trust; its name does not matter."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


async def _read(response: aiohttp.ClientResponse) -> bytes:
    text = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        text += chunk
        if len(text) > _ANSWER_BYTES:
            raise ValueError(f"its answer is longer than {_ANSWER_BYTES} bytes")
    return bytes(text)


def _judge(status: int, text: bytes) -> bytes | None:
    if 200 <= status < 300:  # noqa: PLR2004  the class of answers that are not errors
        return text
    if status == _NOT_FOUND:
        return None
    try:
        message = ErrorBody.model_validate_json(text).message
    except ValidationError:
        message = f"HTTP status {status}"
    raise AgentRefused(message) if status in _REFUSALS else AgentUnreachable(message)


def _parse(model: type[M], text: bytes) -> M:
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        raise AgentUnreachable(f"its answer is no {model.__name__}: {error.error_count()} errors") from error
