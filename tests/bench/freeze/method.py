"""A way to move the workload, as the benchmark sees it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SOURCE = (Path(__file__).parent / "workload.py").read_text()
NAME = "bench-freeze"
"""Of everything that the benchmark makes: namespace, containers, directories."""
READY, FINDINGS = "/tmp/ready.json", "/tmp/findings.json"
FILL_SECONDS = 600
FINDINGS_SECONDS = 120
"""The workload looks for ten seconds, and reads slowly while its memory is elsewhere."""


def command(mebibytes: int) -> list[str]:
    """Return what runs in the container."""
    return ["python3", "-c", SOURCE, str(mebibytes)]


class MoveFailed(Exception):
    """A method failed in one repetition; the message is kept in the results."""


@dataclass(frozen=True)
class Findings:
    """What the workload saw; moments are nanoseconds of the wall clock."""

    movedAt: int  # noqa: N815  # as the workload writes it
    gaps: list[tuple[int, int]]
    writerGaps: list[tuple[int, int]]  # noqa: N815
    acknowledged: int
    found: int
    wrong: int
    checked: int
    requestsBefore: float  # noqa: N815
    requestsFirst: float  # noqa: N815
    requestsTenth: float  # noqa: N815
    residentBytes: int  # noqa: N815

    @classmethod
    def parse(cls, text: str) -> Findings:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Outcome:
    """One move.

    Attributes:
        marks: when what was done, in nanoseconds of the wall clock; `command` is the first.
        findings: what the workload saw.
        sent_bytes: what the source node sent to other machines until everything was over.
        processor_seconds: of the machine that both nodes share, until everything was over.
        agents_peak_bytes: of the larger agent, where agents do it.
        timings: the migration's own, where it is one.
    """

    marks: dict[str, int]
    findings: Findings
    sent_bytes: int
    processor_seconds: float
    agents_peak_bytes: int | None = None
    timings: dict[str, Any] = field(default_factory=dict[str, Any])


class Method(Protocol):
    """One way to move it."""

    @property
    def name(self) -> str: ...

    def prepare(self) -> None:
        """Bring what is needed to the nodes, once."""
        ...

    def move(self, mebibytes: int) -> Outcome:
        """Start the workload, move it, and remove everything again.

        Raises:
            MoveFailed: it did not work.
        """
        ...

    def versions(self) -> dict[str, str]:
        """Return the versions of the tools that it uses."""
        ...
