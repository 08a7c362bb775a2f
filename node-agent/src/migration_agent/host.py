"""The one module that runs commands: in the agent's container, in the host's namespaces, or in a pod's network.

Commands in the host's namespaces leave the agent's cgroup first: the memory that CRIU takes must not count against
the agent's limit, and CRIU must survive the agent's container: killed in mid-dump it would leave its code in the tasks.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from migration_api.names import INSTALL_DIR

log = logging.getLogger(__name__)

HOST_PATH = f"{INSTALL_DIR}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""PATH of commands in the host's namespaces: the CRIU that the agent brought comes before the host's own."""

CGROUP = "container-migration"
"""The name of the cgroup, at the root of every hierarchy, that commands in the host's namespaces run in."""

_LAST_LINES = 5
_MESSAGE_CHARACTERS = 1000
_STAT_START_TIME = 22
"""`starttime`, counted from 1 as proc(5) does."""


class CommandFailed(Exception):
    """A command ended non-zero, did not start or took too long; the message is for an admin."""

    def __init__(self, argv: Sequence[str], returncode: int | None, output: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        """None when the command did not start or was killed because it took too long."""
        self.output = output
        """The last lines of what it wrote to stderr, or to stdout when stderr was empty; or why it did not end."""
        how = "did not end" if returncode is None else f"ended with {returncode}"
        super().__init__(f"`{' '.join(argv)}` {how}: {output or 'it wrote nothing'}")


@dataclass(frozen=True)
class Completed:
    """What a command that ended with 0 wrote."""

    stdout: str
    stderr: str
    returncode: int


@dataclass
class Host:
    """Runs commands and names paths; tests give it another root directory.

    Attributes:
        root: what to take for `/` in paths; commands are not confined to it.
        first_process: the process whose namespaces and files are the host's.
    """

    root: Path = Path("/")
    first_process: int = 1
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _isolation_checked: bool = False

    def path(self, path: str | Path) -> Path:
        """Return where an absolute path that is the same on the host and in the agent's container lies."""
        return self.root / str(path).lstrip("/")

    def host_file(self, path: str | Path) -> Path:
        """Return where an absolute path of the host lies that is not mounted into the agent's container.

        Only for directories whose content the admin controls: a symbolic link in it is followed in the agent's view.
        """
        return self.path(f"/proc/{self.first_process}/root") / str(path).lstrip("/")

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        input: str | None = None,  # noqa: A002  # as subprocess calls it
    ) -> Completed:
        """Run a command in the agent's container.

        Args:
            argv: the command; must hold no secrets, it is shown in errors.
            timeout: seconds; then the command and all its children are killed.
            env: added to a minimal environment (PATH, HOME, LANG).
            cwd: default is the agent's.
            input: what it reads from stdin; default is nothing.

        Raises:
            CommandFailed: it did not start, did not end in time, or ended non-zero.
        """
        return _run(argv, timeout=timeout, env=_environment(env), cwd=cwd, stdin=input)

    def run_on_host(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        env: Mapping[str, str] | None = None,
        input: str | None = None,  # noqa: A002  # as subprocess calls it
    ) -> Completed:
        """Run a command in the host's namespaces, in a cgroup of its own; otherwise like `run`."""
        self._check_isolation()
        return self.run(self._enter(argv), timeout=timeout, env={"PATH": HOST_PATH, **(env or {})}, input=input)

    def talk_on_host(self, argv: Sequence[str]) -> Dialogue:
        """Begin a dialogue with a command in the host's namespaces, in a cgroup of its own.

        Raises:
            CommandFailed: it did not start.
        """
        self._check_isolation()
        return Dialogue(self._enter(argv), _environment({"PATH": HOST_PATH}))

    def run_in_netns(
        self,
        pid: int,
        argv: Sequence[str],
        *,
        timeout: float,
        input: str | None = None,  # noqa: A002  # as subprocess calls it
    ) -> Completed:
        """Run a command of the agent's own image in the network namespace of a process; otherwise like `run`."""
        namespace = self.path(f"/proc/{pid}/ns/net")
        return self.run(["nsenter", f"--net={namespace}", "--", *argv], timeout=timeout, input=input)

    def same_network_as_host(self, pid: int) -> bool:
        """Say whether a process uses the node's own network namespace.

        Raises:
            OSError: there is no such process.
        """
        host = self.path(f"/proc/{self.first_process}/ns/net")
        return self.path(f"/proc/{pid}/ns/net").stat().st_ino == host.stat().st_ino

    def boot_id(self) -> str:
        """Return the kernel's identifier of the current boot."""
        return self.path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()

    def process_start(self, pid: int) -> int | None:
        """Return when a process started, in clock ticks since boot; None when there is no such process."""
        try:
            stat = self.path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field is the command in parentheses and may itself hold spaces and parentheses.
        after_command = stat.rpartition(")")[2].split()
        return int(after_command[_STAT_START_TIME - 3])

    def pid_namespace_members(self, pid: int) -> set[int]:
        """Return all processes of a process's PID namespace; none when it is the host's own or the process is gone."""
        wanted = self._pid_namespace(str(pid))
        if wanted is None or wanted == self._pid_namespace(str(self.first_process)):
            return set()
        names = [entry.name for entry in self.path("/proc").iterdir() if entry.name.isdigit()]
        return {int(name) for name in names if self._pid_namespace(name) == wanted}

    def pid_in_namespace_of(self, first: int, pid: int) -> int | None:
        """Return the pid that a process has in the PID namespace of another one; None when it has none or is gone."""
        levels, own = len(self._pids(first)), self._pids(pid)
        return own[levels - 1] if 0 < levels <= len(own) else None

    def _pids(self, pid: int) -> list[int]:
        """Return a process's pids, from our namespace to its own; none when it is gone."""
        return self._status(pid, "NSpid:")

    def tracer(self, pid: int) -> int | None:
        """Return who traces a process; None when nobody does, or it is gone."""
        return next(iter(self._status(pid, "TracerPid:")), 0) or None

    def _status(self, pid: int, name: str) -> list[int]:
        """Return the numbers of a line of a process's status; none when it is gone."""
        try:
            status = self.path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return []
        line = next((it for it in status.splitlines() if it.startswith(name)), name)
        return [int(word) for word in line.split()[1:]]

    def _pid_namespace(self, pid: str) -> int | None:
        with suppress(FileNotFoundError, ProcessLookupError):
            return self.path(f"/proc/{pid}/ns/pid").stat().st_ino
        return None

    def _check_isolation(self) -> None:
        """Say once in the log when commands cannot leave the agent's cgroup."""
        with self._lock:
            if self._isolation_checked:
                return
            self._isolation_checked = True
        with suppress(CommandFailed):
            own = self.run(self._enter(["cat", "/proc/self/cgroup"]), timeout=10, env={"PATH": HOST_PATH}).stdout
            if is_isolated(own):
                return
        log.warning("commands on the host stay in the agent's cgroup: CRIU's memory counts against the agent's limit")

    def _enter(self, argv: Sequence[str]) -> list[str]:
        """Wrap a command so that it runs in the host's namespaces and in a cgroup of its own.

        The PID namespace is the host's already (`hostPID`).
        """
        namespaces = ["--mount", "--uts", "--ipc", "--net", "--cgroup"]
        leave = ["sh", "-c", isolation_script("/sys/fs/cgroup"), "sh"]
        return ["nsenter", "--target", str(self.first_process), *namespaces, "--", *leave, *argv]


