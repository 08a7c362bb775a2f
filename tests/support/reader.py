"""Reads objects over one kept connection.

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


class Reader:
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
        """GET, live.

        Raises:
            AssertionError: no answer came, or another one than the object or that there is none.
        """
        try:
            request = self._client.param_serialize("GET", url, auth_settings=["BearerToken"])
            response = self._client.call_api(*request, _request_timeout=_SECONDS)
            text = response.read()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise AssertionError(f"GET {url}: {error}") from error
        if response.status == _NOT_FOUND:
            return None
        if response.status != 200:
            raise AssertionError(f"GET {url}: {response.status} {text[:2000]}")
        return json.loads(text)


@cache
def _of(kubeconfig: str) -> Reader:
    return Reader(kubeconfig)


def reader() -> Reader:
    """Return the reader of the environment's KUBECONFIG, as kubectl takes it."""
    return _of(os.environ["KUBECONFIG"])
