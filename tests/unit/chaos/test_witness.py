"""The witness sees every way in which a container can be doubled or lost, and nothing where nothing was."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from chaos.counter import Line
from chaos.witness import Handler, Ledger, Server

A, B = "10.0.0.1", "10.0.0.2"


class Process:
    """A counter, as its memory is: `copy` is what a checkpoint does."""

    lives = 0
    marks = 0

    def __init__(self, ledger: Ledger, peer: str) -> None:
        Process.lives += 1
        self.ledger, self.peer, self.life, self.number, self.mark = ledger, peer, f"life{Process.lives}", 0, ""

    def count(self, times: int = 1) -> None:
        for _ in range(times):
            self.number += 1
            Process.marks += 1
            self.mark = f"mark{Process.marks}"
            self.tell()

    def tell(self) -> None:
        self.ledger.take(f"it {self.life} {self.number} {self.mark}", self.peer, float(self.number))

    def copy(self, peer: str) -> Process:
        other = Process(self.ledger, peer)
        other.life, other.number, other.mark = self.life, self.number, self.mark
        return other


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def verdict(ledger: Ledger) -> tuple[int, int, int]:
    """Return the number, how many came twice and how many gaps there are."""
    it = ledger.report(0.0)["it"]
    return it["number"], len(it["doubled"]), len(it["lost"])


def test_a_move_without_a_fault(ledger: Ledger) -> None:
    source = Process(ledger, A)
    source.count(5)
    target = source.copy(B)
    target.tell()  # the answer had been lost in the move
    target.count(5)
    assert verdict(ledger) == (10, 0, 0)
    assert ledger.report(0.0)["it"]["recent"][-1][1] == B


def test_two_that_run_at_once(ledger: Ledger) -> None:
    source = Process(ledger, A)
    source.count(5)
    target = source.copy(B)
    source.count(2)
    target.count()
    assert verdict(ledger) == (7, 1, 0)


def test_one_that_goes_on_from_an_old_checkpoint(ledger: Ledger) -> None:
    source = Process(ledger, A)
    source.count(5)
    target = source.copy(B)
    source.count(20)
    target.count(3)
    assert verdict(ledger)[1] == 3


def test_a_target_that_ran_for_a_moment_before_the_source_went_on(ledger: Ledger) -> None:
    source = Process(ledger, A)
    source.count(5)
    source.copy(B).count()
    source.count()
    assert verdict(ledger)[1] == 1


def test_a_cold_start_loses_all(ledger: Ledger) -> None:
    old = Process(ledger, A)
    old.count(5)
    Process(ledger, A).count(2)
    assert verdict(ledger) == (2, 0, 1)
    old.count()
    assert verdict(ledger) == (2, 1, 1), "and two run when the old one goes on"


def test_a_missing_increment(ledger: Ledger) -> None:
    it = Process(ledger, A)
    it.count(5)
    it.number += 1
    it.count()
    assert verdict(ledger) == (7, 0, 1)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Ledger, int]]:
    monkeypatch.setattr(Server, "ledger", Ledger())
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.ledger, server.server_address[1]
        server.shutdown()
        thread.join()


def test_counter_and_witness_understand_each_other(served: tuple[Ledger, int]) -> None:
    ledger, port = served
    line = Line("127.0.0.1", port)
    assert line.tell("it life 1 a")
    assert line.connection is not None
    line.connection.shutdown(2)
    assert not line.tell("it life 2 b"), "the connection is gone"
    assert line.tell("it life 2 b")
    assert line.tell("it life 2 b"), "told again it is no second one"
    line.connection.close()
    assert verdict(ledger) == (2, 0, 0)
