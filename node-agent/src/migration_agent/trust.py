"""Whom this agent believes: the certificates that agents published in their MigrationNodes, and nobody else."""

from __future__ import annotations

import hashlib
import logging
import ssl
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from migration_agent.paths import write_durably
from migration_api.base import Model
from migration_api.node import MigrationNode

log = logging.getLogger(__name__)

_REFRESH_SECONDS = 0.25
_PEERS_BYTES = 64 * 1024 * 1024


class Peer(Model):
    """Another node's agent, as its MigrationNode describes it."""

    node: str
    endpoint: str
    """`ADDRESS:PORT`."""
    certificate: str
    """In PEM."""

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.endpoint.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def der(self) -> bytes:
        return ssl.PEM_cert_to_DER_cert(self.certificate)


_PEERS = TypeAdapter(tuple[Peer, ...])


class Untrusted(Exception):
    """The certificate belongs to no known agent."""


@dataclass(frozen=True)
class Identity:
    """This agent's own certificate and key."""

    certificate: Path
    key: Path


class Trust:
    """The set of known agents; thread-safe. It outlives the API server: the last list is kept on disk.

    A new TLS context is made for each connection, so that a change of the set or of the own certificate counts at once.
    """

    def __init__(
        self,
        identity: Identity,
        kept: Path,
        fetch: Callable[[], tuple[Peer, ...]],
        *,
        refresh_seconds: float = _REFRESH_SECONDS,
    ) -> None:
        """Begin with what was kept.

        Args:
            identity: what we show.
            kept: where the last list is kept.
            fetch: asks the API server; blocks, and raises when it does not answer.
            refresh_seconds: how long a list is new enough, however often it is asked for.
        """
        self._identity = identity
        self._kept = kept
        self._fetch = fetch
        self._lock = threading.Lock()
        self._refresh_seconds = refresh_seconds
        self._refreshed = float("-inf")
        self._peers = _load(kept)
        self._is_kept = True

    def peer(self, node: str) -> Peer | None:
        """Return the agent of a node; the API server is asked only when it is not known."""
        if node not in self._peers:
            self.refresh()
        return self._peers.get(node)

    def refresh(self) -> None:
        """Ask the API server again, but not in rapid succession; keep what is known when it does not answer."""
        with self._lock:
            if time.monotonic() - self._refreshed < self._refresh_seconds:
                return
            self._refreshed = time.monotonic()
            try:
                peers = {peer.node: peer for peer in self._fetch()}
            except Exception as error:  # noqa: BLE001  # whatever it is, the last list stands
                log.warning("the list of agents could not be renewed, the last one stands: %s", error)
                return
            if peers != self._peers or not self._is_kept:
                self._peers = peers
                self._is_kept = self._keep()

    def _keep(self) -> bool:
        """Write the list down for the next life; this one needs no disk to know whom to believe."""
        try:
            write_durably(self._kept, _PEERS.dump_json(tuple(self._peers.values()), by_alias=True))
        except OSError as error:
            log.warning("the list of agents could not be written to %s, it is tried again: %s", self._kept, error)
            return False
        return True

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return a TLS context that shows our certificate and accepts only the known ones."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False  # the certificate itself is pinned, by `node_of`
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(self._identity.certificate, self._identity.key)
        trusted = "\n".join(peer.certificate for peer in self._peers.values())
        if trusted:
            context.load_verify_locations(cadata=trusted)
        return context

    def node_of(self, connection: ssl.SSLSocket) -> str:
        """Return the node whose agent is at the other end.

        Raises:
            Untrusted: its certificate is not exactly one of those published.
        """
        shown = connection.getpeercert(binary_form=True) or b""
        for peer in self._peers.values():
            if peer.der == shown:
                return peer.node
        raise Untrusted(f"no MigrationNode has the certificate with SHA-256 {hashlib.sha256(shown).hexdigest()}")


def peers_of(nodes: Iterable[MigrationNode]) -> tuple[Peer, ...]:
    """Return the agents that have published where and who they are; damaged entries are left out."""
    found: list[Peer] = []
    for node in nodes:
        status = node.status
        if status.peer_endpoint is None or status.certificate is None:
            continue
        peer = Peer(node=node.metadata.name, endpoint=status.peer_endpoint, certificate=status.certificate)
        try:
            ssl.create_default_context(cadata=peer.certificate)
            _ = peer.der, peer.address
        except (ValueError, ssl.SSLError) as error:
            log.warning("MigrationNode %s is left out: %s", peer.node, error)
            continue
        found.append(peer)
    return tuple(found)


def _load(kept: Path) -> dict[str, Peer]:
    try:
        with kept.open("rb") as file:
            return {peer.node: peer for peer in _PEERS.validate_json(file.read(_PEERS_BYTES))}
    except (FileNotFoundError, ValidationError):
        return {}
