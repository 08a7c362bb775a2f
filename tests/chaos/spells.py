"""What is away for a while and comes back by itself, by the nodes' own clocks: also when nobody waits any more."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass

from chaos.accidents import Scene
from chaos.cells import Accident
from support.cluster import wait_for

FLAG = "/run/chaos-spell"
"""Lies on the node of a spell while it lasts."""
FAILED = f"{FLAG}.failed"
"""Lies there afterwards, with the reason, when a spell did not take or could not be undone."""
_BACK_SECONDS = 90
"""How long a node needs to be heard of again afterwards, at most."""
_RELEASE_SECONDS = 2

API_PORT = 6443

_NO_API = f"type filter hook prerouting priority -310; iifname != lo tcp dport {API_PORT} drop;"
_NO_WAY_TO_API = f"type filter hook postrouting priority 200; tcp dport {API_PORT} drop;"


@dataclass(frozen=True)
class Spell:
    """Two scripts for one node, and the time between them, in seconds."""

    begin: str
    end: str
    seconds: int

    @property
    def script(self) -> str:
        deeds = shlex.quote(f"{self.begin}\nsleep {self.seconds}\n{self.end}")
        return f"if sh -ec {deeds} 2>{FAILED}; then rm {FAILED}; fi; rm {FLAG}"


def _filter(rules: str, seconds: int) -> Spell:
    return Spell(f"nft 'table inet chaos {{ chain cut {{ {rules} }}; }}'", "nft delete table inet chaos", seconds)


_ROOM = Spell(
    # No byte is taken for this: both file systems become as small as what is in them, which may grow meanwhile.
    """room() { df -k --output=$1 $2 | tail -1 | tr -d ' '; }
images=/run/container-migration/images; size=$(room size /run); of_images=$(room size $images); n=0
until mount -o remount,size=$(room used /run)k /run; do n=$((n + 1)); [ $n -lt 50 ]; done
n=0; until mount -o remount,size=$(($(room used $images) + 4))k $images; do n=$((n + 1)); [ $n -lt 50 ]; done""",
    "mount -o remount,size=${size}k /run; mount -o remount,size=${of_images}k $images",
    20,
)
_KUBELET = Spell("systemctl stop kubelet", "systemctl start kubelet", 90)


def _agents(scene: Scene, seconds: int) -> Spell:
    """Nothing goes between the two agents; it is enough to cut it at one of the nodes."""
    nodes = [scene.lab.kubectl.get("mnode", node) or {} for node in (scene.source, scene.target)]
    hosts, ports = zip(*(node["status"]["peerEndpoint"].rsplit(":", 1) for node in nodes), strict=True)
    between, of_agents = ", ".join(hosts), ", ".join(set(ports))
    which = f"ip saddr {{ {between} }} ip daddr {{ {between} }} tcp"
    rules = " ".join(f"{which} {end} {{ {of_agents} }} drop;" for end in ("dport", "sport"))
    return _filter(f"type filter hook prerouting priority -310; {rules}", seconds)


_SPELLS: dict[Accident, Callable[[Scene], tuple[str, Spell]]] = {
    Accident.API_AWAY_SHORT: lambda s: (s.lab.third, _filter(_NO_API, 1)),
    Accident.API_AWAY: lambda s: (s.lab.third, _filter(_NO_API, 20)),
    Accident.API_AWAY_LONG: lambda s: (s.lab.third, _filter(_NO_API, 120)),
    Accident.API_AWAY_VERY_LONG: lambda s: (s.lab.third, _filter(_NO_API, 300)),
    Accident.AGENTS_APART: lambda s: (s.source, _agents(s, 20)),
    Accident.SOURCE_CUT_OFF: lambda s: (s.source, _filter(_NO_WAY_TO_API, 20)),
    Accident.TARGET_CUT_OFF: lambda s: (s.target, _filter(_NO_WAY_TO_API, 20)),
    Accident.SOURCE_FULL: lambda s: (s.source, _ROOM),
    Accident.TARGET_FULL: lambda s: (s.target, _ROOM),
    Accident.TARGET_NOT_READY: lambda s: (s.target, _KUBELET),
}


def spell(accident: Accident, scene: Scene) -> tuple[str, Spell] | None:
    """Return the node and the spell that an accident is; None for one that is over when it has happened."""
    make = _SPELLS.get(accident)
    return make(scene) if make else None


def cast(scene: Scene, node: str, what: Spell, then: str, at: str) -> None:
    """Begin a spell; a script runs on another node when it has begun, for it may be too late to reach that one then."""
    scene.lab.sh(node, f"touch {FLAG}")
    scene.lab.detached(at, then, after=min(_RELEASE_SECONDS, what.seconds))
    scene.lab.detached(node, what.script)


def outlast(scene: Scene, node: str, what: Spell) -> None:
    """Wait until a spell is over.

    Raises:
        NotInTimeError: it is not, long after its time.
        AssertionError: it did not take.
    """
    over = f"[ -e {FLAG} ] || echo over"
    seconds = what.seconds + _BACK_SECONDS
    what_for = f"what happens on node {node} to be over"
    wait_for(what_for, lambda: "over" in scene.lab.sh(node, over, seconds), seconds=seconds, every=0.5)
    failure = scene.lab.sh(node, f"cat {FAILED} 2>/dev/null; rm -f {FAILED}").strip()
    assert not failure, f"what was to happen on node {node} did not: {failure}"
