"""A scripted interposer and hook that keep to docs/protocol.md, section 4, with a `sleep` as the restored tree.

Run as a process of its own: SOCKET TICKET_DIRECTORY POD_UID CONTAINER BEHAVIOUR
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
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


def locked(path: Path, how: int) -> int | None:
    """Lock a file; None when another one has the lock."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


@dataclass
class Container:
    """One `create` and its hooks."""

    path: str
    ticket: Path
    who: dict[str, str]
    behaviour: str

    @property
    def name(self) -> str:
        return self.who["container"]

    def hook(self, interposer: int) -> int:
        """Hold a tree; return the exit code."""
        tree = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        watched = os.pidfd_open(interposer)
        line = Line(self.path)
        line.say(role="hook", action="post-restore", initPID=tree.pid, pid=os.getpid(), **self.who)
        ready, _, _ = select.select([line.connection, watched], [], [])
        answer = line.hear() if watched not in ready else None
        resume = answer is not None and answer["action"] == "resume" and self.behaviour != DIES_BEFORE_RENAME
        line.connection.close()
        line.file.close()
        if not resume or not self.may_run():
            tree.kill()
            tree.wait()
            return 1
        (self.ticket / f"ran.{self.name}").write_text(str(tree.pid))  # what a test looks at: it runs from here on
        return 0

    def may_run(self) -> bool:
        """Say whether the ticket is resuming, by this hook or by another one of the barrier."""
        containers: list[str] = json.loads((self.ticket / "pending").read_text())["containers"]
        line = Line(self.path)
        line.say(role="hook", action="pre-resume", **self.who)
        if len(containers) == 1:
            return renamed(self.ticket)
        ready: int | None = None
        while True:
            mutex = locked(self.ticket / "barrier", fcntl.LOCK_EX)
            assert mutex is not None
            try:
                if ready is not None and (self.ticket / "resuming").exists():
                    return True
                if select.select([line.connection], [], [], 0)[0] or not (self.ticket / "pending").exists():
                    return False
                ready = ready or locked(self.ticket / f"{self.name}.ready", fcntl.LOCK_EX | fcntl.LOCK_NB)
                if all(self.is_ready(name) for name in containers if name != self.name):
                    return renamed(self.ticket)
            finally:
                os.close(mutex)
            time.sleep(0.005)

    def is_ready(self, name: str) -> bool:
        taken = locked(self.ticket / f"{name}.ready", fcntl.LOCK_EX | fcntl.LOCK_NB)
        if taken is not None:
            os.close(taken)
        return taken is None

    def create(self) -> int:
        """Go through the gate; return the exit code."""
        line, answer = self.ask(keeper=False)
        if answer["action"] == "fresh":
            return self.start_later(last=answer["last"])
        if answer["action"] == "noop":
            line.file.close()
            line.connection.close()
            return self.do_nothing(late=answer["late"])
        if answer["action"] == "keep":
            line.file.close()
            line.connection.close()
            return self.leave_keeper()
        return self.obey(line, answer, lambda: None)

    def start_later(self, *, last: bool) -> int:
        """Wait for the commit, as the `start` of a container that is left out does, blocking if it is the last."""
        if not last and os.fork() != 0:
            return 0
        line = Line(self.path)
        line.say(role="start", **self.who)
        while not (self.ticket / "resuming").exists():
            if (self.ticket / "destroyed").exists():
                return 1
            time.sleep(0.01)
        (self.ticket / f"started.{self.name}").touch()
        return 0

    def do_nothing(self, *, late: bool) -> int:
        """Be the init container that does nothing; at the late gate its end waits for the agent's word."""
        if late and os.fork() != 0:
            return 0
        while late and not self.called():
            if (self.ticket / "destroyed").exists():
                return 1
            time.sleep(0.01)
        (self.ticket / f"passed.{self.name}").touch()
        return 0

    def called(self) -> bool:
        """Wait at the late gate; return False when the agent goes away."""
        try:
            line = Line(self.path)
            line.say(role="start", **self.who)
            return (line.hear() or {}).get("action") == "go"
        except OSError:
            return False

    def ask(self, *, keeper: bool) -> tuple[Line, dict[str, Any]]:
        line = Line(self.path)
        line.say(
            role="gate", bundle="/bundle", pid=os.getpid(), keeper=keeper, deadlineBoottimeNs=deadline(), **self.who
        )
        return line, line.hear() or {"action": "refuse"}

    def leave_keeper(self) -> int:
        """Return when a keeper says that the tree is held."""
        ours, theirs = os.pipe()
        if os.fork() == 0:
            os.close(ours)
            line, answer = self.ask(keeper=True)
            code = self.obey(line, answer, lambda: os.write(theirs, b"held") and os.close(theirs))
            os._exit(code)
        os.close(theirs)
        return 0 if os.read(ours, 4) == b"held" else 1

    def obey(self, line: Line, answer: dict[str, Any], held: Any) -> int:
        if answer["action"] == "refuse":
            return 1
        if answer["action"] == "pass":
            return 0
        images = Path(answer["imageDir"]) / "images"
        if self.behaviour == CANNOT_RESTORE or not (images / "inventory.img").exists():
            line.say(event="failed", message="Error (criu/mount.c:3141): mnt: No mapping")
            return 1
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            line.connection.close()
            os._exit(self.hook(parent))
        watched = os.pidfd_open(child)
        ready, _, _ = select.select([line.connection, watched], [], [])
        if line.connection in ready and (line.hear() or {}).get("action") == "held":
            held()
        _, status = os.waitpid(child, 0)
        if status != 0:
            line.say(event="failed", message="the hook killed the tree")
            return 1
        line.say(event="restored")
        return 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    agent, ticket_directory, pod_uid, container, how = sys.argv[1:]
    names = {
        "podUID": pod_uid,
        "migration": "",
        "container": container,
        "containerID": f"id-{os.getpid()}",
        "sandboxID": "sandbox-1",
    }
    try:
        sys.exit(Container(agent, Path(ticket_directory), names, how).create())
    except (OSError, BrokenPipeError):
        sys.exit(2)
