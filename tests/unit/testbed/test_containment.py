from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from support.cluster import wait_for

SCRIPT = """
import sys
from kind.testbed.host import contained, run
mount, duration = sys.argv[1:]
run(contained("sh", "-c", f"mount -t tmpfs tmpfs {mount}; touch {mount}/mounted; sleep {duration} & sleep {duration}"))
"""


def sleeping(duration: str) -> int:
    """How many processes sleep for just that long."""
    found = subprocess.run(("pgrep", "--full", "--exact", f"sleep {duration}"), capture_output=True, check=False)
    return len(found.stdout.split())


def test_what_a_killed_command_started_ends_with_it(tmp_path: Path) -> None:
    """Needs root. Builds mount and fork; their whole tree and its mounts go when whoever asked for them is killed."""
    duration = f"100.{time.time_ns()}"
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), duration]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as process:
        try:
            wait_for("both sleep", lambda: sleeping(duration) == 2, seconds=30)
            assert not (tmp_path / "mounted").exists()  # its mount is its own
        finally:
            process.kill()
    wait_for("none is left", lambda: sleeping(duration) == 0, seconds=30)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
