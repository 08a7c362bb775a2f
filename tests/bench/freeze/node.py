"""One node's end of the freeze benchmark: `ends.py` runs it in a privileged pod of that node; standard library only.

It enters the node's own namespaces and obeys its standard input, a line of JSON for each command, with a line of JSON
as the answer. The target's end waits at a connection that stands before anything is frozen, and no shell runs in
between: what is measured is the tools. When its standard input ends, for whatever reason, it cleans up.
"""

from __future__ import annotations

import codecs
import ctypes
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any

NAMESPACES = ("cgroup", "ipc", "uts", "net", "mnt")
PATH = "/opt/container-migration/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""The CRIU that the agent brought comes first, for all methods."""
ENVIRONMENT = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"}
MEBIBYTE = 1 << 20
FILLED_SECONDS = 600
RESTORE_SECONDS = 120
STATUS = "{status}"
"""In a command: the number of the descriptor on which CRIU says that it is ready to serve pages."""

Message = dict[str, Any]


class Failed(Exception):
    """A command ended badly; the message says which and why."""


def enter() -> None:
    """Move into the namespaces of the node's first process."""
    codecs.lookup("idna")  # an address needs it, and afterwards Python's own files are not there any more
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as opened:
        # All are opened before /proc is another one.
        for file in [opened.enter_context(Path(f"/proc/1/ns/{name}").open()) for name in NAMESPACES]:
            if libc.setns(file.fileno(), 0):
                raise OSError(ctypes.get_errno(), f"setns {file.name}")


def errors(log: str) -> str:
    """Return the last errors of CRIU's log."""
    with suppress(OSError):
        lines = [line for line in Path(log).read_text(errors="replace").splitlines() if "Error" in line]
        return "; ".join(lines[-3:])
    return ""


class Child:
    """A command that runs; what it says goes to a file, since what it leaves behind would keep a pipe open."""

    def __init__(self, argv: list[str], log: str = "", pass_fds: tuple[int, ...] = ()) -> None:
        self.argv, self.log = argv, log
        self.said = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            argv,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=self.said,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
        )

    def finish(self, seconds: float) -> str:
        """Wait for its success; return what it said."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed(f"{' '.join(self.argv)}: still running after {seconds:.0f} s {errors(self.log)}") from None
        if code:
            raise self.failure()
        self.said.seek(0)
        return self.said.read().decode(errors="replace")

    def failure(self) -> Failed:
        """Return why it ended."""
        self.said.seek(0)
        said = self.said.read().decode(errors="replace").strip()[-800:]
        return Failed(f"{' '.join(self.argv)}: ended with {self.process.poll()}: {said} {errors(self.log)}")

    def kill(self) -> None:
        """End it with all that it has started in its session."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def read_header(file: IO[bytes]) -> Message:
    line = file.readline()
    if not line:
        raise EOFError("the other end closed the connection")
    return json.loads(line)


def say(connection: socket.socket, **values: object) -> None:
    connection.sendall(json.dumps(values).encode() + b"\n")


class Target:
    """Takes images and restores from them."""

    def __init__(self, children: list[Child]) -> None:
        self.children = children
        self.server = socket.create_server(("", 0))

    def serve(self) -> None:
        connection, _ = self.server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as file, suppress(EOFError):
            while True:
                order = read_header(file)
                try:
                    self.obey(order, file, connection)
                except (OSError, Failed) as error:
                    say(connection, error=str(error))

    def obey(self, order: Message, file: BufferedReader, connection: socket.socket) -> None:
        files: list[tuple[str, int]] = order["files"]
        for name, size in files:
            receive(file, Path(order["directory"]) / name, size)
        marks = {"received": time.time_ns()}
        daemon = self.start_daemon(order) if order["daemon"] else None
        restore = Child(order["restore"], order["log"])
        self.children.append(restore)
        restore.finish(RESTORE_SECONDS)
        marks["restored"] = time.time_ns()
        say(connection, marks=marks)
        if daemon:
            daemon.finish(FILLED_SECONDS)
            say(connection, marks={"filled": time.time_ns()})

    def start_daemon(self, order: Message) -> Child:
        """Start what serves the pages, and wait until it listens."""
        daemon = Child(order["daemon"], order["daemonLog"])
        self.children.append(daemon)
        while not Path(order["daemonSocket"]).exists():
            if daemon.process.poll() is not None:
                raise daemon.failure()
            time.sleep(0.0002)
        return daemon


