"""Podman's own commands, as root on the host: what they are told, and what they say of a container.

Whoever changes something with them must know whether an earlier one is still under way: a command outlives the agent
that began it. Podman itself takes turns, by a lock for each container, but only from the moment when a command holds
it. So a command that is under way is looked for among the node's processes, by its words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.alias_generators import to_pascal

from migration_agent.checkpoint import criu
from migration_agent.host import CommandFailed, Completed, Host
from migration_agent.runtime.interface import RuntimeFailure
from migration_agent.runtime.memory import process_bytes

_LOOK_SECONDS = 30
_CHANGE_SECONDS = 120
_CHECKPOINT_SECONDS = 3600
"""Only against a CRIU that hangs for ever: killing it in the middle would leave its code in the container's tasks."""
_RESTORE_SECONDS = 600
_NOT_STARTED = 127
_NO_CONTAINER = "no such container"
_NO_IMAGE = "image not known"
_PODMANS_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Podman gives its runtime this PATH, whatever its own is: the CRIU that the agent brought is not in it."""
_CHANGING = frozenset({"checkpoint", "restore", "rm", "pause", "unpause"})
_SOCKET = re.compile(r"socket:\[(\d+)\]")
_LOG = re.compile(r"CRIU logfile [`'\"]?(/[^`'\"\s]+)")
"""How the runtime names CRIU's log, which goes with the container."""
_NODES_OWN = re.compile(r"^NSpid:\s+\d+$", re.MULTILINE)
"""In /proc/PID/status: a process that has one PID only is in no PID namespace of a container."""
_VERSION = re.compile(r"Version: (\S+)")


class _Part(BaseModel):
    """A part of what `podman container inspect` prints."""

    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_pascal)


class _State(_Part):
    status: str
    pid: int = 0
    restored: bool = False


class _Mount(_Part):
    type: str = ""
    name: str = ""
    source: str = ""
    destination: str = ""


class _Restart(_Part):
    name: str = ""


class _HostConfig(_Part):
    network_mode: str = ""
    restart_policy: _Restart = _Restart()
    auto_remove: bool = False
    cgroups: str = ""


class _Config(_Part):
    labels: dict[str, str] | None = None
    healthcheck_on_failure_action: str = ""


class _Inspected(_Part):
    id: str
    name: str
    image: str = ""
    image_name: str = ""
    static_dir: str
    pod: str = ""
    size_rw: int = 0
    state: _State
    mounts: tuple[_Mount, ...] = ()
    dependencies: tuple[str, ...] | None = None
    host_config: _HostConfig = _HostConfig()
    config: _Config = Field(default_factory=_Config)


_LIST = TypeAdapter(list[_Inspected])


@dataclass(frozen=True)
class PodmanContainer:
    """A container as Podman and the kernel show it now."""

    id: str
    name: str
    status: str
    pid: int
    """In the host's PID namespace; 0 when it does not run."""
    restored: bool
    """It was started last by a restore."""
    checkpoint: Path | None
    """Where Podman keeps a whole checkpoint of it on the host, to go on from; None when there is none."""
    image_id: str
    image_name: str
    changed_bytes: int
    volumes: tuple[str, ...]
    binds: tuple[str, ...]
    dependencies: tuple[str, ...]
    pod: str
    restart_policy: str
    systemd_unit: str
    auto_remove: bool
    cgroups: bool
    host_network: bool

    @property
    def running(self) -> bool:
        return self.status == "running"

    @property
    def began(self) -> bool:
        """Whether a process of it has ever run: one whose restore failed stays `created`."""
        return self.restored or self.status not in {"created", "configured", "initialized"}


