"""A dump that leaves the memory in the frozen processes: whose pids the images count, so that it is found there.

CRIU lists the pages (`pagemap-N.img`, flag LAZY without PRESENT) but writes only those that it must.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from migration_agent.checkpoint.criu import write_private
from migration_agent.processes import ProcessRef
from migration_api.base import Model

_NOTE = "memory.json"
"""Beside a container's images; it is not sent."""


class _Process(Model):
    """One process of a container."""

    pid: int
    """As the images count: within the container."""
    process: ProcessRef


class _Note(Model):
    processes: tuple[_Process, ...]


def note(directory: Path, processes: Mapping[int, ProcessRef]) -> None:
    """Write down where the memory of a container is.

    Args:
        directory: the container's, beside whose images it is written.
        processes: by the pids that the images count.

    Raises:
        OSError: it cannot be written.
    """
    found = _Note(processes=tuple(_Process(pid=pid, process=ref) for pid, ref in sorted(processes.items())))
    write_private(directory / _NOTE, found.model_dump_json())


def noted(directory: Path) -> dict[int, ProcessRef]:
    """Return where the memory of a container is, by the pids that the images count; empty when all is in the images.

    Raises:
        OSError: the note cannot be read, or is none.
    """
    try:
        found = _Note.model_validate_json((directory / _NOTE).read_bytes())
    except FileNotFoundError:
        return {}
    except ValidationError as error:
        raise OSError(f"{directory / _NOTE} cannot be understood: {error.error_count()} errors") from error
    return {it.pid: it.process for it in found.processes}