def receive(file: BufferedReader, path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = memoryview(bytearray(min(size, MEBIBYTE)))
    with path.open("wb", buffering=0) as out:
        while size:
            count = file.readinto(buffer[:size])
            if not count:
                raise EOFError("the other end closed the connection")
            out.write(buffer[:count])
            size -= count


class End:
    """What the benchmark can ask for: the public methods that are in `commands`."""

    def __init__(self) -> None:
        self.children: list[Child] = []
        self.cleaning: list[str] = []
        self.connection: socket.socket | None = None
        self.answers: IO[bytes] | None = None

    def commands(self) -> dict[str, Callable[..., Message]]:
        it = (self.run, self.write, self.wait, self.listen, self.connect, self.move, self.counters)
        others = (self.pid_of, self.watch_memory, self.peak_memory, self.clean_with, self.end_children)
        return {command.__name__: command for command in (*it, *others)}

    def run(self, script: str, seconds: float = 600) -> Message:
        """Run a shell script."""
        return {"said": Child(["sh", "-ec", script]).finish(seconds)}

    def write(self, path: str, text: str) -> Message:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text)
        return {}

    def wait(self, pid: int, file: str, seconds: float) -> Message:
        """Wait for a file of a process' file system; return what is in it."""
        path, until = Path(f"/proc/{pid}/root{file}"), time.monotonic() + seconds
        while not path.exists():
            if not Path(f"/proc/{pid}").exists():
                raise Failed(f"the workload (pid {pid}) has ended before it wrote {file}")
            if time.monotonic() > until:
                raise Failed(f"the workload (pid {pid}) did not write {file} within {seconds:.0f} s")
            time.sleep(0.2)
        return {"content": path.read_text()}

    def listen(self) -> Message:
        target = Target(self.children)
        threading.Thread(target=target.serve, daemon=True).start()
        return {"port": target.server.getsockname()[1]}

    def connect(self, host: str, port: int) -> Message:
        self.connection = socket.create_connection((host, port), 10)
        self.connection.settimeout(FILLED_SECONDS)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers = self.connection.makefile("rb")
        return {}

    def move(self, checkpoint: list[str], directory: str, log: str, target: Message, *, lazy: bool) -> Message:
        """Checkpoint, send what is in the directory, and let the target restore; return when each was done."""
        marks = {"command": time.time_ns()}
        child = checkpoint_lazily(checkpoint, log) if lazy else Child(checkpoint, log)
        self.children.append(child)
        if not lazy:
            child.finish(FILLED_SECONDS)
        marks["dumped"] = time.time_ns()
        self.send(Path(directory), target)
        marks["sent"] = time.time_ns()
        marks |= self.answer()
        if target["daemon"]:
            marks |= self.answer()
            child.finish(60)
        return {"marks": marks}

    def send(self, directory: Path, target: Message) -> None:
        assert self.connection, "not connected"
        paths = sorted(path for path in directory.rglob("*") if path.is_file())
        files = [(str(path.relative_to(directory)), path.stat().st_size) for path in paths]
        say(self.connection, files=files, **target)
        for path in paths:
            with path.open("rb") as file:
                self.connection.sendfile(file)

    def answer(self) -> dict[str, int]:
        assert self.answers, "not connected"
        told = read_header(self.answers)
        if "error" in told:
            raise Failed(f"on the target: {told['error']}")
        return told["marks"]

    def counters(self) -> Message:
        """Return what this machine and this node have used since they are up, and the memory that is free."""
        with Path("/proc/stat").open() as file:
            user, nice, system, _, _, interrupts, soft, *_ = map(int, file.readline().split()[1:])
        routes = (line.split() for line in Path("/proc/1/net/route").read_text().splitlines()[1:])
        outside = next(route[0] for route in routes if route[1] == "00000000")
        devices = (line.split(":") for line in Path("/proc/1/net/dev").read_text().splitlines()[2:])
        sent = next(int(values.split()[8]) for name, values in devices if name.strip() == outside)
        memory = dict(line.split()[:2] for line in Path("/proc/meminfo").read_text().splitlines())
        return {
            "at": time.time_ns(),
            "processorSeconds": (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK"),
            "sentBytes": sent,
            "availableBytes": int(memory["MemAvailable:"]) * 1024,
            "freeBytes": int(memory["MemFree:"]) * 1024,
        }

    def pid_of(self, container: str) -> Message:
        """Return the pid of a container's first process."""
        for process in processes(container):
            with suppress(OSError):
                status = (process / "status").read_text()
                if status.split("NSpid:")[1].splitlines()[0].split()[-1] == "1":
                    return {"pid": int(process.name)}
        raise Failed(f"container {container} has no process here")

    def watch_memory(self, container: str) -> Message:
        """Let the peak of a container's processes begin anew."""
        for process in processes(container):
            (process / "clear_refs").write_text("5")
        return {}

    def peak_memory(self, container: str) -> Message:
        """Return the sum of the largest resident memory that each of a container's processes had."""
        statuses = [(process / "status").read_text().split() for process in processes(container)]
        return {"bytes": sum(int(words[words.index("VmHWM:") + 1]) * 1024 for words in statuses)}

    def clean_with(self, script: str) -> Message:
        """Run this script at the end, if nothing else does."""
        if script not in self.cleaning:
            self.cleaning.append(script)
        return {}

    def end_children(self) -> Message:
        """Kill what a failed move has left running."""
        for child in self.children:
            child.kill()
        self.children.clear()
        return {}

    def end(self) -> None:
        self.end_children()
        for script in reversed(self.cleaning):
            with suppress(Failed, OSError):
                Child(["sh", "-c", script]).finish(120)


def checkpoint_lazily(argv: list[str], log: str) -> Child:
    """Start a checkpoint; return when it is ready to serve pages."""
    reading, writing = os.pipe()
    try:
        child = Child([str(writing) if word == STATUS else word for word in argv], log, (writing,))
        os.close(writing)
        if os.read(reading, 1) != b"\0":
            child.process.wait(30)
            raise child.failure()
    finally:
        os.close(reading)
    return child


def processes(container: str) -> list[Path]:
    """Return the /proc directories of a container's processes."""
    found: list[Path] = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if container in (process / "cgroup").read_text():
                found.append(process)
    return found


def main() -> None:
    enter()
    end = End()
    orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=obey_all, args=(orders, end.commands()), daemon=True).start()
    try:
        for line in sys.stdin:
            orders.put(json.loads(line))
    finally:
        end.end()


def obey_all(orders: queue.SimpleQueue[Message], commands: dict[str, Callable[..., Message]]) -> None:
    """Answer in a thread of its own: the end of the input must be seen while a command hangs."""
    while True:
        order = orders.get()
        try:
            answer = commands[order.pop("do")](**order)
        except (OSError, EOFError, Failed) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
