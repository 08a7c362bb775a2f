"""What happens to whom. Each is done once, by exact pid, container or object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chaos.cells import Accident
from chaos.lab import Lab
from chaos.workload import Workload

_KILL_CRIU = """
for p in /proc/[0-9]*; do case "$(readlink $p/exe)" in */criu) kill -9 ${p#/proc/};; esac; done; true
"""
_KILL_INTERPOSER = """
for p in /proc/[0-9]*; do
  case "$(readlink $p/exe)" in */runc-migratable)
    tr '\\0' ' ' < $p/cmdline | grep -q ' create ' && kill -9 ${p#/proc/};;
  esac
done; true
"""


@dataclass(frozen=True)
class Scene:
    """A migration that something happens to."""

    lab: Lab
    workload: Workload
    move: str
    source: str
    target: str

    def delete(self, kind: str, name: str) -> None:
        """Delete an object, and do not wait for it."""
        where = ("-n", self.lab.namespace, "--ignore-not-found", "--wait=false")
        self.lab.kubectl("delete", kind, name, *where)

    def patch(self, patch: str) -> None:
        """Change the migration; nothing when it is gone."""
        where = ("-n", self.lab.namespace, "--type=merge")
        self.lab.kubectl("patch", "cmig", self.move, *where, "-p", patch, check=False)


def _criu(scene: Scene) -> None:
    for node in (scene.source, scene.target):
        scene.lab.sh(node, _KILL_CRIU)


def _interposer(scene: Scene) -> None:
    scene.lab.sh(scene.target, _KILL_INTERPOSER)


def _target_pod(scene: Scene) -> None:
    if name := scene.workload.target_pod():
        scene.delete("pod", name)


def _forced(scene: Scene) -> None:
    scene.delete("cmig", scene.move)
    scene.patch('{"metadata":{"finalizers":null}}')


_DEEDS: dict[Accident, Callable[[Scene], None]] = {
    Accident.OPERATOR: lambda s: s.lab.crash("operator"),
    Accident.SOURCE_AGENT: lambda s: s.lab.crash("agent", s.source),
    Accident.TARGET_AGENT: lambda s: s.lab.crash("agent", s.target),
    Accident.SOURCE_KUBELET: lambda s: s.lab.kill_unit(s.source, "kubelet"),
    Accident.TARGET_KUBELET: lambda s: s.lab.kill_unit(s.target, "kubelet"),
    Accident.SOURCE_CONTAINERD: lambda s: s.lab.kill_unit(s.source, "containerd"),
    Accident.TARGET_CONTAINERD: lambda s: s.lab.kill_unit(s.target, "containerd"),
    Accident.CRIU: _criu,
    Accident.INTERPOSER: _interposer,
    Accident.TARGET_POD: _target_pod,
    Accident.SOURCE_POD: lambda s: s.delete("pod", s.workload.pod),
    Accident.CANCEL: lambda s: s.patch('{"spec":{"cancel":true}}'),
    Accident.FORCED: _forced,
}


def befall(accident: Accident, scene: Scene) -> None:
    """Let it happen; the failpoint's own deeds, dying and failing, are armed instead."""
    _DEEDS[accident](scene)
