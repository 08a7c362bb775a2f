"""The machine that a cluster runs on, as it must look again when the cluster has gone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

OURS = "container-migration-testbed"
"""In the name of every path and cgroup of every cluster."""

NAMESPACES = ("net", "mnt", "pid", "ipc", "uts", "cgroup")
SETTINGS = ("net/ipv4/ip_forward", "net/ipv4/conf/all/forwarding", "net/ipv6/conf/all/forwarding")


@dataclass(frozen=True)
class Machine:
    """Compared before and after. What belongs to other clusters is left out: they come and go meanwhile."""

    mounts: frozenset[str]
    cgroups: frozenset[str]
    interfaces: str
    firewall: str
    settings: tuple[str, ...]

    def differences(self, other: Machine) -> dict[str, object]:
        """Return what is not the same, by name; an empty mapping when all is."""
        found: dict[str, object] = {
            "mounts": self.mounts ^ other.mounts,
            "cgroups": self.cgroups ^ other.cgroups,
            "interfaces": self.interfaces != other.interfaces and (self.interfaces, other.interfaces),
            "firewall": self.firewall != other.firewall and (self.firewall, other.firewall),
            "settings": self.settings != other.settings and (self.settings, other.settings),
        }
        return {name: value for name, value in found.items() if value}


def look() -> Machine:
    """Look at the machine itself, though this process may be in a cluster's network."""
    mounts = [line.split(" - ")[0].split(" ", 3)[3] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return Machine(
        mounts=frozenset(mount for mount in mounts if OURS not in mount),
        cgroups=frozenset(str(path) for path in cgroups() if OURS not in str(path)),
        interfaces=on_machine("ip", "-o", "link", "show"),
        firewall=firewall(),
        settings=tuple(on_machine("cat", f"/proc/sys/{name}").strip() for name in SETTINGS),
    )


def machines_network() -> tuple[str, ...]:
    """Return the words before a command that is to run in the machine's own network."""
    return ("nsenter", f"--net=/proc/{outside()}/ns/net", "--")


def on_machine(*command: str) -> str:
    """Run a command in the machine's own network."""
    words = (*machines_network(), *command)
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout


def outside() -> int:
    """Return this process or its nearest ancestor that is not in a cluster's network: somebody has entered it."""
    namespace = os.environ.get("TESTBED_NETNS")
    inside = Path(namespace).stat().st_ino if namespace else None
    pid = os.getpid()
    while Path(f"/proc/{pid}/ns/net").stat().st_ino == inside:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def firewall() -> str:
    """Return the rules, without the counters and dates that change by themselves."""
    saved = [on_machine(tool) for tool in ("iptables-save", "ip6tables-save")]
    rules = [line.split(" [")[0] for text in saved for line in text.splitlines() if not line.startswith("#")]
    return "\n".join([*rules, on_machine("nft", "--stateless", "list", "ruleset")])


def cgroups(below: str = "") -> Iterator[Path]:
    """All control groups whose path has that text, in every hierarchy."""
    for top in Path("/sys/fs/cgroup").rglob("cgroup.procs"):
        if below in str(top):
            yield top.parent


def processes_below(cgroup: str) -> dict[int, int]:
    """Return the processes in the control groups with that name in their path, and when each started."""
    found: set[int] = set()
    for group in cgroups(cgroup):
        with suppress(OSError):
            found.update(int(pid) for pid in (group / "cgroup.procs").read_text().split())
    return {pid: start for pid in found if (start := started(pid)) is not None}


def namespaces_of(pids: Iterable[int]) -> set[str]:
    """Return the namespaces these processes are in, but the machine's own."""
    links = {link for pid in pids for link in namespace_links(pid)}
    return links - namespace_links(outside())


def namespace_links(pid: int) -> set[str]:
    with suppress(OSError):  # it has just ended
        return {str(Path(f"/proc/{pid}/ns/{kind}").readlink()) for kind in NAMESPACES}
    return set()


def processes_in(namespaces: set[str], cluster: str) -> set[int]:
    """Return the processes that are in one of these namespaces of a cluster that is gone.

    The kernel gives a new namespace the number of one that is gone, so another cluster's process may seem to be in one.
    """
    pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    return {pid for pid in pids if namespace_links(pid) & namespaces and not in_another_cluster(pid, cluster)}


def in_another_cluster(pid: int, cluster: str) -> bool:
    """Say whether a process is in the control groups of a cluster, and not of this one."""
    with suppress(OSError):  # it has just ended
        groups = Path(f"/proc/{pid}/cgroup").read_text()
        return OURS in groups and f"{OURS}-{cluster}" not in groups.replace("\n", "/").split("/")
    return False


def still_there(pids: dict[int, int]) -> set[int]:
    """Return those of the processes (pid: when it started) that run: another one may have got its pid meanwhile."""
    return {pid for pid, start in pids.items() if started(pid) == start}


def started(pid: int) -> int | None:
    """Return when a process started, in ticks since boot; None when there is none."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return None
