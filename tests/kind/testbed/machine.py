"""What this machine is like, where the test bed must work differently: each deviation is a named work-around."""

from dataclasses import dataclass
from pathlib import Path

CAP_SYS_RESOURCE = 24


@dataclass(frozen=True)
class Machine:
    sys_resource: bool
    """Root can raise limits and lower OOM scores."""
    cgroup_v2: bool
    """cgroup v2 alone; otherwise v1, perhaps with a v2 mount beside it."""

    def workarounds(self) -> list[str]:
        """What the nodes have that a normal node has not; shown by `status`."""
        found: list[str] = []
        if not self.sys_resource:
            found.append(
                "root here lacks CAP_SYS_RESOURCE: the nodes run without it, containerd with restrict_oom_score_adj;"
                " CRIU cannot restore rlimits of processes that are not root's"
            )
        if not self.cgroup_v2:
            found.append(
                "cgroup v1: the kubelet runs with failCgroupV1=false and the cgroupfs driver (systemd moves tasks of"
                " the first pod of a QoS class out of their devices cgroup, where runc looks for whom to kill);"
                " systemd in the nodes has the legacy layout"
            )
        return found


def inspect() -> Machine:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    return Machine(
        sys_resource=bool(int(effective, 16) >> CAP_SYS_RESOURCE & 1),
        cgroup_v2=Path("/sys/fs/cgroup/cgroup.controllers").is_file(),
    )


def available_memory() -> float:
    """In GiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) / 2**20
