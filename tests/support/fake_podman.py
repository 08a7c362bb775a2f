"""Podman in memory: containers, what it keeps of them on a disk, and commands that fail or are under way."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from migration_agent.host import Host
from migration_agent.runtime.interface import RuntimeFailure
from migration_agent.runtime.podman import Podman, PodmanContainer
from support.archives import CONFIG, podman_archive

CONTAINER_ID = "5" * 64
NAME = "web"


def container(**changes: object) -> PodmanContainer:
    """Return a running container; `changes` replaces some of it."""
    it = PodmanContainer(
        id=CONTAINER_ID,
        name=NAME,
        status="running",
        pid=4242,
        restored=False,
        checkpoint=None,
        image_id="86a7",
        image_name="registry.example/web:1",
        changed_bytes=0,
        volumes=(),
        binds=(),
        dependencies=(),
        pod="",
        restart_policy="",
        systemd_unit="",
        auto_remove=False,
        cgroups=True,
        host_network=False,
    )
    return replace(it, **changes)


@dataclass(frozen=True)
class FakePodman(Podman):
    """Implements what the agent uses of `Podman`; its state is in mutable parts."""

    containers: dict[str, PodmanContainer] = field(default_factory=dict[str, PodmanContainer])
    log: list[str] = field(default_factory=list[str])
    failing: set[str] = field(default_factory=set[str])
    """Commands that fail: `restore-from` leaves a container behind that never ran, as Podman does."""
    busy: list[str] = field(default_factory=list[str])
    """While it holds anything, a command is under way."""
    stray: list[int] = field(default_factory=list[int])
    """Processes of the container that it does not know."""
    archive: list[bytes] = field(default_factory=lambda: [podman_archive(config={**CONFIG, "id": CONTAINER_ID})])
    broken: list[str] = field(default_factory=list[str])
    """While it holds anything, Podman does not answer."""

    def look(self, container: str, *, size: bool = False) -> PodmanContainer | None:
        if self.broken:
            raise RuntimeFailure("Podman does not answer")
        return next((it for it in self.containers.values() if container in {it.id, it.name}), None)

    def checkpoint(self, container_id: str, archive: Path, *, connections: bool) -> None:
        self._do("checkpoint" + (" established" if connections else ""))
        it = self.containers[container_id]
        assert it.running
        archive.write_bytes(self.archive[0])
        kept = self.host.root / "kept" / "checkpoint"
        self.host.host_file(kept).mkdir(parents=True, exist_ok=True)
        self.containers[container_id] = replace(it, status="exited", pid=0, checkpoint=kept)
        if "export" in self.failing:
            raise RuntimeFailure("no space left on device")

    def restore(self, container_id: str) -> None:
        self._do("restore")
        it = self.containers[container_id]
        assert it.checkpoint is not None
        assert not it.running
        self.containers[container_id] = replace(it, status="running", pid=4343, checkpoint=None, restored=True)
        shutil.rmtree(self.host.host_file(it.checkpoint), ignore_errors=True)

    def restore_from(self, archive: Path) -> None:
        assert json.loads(json.dumps(str(archive)))
        assert CONTAINER_ID not in self.containers
        if "restore-from" in self.failing:
            self.containers[CONTAINER_ID] = container(status="created", pid=0)
        self._do("restore-from")
        self.containers[CONTAINER_ID] = container(restored=True)

    def pause(self, container_id: str) -> None:
        self._do("pause")
        self.containers[container_id] = replace(self.containers[container_id], status="paused")

    def unpause(self, container_id: str) -> None:
        self._do("unpause")
        self.containers[container_id] = replace(self.containers[container_id], status="running")

    def remove(self, container_id: str) -> None:
        self._do("remove")
        self.containers.pop(container_id, None)
        self.stray.clear()

    def under_way(self, *marks: str) -> bool:
        assert CONTAINER_ID in marks
        return bool(self.busy)

    def processes(self, container_id: str) -> list[int]:
        assert container_id == CONTAINER_ID
        return list(self.stray)

    def memory_bytes(self, container_id: str) -> int:
        return 1 << 20

    def _do(self, act: str) -> None:
        assert not self.busy, "one command at a time"
        self.log.append(act)
        if act.split(maxsplit=1)[0] in self.failing:
            raise RuntimeFailure(f"{act} failed")


def podman_at(root: Path) -> FakePodman:
    """Return one that has no containers; its host's files are below `root`."""
    return FakePodman(Host(root=root))
