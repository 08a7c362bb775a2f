"""What happens to whom. Each is done once, by exact pid, container or object."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chaos.cells import Accident
from chaos.lab import RUNC, Lab, OnNodeError
from chaos.laboratory import OPERATOR
from chaos.workload import Workload
from support.cluster import SYSTEM, wait_for
from support.migration import container_id
from support.testbed import start_node

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


_NO_MEMORY = """
for pod in $(find /sys/fs/cgroup -type d -path '*kubepods*' -name '*pod{uid}*'); do
  for limit in memory.max memory.limit_in_bytes; do [ ! -e $pod/$limit ] || echo 6M > $pod/$limit; done
done
"""
_BOOTED = "cut -d ' ' -f 22 /proc/1/stat"
_BOOT_SECONDS = 180


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


def _source_exits(scene: Scene) -> None:
    it = scene.lab.kubectl.get("pod", scene.workload.pod, scene.lab.namespace)
    assert it, "the source pod is there"
    scene.lab.sh(scene.source, f"{RUNC} kill {container_id(it)} KILL")


def _no_memory(scene: Scene) -> None:
    name = scene.workload.target_pod()
    assert name, "there is a target pod"
    uid = (scene.lab.kubectl.get("pod", name, scene.lab.namespace) or {})["metadata"]["uid"]
    scene.lab.sh(scene.target, _NO_MEMORY.format(uid=uid.replace("-", "?")))


def _reboots(scene: Scene, node: str) -> None:
    """Let a node go down as without current: nothing is stopped, nothing is written, and what lay in memory is gone."""
    before = scene.lab.sh(node, _BOOTED)
    scene.lab.detached(node, "systemctl reboot --force --force")

    def back() -> bool:
        start_node(node)
        try:
            return scene.lab.sh(node, _BOOTED, seconds=3) != before
        except OnNodeError:
            return False

    wait_for(f"node {node} to be back", back, seconds=_BOOT_SECONDS)


def _operators(scene: Scene, number: int) -> None:
    scene.lab.kubectl("scale", "deployment", OPERATOR, "-n", SYSTEM, f"--replicas={number}")
    wait_for(f"{number} operators", lambda: scene.lab.ready("operator") == number, seconds=90)


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
    Accident.SOURCE_EXITS: _source_exits,
    Accident.NO_MEMORY: _no_memory,
    Accident.SECOND_OPERATOR: lambda s: _operators(s, 2),
    Accident.SOURCE_REBOOTS: lambda s: _reboots(s, s.source),
    Accident.TARGET_REBOOTS: lambda s: _reboots(s, s.target),
}


def befall(accident: Accident, scene: Scene) -> None:
    """Let it happen; the failpoint's own deeds, dying and failing, are armed instead."""
    _DEEDS[accident](scene)


def repair(accident: Accident, scene: Scene) -> None:
    """Make good, after the migration has ended, what would stay as it is."""
    if accident is Accident.SECOND_OPERATOR:
        _operators(scene, 1)
