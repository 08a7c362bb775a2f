"""Memory that stays at a source, read over real TLS by an agent that a pager asks (docs/protocol.md, section 10)."""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from migration_agent.checkpoint import memory
from migration_agent.pages.relay import PageRelay
from migration_agent.pages.source import Lending
from migration_agent.pages.wire import BYTES_MAX, RANGES_MAX, Lost, Range, Request, read_answer, read_request
from migration_agent.peer_client import PeerClient
from migration_agent.ports import PeerUnreachable
from migration_agent.processes import Processes, ProcessRef
from migration_agent.transport.frames import FrameError
from support.agent import MIGRATION
from support.transfer import Nodes

PAGE = 4096
OWN = ProcessRef(pid=os.getpid(), start=1)
LOOKS = Processes(lambda pid: 1 if pid == OWN.pid else None, exited=lambda _: False)


@dataclass
class Memory:
    """Some of this process's memory, which stands in for a frozen one's."""

    content: bytes = field(default_factory=lambda: os.urandom(600 * PAGE))

    def __post_init__(self) -> None:
        self._buffer = ctypes.create_string_buffer(self.content, len(self.content) + PAGE)
        self.address = -(-ctypes.addressof(self._buffer) // PAGE) * PAGE
        ctypes.memmove(self.address, self.content, len(self.content) - PAGE)

    def request(self, *pages: tuple[int, int]) -> Request:
        """Ask for these pages: the first one's number, and how many."""
        return Request(1, tuple(Range(self.address + first * PAGE, count * PAGE) for first, count in pages))

    def holds(self, *pages: tuple[int, int]) -> bytes:
        return b"".join(self.content[first * PAGE : (first + count) * PAGE] for first, count in pages)


@dataclass
class Lender:
    """The target's agent: asks the other one, or cannot reach it."""

    nodes: Nodes
    unreachable: int = 0
    """How often the source cannot be reached first."""
    reasons: list[str] = field(default_factory=list[str])

    @contextmanager
    def borrow(self, migration: str, container: str) -> Generator[socket.socket]:
        if self.unreachable:
            self.unreachable -= 1
            raise PeerUnreachable("it is away")
        with PeerClient(self.nodes.client).borrow("node-b", migration, container) as connection:
            yield connection

    def lost(self, migration: str, container: str, reason: str) -> None:
        self.reasons.append(f"{migration} {container}: {reason}")


def lending(standing: str = "", looks: Processes = LOOKS) -> Lending:
    return Lending({1: OWN}, looks, lambda: standing)


@contextmanager
def relayed(tmp_path: Path, lender: Lender) -> Generator[socket.socket]:
    """Connect as a pager does."""
    path = tmp_path / "pages.sock"
    relay = PageRelay(path, lender, owner=os.getuid())
    relay.start()
    try:
        with socket.socket(socket.AF_UNIX) as pager:
            pager.settimeout(20)
            pager.connect(str(path))
            pager.sendall(f'{{"migration":"{MIGRATION}","container":"main"}}\n'.encode())
            yield pager
    finally:
        relay.close()


def asked(pager: socket.socket, request: Request) -> bytes:
    pager.sendall(request.encoded())
    buffer = memoryview(bytearray(8 + BYTES_MAX))
    return bytes(read_answer(pager, request, buffer)[8:])


@pytest.fixture
def nodes(tmp_path: Path) -> Generator[Nodes]:
    it = Nodes(tmp_path)
    it.handler.lending = lending()
    yield it
    it.server.close()


@pytest.fixture
def lender(nodes: Nodes) -> Lender:
    return Lender(nodes)


def test_pages_are_read_from_the_process_whichever_are_asked_for(tmp_path: Path, lender: Lender) -> None:
    place = Memory()
    with relayed(tmp_path, lender) as pager:
        for pages in [((0, 1),), ((7, 256),), ((3, 1), (500, 9), (100, 2)), tuple((i, 1) for i in range(RANGES_MAX))]:
            assert asked(pager, place.request(*pages)) == place.holds(*pages)
    assert lender.reasons == []


def test_pages_that_the_process_itself_may_not_touch_are_read_too(tmp_path: Path, lender: Lender) -> None:
    """Collectors of garbage protect pages, and so do programs that guard a stack."""
    place = Memory()
    libc = ctypes.CDLL(None, use_errno=True)
    for first, count in ((20, 3), (31, 1)):
        assert libc.mprotect(ctypes.c_void_p(place.address + first * PAGE), count * PAGE, 0) == 0
    try:
        with relayed(tmp_path, lender) as pager:
            for pages in [((20, 1),), ((10, 30),), ((5, 5), (22, 2), (31, 1))]:
                assert asked(pager, place.request(*pages)) == place.holds(*pages)
    finally:
        assert libc.mprotect(ctypes.c_void_p(place.address), 599 * PAGE, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    assert lender.reasons == []


def test_a_source_that_is_away_is_asked_again(tmp_path: Path, lender: Lender) -> None:
    place, lender.unreachable = Memory(), 2
    with relayed(tmp_path, lender) as pager:
        assert asked(pager, place.request((5, 5))) == place.holds((5, 5))


def test_an_agent_that_comes_back_is_asked_for_the_same_again(tmp_path: Path, nodes: Nodes, lender: Lender) -> None:
    place = Memory()
    with relayed(tmp_path, lender) as pager:
        assert asked(pager, place.request((0, 1))) == place.holds((0, 1))
        nodes.server.close()
        pager.sendall(place.request((9, 9)).encoded())
        nodes.serve()
        buffer = memoryview(bytearray(8 + BYTES_MAX))
        assert bytes(read_answer(pager, place.request((9, 9)), buffer)[8:]) == place.holds((9, 9))


@pytest.mark.parametrize(
    ("lent", "why"),
    [
        pytest.param(lending("somebody let it go on"), "somebody let it go on", id="not-frozen"),
        pytest.param(lending(looks=Processes(lambda _: 2, exited=lambda _: False)), "died while", id="another-process"),
        pytest.param(lending(looks=Processes(lambda _: 1, exited=lambda _: True)), "died while", id="dead"),
        pytest.param(Lending({}, LOOKS, lambda: ""), "has no process 1", id="unknown-process"),
        pytest.param(None, "no memory stays here", id="nothing-lent"),
    ],
)
def test_memory_that_is_not_what_it_was_is_lost_and_the_agent_is_told(
    tmp_path: Path, nodes: Nodes, lender: Lender, lent: Lending | None, why: str
) -> None:
    place, nodes.handler.lending = Memory(), lent
    with relayed(tmp_path, lender) as pager, pytest.raises(Lost, match=why):
        asked(pager, place.request((0, 1)))
    assert [why in reason for reason in lender.reasons] == [True]


def test_memory_that_the_process_does_not_have_is_lost(tmp_path: Path, lender: Lender) -> None:
    with relayed(tmp_path, lender) as pager, pytest.raises(Lost, match="Bad address"):
        asked(pager, Request(1, (Range(PAGE, PAGE),)))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(struct.pack("<II", 1, 0), id="no-range"),
        pytest.param(struct.pack("<II", 1, RANGES_MAX + 1), id="too-many-ranges"),
        pytest.param(Request(1, (Range(PAGE, BYTES_MAX + PAGE),)).encoded(), id="too-much"),
        pytest.param(Request(1, (Range(PAGE, BYTES_MAX), Range(0, PAGE))).encoded(), id="too-much-in-all"),
        pytest.param(Request(1, (Range(PAGE + 1, PAGE),)).encoded(), id="no-page"),
        pytest.param(Request(1, (Range(PAGE, 0),)).encoded(), id="nothing"),
        pytest.param(struct.pack("<IIQ", 1, 1, PAGE), id="cut-off"),
    ],
)
def test_a_request_that_nobody_may_make_ends_the_connection(request_: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(request_)
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(FrameError):
            read_request(theirs)


@pytest.mark.parametrize("hello", [b"{}\n", b"no JSON\n", b"x" * 600, b'{"migration":"../x","container":"main"}\n'])
def test_who_does_not_say_which_container_it_is_for_is_sent_away(tmp_path: Path, lender: Lender, hello: bytes) -> None:
    relay = PageRelay(tmp_path / "pages.sock", lender, owner=os.getuid())
    relay.start()
    with socket.socket(socket.AF_UNIX) as pager:
        pager.settimeout(20)
        pager.connect(str(tmp_path / "pages.sock"))
        pager.sendall(hello)
        with suppress(ConnectionResetError):  # what was not read
            assert pager.recv(1) == b""
    relay.close()


def test_only_its_owner_may_ask(tmp_path: Path, lender: Lender) -> None:
    relay = PageRelay(tmp_path / "pages.sock", lender, owner=os.getuid() + 1)
    relay.start()
    with socket.socket(socket.AF_UNIX) as pager:
        pager.settimeout(20)
        pager.connect(str(tmp_path / "pages.sock"))
        assert pager.recv(1) == b""
    relay.close()


def test_the_source_is_told_when_its_memory_is_not_needed_any_more(nodes: Nodes) -> None:
    PeerClient(nodes.client).memory_moved("node-b", MIGRATION)
    assert nodes.handler.moved == [("node-a", MIGRATION)]


def test_the_target_is_called_before_the_freeze_and_says_whether_its_pod_is_there(nodes: Nodes) -> None:
    client = PeerClient(nodes.client)
    assert [client.ready("node-b", MIGRATION) for _ in range(2)] == [False, True]
    assert nodes.handler.called == [("node-a", MIGRATION)] * 2


def test_where_the_memory_is_outlives_the_agent(tmp_path: Path) -> None:
    assert memory.noted(tmp_path) == {}
    memory.note(tmp_path, {1: OWN, 7: ProcessRef(pid=12, start=13)})
    assert memory.noted(tmp_path) == {1: OWN, 7: ProcessRef(pid=12, start=13)}
    assert [oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()] == ["0o600"]
    (tmp_path / "memory.json").write_text("{")
    with pytest.raises(OSError, match="cannot be understood"):
        memory.noted(tmp_path)
