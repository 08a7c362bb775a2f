"""Whom an agent believes: those whose certificates the API server holds, and nobody else."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_agent import trust
from migration_agent.certificate import ensure_certificate
from migration_agent.paths import Layout
from migration_agent.peer_client import PeerClient
from migration_agent.ports import PeerState, PeerUnreachable
from migration_agent.trust import Identity, Peer, Trust
from support.agent import MIGRATION
from support.transfer import Nodes


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    it = Nodes(tmp_path)
    yield it
    it.server.close()


def test_a_stranger_is_not_answered(nodes: Nodes) -> None:
    nodes.client = nodes.node("stranger")
    with pytest.raises(PeerUnreachable):
        PeerClient(nodes.client).settle("node-b", MIGRATION, promise=True)
    assert nodes.handler.peers == []


def test_an_agent_that_appeared_later_is_trusted_after_one_refusal(nodes: Nodes) -> None:
    nodes.trust.refresh()
    nodes.client = nodes.node("node-c")
    nodes.publish("node-c", 1)
    assert PeerClient(nodes.client).settle("node-b", MIGRATION, promise=True) is PeerState.DESTROYED


def test_another_node_at_the_endpoint_is_not_asked(nodes: Nodes) -> None:
    impostor = nodes.known["node-b"]
    layout = Layout(nodes.root / "node-x")
    layout.prepare()
    pem = ensure_certificate(layout.certificate, layout.key, "node-x", "127.0.0.1")
    nodes.known["node-x"] = Peer(node="node-x", endpoint=impostor.endpoint, certificate=pem)
    with pytest.raises(PeerUnreachable, match="another node's agent"):
        PeerClient(nodes.client).intact("node-x", MIGRATION)


def test_trust_outlives_the_api_server_and_the_agent(nodes: Nodes) -> None:
    nodes.client.refresh()

    def away() -> tuple[Peer, ...]:
        raise ConnectionError("away")

    layout = Layout(nodes.root / "node-a")
    again = Trust(Identity(layout.certificate, layout.key), layout.peers, away)
    assert again.peer("node-b") == nodes.known["node-b"]


def test_a_list_that_cannot_be_written_counts_and_is_written_later(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(trust, "write_durably", full)
        nodes.client.refresh()
    assert nodes.client.peer("node-b") == nodes.known["node-b"]
    kept = Layout(nodes.root / "node-a").peers
    assert not kept.exists()
    nodes.client.refresh()
    assert "node-b" in kept.read_text()


def test_old_tls_is_not_spoken(nodes: Nodes) -> None:
    context = nodes.client.context(server=False)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", nodes.server.port), timeout=10) as plain,
        pytest.raises(ssl.SSLError),
    ):
        context.wrap_socket(plain)
