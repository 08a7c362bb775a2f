"""Registers the handler `migratable` with containerd, where the chart allows it (`agent.registerHandler`).

A drop-in file beside containerd's configuration and, when nothing imports it, one line in the main file; then
containerd is restarted, which running containers survive. How containers are started on a node is the admin's, so:
what containerd makes of all its files (`config dump`) must differ by the handler and by nothing else before it is
restarted, everything is put back when it does not come up, and what failed once is not tried again until the
configuration has changed.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, cast

from migration_agent.containerd_config import CONFIGURATION, Table, handler_problems, is_defined, load, snippet
from migration_agent.host import CommandFailed, Host
from migration_agent.paths import write_durably
from migration_api.base import Model
from migration_api.names import RUNTIME_HANDLER

log = logging.getLogger(__name__)

DROP_IN_DIRECTORY = "/etc/containerd/conf.d"
DROP_IN_NAME = "container-migration.toml"
HEADER = f"# The runtime handler {RUNTIME_HANDLER}. Written by the node agent of container-migration.\n"
_MARKER = "handler-registration.json"
_UNIT = "containerd"
_SOCKET = "/run/containerd/containerd.sock"
_COMMAND_SECONDS = 30
_RESTART_SECONDS = 90


class RegistrationFailed(Exception):
    """The handler could not be registered, and all is as it was; the message is for an admin."""


class _Change(Model):
    """A file, what it held before (None: it was not there), and what we write."""

    path: str
    before: str | None
    after: str


class _Marker(Model):
    """What an earlier life left to know: what it was changing, or what has failed with which configuration."""

    changes: tuple[_Change, ...] = ()
    failed: str = ""
    message: str = ""


class HandlerRegistration:
    """One per agent; `ensure` is called again and again, by one thread at a time."""

    def __init__(self, host: Host, state: Path) -> None:
        """`state`: the agent's own directory on the node's disk."""
        self._host = host
        self._marker = state / _MARKER

    def ensure(self) -> str | None:
        """Register the handler when it is missing; return why it could not be done, None when all is right.

        Call it only when no migration is under way on this node: containerd is restarted.
        """
        marker = self._read_marker()
        if marker.failed and marker.failed == self._digest():
            return marker.message
        if marker.changes or (handler_problems(self._host) and self._may_write()):
            return self._try(lambda: self._register(marker.changes))
        return None

    def _try(self, act: Callable[[], None]) -> str | None:
        try:
            act()
        except (RegistrationFailed, CommandFailed, OSError, ValueError) as error:
            message = f"The agent could not register the handler {RUNTIME_HANDLER} with containerd: {error}."
            log.error(message)  # noqa: TRY400  # the message says it all
            self._write_marker(_Marker(failed=self._digest(), message=message))
            return message
        self._marker.unlink(missing_ok=True)
        log.info("the handler %s is registered with containerd", RUNTIME_HANDLER)
        return None

    def _may_write(self) -> bool:
        """Say whether the handler is missing, or was written by an agent: an admin's own is not touched."""
        configuration = load(self._host)
        if not is_defined(configuration):
            return True
        drop_in, _ = _place(configuration.files[0])
        try:
            return self._host.host_file(drop_in).read_text(encoding="utf-8").startswith(HEADER)
        except (OSError, ValueError):
            return False

    def _register(self, unfinished: Sequence[_Change]) -> None:
        """Begin anew after a life that ended in the middle: nobody knows what of it containerd has read."""
        _put_back(unfinished)
        containerd = self._containerd()
        before = self._dump(containerd)
        changes = self._changes() if handler_problems(self._host) else ()
        self._write_marker(_Marker(changes=changes))
        try:
            for change in changes:
                _write(change.path, change.after)
            if changes:
                _demand_only_the_handler(before, self._dump(containerd))
        except (RegistrationFailed, CommandFailed, OSError, ValueError):
            _put_back(changes)
            raise
        self._restart(changes)

    def _changes(self) -> tuple[_Change, ...]:
        """Return the drop-in and, when nothing imports it, the main file with the line that does."""
        main = self._host.host_file(CONFIGURATION)
        if main.is_symlink() or not main.is_file():
            raise RegistrationFailed(f"{CONFIGURATION} is not a plain file")
        configuration = load(self._host)
        if configuration.unreadable:
            raise RegistrationFailed(" ".join(configuration.unreadable))
        table = configuration.files[0]
        drop_in, imported = _place(table)
        if not imported and table.get("imports"):
            raise RegistrationFailed(f"the imports of {CONFIGURATION} do not name {DROP_IN_DIRECTORY}/*.toml")
        head = f"version = {table['version']}\n" if "version" in table else ""
        file = self._host.host_file(drop_in)
        text = f"{HEADER}{head}\n{snippet(configuration.files)}\n"
        changes = (_Change(path=str(file), before=_content(file), after=text),)
        if imported:
            return changes
        before = main.read_text(encoding="utf-8")
        line = f"imports = [{json.dumps(drop_in)}]  # added by the node agent of container-migration\n"
        return (*changes, _Change(path=str(main), before=before, after=line + before))

    def _containerd(self) -> str:
        """Return the path of the containerd that systemd runs, with our configuration file."""
        shown = self._run("systemctl", "show", "--property=ExecStart", _UNIT)
        path = re.search(r"path=(\S+)", shown)
        if path is None:
            raise RegistrationFailed(f"systemd has no unit {_UNIT} on this node")
        other = re.search(r"\s(?:-c|--config)[ =](\S+)", shown)
        if other is not None and other[1] != CONFIGURATION:
            raise RegistrationFailed(f"containerd is started with {other[1]}, not {CONFIGURATION}")
        return path[1]

    def _dump(self, containerd: str) -> dict[str, Any]:
        """Return what containerd makes of all its files."""
        return tomllib.loads(self._run(containerd, "--config", CONFIGURATION, "config", "dump"))

    def _restart(self, changes: Sequence[_Change]) -> None:
        try:
            self._host.run_on_host(["systemctl", "restart", _UNIT], timeout=_RESTART_SECONDS)
            plugins = self._run("ctr", "--address", _SOCKET, "plugins", "list")
            if not re.search(r"^io\.containerd\.grpc\.v1\s+cri\s.*\bok\s*$", plugins, re.MULTILINE):
                raise RegistrationFailed("containerd's CRI plugin did not come up")  # noqa: TRY301  # one way back
        except (RegistrationFailed, CommandFailed):
            if changes:
                _put_back(changes)
                self._host.run_on_host(["systemctl", "restart", _UNIT], timeout=_RESTART_SECONDS)
            raise

    def _run(self, *argv: str) -> str:
        return self._host.run_on_host(argv, timeout=_COMMAND_SECONDS).stdout

    def _digest(self) -> str:
        """Return what tells whether the configuration has changed since."""
        return hashlib.sha256(repr(load(self._host)).encode()).hexdigest()

    def _read_marker(self) -> _Marker:
        try:
            return _Marker.model_validate_json(self._marker.read_bytes())
        except (OSError, ValueError):
            return _Marker()

    def _write_marker(self, marker: _Marker) -> None:
        write_durably(self._marker, marker.model_dump_json(by_alias=True).encode())


