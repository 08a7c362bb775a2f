"""Podman's own commands: `container checkpoint --export`, a copy of the file, `container restore --import`."""

from __future__ import annotations

import shlex

from bench.freeze.containers import BASE, IMAGES, Commands, InNodes
from bench.freeze.ends import End
from bench.freeze.method import NAME, command
from support import machine
from support.migration import WORKLOAD
from support.podmans import UNIFIED
from support.testbed import Testbed, current

STORE = f"/var/lib/{NAME}"
PODMAN = ["podman", "--root", STORE, "--runroot", f"/run/{NAME}-podman"]
FILE = f"{IMAGES}/checkpoint.tar"
SHELL = shlex.join(PODMAN)
ARCHIVE = f"/run/{NAME}-image.tar"

REMOVE_CONTAINER = f"set +e; {SHELL} rm --all --force --time 0; rm -rf {BASE}\n{UNIFIED}"
REMOVE = f"""
[ ! -e {STORE} ] || {{ {REMOVE_CONTAINER}
{SHELL} unshare true; }}
rm -rf {STORE} /run/{NAME}-podman {ARCHIVE}
"""


class Podman(InNodes):
    """As the first version of this project did it by hand."""

    name = "podman"

    def prepare(self) -> None:
        """Bring podman and the image to the nodes."""
        testbed = current()
        assert testbed is not None, "podman is brought to the nodes by the test bed only: leave it out with --methods"
        Testbed(testbed.name, machine.machines_network())("add", "podman")  # its packages are outside the network
        for end in (self.source, self.target):
            end("clean_with", script=REMOVE)
            end.run(REMOVE)
            end.run(f"ctr -n k8s.io images export {ARCHIVE} {WORKLOAD} && {SHELL} load -q -i {ARCHIVE} && rm {ARCHIVE}")

    def versions(self) -> dict[str, str]:
        """Return podman's, and that of the runtime that it chose."""
        runtime = self.source.run(f"{SHELL} info --format '{{{{.Host.OCIRuntime.Name}}}}'")
        version = self.source.run(f"{runtime} --version | head -1").split()[-1]
        return {"podman": self.source.run("podman --version").split()[-1], f"podman's {runtime}": version}

    @property
    def removal(self) -> str:
        """See `InNodes`."""
        return REMOVE_CONTAINER

    def start(self, mebibytes: int) -> None:
        """See `InNodes`."""
        for end in (self.source, self.target):
            end.run(f"mkdir -p {IMAGES}")
        run = shlex.join([*PODMAN, "run", "--detach", "--name", NAME, "--network", "none", WORKLOAD])
        self.source.run(f"{run} {shlex.join(command(mebibytes))}")

    def pid(self, end: End) -> int:
        """See `InNodes`."""
        return int(end.run(f"{SHELL} inspect --format '{{{{.State.Pid}}}}' {NAME}"))

    def commands(self) -> Commands:
        """See `InNodes`."""
        checkpoint = [*PODMAN, "container", "checkpoint", "--export", FILE, NAME]
        return Commands(checkpoint, [*PODMAN, "container", "restore", "--import", FILE])
