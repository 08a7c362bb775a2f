"""The one module that talks to the API server.

Objects are the API server's own JSON: a generated model would drop the fields that it does not know, and a target pod
must not lose any. Reads are GETs without resourceVersion, never from a cache; every write names the object's UID.
"""

from __future__ import annotations

import asyncio
import json
from datetime import datetime
from typing import Any, Self
from urllib.parse import quote

from kubernetes.aio import client, config

from migration_api.base import format_time
from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration
from migration_api.names import (
    API_VERSION,
    CHECKPOINTS,
    GROUP,
    LABEL_MIGRATION,
    LABEL_MOUNT,
    LABEL_TARGET_NODE,
    MIGRATIONS,
    NODES,
    VERSION,
)
from migration_api.node import MigrationNode
from migration_operator.pods import Json, Pod, mapping, mappings

REQUEST_SECONDS = 10.0
"""For one request; a busy API server answers within a second."""

_Ours = ContainerMigration | ContainerCheckpoint

_MERGE_PATCH = "application/merge-patch+json"
_CUSTOM = f"/apis/{GROUP}/{VERSION}"
_COMPONENT = "container-migration-operator"
_EVENT_MESSAGE_LENGTH = 1024
_NOT_FOUND = 404
_CONFLICTS = (409, 422)
"""Somebody else was faster: another resourceVersion, another UID, or a write-once field that is set already."""