def _place(main: Table) -> tuple[str, bool]:
    """Return the drop-in's path, and whether the main file imports it already."""
    imports = main.get("imports")
    for pattern in cast("list[object]", imports) if isinstance(imports, list) else []:
        path = PurePosixPath(CONFIGURATION).parent / str(pattern)
        if path.name in ("*.toml", DROP_IN_NAME) and "*" not in str(path.parent):
            return str(path.parent / DROP_IN_NAME), True
    return f"{DROP_IN_DIRECTORY}/{DROP_IN_NAME}", False


def _demand_only_the_handler(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Compare what containerd makes of its files without and with the drop-in.

    Raises:
        RegistrationFailed: the handler is missing, or something else has changed as well.
    """
    _take_handler(before)
    if not _take_handler(after):
        raise RegistrationFailed("with the drop-in in place containerd does not know the handler")
    if before != after:
        raise RegistrationFailed("this version of containerd would lose other settings by a drop-in file")


def _take_handler(dump: dict[str, Any]) -> bool:
    """Remove what the drop-in may change; say whether the handler was there."""
    dump.pop("imports", None)
    sections = [plugin.get("containerd", {}).get("runtimes", {}) for plugin in dump.get("plugins", {}).values()]
    return any([runtimes.pop(RUNTIME_HANDLER, None) is not None for runtimes in sections])  # noqa: C419  # from all


def _content(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _write(name: str, text: str) -> None:
    """Replace a file of the node, with the owner and mode that it had."""
    path = Path(name)
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    old = path.stat() if path.exists() else None
    write_durably(path, text.encode(), 0o644)
    if old is not None:
        os.chown(path, old.st_uid, old.st_gid)
        path.chmod(old.st_mode & 0o7777)


def _put_back(changes: Sequence[_Change]) -> None:
    """Undo what still is as we wrote it: what an admin has changed since is his."""
    for change in reversed(changes):
        path = Path(change.path)
        if _content(path) != change.after:
            continue
        if change.before is None:
            path.unlink()
        else:
            _write(change.path, change.before)
