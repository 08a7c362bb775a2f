"""As much of a Kubernetes API server as the operator needs: objects, merge patches, preconditions, watches, registers.

It runs in a thread and an event loop of its own, as a server does: kopf cancels what it finds in its own loop.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from aiohttp import web

from migration_api.base import format_time, now
from migration_api.names import CHECKPOINTS, GROUP, MIGRATIONS, NODES, VERSION

Json = dict[str, Any]
T = TypeVar("T")

_PATH = re.compile(
    r"(?P<api>/api/v1|/apis/[^/]+/[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+))?(?:/(?P<sub>status))?"
)
_CUSTOM = f"/apis/{GROUP}/{VERSION}"
_KINDS = {
    "pods": ("Pod", "/api/v1", True),
    "nodes": ("Node", "/api/v1", False),
    "events": ("Event", "/api/v1", True),
    "secrets": ("Secret", "/api/v1", True),
    "persistentvolumeclaims": ("PersistentVolumeClaim", "/api/v1", True),
    "persistentvolumes": ("PersistentVolume", "/api/v1", False),
    MIGRATIONS: ("ContainerMigration", _CUSTOM, True),
    CHECKPOINTS: ("ContainerCheckpoint", _CUSTOM, True),
    NODES: ("MigrationNode", _CUSTOM, False),
}
WRITE_ONCE = (
    ("decision",),
    ("source", "nodeName"),
    ("source", "podUID"),
    ("source", "revision"),
    ("source", "checkpointUID"),
    ("target", "podName"),
    ("target", "nodeName"),
    ("target", "podUID"),
    ("target", "outcome"),
)


class Refusal(Exception):
    """An answer with status >= 400."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def merged(old: Any, patch: Any) -> Any:
    """Return RFC 7386's result."""
    if not isinstance(patch, dict):
        return patch
    result: Json = dict(old) if isinstance(old, dict) else {}  # pyright: ignore[reportUnknownArgumentType]
    fields: Json = patch  # pyright: ignore[reportUnknownVariableType]
    for key, value in fields.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def at(thing: Any, *path: str) -> Any:
    for key in path:
        fields: Json = thing or {}
        thing = fields.get(key)
    return thing


