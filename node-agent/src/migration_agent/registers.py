"""The one module that talks to the Kubernetes API: the registers, the target pod, the MigrationNodes, tokens.

Every call is live and bounded in time. The answer to a write is looked for in the answer itself or, when the write was
refused or its answer was lost, in a live GET: whoever won, the winner's value is returned.
"""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Callable
from typing import Any, cast

import aiohttp
from kubernetes.aio import config
from kubernetes.aio.client import ApiClient
from pydantic import ValidationError

from migration_agent.ports import ApiUnreachable, NamedPod, PodState
from migration_agent.seen import Gone, Seen, seen, seen_checkpoint
from migration_agent.trust import Peer, peers_of
from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration, Decision, Outcome
from migration_api.names import (
    ANNOTATION_MIGRATION,
    API_VERSION,
    CHECKPOINTS,
    GROUP,
    LABEL_REVISION,
    MIGRATIONS,
    NODES,
    VERSION,
)
from migration_api.node import MigrationNode, MigrationNodeStatus
from migration_api.wire import Failure, MigrationRef, RefKind

log = logging.getLogger(__name__)

CALL_SECONDS = 3.0
_ATTEMPTS = 3
_BACKOFF_SECONDS = 0.1
_ANSWER_BYTES = 64 * 1024 * 1024
_MERGE = "application/merge-patch+json"
_OK = range(200, 300)
_NOT_FOUND = 404
_CONFLICT = 409
_RETRIED = frozenset({429, 500, 502, 503, 504})
_REFUSED = frozenset({400, 403, 409, 422})
_FINISHED_PHASES = frozenset({"Failed", "Succeeded"})

Json = dict[str, Any]


