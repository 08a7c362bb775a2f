"""Whether the handler `migratable` is in containerd's configuration, and what exactly to add when it is not."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import cast

from migration_agent.host import Host
from migration_api.names import GROUP, INSTALL_DIR, RUNTIME_HANDLER

CONFIGURATION = "/etc/containerd/config.toml"
POD_ANNOTATIONS = f"{GROUP}/*"
"""What the handler must pass through to the interposer: the mark of a target pod."""

_INTERPOSER = f"{INSTALL_DIR}/bin/runc-migratable"
_PLUGIN_V2 = "io.containerd.grpc.v1.cri"
_PLUGIN = "io.containerd.cri.v1.runtime"
"""The name of the CRI plugin since version 3 of the configuration format; files of several versions may be mixed."""

_VERSION_2 = 2
_MAX_FILES = 64

Table = Mapping[str, object]


@dataclass(frozen=True)
class Configuration:
    """containerd's files as they lie on the disk."""

    files: tuple[Table, ...]
    """The main file first, then its imports."""
    unreadable: tuple[str, ...]
    """A sentence for each file that could not be read."""


def handler_problems(host: Host) -> tuple[str, ...]:
    """Return a sentence for everything that is wrong with the handler's registration; empty when it is right."""
    loaded = load(host)
    handlers = _runtimes(loaded, RUNTIME_HANDLER)
    if not handlers:
        return (
            *loaded.unreadable,
            (
                f"The handler {RUNTIME_HANDLER} is not in containerd's configuration. Add the following to "
                f"{CONFIGURATION} and restart containerd:\n{snippet(loaded.files)}"
            ),
        )
    handler = handlers[-1]  # a later file wins
    found: list[str] = []
    if _table(handler, "options").get("BinaryName") != _INTERPOSER:
        found.append(f'The handler {RUNTIME_HANDLER} must have options.BinaryName = "{_INTERPOSER}".')
    annotations = handler.get("pod_annotations")
    if not isinstance(annotations, list) or POD_ANNOTATIONS not in annotations:
        found.append(f'The handler {RUNTIME_HANDLER} must have pod_annotations = ["{POD_ANNOTATIONS}"].')
    systemd = [_table(runtime, "options").get("SystemdCgroup", False) for runtime in _runtimes(loaded, "runc")]
    if systemd and systemd[-1] != _table(handler, "options").get("SystemdCgroup", False):
        found.append(f"The handlers runc and {RUNTIME_HANDLER} must have the same options.SystemdCgroup.")
    return tuple(f"{sentence} Change it in containerd's configuration and restart containerd." for sentence in found)


def is_defined(configuration: Configuration) -> bool:
    """Say whether any file defines the handler, rightly or not."""
    return bool(_runtimes(configuration, RUNTIME_HANDLER))


def snippet(files: tuple[Table, ...]) -> str:
    """Return the lines that register the handler, in the format that the main file uses and like its runc handler."""
    version = files[0].get("version") if files else None
    plugin = f'"{_PLUGIN_V2}"' if version == _VERSION_2 else f"'{_PLUGIN}'"
    runc: dict[str, object] = {"runtime_type": "io.containerd.runc.v2"}
    options: dict[str, object] = {"SystemdCgroup": False}
    for definition in _runtimes(Configuration(files, ()), "runc"):
        runc |= definition
        options |= _table(definition, "options")
    runc |= {"pod_annotations": [*_strings(runc.get("pod_annotations")), POD_ANNOTATIONS]}
    options |= {"BinaryName": _INTERPOSER}
    section = f"[plugins.{plugin}.containerd.runtimes.{RUNTIME_HANDLER}"
    return "\n".join([f"{section}]", *_lines(runc, "  "), f"  {section}.options]", *_lines(options, "    ")])


def _lines(table: Table, indent: str) -> list[str]:
    """Return the plain values of a table as TOML; what JSON writes of strings, numbers, booleans and lists is TOML."""
    return [f"{indent}{key} = {json.dumps(table[key])}" for key in sorted(table) if not isinstance(table[key], dict)]


def _strings(value: object) -> list[str]:
    return [str(item) for item in cast("list[object]", value)] if isinstance(value, list) else []


def _runtimes(loaded: Configuration, name: str) -> list[Table]:
    """Return every definition of a runtime handler, in the order in which the files are read."""
    found: list[Table] = []
    for file in loaded.files:
        for plugin in (_PLUGIN_V2, _PLUGIN):
            runtimes = _table(_table(_table(_table(file, "plugins"), plugin), "containerd"), "runtimes")
            if name in runtimes:
                found.append(_table(runtimes, name))
    return found


def load(host: Host) -> Configuration:
    """Read the main configuration and the files that its `imports` name, once each."""
    files: list[Table] = []
    unreadable: list[str] = []
    waiting = [CONFIGURATION]
    seen: set[str] = set()
    while waiting and len(seen) < _MAX_FILES:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        try:
            table = tomllib.loads(host.host_file(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            unreadable.append(f"containerd's configuration {path} could not be read: {error}.")
            continue
        files.append(table)
        waiting.extend(_imports(host, table, PurePosixPath(path).parent))
    return Configuration(tuple(files), tuple(unreadable))


def _imports(host: Host, table: Table, directory: PurePosixPath) -> Iterator[str]:
    """Yield the host's files that match the patterns of `imports`, relative ones from the file's own directory."""
    patterns = table.get("imports")
    root = host.host_file("/")
    for pattern in cast("list[object]", patterns) if isinstance(patterns, list) else []:
        absolute = str(directory / str(pattern)).lstrip("/")
        for match in sorted(root.glob(absolute)):
            yield "/" + str(match.relative_to(root))


def _table(table: Table, key: str) -> Table:
    """Return a table of a table; empty when it is missing or something else."""
    value = table.get(key)
    return cast("Table", value) if isinstance(value, dict) else {}
