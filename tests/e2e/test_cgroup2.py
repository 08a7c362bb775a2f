"""What the test bed does with control groups where there is cgroup v2 alone: in a mount namespace with nothing else.

A whole cluster cannot be shown that way: where the machine has cgroup v1, v2 lacks the controllers of a kubelet.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kind.testbed import engine, kindcluster, machine, nodeimage, removal
from kind.testbed.places import Cluster

GROUPS = Path("/sys/fs/cgroup")
ALONE = ("unshare", "--mount", "--", "sh", "-ec", 'mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@"', "alone")


@pytest.mark.testbed
def test_down_ends_what_runs_and_what_is_frozen() -> None:
    tests = Path(__file__).parents[1]
    run = (*ALONE, sys.executable, __file__)
    environment = {**os.environ, "PYTHONPATH": str(tests)}
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["v2 alone", "running: 2", "frozen: 1", "left: 0 processes, 0 groups"]


def main() -> None:
    """Run in the namespace: a cluster's processes, one of them in a frozen group, and their removal."""
    assert machine.inspect().cgroup_v2
    assert "cgroup v1" not in " ".join(machine.inspect().workarounds())
    assert nodeimage.entrypoint() == ["/usr/local/bin/entrypoint", "/sbin/init"]
    cluster = Cluster("cgroup2")
    assert "cgroupDriver: systemd" in kindcluster.config(cluster)
    print("v2 alone")
    removal.remove(cluster)
    command = engine.owned(cluster, "sh", "-c", "sleep 1000 & echo $!; exec sleep 1000")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        child = int(process.stdout.readline())
        assert removal.processes(cluster) == {process.pid, child}
        print("running: 2")
        node = GROUPS / cluster.cgroup / "nodes" / "node"
        node.mkdir(parents=True)
        (node / "cgroup.procs").write_text(str(child))
        (node / "cgroup.freeze").write_text("1")
        print(f"frozen: {(node / 'cgroup.freeze').read_text().strip()}")
        removal.remove(cluster)
        assert process.wait() == -9
    print(f"left: {len(removal.processes(cluster))} processes, {len(list(removal.cgroups(cluster)))} groups")


if __name__ == "__main__":
    main()