@dataclass(frozen=True)
class Podman:
    """Runs Podman's commands on the host. All methods block."""

    host: Host

    def look(self, container: str, *, size: bool = False) -> PodmanContainer | None:
        """Return the container of this name or whole ID; None when there is none.

        Args:
            container: its name or ID.
            size: also find out what it has changed in its root file system, which takes a look at every file.

        Raises:
            RuntimeFailure: Podman could not be asked.
        """
        argv = ["container", "inspect", *(["--size"] if size else []), container]
        try:
            printed = self._run(argv, _LOOK_SECONDS).stdout
        except CommandFailed as error:
            if _NO_CONTAINER in error.output:
                return None
            raise _failure(error) from error
        try:
            found = _LIST.validate_json(printed)
        except ValidationError as error:
            raise RuntimeFailure(f"`podman container inspect {container}` was not understood: {error}") from error
        return next((self._described(it) for it in found if container in {it.id, it.name}), None)

    def image_id(self, name: str) -> str:
        """Return what an image's name stands for; empty when it is not here. Raises as `look`."""
        try:
            return self._run(["image", "inspect", "--format", "{{.Id}}", name], _LOOK_SECONDS).stdout.strip()
        except CommandFailed as error:
            if _NO_IMAGE in error.output:
                return ""
            raise _failure(error) from error

    def trouble(self) -> str:
        """Return why there is no Podman to be used; empty when there is one."""
        try:
            self._run(["version", "--format", "{{.Client.Version}}"], _LOOK_SECONDS)
        except CommandFailed as error:
            return "Podman is not installed there" if error.returncode == _NOT_STARTED else str(error)
        return ""

    def criu_version(self) -> str:
        """Return the version of the CRIU that Podman finds; empty when it finds none."""
        with suppress(CommandFailed):
            env = {"PATH": _PODMANS_PATH}
            found = _VERSION.search(self.host.run_on_host(["criu", "--version"], timeout=_LOOK_SECONDS, env=env).stdout)
            return found[1] if found else ""
        return ""

    def checkpoint(self, container_id: str, archive: Path, *, connections: bool) -> None:
        """Checkpoint a running container into an archive that is only appended to, and stop it.

        It can go on from what Podman keeps. Podman's own `--leave-running` is of no use: the container runs on before
        its file system is read, so the archive would hold files that are younger than the memory.

        Args:
            container_id: which one.
            archive: a new file.
            connections: dump established TCP connections; without it a container that has any is not stopped.

        Raises:
            RuntimeFailure: with CRIU's own words; whether the container stopped must be looked at.
        """
        self._change(
            "checkpoint",
            *("--export", str(archive), "--compress", "none", "--file-locks"),
            *(["--tcp-established"] if connections else []),
            container_id,
            seconds=_CHECKPOINT_SECONDS,
        )

    def restore(self, container_id: str) -> None:
        """Let a container go on from the checkpoint that Podman keeps. Raises as `checkpoint`."""
        self._change("restore", "--file-locks", "--tcp-established", container_id, seconds=_RESTORE_SECONDS)

    def restore_from(self, archive: Path) -> None:
        """Make a container from an archive, under its old name and ID, and let it go on. Raises as `checkpoint`."""
        options = ("--file-locks", "--tcp-established")
        self._change("restore", "--import", str(archive), *options, seconds=_RESTORE_SECONDS)

    def pause(self, container_id: str) -> None:
        """Freeze a running container's tasks."""
        self._change("pause", container_id)

    def unpause(self, container_id: str) -> None:
        """Let a paused container go on."""
        self._change("unpause", container_id)

    def remove(self, container_id: str) -> None:
        """End a container, if it runs, and remove it; nothing when there is none."""
        self._change("rm", "--force", "--time", "0", container_id)
        self._remove_cgroups(container_id)

    def under_way(self, *marks: str) -> bool:
        """Say whether a command that changes something still works; `marks`: the container's ID, the archive's path."""
        return any(_changes(argv, marks) for argv in self._commands())

    def processes(self, container_id: str) -> list[int]:
        """Return the pids of all processes in the container's cgroup, whatever Podman knows of them."""
        group = f"libpod-{container_id}"
        return [pid for pid in self._pids() if group in self._read(pid, "cgroup")]

    def sockets(self, pid: int) -> set[int]:
        """Return the inodes of the sockets that a process has open."""
        found = set[int]()
        with suppress(OSError):
            for descriptor in self.host.path(f"/proc/{pid}/fd").iterdir():
                with suppress(OSError):
                    if match := _SOCKET.fullmatch(str(descriptor.readlink())):
                        found.add(int(match[1]))
        return found

    def memory_bytes(self, container_id: str) -> int:
        """Return what a checkpoint of its memory is expected to take."""
        return sum(process_bytes(self.host, pid) for pid in self.processes(container_id))

    def _described(self, it: _Inspected) -> PodmanContainer:
        config, mounts = it.host_config, it.mounts
        restart = config.restart_policy.name
        health = it.config.healthcheck_on_failure_action
        return PodmanContainer(
            id=it.id,
            name=it.name,
            status=it.state.status,
            pid=it.state.pid,
            restored=it.state.restored,
            checkpoint=self._checkpoint_of(it),
            image_id=it.image,
            image_name=it.image_name,
            changed_bytes=it.size_rw,
            volumes=tuple(m.name or m.destination for m in mounts if m.type not in {"bind", "tmpfs", "devpts"}),
            binds=tuple(m.source for m in mounts if m.type == "bind"),
            dependencies=it.dependencies or (),
            pod=it.pod,
            restart_policy=restart if restart not in {"", "no"} else _healing(health),
            systemd_unit=(it.config.labels or {}).get("PODMAN_SYSTEMD_UNIT", ""),
            auto_remove=config.auto_remove,
            cgroups=config.cgroups in {"", "default", "enabled"},
            host_network=config.network_mode == "host",
        )

    def _checkpoint_of(self, it: _Inspected) -> Path | None:
        """CRIU writes the inventory last: without it there is no whole checkpoint."""
        directory = Path(it.static_dir) / "checkpoint"
        return directory if self.host.host_file(directory / "inventory.img").is_file() else None

    def _change(self, *argv: str, seconds: float = _CHANGE_SECONDS) -> None:
        try:
            self._run(["container", *argv], seconds)
        except CommandFailed as error:
            failure = _failure(error)
            log = _LOG.search(error.output)
            errors = criu.log_errors(self.host.host_file(log[1])) if log else ""
            raise RuntimeFailure(f"{failure}: {errors}" if errors else str(failure)) from error

    def _run(self, argv: Sequence[str], seconds: float) -> Completed:
        return self.host.run_on_host(["podman", *argv], timeout=seconds)

    def _remove_cgroups(self, container_id: str) -> None:
        """A restore that failed leaves groups behind, and with cgroup v1 none succeeds in them any more (measured)."""
        hierarchies = self.host.host_file("/sys/fs/cgroup")
        for depth in ("*", "*/*", "*/*/*"):
            for group in hierarchies.glob(f"{depth}/libpod-{container_id}*"):
                for directory in (*sorted(group.rglob("*/"), reverse=True), group):
                    with suppress(OSError):
                        directory.rmdir()

    def _commands(self) -> Iterator[list[str]]:
        """Yield the words of the node's own processes: what a container writes into its own counts for nothing."""
        for pid in self._pids():
            if _NODES_OWN.search(self._read(pid, "status")):
                yield self._read(pid, "cmdline").split("\0")

    def _pids(self) -> list[int]:
        return [int(entry.name) for entry in self.host.path("/proc").iterdir() if entry.name.isdigit()]

    def _read(self, pid: int, name: str) -> str:
        try:
            return self.host.path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def _healing(action: str) -> str:
    """Return what Podman does to a container that is not healthy, when that starts or ends it."""
    return f"health check: {action}" if action not in {"", "none"} else ""


def _changes(argv: Sequence[str], marks: Sequence[str]) -> bool:
    """Say whether these are the words of a command on that container; those of its monitor are others."""
    verbs = (verb for word, verb in pairwise(argv) if word == "container")
    return any(mark in argv for mark in marks) and any(verb in _CHANGING for verb in verbs)


def _failure(error: CommandFailed) -> RuntimeFailure:
    if error.returncode == _NOT_STARTED:
        return RuntimeFailure("Podman is not installed on this node")
    return RuntimeFailure(str(error))
