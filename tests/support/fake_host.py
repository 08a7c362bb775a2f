"""A Host over a temp directory whose commands are answered by the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from migration_agent.host import CommandFailed, Completed, Host


@dataclass(frozen=True)
class Call:
    """A command as the code under test gave it."""

    argv: tuple[str, ...]
    env: Mapping[str, str]


@dataclass
class FakeHost(Host):
    """Answers commands on the host with `answer`: what it prints, or a CommandFailed."""

    answer: Callable[[Call], str] = field(default=lambda _: "")
    calls: list[Call] = field(default_factory=list[Call])

    def run_on_host(
        self,
        argv: Sequence[str],
        *,
        timeout: float,  # as Host has it
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002  # as Host has it
    ) -> Completed:
        call = Call(tuple(argv), env or {})
        self.calls.append(call)
        return Completed(self.answer(call), "", 0)


def fails(call: Call, message: str, returncode: int = 1) -> CommandFailed:
    return CommandFailed(call.argv, returncode, message)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
