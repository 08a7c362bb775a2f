"""One end of a transfer that is measured; runs inside an agent's pod, which has the agent's own code: `transfer.py`.

    transfer_end.py identity NAME                     print the end's certificate
    transfer_end.py stores                            keep what the standard input says of volume and bucket
    transfer_end.py make CONTENT MEBIBYTES            write a checkpoint of that content
    transfer_end.py receive METHOD PEM                print one JSON line when listening, one at the end
    transfer_end.py send METHOD ADDRESS PORT PEM      print one JSON line
    transfer_end.py clean all                         remove all of it

PEM: the certificate of the other end, as JSON. METHOD: sendfile, tls, or direct, volume, bucket, with -zstd or not.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import resource
import shutil
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from pydantic import SecretStr

from migration_agent.certificate import ensure_certificate
from migration_agent.pages.source import Lending
from migration_agent.peer import Admission, PeerServer, Refused
from migration_agent.peer_client import PeerClient
from migration_agent.ports import PeerState, Progress, Sending, Stop
from migration_agent.transport.frames import Question
from migration_agent.transport.manifest import ManifestEntry
from migration_agent.transport.objects import Bucket
from migration_agent.transport.store import StoreOf, no_store
from migration_agent.transport.volume import Folder, Volume
from migration_agent.trust import Identity, Peer, Trust
from migration_api.shipping import Shipping

BASE = Path("/run/container-migration/bench")
SOURCE, TARGET = BASE / "source", BASE / "target"
STORES = BASE / "stores.json"
PLAIN = ("sendfile", "tls")
PAGES = "main/images/pages-1.img"
UID = "be9c0000-0000-4000-8000-000000000000"
KEY = SecretStr(base64.b64encode(bytes(range(32))).decode())
MEBIBYTE = 1 << 20


def redis_memory() -> Iterator[bytes]:
    """Yield the private memory of the largest redis on this node, as it is."""
    found: list[tuple[int, Path]] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "comm").read_text().strip() == "redis-server":
                found.append((int((process / "statm").read_text().split()[1]), process))
    _, process = max(found)
    with (process / "mem").open("rb", buffering=0) as memory:
        for line in (process / "maps").read_text().splitlines():
            span, rights, _, _, inode, *_ = line.split()
            if rights != "rw-p" or inode != "0":
                continue
            at, end = (int(part, 16) for part in span.split("-"))
            while at < end:
                memory.seek(at)
                yield memory.read(min(MEBIBYTE, end - at))
                at += MEBIBYTE


def blocks(content: str) -> Iterator[bytes]:
    """Yield blocks of up to 1 MiB; for ever, but redis has an end."""
    if content == "redis":
        yield from redis_memory()
        return
    for number in itertools.count():
        yield bytes(MEBIBYTE) if content == "half-zero" and number % 2 else os.urandom(MEBIBYTE)


def make(content: str, mebibytes: int) -> None:
    shutil.rmtree(SOURCE, ignore_errors=True)
    (SOURCE / PAGES).parent.mkdir(parents=True)
    (SOURCE / "main/images/inventory.img").write_bytes(b"inventory")
    left = mebibytes * MEBIBYTE
    with (SOURCE / PAGES).open("wb") as file:
        for block in blocks(content):
            left -= file.write(block[:left])
            if not left:
                return
    raise EOFError(f"{content} has {left} bytes too few")


def say(**values: object) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    cost = {"peakMemoryBytes": used.ru_maxrss * 1024, "cpuSeconds": round(used.ru_utime + used.ru_stime, 3)}
    print(json.dumps({**values, **cost}), flush=True)


class Handler:
    """Takes whatever the other end sends."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: str | None = None

    def admit(self, peer: str, question: Question) -> Admission:
        return Admission(UID, TARGET, ("main",), Shipping(key=KEY), lambda _, __: None)

    def admitted_done(
        self, migration: str, entries: tuple[ManifestEntry, ...] | None, error: str | None, *, again: bool
    ) -> None:
        self.error = None if entries else error
        self.done.set()

    def settle(self, peer: str, question: Question) -> PeerState:
        raise Refused("not here")

    def intact(self, peer: str, migration: str) -> bool:
        raise Refused("not here")

    def lend(self, peer: str, question: Question) -> Lending:
        raise Refused("not here")

    def ready(self, peer: str, migration: str) -> bool:
        raise Refused("not here")

    def memory_moved(self, peer: str, migration: str) -> None:
        raise Refused("not here")


def identity(name: str) -> tuple[Identity, str]:
    BASE.mkdir(mode=0o700, parents=True, exist_ok=True)
    it = Identity(BASE / f"{name}.crt", BASE / f"{name}.key")
    return it, ensure_certificate(it.certificate, it.key, name, "127.0.0.1")


def trust(name: str, other: str, pem: str, endpoint: str) -> Trust:
    mine, _ = identity(name)
    peer = Peer(node=other, endpoint=endpoint, certificate=pem)
    return Trust(mine, BASE / f"{name}-peers.json", lambda: (peer,), refresh_seconds=0)


