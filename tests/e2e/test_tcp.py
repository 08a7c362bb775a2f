"""What a move costs the clients of a server: their connections, and nothing that was acknowledged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support import talker
from support.cluster import Kubectl, wait_for
from support.holders import HOLDS
from support.migration import Migrations, pod
from support.programs import service

TALKER = Path(talker.__file__).read_text(encoding="utf-8")
ALL = """
import json, socket
connection = socket.create_connection(("127.0.0.1", 7000))
connection.sendall(b"all\\n")
print(connection.makefile().readline())
"""


class Clients:
    """The pod with the two connections."""

    def __init__(self, kubectl: Kubectl, namespace: str) -> None:
        self._kubectl, self._namespace = kubectl, namespace

    def saw(self) -> list[dict[str, Any]]:
        text = self._kubectl.exec("clients", self._namespace, "sh", "-c", "[ ! -e /tmp/saw ] || cat /tmp/saw")
        return [json.loads(line) for line in text.splitlines()]

    def of(self, what: str) -> list[Any]:
        return [line[what] for line in self.saw() if what in line]


@pytest.fixture
def clients(kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str]) -> Clients:
    """Clients at the target node, whose numbers a server at the source acknowledges."""
    namespace, (source, target) = migrations.namespace, nodes
    migrations.run_pod(pod("talker", namespace, ["python3", "-c", TALKER, "server"], source))
    kubectl.apply(service("talker", namespace, talker.PORT))
    command = ["python3", "-c", TALKER, "client", "talker", "/tmp/saw"]
    migrations.run_pod(pod("clients", namespace, command, target))
    clients = Clients(kubectl, namespace)
    wait_for("acknowledged numbers", lambda: len(clients.of("acknowledged")) > 50, seconds=30)
    return clients


@pytest.mark.usefixtures("clean_nodes")
def test_clients_are_told_at_once_and_nothing_acknowledged_is_lost(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], clients: Clients
) -> None:
    namespace, (_, target) = migrations.namespace, nodes
    assert clients.of("busy") == clients.of("idle") == []

    migrations.start("move", "talker", target={"nodeName": target})
    moved = migrations.succeeded("move")["status"]["target"]["podName"]
    before = len(clients.of("acknowledged"))
    wait_for("both to be told", lambda: clients.of("busy") and clients.of("idle"), seconds=talker.PATIENCE / 2)
    # The same server listens, and new connections reach it through the Service.
    wait_for("more numbers", lambda: len(clients.of("acknowledged")) > before + 50, seconds=30)
    assert set(clients.of("busy")) <= {"ConnectionResetError", "BrokenPipeError", "EOFError"}
    assert set(clients.of("idle")) <= {"ConnectionResetError", "EOFError"}
    acknowledged = set(clients.of("acknowledged"))  # first: it grows
    held: list[int] = json.loads(kubectl.exec(moved, namespace, "python3", "-c", ALL))
    assert acknowledged <= set(held), "an acknowledged number is lost"
    assert len(held) == len(set(held)), "a number was taken twice"


@pytest.mark.usefixtures("clean_nodes")
def test_after_an_abort_the_connections_go_on(
    kubectl: Kubectl, migrations: Migrations, nodes: tuple[str, str], clients: Clients
) -> None:
    """The freeze was longer than the clients are used to, no more: not one connection ends."""
    namespace, (_, target) = migrations.namespace, nodes
    # It cannot be dumped, which is found in the freeze, after the packets are held back.
    kubectl.exec("talker", namespace, "bash", "-c", 'python3 -c "$1" >/dev/null 2>&1 &', "holder", HOLDS["io_uring"])
    migrations.start("move", "talker", target={"nodeName": target})
    assert migrations.finished("move")["status"]["decision"] == "Abort"
    before = len(clients.of("acknowledged"))
    wait_for("more numbers", lambda: len(clients.of("acknowledged")) > before + 50, seconds=30)
    assert clients.of("busy") == clients.of("idle") == []
