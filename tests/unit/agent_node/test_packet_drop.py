"""With the real nft: two namespaces joined by a veth pair, a server in one and a client in the other."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from migration_agent.freeze import FreezeFailure, PacketDrop
from migration_agent.host import Host

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

HOST = Host(first_process=os.getpid())
SERVER = """
import socket, sys
listener = socket.create_server(("192.0.2.1", 7))
print("ready", flush=True)
while True:
    connection, _ = listener.accept()
    while data := connection.recv(100):
        connection.sendall(data)
"""
CLIENT = """
import socket, sys
connection = socket.create_connection(("192.0.2.1", 7), timeout=10)
for line in sys.stdin:
    try:
        connection.sendall(line.encode())
        print(connection.recv(100).decode().strip() or "EOF", flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
    connection.settimeout(0.3)
"""


@dataclass
class Pod:
    """A process in the "pod's" network namespace, and how the outside reaches it."""

    pid: int
    outside: str

    def reaches(self) -> bool:
        """Say whether one packet from outside is answered."""
        ping = ["ip", "netns", "exec", self.outside, sys.executable, "-c", self.connect("192.0.2.1")]
        return subprocess.run(ping, check=False).returncode == 0

    def reaches_itself(self) -> bool:
        argv = ["nsenter", f"--net=/proc/{self.pid}/ns/net", sys.executable, "-c", self.connect("127.0.0.1")]
        return subprocess.run(argv, check=False).returncode == 0

    @staticmethod
    def connect(address: str) -> str:
        """Return a program that ends with 0 when anything answers, be it a refusal."""
        return f"""
import socket
try:
    socket.create_connection(({address!r}, 9), timeout=0.3)
except ConnectionRefusedError:
    pass
"""


@pytest.fixture
def pod() -> Generator[Pod]:
    inside, outside = f"cmtest-in-{os.getpid()}", f"cmtest-out-{os.getpid()}"
    holder = None
    try:
        for namespace in (inside, outside):
            subprocess.run(["ip", "netns", "add", namespace], check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", "lo", "up"], check=True)
        veth = ["ip", "-n", inside, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", outside]
        subprocess.run(veth, check=True)
        for namespace, address in ((inside, "192.0.2.1/24"), (outside, "192.0.2.2/24")):
            subprocess.run(["ip", "-n", namespace, "address", "add", address, "dev", "eth0"], check=True)
            subprocess.run(["ip", "-n", namespace, "link", "set", "eth0", "up"], check=True)
        holder = subprocess.Popen(["nsenter", f"--net=/run/netns/{inside}", "sleep", "1000"])
        own, wanted = Path("/proc/self/ns/net").stat().st_ino, Path(f"/run/netns/{inside}").stat().st_ino
        assert own != wanted
        deadline = time.monotonic() + 10
        while Path(f"/proc/{holder.pid}/ns/net").stat().st_ino != wanted:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield Pod(holder.pid, outside)
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()
        for namespace in (inside, outside):
            subprocess.run(["ip", "netns", "delete", namespace], check=False)


@contextmanager
def ends(pod: Pod, inside: str, outside: str) -> Generator[tuple[subprocess.Popen[str], subprocess.Popen[str]]]:
    """Run a server inside, and when it says that it is ready a client outside."""
    server_argv = ["nsenter", f"--net=/proc/{pod.pid}/ns/net", sys.executable, "-c", inside]
    client_argv = ["ip", "netns", "exec", pod.outside, sys.executable, "-c", outside]
    pipe = subprocess.PIPE
    with subprocess.Popen(server_argv, stdin=pipe, stdout=pipe, text=True) as server:
        try:
            assert hear(server) == "ready"
            with subprocess.Popen(client_argv, stdin=pipe, stdout=pipe, text=True) as client:
                try:
                    yield server, client
                finally:
                    client.kill()
        finally:
            server.kill()


@contextmanager
def connection(pod: Pod) -> Generator[subprocess.Popen[str]]:
    """Run a client outside that is connected to an echo server inside; a line in is answered by a line out."""
    with ends(pod, SERVER, CLIENT) as (_, client):
        yield client


def hear(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    return program.stdout.readline().strip()


def say(client: subprocess.Popen[str]) -> str:
    assert client.stdin is not None
    client.stdin.write("hello\n")
    client.stdin.flush()
    return hear(client)


def test_drop_silences_all_but_loopback_until_it_is_lifted(pod: Pod) -> None:
    drop = PacketDrop(HOST, pod.pid)
    assert pod.reaches()
    assert not drop.is_up()
    drop.drop()
    drop.drop()
    assert drop.is_up()
    assert not pod.reaches()
    assert pod.reaches_itself()
    drop.lift()
    drop.lift()
    assert not drop.is_up()
    assert pod.reaches()


def test_a_connection_outlives_a_drop_that_is_lifted(pod: Pod) -> None:
    drop = PacketDrop(HOST, pod.pid)
    with connection(pod) as client:
        assert say(client) == "hello"
        drop.drop()
        assert say(client) == "TimeoutError"
        drop.lift()
        deadline = time.monotonic() + 20
        while (answer := say(client)) == "TimeoutError":
            assert time.monotonic() < deadline
        assert set(answer.split()) == {"hello"}


def test_reset_answers_a_client_that_goes_on_sending(pod: Pod) -> None:
    drop = PacketDrop(HOST, pod.pid)
    with connection(pod) as client:
        assert say(client) == "hello"
        drop.drop()
        drop.reset()
        assert drop.is_up()
        assert say(client) == "ConnectionResetError"
    drop.lift()
    assert not drop.is_up()


WRITER = """
import socket, sys
listener = socket.create_server(("192.0.2.1", 7))
print("ready", flush=True)
connection, _ = listener.accept()
sys.stdin.readline()
connection.sendall(b"written while it is dropped")
print("written", flush=True)
sys.stdin.readline()
"""
READER = """
import socket
connection = socket.create_connection(("192.0.2.1", 7), timeout=10)
print("connected", flush=True)
try:
    print(connection.recv(100).decode() or "EOF", flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"""


def test_a_client_that_waits_is_told_and_gets_nothing_that_was_written_while_it_was_dropped(pod: Pod) -> None:
    """Else it would hear, after the commit, of what the moved copy never wrote, or writes again."""
    drop = PacketDrop(HOST, pod.pid)
    with ends(pod, WRITER, READER) as (writer, reader):
        assert hear(reader) == "connected"
        drop.drop()
        assert say(writer) == "written"
        drop.reset()
        writer.kill()
        assert hear(reader) == "ConnectionResetError"


def test_reset_refuses_new_connections(pod: Pod) -> None:
    PacketDrop(HOST, pod.pid).reset()
    assert pod.reaches(), "a refusal is an answer"


def test_the_nodes_own_network_is_never_touched() -> None:
    drop = PacketDrop(HOST, os.getpid())
    for change in (drop.drop, drop.reset, drop.lift):
        with pytest.raises(FreezeFailure, match="hostNetwork"):
            change()


def test_a_process_that_is_gone_is_a_failure(pod: Pod) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    with pytest.raises(FreezeFailure):
        PacketDrop(HOST, gone.pid).drop()
