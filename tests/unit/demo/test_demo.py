"""The demo's timeline with and without a terminal, and its honesty: the exit code follows from the claims."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from demo.report import Result, seconds_between, show
from demo.timeline import STEPS, Timeline


def migration(passed: int, **more: Any) -> dict[str, Any]:
    conditions = [{"type": step, "status": "True", "message": ""} for step in list(STEPS)[:passed]]
    progress = {"bytesTotal": 64 << 20, "bytesDone": 32 << 20}
    return {"status": {"conditions": [*conditions, *more.get("conditions", [])], "progress": progress, **more}}


def played(*, terminal: bool) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100)
    with Timeline(console) as timeline:
        for passed in range(len(STEPS) + 1):
            timeline.show(migration(passed))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_plain_lines_name_each_step_once() -> None:
    lines = played(terminal=False).splitlines()
    assert [line.split()[2] for line in lines] == list(STEPS)
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_the_steps_and_the_bytes_are_shown() -> None:
    text = played(terminal=True)
    assert "\x1b[" in text
    for step in STEPS:
        assert step in text
    assert "32 of 64 MiB" in text


MOVED = {
    "conditions": [{"type": "Succeeded", "status": "True"}],
    "source": {"nodeName": "a"},
    "target": {"nodeName": "b", "podName": "redis-1"},
}
TRUE = Result({"status": MOVED}, 10, 10, 100, 0, 0, 0.5, ("redis-1",))


@pytest.mark.parametrize(
    "changes",
    [
        {"keys_after": 9},
        {"keys_before": 0, "keys_after": 0},
        {"acknowledged": 0},
        {"lost": 1},
        {"wrong": 1},
        {"pods_left": ("redis", "redis-1")},
        {"pods_left": ("redis",)},
        {"migration": {"status": {**MOVED, "conditions": []}}},
    ],
    ids=str,
)
def test_one_claim_that_does_not_hold_makes_it_untrue(changes: dict[str, Any]) -> None:
    assert TRUE.true
    result = replace(TRUE, **changes)
    assert not result.true
    console = Console(file=io.StringIO(), width=100)
    show(result, console)
    assert isinstance(console.file, io.StringIO)
    assert "NOT TRUE" in console.file.getvalue()


def test_times_that_are_missing_are_no_numbers() -> None:
    assert seconds_between({"frozenAt": "2026-01-01T00:00:00Z"}, "frozenAt", "dumpedAt") == "-"
    both = {"frozenAt": "2026-01-01T00:00:00Z", "dumpedAt": "2026-01-01T00:00:01.5Z"}
    assert seconds_between(both, "frozenAt", "dumpedAt") == "1.50 s"