def store_of(method: str) -> StoreOf:
    """Return the store of a method, by what `stores` was told."""
    kind = method.removesuffix("-zstd")
    if kind == "direct":
        return no_store
    told = json.loads(STORES.read_text())
    if kind == "volume":
        path = Path(told["volume"])
        path.mkdir(exist_ok=True)
        return lambda uid, _: Volume(Folder(path, (path,))).store(uid)
    return lambda uid, _: Bucket(**told["bucket"]).store(uid)


def receive_sealed(method: str, pem: str) -> None:
    handler = Handler()
    trusted = trust("bench-target", "bench-source", pem, "127.0.0.1:1")
    trusted.refresh()
    server = PeerServer(trusted, handler, "0.0.0.0", 0, store_of=store_of(method))  # noqa: S104  # a pod of the test bed
    server.start()
    say(port=server.port)
    handler.done.wait()
    time.sleep(0.5)  # the answer is on its way
    say(error=handler.error)
    if store := store_of(method)(UID, Shipping(key=KEY)):
        store.wipe()


def send_sealed(method: str, address: str, port: int, pem: str) -> None:
    trusted = trust("bench-source", "bench-target", pem, f"{address}:{port}")
    trusted.refresh()
    complete = threading.Event()
    complete.set()
    shipping = Shipping(key=KEY, compression=method.endswith("-zstd"))
    sending = Sending("bench-target", UID, SOURCE, shipping, complete, Stop(), Progress())
    began = time.perf_counter()
    PeerClient(trusted, store_of(method)).send(sending)
    say(seconds=time.perf_counter() - began, chunksResumed=sending.progress.chunks_resumed)


def context(name: str, *, server: bool) -> ssl.SSLContext:
    """Return the same protocol as between agents, without the question who it is."""
    it = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    it.minimum_version = ssl.TLSVersion.TLSv1_3
    if server:
        it.load_cert_chain(*(identity(name)[0].certificate, identity(name)[0].key))
    else:
        it.check_hostname = False
        it.verify_mode = ssl.CERT_NONE
    return it


def receive_plain(wrap: Callable[[socket.socket], socket.socket]) -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:  # noqa: S104
        say(port=listener.getsockname()[1])
        with wrap(listener.accept()[0]) as connection, (TARGET / "plain").open("wb", buffering=0) as file:
            left = int.from_bytes(connection.recv(8), "big")
            buffer = memoryview(bytearray(MEBIBYTE))
            while left:
                count = connection.recv_into(buffer[: min(left, MEBIBYTE)])
                if not count:
                    raise EOFError
                file.write(buffer[:count])
                left -= count
            connection.sendall(b"k")
    say(error=None)


def send_plain(address: str, port: int, wrap: Callable[[socket.socket], socket.socket], *, zero_copy: bool) -> None:
    began = time.perf_counter()
    with (
        wrap(socket.create_connection((address, port))) as connection,
        (SOURCE / PAGES).open("rb", buffering=0) as file,
    ):
        connection.sendall((SOURCE / PAGES).stat().st_size.to_bytes(8, "big"))
        if zero_copy:
            connection.sendfile(file)
        else:
            buffer = memoryview(bytearray(MEBIBYTE))
            while count := file.readinto(buffer):
                connection.sendall(buffer[:count])
        if connection.recv(1) != b"k":
            raise EOFError
    say(seconds=time.perf_counter() - began)


def main() -> None:
    role, method, *rest = (*sys.argv[1:], "")[: max(2, len(sys.argv) - 1)]
    if role == "make":
        make(method, int(rest[0]))
        return
    if role == "identity":
        print(json.dumps(identity(method)[1]))
        return
    if role == "stores":
        STORES.touch(mode=0o600)
        STORES.write_text(sys.stdin.read())
        return
    if role == "clean":
        shutil.rmtree(BASE, ignore_errors=True)
        return
    pem = json.loads(rest.pop())
    if role == "receive":
        shutil.rmtree(TARGET, ignore_errors=True)
        receive(method, pem)
    else:
        send(method, rest[0], int(rest[1]), pem)


def receive(method: str, pem: str) -> None:
    if method not in PLAIN:
        receive_sealed(method, pem)
        return
    TARGET.mkdir(parents=True)
    tls = context("bench-target", server=True)
    receive_plain((lambda plain: tls.wrap_socket(plain, server_side=True)) if method == "tls" else lambda it: it)


def send(method: str, address: str, port: int, pem: str) -> None:
    if method not in PLAIN:
        send_sealed(method, address, port, pem)
    elif method == "tls":
        send_plain(address, port, context("bench-source", server=False).wrap_socket, zero_copy=False)
    else:
        send_plain(address, port, lambda it: it, zero_copy=True)


if __name__ == "__main__":
    main()