class Api:
    """The API server with this agent's own token; see `ports.Registers` for the first five methods."""

    def __init__(self, client: ApiClient) -> None:
        self._client: Any = client  # the client's methods carry no types

    @classmethod
    async def in_cluster(cls) -> Api:
        """Return the API server of the cluster that this pod runs in."""
        cast("Any", config).load_incluster_config()
        return cls(ApiClient())

    async def close(self) -> None:
        await self._client.close()

    async def read(self, ref: MigrationRef) -> Seen | Gone:
        """Read the migration live. See `Registers`."""
        status, answer = await self._call("GET", _migration_path(ref))
        return _migration(ref, status, answer)

    async def propose(self, ref: MigrationRef, decision: Decision, failure: Failure | None = None) -> Seen | Gone:
        """Try to write the decision. See `Registers`."""
        change: Json = {"decision": decision.value}
        if failure is not None:
            change["source"] = {"reason": failure.reason.value, "message": failure.message}
        return await self._write(ref, change, lambda it: it.decision is not None)

    async def write_outcome(self, ref: MigrationRef, outcome: Outcome, message: str | None = None) -> Seen | Gone:
        """Try to write the outcome. See `Registers`."""
        change: Json = {"outcome": outcome.value}
        if message is not None:
            change["message"] = message
        return await self._write(ref, {"target": change}, lambda it: it.outcome is not None)

    async def pod(self, namespace: str, name: str, uid: str) -> PodState:
        """Say whether this very pod can still run. See `Registers`."""
        found = await self.named_pod(namespace, name)
        return PodState.LIVE if found is not None and found.uid == uid and found.live else PodState.GONE

    async def named_pod(self, namespace: str, name: str) -> NamedPod | None:
        """Return the pod that has the name now. See `Registers`."""
        status, answer = await self._call("GET", f"/api/v1/namespaces/{namespace}/pods/{name}")
        if status == _NOT_FOUND:
            return None
        _demand_ok(status, answer)
        metadata = answer.get("metadata", {})
        finished = answer.get("status", {}).get("phase") in _FINISHED_PHASES
        return NamedPod(
            uid=str(metadata.get("uid")),
            node=answer.get("spec", {}).get("nodeName"),
            migration=metadata.get("annotations", {}).get(ANNOTATION_MIGRATION),
            revision=metadata.get("labels", {}).get(LABEL_REVISION),
            live="deletionTimestamp" not in metadata and not finished,
        )

    async def delete_pod(self, namespace: str, name: str, uid: str, *, at_once: bool = False) -> None:
        """Delete this very pod. See `Registers`."""
        body: Json = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        if at_once:
            body["gracePeriodSeconds"] = 0
        status, answer = await self._call("DELETE", f"/api/v1/namespaces/{namespace}/pods/{name}", body)
        if status not in {_NOT_FOUND, _CONFLICT}:  # conflict: another pod has the name
            _demand_ok(status, answer)

    async def publish(self, node: str, change: MigrationNodeStatus) -> None:
        """Write this node's MigrationNode, creating it when there is none."""
        path = f"/apis/{GROUP}/{VERSION}/{NODES}"
        body: Json = {"apiVersion": API_VERSION, "kind": "MigrationNode", "metadata": {"name": node}}
        status, answer = await self._call("GET", f"{path}/{node}")
        if status == _NOT_FOUND:
            status, answer = await self._call("POST", path, body)
            if status != _CONFLICT:
                _demand_ok(status, answer)
        patch = {"status": change.dump()}
        status, answer = await self._call("PATCH", f"{path}/{node}/status", patch, _MERGE)
        _demand_ok(status, answer)

    async def own(self, node: str) -> MigrationNode | None:
        """Return this node's MigrationNode."""
        status, answer = await self._call("GET", f"/apis/{GROUP}/{VERSION}/{NODES}/{node}")
        if status == _NOT_FOUND:
            return None
        _demand_ok(status, answer)
        return MigrationNode.model_validate(answer)

    async def peers(self) -> tuple[Peer, ...]:
        """Return all agents that have published themselves."""
        status, answer = await self._call("GET", f"/apis/{GROUP}/{VERSION}/{NODES}")
        _demand_ok(status, answer)
        nodes: list[MigrationNode] = []
        for item in answer.get("items", []):
            try:
                nodes.append(MigrationNode.model_validate(item))
            except ValidationError as error:
                log.warning("a MigrationNode cannot be read and is left out: %s", error)
        return peers_of(nodes)

    async def user_of(self, token: str, audience: str) -> str | None:
        """Return the user whom a token with this audience stands for; None when it is not valid."""
        review = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [audience]},
        }
        status, answer = await self._call("POST", "/apis/authentication.k8s.io/v1/tokenreviews", review)
        _demand_ok(status, answer)
        result = answer.get("status", {})
        if not result.get("authenticated") or audience not in result.get("audiences", []):
            return None
        return result.get("user", {}).get("username")

    async def _write(self, ref: MigrationRef, change: Json, is_set: Callable[[Seen], bool]) -> Seen | Gone:
        body = {"metadata": {"uid": ref.uid}, "status": change}
        refusal = ""
        try:
            status, answer = await self._call("PATCH", f"{_migration_path(ref)}/status", body, _MERGE)
            if status not in _REFUSED:
                return _migration(ref, status, answer)
            refusal = _message(status, answer)
        except ApiUnreachable as error:
            refusal = str(error)
        after = await self.read(ref)
        if isinstance(after, Seen) and not is_set(after):
            raise ApiUnreachable(f"{change} could not be written to migration {ref.namespace}/{ref.name}: {refusal}")
        return after

    async def _call(
        self, method: str, path: str, body: Json | None = None, content_type: str = "application/json"
    ) -> tuple[int, Json]:
        """Return status and body of an answer, whatever the status.

        Raises:
            ApiUnreachable: no answer came, in several attempts.
        """
        trouble = ""
        for attempt in range(_ATTEMPTS):
            try:
                status, answer = await self._once(method, path, body, content_type)
            except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError, ValueError) as error:
                trouble = f"{type(error).__name__}: {error}"
            else:
                if status not in _RETRIED:
                    return status, answer
                trouble = _message(status, answer)
            await asyncio.sleep(_BACKOFF_SECONDS * 2**attempt)
        raise ApiUnreachable(f"{method} {path}: {trouble}")

    async def _once(self, method: str, path: str, body: Json | None, content_type: str) -> tuple[int, Json]:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        async with asyncio.timeout(CALL_SECONDS):
            request = await self._client.param_serialize(
                method, path, query_params=[], header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = await self._client.call_api(*request, _request_timeout=CALL_SECONDS)
            raw = await response.response.content.read(_ANSWER_BYTES)
            while chunk := await response.response.content.read(_ANSWER_BYTES):
                raw += chunk
                if len(raw) > _ANSWER_BYTES:
                    raise ValueError(f"the answer is longer than {_ANSWER_BYTES} bytes")
        answer: object = json.loads(raw) if raw else {}
        if not isinstance(answer, dict):
            raise ValueError("the answer is not a JSON object")  # noqa: TRY004  # it is the server's value
        return response.status, cast("Json", answer)


def _migration_path(ref: MigrationRef) -> str:
    plural = CHECKPOINTS if ref.kind is RefKind.CONTAINER_CHECKPOINT else MIGRATIONS
    return f"/apis/{GROUP}/{VERSION}/namespaces/{ref.namespace}/{plural}/{ref.name}"


def _migration(ref: MigrationRef, status: int, answer: Json) -> Seen | Gone:
    if status == _NOT_FOUND:
        return Gone()
    _demand_ok(status, answer)
    try:
        if ref.kind is RefKind.CONTAINER_CHECKPOINT:
            checkpoint = ContainerCheckpoint.model_validate(answer)
            return seen_checkpoint(checkpoint) if checkpoint.metadata.uid == ref.uid else Gone()
        migration = ContainerMigration.model_validate(answer)
    except ValidationError as error:
        raise ApiUnreachable(f"{ref.kind} {ref.namespace}/{ref.name} cannot be read: {error}") from error
    return seen(migration) if migration.metadata.uid == ref.uid else Gone()


def _demand_ok(status: int, answer: Json) -> None:
    if status not in _OK:
        raise ApiUnreachable(_message(status, answer))


def _message(status: int, answer: Json) -> str:
    return f"the API server answered {status}: {answer.get('message', '')}"[:2000]