class FakeApi:
    """The objects, by plural, namespace and name. All methods belong to its own loop; tests use `call`."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str, str], Json] = {}
        self.url = ""
        self.requests: list[str] = []
        self.on_change: list[Callable[[str, Json], None]] = []
        """Called with `ADDED`, `MODIFIED` or `DELETED` and the object: kubelet, scheduler."""
        self._version = 100
        self._watchers: list[tuple[str, asyncio.Queue[Json]]] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # --- from a test's thread

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[FakeApi]:
        self._thread.start()
        runner = await self.call(self._start())
        try:
            yield self
        finally:
            await self.call(runner.cleanup())
            self._loop.call_soon_threadsafe(self._loop.stop)
            await asyncio.to_thread(self._thread.join, 10)
            self._loop.close()

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine in the server's loop and return its result."""
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))

    async def do(self, work: Callable[[], T]) -> T:
        """Run a function in the server's loop and return its result."""

        async def run() -> T:
            return work()

        return await self.call(run())

    async def fetch(self, plural: str, name: str, namespace: str = "shop") -> Json | None:
        """Return a copy of an object; None when there is none."""
        return await self.do(lambda: copy.deepcopy(self.objects.get((plural, namespace, name))))

    # --- in its own loop

    def create(self, plural: str, obj: Json, namespace: str = "") -> Json:
        metadata: Json = obj["metadata"]
        key = (plural, namespace, str(metadata["name"]))
        if key in self.objects:
            raise Refusal(409, f'{plural} "{key[2]}" already exists')
        kind, api, _ = _KINDS[plural]
        metadata.setdefault("uid", str(uuid.uuid4()))
        metadata |= {"creationTimestamp": format_time(now()), "generation": 1}
        if namespace:
            metadata["namespace"] = namespace
        obj |= {"kind": kind, "apiVersion": api.removeprefix("/apis/").removeprefix("/api/")}
        self._store(key, obj, "ADDED")
        return obj

    def patch(self, plural: str, name: str, change: Json, namespace: str = "", *, status: bool = False) -> Json:
        key = (plural, namespace, name)
        old = self._existing(key)
        wish = copy.deepcopy(change)
        meta: Json = wish.get("metadata", {})
        for field in ("uid", "resourceVersion"):
            if meta.pop(field, old["metadata"][field]) != old["metadata"][field]:
                raise Refusal(409, f"the object's {field} is not as given")
        new: Json = merged(old, {"status": wish.get("status", {})} if status else {**wish, "status": old.get("status")})
        if plural == MIGRATIONS:
            for path in WRITE_ONCE:
                kept = at(old, "status", *path)
                if kept is not None and at(new, "status", *path) != kept:
                    raise Refusal(422, f"status.{'.'.join(path)} is write-once")
        if not new["metadata"].get("finalizers", True):
            del new["metadata"]["finalizers"]
        if new["metadata"].get("deletionTimestamp") and not new["metadata"].get("finalizers"):
            return self._remove(key, new)
        if new != old:
            self._store(key, new, "MODIFIED")
        return new

    def delete(self, plural: str, name: str, namespace: str = "", *, uid: str | None = None) -> Json:
        """Delete; what has a finalizer, or is a pod that a kubelet has to stop, is only marked."""
        key = (plural, namespace, name)
        obj = copy.deepcopy(self._existing(key))
        if uid not in (None, obj["metadata"]["uid"]):
            raise Refusal(409, "the object's uid is not as given")
        held = obj["metadata"].get("finalizers") or (plural == "pods" and obj["spec"].get("nodeName"))
        if not held:
            return self._remove(key, obj)
        if "deletionTimestamp" not in obj["metadata"]:
            obj["metadata"]["deletionTimestamp"] = format_time(now())
            self._store(key, obj, "MODIFIED")
        return obj

    def remove(self, plural: str, name: str, namespace: str = "") -> None:
        """Remove at once, as a kubelet does with a pod that it has stopped."""
        key = (plural, namespace, name)
        if key in self.objects:
            self._remove(key, self.objects[key])

    def _existing(self, key: tuple[str, str, str]) -> Json:
        if key not in self.objects:
            raise Refusal(404, f'{key[0]} "{key[2]}" not found')
        return self.objects[key]

    def _remove(self, key: tuple[str, str, str], obj: Json) -> Json:
        self.objects.pop(key)
        self._tell("DELETED", key[0], obj)
        return obj

    def _store(self, key: tuple[str, str, str], obj: Json, what: str) -> None:
        self._version += 1
        obj["metadata"]["resourceVersion"] = str(self._version)
        self.objects[key] = obj
        self._tell(what, key[0], obj)

    def _tell(self, what: str, plural: str, obj: Json) -> None:
        event = {"type": what, "object": copy.deepcopy(obj)}
        for watched, queue in self._watchers:
            if watched == plural:
                queue.put_nowait(event)
        for listener in self.on_change:
            self._loop.call_soon(listener, what, copy.deepcopy(obj))

    # --- HTTP

    async def _start(self) -> web.AppRunner:
        application = web.Application()
        application.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0]
        self.url = f"http://{host}:{port}"
        return runner

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(f"{request.method} {request.path_qs}")
        try:
            if (discovered := _discovery(request.path)) is not None:
                return web.json_response(discovered)
            match = _match(request.path)
            if request.method == "GET" and not match["name"]:
                return await self._list(request, match["plural"], match["namespace"])
            return web.json_response(await self._single(request, match))
        except Refusal as refusal:
            return web.json_response({"kind": "Status", "message": str(refusal)}, status=refusal.status)

    async def _single(self, request: web.Request, match: re.Match[str]) -> Json:
        plural, namespace, name = match["plural"], match["namespace"] or "", match["name"] or ""
        body: Json = json.loads(await request.read() or b"{}")
        if request.method == "POST":
            return self.create(plural, body, namespace)
        if request.method == "PATCH":
            assert request.content_type == "application/merge-patch+json"
            return self.patch(plural, name, body, namespace, status=match["sub"] == "status")
        if request.method == "DELETE":
            return self.delete(plural, name, namespace, uid=at(body, "preconditions", "uid"))
        return self._existing((plural, namespace, name))

    async def _list(self, request: web.Request, plural: str, namespace: str | None) -> web.StreamResponse:
        if request.query.get("watch") == "true":
            return await self._watch(request, plural)
        items = [o for (p, n, _), o in self.objects.items() if p == plural and namespace in (None, n)]
        return web.json_response({"metadata": {"resourceVersion": str(self._version)}, "items": items})

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        watcher = (plural, asyncio.Queue[Json]())
        self._watchers.append(watcher)
        try:
            while True:
                await response.write(json.dumps(await watcher[1].get()).encode() + b"\n")
        finally:
            self._watchers.remove(watcher)


def _match(path: str) -> re.Match[str]:
    match = _PATH.fullmatch(path)
    if match is None:
        raise Refusal(404, f"there is nothing at {path}")
    return match


def _discovery(path: str) -> Json | None:
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        version = {"groupVersion": f"{GROUP}/{VERSION}", "version": VERSION}
        return {"groups": [{"name": GROUP, "versions": [version], "preferredVersion": version}]}
    if path not in ("/api/v1", _CUSTOM):
        return None
    resources: list[Json] = []
    for plural, (kind, api, namespaced) in _KINDS.items():
        if api == path:
            common = {"singularName": kind.lower(), "kind": kind, "namespaced": namespaced}
            verbs = ["get", "list", "watch", "patch", "create", "delete"]
            resources.append({"name": plural, "verbs": verbs, **common})
            resources.append({"name": f"{plural}/status", "verbs": ["patch"], **common})
    return {"resources": resources}