class Dialogue:
    """A command that answers each line with a line. It ends when it is closed, and when the agent dies."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        """Start it. Raises `CommandFailed`."""
        self._argv = argv
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                argv,
                stdin=pipe,
                stdout=pipe,
                stderr=pipe,
                env=dict(env),
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            raise CommandFailed(_shown(argv), None, f"it could not be started: {error}") from error

    def ask(self, line: str) -> str:
        """Say a line and return the answer; for one thread at a time, and for as long as it takes.

        Raises:
            CommandFailed: the command has ended.
        """
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        if stdin is None or stdout is None or stderr is None:
            raise AssertionError("it was started with pipes")
        answer = ""
        with suppress(OSError, ValueError):  # it has ended, or was closed
            stdin.write(line + "\n")
            stdin.flush()
            answer = stdout.readline()
        if not answer.endswith("\n"):
            said = ""
            with suppress(OSError, ValueError):
                said = stderr.read()
            raise CommandFailed(_shown(self._argv), self._process.wait(), last_lines(said))
        return answer

    def close(self) -> None:
        """End it, and wait for that; from any thread, as often as wished."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended by itself
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def boottime_ns() -> int:
    """Return CLOCK_BOOTTIME in nanoseconds; it goes on while the machine sleeps and is the same for every process."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_for_exit(pidfds: Sequence[int], timeout: float) -> bool:
    """Wait until the processes behind these pidfds have ended; False when some live after `timeout` seconds."""
    poll = select.poll()
    alive = set(pidfds)
    for pidfd in alive:
        poll.register(pidfd, select.POLLIN)
    deadline = time.monotonic() + timeout
    while alive:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        for pidfd, _ in poll.poll(left * 1000):
            poll.unregister(pidfd)
            alive.discard(pidfd)
    return True


def isolation_script(mounted_at: str) -> str:
    """Return the shell script that leaves the caller's cgroups and then executes its arguments.

    With cgroup v2 there is one hierarchy at `mounted_at`, with v1 one in each of its directories. A v1 cpuset without
    CPUs takes no process: there the root of the hierarchy must do. A hierarchy that cannot be left is no obstacle.
    Once the groups are there the shell starts no process of its own: with a dozen hierarchies that cost 20 ms, and
    several commands run in a freeze.
    """
    return f"""
