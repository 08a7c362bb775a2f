"""The API server over one kept connection.

Tests look again and again, and each kubectl takes 0.15 s of processor time: a hundred times as much.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, cast
from urllib.parse import urlencode

import urllib3
from kubernetes import client, config

Manifest = dict[str, Any]

_SECONDS = 60.0
_NOT_FOUND = 404
_GOOD = (200, 201)


@dataclass(frozen=True)
class Resource:
    """Where objects of a kind are."""

    path: str
    """Of the group and version."""
    plural: str
    namespaced: bool

    def url(self, namespace: str | None, name: str = "") -> str:
        """Return the path of one object, or of all; without a namespace those of all namespaces."""
        inside = f"/namespaces/{namespace}" if namespace and self.namespaced else ""
        return f"{self.path}{inside}/{self.plural}" + (f"/{name}" if name else "")


class ApiServer:
    """One API server, as the user of one kubeconfig; may be used in any thread."""

    def __init__(self, kubeconfig: str) -> None:
        settings = client.Configuration()
        cast("Any", config).load_kube_config(kubeconfig, client_configuration=settings)
        settings.retries = cast("Any", urllib3.Retry(1))  # of a connection that the server has closed meanwhile
        self._client: Any = client.ApiClient(settings)
        self._resources: dict[str, Resource] = {}

    def get(self, kind: str, name: str, namespace: str = "") -> Manifest | None:
        """Return the object, or None when there is none; of a kind that kubectl would know by that name."""
        return self._fetch(self._resource(kind).url(namespace or "default", name))

    def list(self, kind: str, namespace: str, *, labels: str, fields: str) -> list[Manifest]:
        """Return the objects of a namespace, or of all when it is empty."""
        query = {"labelSelector": labels, "fieldSelector": fields}
        found = self._fetch(
            self._resource(kind).url(namespace) + "?" + urlencode({k: v for k, v in query.items() if v})
        )
        return (found or {}).get("items", [])

    def apply(self, manifest: Manifest, manager: str) -> None:
        """Server-side apply, with strict field validation.

        Raises:
            AssertionError: it was refused; the message has the API server's.
        """
        metadata = manifest["metadata"]
        where = self._resource(manifest["kind"].lower()).url(metadata.get("namespace", "default"), metadata["name"])
        query = urlencode({"fieldManager": manager, "fieldValidation": "Strict"})
        self._send("PATCH", f"{where}?{query}", json.dumps(manifest))

    def log(self, pod: str, namespace: str, **query: str) -> str:
        """Return what a pod's container, the first one unless it is named, has written.

        Args:
            pod: its name.
            namespace: where it is.
            query: `container`, `tailLines`, `previous`, `timestamps`.
        """
        if "container" not in query:
            it = self.get("pod", pod, namespace)
            query |= {"container": it["spec"]["containers"][0]["name"]} if it else {}
        url = f"/api/v1/namespaces/{namespace}/pods/{pod}/log?{urlencode(query)}"
        text = self._send("GET", url)
        if text is None:
            raise AssertionError(f"there is no pod {pod} in {namespace}")
        return text

    def _resource(self, kind: str) -> Resource:
        """Look once more for a kind that is not known: its CRD may be new."""
        if kind not in self._resources:
            for name, resource in self._discover():
                self._resources.setdefault(name, resource)
        if kind not in self._resources:
            raise AssertionError(f"the API server has no kind {kind}")
        return self._resources[kind]

    def _discover(self) -> Iterator[tuple[str, Resource]]:
        groups = (self._fetch("/apis") or {}).get("groups", [])
        for path in ("/api/v1", *(f"/apis/{group['preferredVersion']['groupVersion']}" for group in groups)):
            for it in (self._fetch(path) or {}).get("resources", []):
                if "/" not in it["name"]:
                    resource = Resource(path, it["name"], it["namespaced"])
                    for name in (it["name"], it["singularName"], *it.get("shortNames", [])):
                        yield name, resource

    def _fetch(self, url: str) -> Manifest | None:
        """GET, live. Raises as `_send`."""
        text = self._send("GET", url)
        return None if text is None else json.loads(text)

    def _send(self, method: str, url: str, body: str | None = None) -> str | None:
        """Send a request, with a body to be applied; return the answer, or None when what is asked for is not there.

        Raises:
            AssertionError: no answer came, or another one.
        """
        headers = {} if body is None else {"Content-Type": "application/apply-patch+yaml"}
        try:
            request = self._client.param_serialize(
                method, url, header_params=headers, body=body, auth_settings=["BearerToken"]
            )
            response = self._client.call_api(*request, _request_timeout=_SECONDS)
            text = response.read().decode(errors="replace")
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise AssertionError(f"{method} {url}: {error}") from error
        if response.status == _NOT_FOUND and body is None:
            return None
        if response.status not in _GOOD:
            raise AssertionError(f"{method} {url}: {response.status} {_said(text)}")
        return text


def _said(text: str) -> str:
    """Return the message of a refusal."""
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text[:2000]


@cache
def _of(kubeconfig: str) -> ApiServer:
    return ApiServer(kubeconfig)


def api_server() -> ApiServer:
    """Return that of the environment's KUBECONFIG, as kubectl takes it."""
    return _of(os.environ["KUBECONFIG"])
