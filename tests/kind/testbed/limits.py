"""The one setting of the machine that the test bed changes, while a cluster is there.

Every node needs about 15 inotify instances and a control plane 25; the kernel's default is 128 for all of root's
processes, and a kubelet that gets none does not start. No namespace has this limit to itself.
"""

from contextlib import suppress
from pathlib import Path

from .places import RUN, lock
from .progress import note

INSTANCES = Path("/proc/sys/fs/inotify/max_user_instances")
WANTED = 2048
BEFORE = RUN / "max_user_instances.before"
"""What the setting was; no cluster can have this name."""


def raise_them() -> None:
    with lock("limits"):
        current = int(INSTANCES.read_text())
        if current < WANTED:
            RUN.mkdir(parents=True, exist_ok=True)
            BEFORE.write_text(str(current))
            INSTANCES.write_text(str(WANTED))
            note(f"raised fs.inotify.max_user_instances from {current} to {WANTED}; the last `down` restores it")


def restore() -> None:
    """When no cluster is left, and unless somebody else has changed the setting meanwhile."""
    with lock("limits"):
        if BEFORE.exists() and not any(path.is_dir() for path in RUN.iterdir()):
            if int(INSTANCES.read_text()) == WANTED:
                INSTANCES.write_text(BEFORE.read_text())
            BEFORE.unlink()
        with suppress(OSError):  # a cluster's folder is in it, or it is not there
            RUN.rmdir()


def in_force() -> list[str]:
    """For `status`."""
    if not BEFORE.exists():
        return []
    return [f"fs.inotify.max_user_instances is {WANTED} while a cluster is there; it was {BEFORE.read_text()}"]
