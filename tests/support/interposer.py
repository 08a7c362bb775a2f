"""A scripted interposer and hook that keep to docs/protocol.md, section 4, with a `sleep` as the restored tree.

Run as a process of its own: SOCKET TICKET_DIRECTORY POD_UID CONTAINER BEHAVIOUR
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NORMAL = "normal"
CANNOT_RESTORE = "cannot-restore"
DIES_BEFORE_RENAME = "dies-before-rename"
"""The hook is told to resume, but kills the tree."""


class Line:
    """One JSON object a line over the agent's socket."""

    def __init__(self, path: str) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.connect(path)
        self.file = self.connection.makefile("rb")

    def say(self, **message: Any) -> None:
        self.connection.sendall(json.dumps(message).encode() + b"\n")

    def hear(self) -> dict[str, Any] | None:
        line = self.file.readline()
        return json.loads(line) if line else None


def deadline() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 110 * 10**9


def renamed(ticket: Path) -> bool:
    """Rename the ticket; the agent may have destroyed it."""
    try:
        (ticket / "pending").rename(ticket / "resuming")
    except FileNotFoundError:
        return False
    return True


def hook(path: str, ticket: Path, who: dict[str, str], interposer: int, behaviour: str) -> int:
    """Hold a tree; return the exit code."""
    tree = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    watched = os.pidfd_open(interposer)
    line = Line(path)
    line.say(role="hook", action="post-restore", initPID=tree.pid, pid=os.getpid(), **who)
    ready, _, _ = select.select([line.connection, watched], [], [])
    answer = line.hear() if watched not in ready else None
    resume = answer is not None and answer["action"] == "resume" and behaviour != DIES_BEFORE_RENAME
    if not resume or not renamed(ticket):
        tree.kill()
        tree.wait()
        return 1
    (ticket / "ran").write_text(str(tree.pid))  # what a test looks at: the tree runs from here on
    Line(path).say(role="hook", action="pre-resume", **who)
    return 0


def interposer(path: str, ticket: Path, who: dict[str, str], behaviour: str) -> int:
    """Create one container; return the exit code."""
    line = Line(path)
    line.say(role="gate", bundle="/bundle", pid=os.getpid(), deadlineBoottimeNs=deadline(), **who)
    answer = line.hear()
    if answer is None or answer["action"] == "refuse":
        return 1
    if answer["action"] == "pass":
        return 0
    images = Path(answer["imageDir"]) / "images"
    if behaviour == CANNOT_RESTORE or not (images / "inventory.img").exists():
        line.say(event="failed", message="Error (criu/mount.c:3141): mnt: No mapping")
        return 1
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        line.connection.close()
        os._exit(hook(path, ticket, who, parent, behaviour))
    _, status = os.waitpid(child, 0)
    if status != 0:
        line.say(event="failed", message="the hook killed the tree")
        return 1
    line.say(event="restored")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    agent, ticket_directory, pod_uid, container, how = sys.argv[1:]
    names = {"podUID": pod_uid, "migration": "", "container": container, "containerID": f"id-{os.getpid()}"}
    try:
        sys.exit(interposer(agent, Path(ticket_directory), names, how))
    except (OSError, BrokenPipeError):
        sys.exit(2)