move() {{
  [ -e "$1/cgroup.procs" ] || return
  [ -d "$1/{CGROUP}" ] || mkdir "$1/{CGROUP}"
  echo $$ > "$1/{CGROUP}/cgroup.procs" || echo $$ > "$1/cgroup.procs"
}} 2>/dev/null
if [ -e {mounted_at}/cgroup.controllers ]; then move {mounted_at}
else for hierarchy in {mounted_at}/*/; do move "${{hierarchy%/}}"; done
fi
exec "$@"
"""


def is_isolated(own_cgroups: str) -> bool:
    """Say whether a process with this /proc/self/cgroup has left the agent's memory limit."""
    paths: dict[str, str] = {}
    for line in own_cgroups.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths.get("memory", paths.get("")) == f"/{CGROUP}"


def _environment(more: Mapping[str, str] | None) -> dict[str, str]:
    """Return the little that every command gets, and what this one gets besides."""
    return {"PATH": os.environ.get("PATH", os.defpath), "HOME": "/root", "LANG": "C.UTF-8", **(more or {})}


def _run(
    argv: Sequence[str], *, timeout: float, env: Mapping[str, str], cwd: Path | None, stdin: str | None
) -> Completed:
    began = time.perf_counter()
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            text=True,
            errors="replace",
            start_new_session=True,  # so that its children can be killed with it
        )
    except OSError as error:
        raise CommandFailed(_shown(argv), None, f"it could not be started: {error}") from error
    with process:
        try:
            stdout, stderr = process.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(_shown(argv), None, f"killed after {timeout:.0f} s") from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    log.debug("%.0f ms: %s", (time.perf_counter() - began) * 1000, " ".join(_shown(argv)))
    if process.returncode != 0:
        raise CommandFailed(_shown(argv), process.returncode, last_lines(stderr.strip() or stdout))
    return Completed(stdout, stderr, process.returncode)


def _shown(argv: Sequence[str]) -> Sequence[str]:
    """Return the part of a command that an admin wants to read: without the way into the host's namespaces."""
    for index, argument in enumerate(argv):
        if argument == "sh" and list(argv[index : index + 2]) == ["sh", "-c"]:
            return argv[index + 4 :]
    return argv


def last_lines(text: str, count: int = _LAST_LINES) -> str:
    """Return the last lines that are not empty, joined to one line and bounded."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-count:])[-_MESSAGE_CHARACTERS:]
