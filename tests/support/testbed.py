"""The project's own kind cluster, for the tests that say they need it."""

from __future__ import annotations

import ctypes
import os
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

COMMAND = Path(__file__).parents[1] / "kind" / "cluster"
NAME = "TESTBED_CLUSTER"
"""The variable that names the cluster; `cluster exec` and `cluster env` set it."""

CLONE_NEWNET = 0x40000000
SHARED = "/mnt/shared"
"""The folder that all nodes share."""


@dataclass(frozen=True)
class Testbed:
    """Runs the verbs of `tests/kind/cluster` for one cluster."""

    __test__ = False  # pytest: the name begins with Test, it is none

    name: str
    where: tuple[str, ...] = ()
    """The words of a command that runs another command where this cluster is, when that is not here."""

    def command(self, *args: str) -> list[str]:
        """Return the words that run a verb."""
        return [*self.where, str(COMMAND), "--name", self.name, *args]

    def __call__(self, *args: str, timeout: float = 600) -> str:
        """Run a verb and return its output; a failure's message has what it said."""
        done = subprocess.run(self.command(*args), capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"cluster {' '.join(args)}: {done.stderr}"
        return done.stdout

    def told(self, *args: str, timeout: float = 600) -> str:
        """Run a verb and return what it told the person at the terminal."""
        done = subprocess.run(self.command(*args), capture_output=True, text=True, check=False, timeout=timeout)
        assert done.returncode == 0, f"cluster {' '.join(args)}: {done.stderr}"
        return done.stderr

    def kill_at(self, step: str, *args: str) -> str:
        """Run a verb and kill it, without a chance to tidy up, when it tells of that step; return what it told."""
        with subprocess.Popen(self.command(*args), stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr
            told = ""
            for line in process.stderr:
                told += line
                if step in line:
                    process.kill()
                    return told
        raise AssertionError(f"`cluster {' '.join(args)}` never came to the step {step!r}: {told}")

    def variables(self, *verb: str) -> dict[str, str]:
        """Return what a verb exports: `env`, `s3`."""
        words = [line.removeprefix("export ") for line in self(*verb).splitlines()]
        return dict(shlex.split(os.path.expandvars(word))[0].split("=", 1) for word in words)


def lane(number: int) -> str:
    """Return the name of the cluster that a worker takes, from 0."""
    first = os.environ.get(NAME, "ctrmig")
    return f"{first}-{number + 1}" if number else first


def enter(name: str) -> None:
    """Bring a cluster up, unless it is, and move this process into its network."""
    testbed = Testbed(name)
    testbed("up", timeout=3600)
    os.environ.update(testbed.variables("env"))
    if namespace := os.environ["TESTBED_NETNS"]:
        with Path(namespace).open() as file:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"cannot enter the network namespace {namespace}")


def current() -> Testbed | None:
    """Return the cluster that the environment names, or None on any other cluster."""
    name = os.environ.get(NAME)
    return Testbed(name) if name else None


def start_node(node: str) -> None:
    """Start a node that went down: a container is not, every time, started again by its engine; nothing elsewhere."""
    if current():
        subprocess.run(("docker", "start", node), check=True, capture_output=True, timeout=60)