class KubeError(Exception):
    """The API server refused or could not be reached; the message is the server's own where there is one."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        """The HTTP status; 0 when there was no answer."""
        super().__init__(message)


class ConflictError(KubeError):
    """The object is not what it was when it was read, or a register is set already: read again and decide again."""


class Kube:
    """The requests of this operator, and no others: its RBAC role lists the same."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._api: Any = client.ApiClient(configuration)

    @classmethod
    async def connect(cls) -> Self:
        """Use the pod's own ServiceAccount, or outside a cluster the current kubeconfig."""
        configuration = client.Configuration()
        loader: Any = config  # its functions have no types
        try:
            loader.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            await loader.load_kube_config(client_configuration=configuration)
        return cls(configuration)

    async def close(self) -> None:
        await self._api.close()

    # --- ContainerMigrations

    async def migration(self, namespace: str, name: str) -> ContainerMigration | None:
        raw = await self._get(_migration_path(namespace, name))
        return ContainerMigration.model_validate(raw) if raw else None

    async def migrations(self, namespace: str) -> list[ContainerMigration]:
        raw = await self._get(f"{_CUSTOM}/namespaces/{namespace}/{MIGRATIONS}")
        return [ContainerMigration.model_validate(item) for item in _items(raw)]

    async def all_migrations(self) -> list[ContainerMigration]:
        """Return those of all namespaces."""
        raw = await self._get(f"{_CUSTOM}/{MIGRATIONS}")
        return [ContainerMigration.model_validate(item) for item in _items(raw)]

    async def cancel(self, migration: ContainerMigration) -> None:
        """Set `spec.cancel`: the migration is given up unless it is committed.

        Raises:
            ConflictError: it is another object by now.
        """
        path = _migration_path(migration.metadata.namespace, migration.metadata.name)
        await self._patch(path, {"metadata": _precondition(migration, guarded=False), "spec": {"cancel": True}})

    async def patch_status(self, migration: ContainerMigration, status: Json, *, guarded: bool) -> None:
        """Merge into the status of this very object.

        Args:
            migration: the object as it was read.
            status: what to merge.
            guarded: refuse when anything changed since it was read. Registers and identities need no such guard: the
                API server lets each be written only once.

        Raises:
            ConflictError: it changed, it is another object by now, or a write-once field has another value.
        """
        path = f"{_migration_path(migration.metadata.namespace, migration.metadata.name)}/status"
        await self._patch(path, {"metadata": _precondition(migration, guarded=guarded), "status": status})

    async def set_finalizers(self, migration: ContainerMigration, finalizers: list[str]) -> None:
        """Replace the finalizers, provided that the object is as it was read.

        Raises:
            ConflictError: it changed.
        """
        path = _migration_path(migration.metadata.namespace, migration.metadata.name)
        await self._patch(path, {"metadata": {**_precondition(migration, guarded=True), "finalizers": finalizers}})

    async def delete_migration(self, migration: ContainerMigration) -> None:
        """Delete this very object, never another one of the same name; nothing when it is gone."""
        metadata = migration.metadata
        await self._delete(_migration_path(metadata.namespace, metadata.name), metadata.uid)

    # --- ContainerCheckpoints

    async def checkpoint(self, namespace: str, name: str) -> ContainerCheckpoint | None:
        raw = await self._get(_checkpoint_path(namespace, name))
        return ContainerCheckpoint.model_validate(raw) if raw else None

    async def all_checkpoints(self) -> list[ContainerCheckpoint]:
        """Return those of all namespaces."""
        raw = await self._get(f"{_CUSTOM}/{CHECKPOINTS}")
        return [ContainerCheckpoint.model_validate(item) for item in _items(raw)]

    async def create_checkpoint(self, manifest: Json) -> None:
        """Create it; raises as `create_pod`."""
        await self._request("POST", _checkpoint_path(manifest["metadata"]["namespace"]), body=manifest)

    async def patch_checkpoint_status(self, checkpoint: ContainerCheckpoint, status: Json) -> None:
        """Merge into the status of this very object.

        Raises:
            ConflictError: it changed since it was read.
        """
        path = f"{_checkpoint_path(checkpoint.metadata.namespace, checkpoint.metadata.name)}/status"
        await self._patch(path, {"metadata": _precondition(checkpoint, guarded=True), "status": status})

    async def set_checkpoint_finalizers(self, checkpoint: ContainerCheckpoint, finalizers: list[str]) -> None:
        """Replace the finalizers, provided that the object is as it was read.

        Raises:
            ConflictError: it changed.
        """
        path = _checkpoint_path(checkpoint.metadata.namespace, checkpoint.metadata.name)
        await self._patch(path, {"metadata": {**_precondition(checkpoint, guarded=True), "finalizers": finalizers}})

    async def delete_checkpoint(self, checkpoint: ContainerCheckpoint) -> None:
        """Delete this very object; nothing when it is gone."""
        metadata = checkpoint.metadata
        await self._delete(_checkpoint_path(metadata.namespace, metadata.name), metadata.uid)

    # --- pods

    async def pod(self, namespace: str, name: str) -> Pod | None:
        raw = await self._get(_pod_path(namespace, name))
        return Pod(raw) if raw else None

    async def create_pod(self, manifest: Json) -> None:
        """Create the pod.

        Raises:
            ConflictError: with status 409: there is a pod of that name.
            KubeError: with status 403 or 422: it will be refused again.
        """
        await self._request("POST", _pod_path(manifest["metadata"]["namespace"]), body=manifest)

    async def as_admitted(self, manifest: Json) -> Pod:
        """Return what would be created of a pod, without creating it; raises as `create_pod`."""
        path = f"{_pod_path(manifest['metadata']['namespace'])}?dryRun=All"
        return Pod(await self._request("POST", path, body=manifest))

    async def delete_pod(self, pod: Pod) -> None:
        """Delete this very pod, never another one of the same name; nothing when it is gone."""
        await self._delete(_pod_path(pod.namespace, pod.name), pod.uid)

    async def patch_pod(self, pod: Pod, body: Json) -> None:
        """Merge into the metadata of this very pod; nothing when it is gone.

        Raises:
            ConflictError: another pod has its name.
        """
        try:
            await self._patch(
                _pod_path(pod.namespace, pod.name), {"metadata": {**mapping(body.get("metadata")), "uid": pod.uid}}
            )
        except KubeError as error:
            if error.status != _NOT_FOUND:
                raise

    async def mount_pods(self, namespace: str, uid: str) -> list[Pod]:
        """Return the pods that mount a claim for the object with that UID, as their labels say."""
        selector = quote(f"{LABEL_MOUNT}=true,{LABEL_MIGRATION}={uid}", safe="")
        return [Pod(raw) for raw in _items(await self._get(f"{_pod_path(namespace)}?labelSelector={selector}"))]

    async def warnings(self, pod: Pod) -> list[str]:
        """Return what warnings say of this very pod, the oldest first."""
        selector = quote(f"involvedObject.uid={pod.uid},type=Warning", safe="")
        items = _items(await self._get(f"/api/v1/namespaces/{pod.namespace}/events?fieldSelector={selector}"))
        items = [it for it in items if mapping(it.get("involvedObject")).get("uid") == pod.uid]
        items.sort(key=lambda it: str(it.get("lastTimestamp") or it.get("eventTime") or ""))
        return [f"{it.get('reason')}: {it.get('message')}" for it in items]

    async def claim(self, namespace: str, name: str) -> Json | None:
        """Return a PersistentVolumeClaim."""
        return await self._get(f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{name}")

    async def volume(self, name: str) -> Json | None:
        """Return a PersistentVolume."""
        return await self._get(f"/api/v1/persistentvolumes/{name}")

    # --- Secrets

    async def secret(self, namespace: str, name: str) -> Json | None:
        return await self._get(f"{_secrets_path(namespace)}/{name}")

    async def create_secret(self, manifest: Json) -> Json:
        """Create the Secret and return it.

        Raises:
            ConflictError: there is one of that name.
        """
        return await self._request("POST", _secrets_path(manifest["metadata"]["namespace"]), body=manifest)

    # --- nodes

    async def node(self, name: str) -> Json | None:
        return await self._get(f"/api/v1/nodes/{name}")

    async def nodes(self) -> list[Json]:
        return _items(await self._get("/api/v1/nodes"))

    async def mark_node(self, name: str, *, target: bool) -> None:
        """Set or remove the label by which the RuntimeClass finds possible targets."""
        labels = {LABEL_TARGET_NODE: "true" if target else None}
        await self._patch(f"/api/v1/nodes/{name}", {"metadata": {"labels": labels}})

    async def migration_node(self, name: str) -> MigrationNode | None:
        raw = await self._get(f"{_CUSTOM}/{NODES}/{name}")
        return MigrationNode.model_validate(raw) if raw else None

    async def migration_nodes(self) -> list[MigrationNode]:
        return [MigrationNode.model_validate(item) for item in _items(await self._get(f"{_CUSTOM}/{NODES}"))]

    # --- events

    async def event(self, about: _Ours, reason: str, message: str, *, warning: bool, at: datetime) -> None:
        """Tell what happened to `kubectl describe`; the same event of one object is written once."""
        name = f"{about.metadata.name[:200]}.{about.metadata.uid[:8]}.{reason.lower()}"
        manifest: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": about.metadata.namespace},
            "involvedObject": {
                "apiVersion": API_VERSION,
                "kind": type(about).__name__,
                "namespace": about.metadata.namespace,
                "name": about.metadata.name,
                "uid": about.metadata.uid,
            },
            "type": "Warning" if warning else "Normal",
            "reason": reason,
            "message": message[:_EVENT_MESSAGE_LENGTH],
            "source": {"component": _COMPONENT},
            "firstTimestamp": format_time(at),
            "lastTimestamp": format_time(at),
            "count": 1,
        }
        try:
            await self._request("POST", f"/api/v1/namespaces/{about.metadata.namespace}/events", body=manifest)
        except ConflictError:
            return

    # --- the requests themselves

    async def _get(self, path: str) -> Json | None:
        try:
            return await self._request("GET", path)
        except KubeError as error:
            if error.status == _NOT_FOUND:
                return None
            raise

    async def _delete(self, path: str, uid: str) -> None:
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": uid}}
        try:
            await self._request("DELETE", path, body=body)
        except ConflictError:
            return  # that object is gone, another one has its name
        except KubeError as error:
            if error.status != _NOT_FOUND:
                raise

    async def _patch(self, path: str, body: Json) -> None:
        await self._request("PATCH", path, body=body, content_type=_MERGE_PATCH)

    async def _request(
        self, method: str, path: str, *, body: Json | None = None, content_type: str = "application/json"
    ) -> Json:
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": _COMPONENT}
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                method, url, headers, body, _ = await self._api.param_serialize(
                    method, path, header_params=headers, body=body, auth_settings=["BearerToken"]
                )
                response = await self._api.call_api(method, url, headers, body, _request_timeout=REQUEST_SECONDS)
                text = await response.read()
        except Exception as error:
            # Whatever the HTTP library under the client raises: there was no answer.
            what = str(error) or type(error).__name__
            raise KubeError(f"the API server did not answer {method} {path}: {what}") from error
        return _answer(f"{method} {path}", response.status, text)


def _answer(what: str, status: int, text: bytes) -> Json:
    try:
        answer = mapping(json.loads(text))
    except ValueError:
        answer = {}
    if 200 <= status < 300:  # noqa: PLR2004  the class of answers that are not errors
        return answer
    message = f"{what}: {answer.get('message') or f'HTTP status {status}'}"
    raise ConflictError(message, status) if status in _CONFLICTS else KubeError(message, status)


def _items(answer: Json | None) -> list[Json]:
    return mappings((answer or {}).get("items"))


def _migration_path(namespace: str, name: str) -> str:
    return f"{_CUSTOM}/namespaces/{namespace}/{MIGRATIONS}/{name}"


def _checkpoint_path(namespace: str, name: str | None = None) -> str:
    return f"{_CUSTOM}/namespaces/{namespace}/{CHECKPOINTS}" + (f"/{name}" if name else "")


def _pod_path(namespace: str, name: str | None = None) -> str:
    return f"/api/v1/namespaces/{namespace}/pods" + (f"/{name}" if name else "")


def _secrets_path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/secrets"


def _precondition(it: _Ours, *, guarded: bool) -> Json:
    metadata = it.metadata
    return {"uid": metadata.uid, **({"resourceVersion": metadata.resource_version} if guarded else {})}
