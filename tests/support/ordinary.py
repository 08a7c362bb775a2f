"""A machine as most people have it: with Docker, the internet, and a registry that images can be pulled from.

It is a network namespace of its own, with a daemon in it as the private engine of a cluster of that name would be: so
`cluster --name NAME down` removes it, whatever became of the test. What the registry has was made on this machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kind.testbed import daemon, debian, engine, host, nodeimage, removal, versions
from kind.testbed.places import Cluster, cache

from . import registry
from .cluster import wait_for
from .machine import machines_network

REGISTRY = "127.0.0.1:5000"
DOCKER = "tcp://127.0.0.1:2375"

NODE_IMAGE = f"kindest/node:{versions.KUBERNETES}"
"""Here it is the one made from packages. Upstream's of this name has kindnet."""

PACKAGES = ("docker-registry", "slirp4netns", "libslirp0")

SETTINGS = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {folder}}}}}
http: {{addr: {address}}}
"""


@dataclass(frozen=True)
class Ordinary:
    cluster: Cluster

    def start(self) -> None:
        """Start all of it, from any state, by a process that then ends: what it starts is nobody's child here."""
        this = (sys.executable, "-m", "support.ordinary")
        environment = {"PYTHONPATH": str(Path(__file__).parents[1])}
        host.run([*machines_network(), *this], env=environment)  # the cluster's network, where tests run, leads nowhere
        host.run([*this, self.cluster.name], env=environment)

    def bring(self) -> None:
        self.remove()
        daemon.start(self.cluster, "--host", DOCKER, "--registry-mirror", f"http://{REGISTRY}")
        tools = fetch()
        settings = self.cluster.run / "registry.yaml"
        settings.write_text(SETTINGS.format(folder=self.cluster.state / "registry", address=REGISTRY))
        self.spawn("registry", engine.inside(self.cluster, f"{tools}/usr/bin/docker-registry", "serve", f"{settings}"))
        [libraries] = {path.parent for path in tools.glob("usr/lib/*/libslirp.so*")}
        internet = (f"{tools}/usr/bin/slirp4netns", "--configure", "--mtu=65520", "--netns-type=path")
        self.spawn("internet", [*internet, str(self.cluster.netns), "tap0"], LD_LIBRARY_PATH=str(libraries))
        wait_for("the registry answers", lambda: self.succeeds("curl", "-sf", f"http://{REGISTRY}/v2/"), seconds=20)

    def spawn(self, name: str, command: Sequence[str], **environment: str) -> None:
        """A process that `remove` ends, as it ends the daemon."""
        with (self.cluster.run / f"{name}.log").open("wb") as log:
            subprocess.Popen(
                engine.owned(self.cluster, *command),
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def remove(self) -> None:
        removal.remove(self.cluster)

    def where(self) -> tuple[str, ...]:
        """The words before a command that somebody runs at this machine's terminal, who knows of no other cluster."""
        clean = [word for name in ("KUBECONFIG", "TESTBED_NETNS", "TESTBED_CLUSTER") for word in ("--unset", name)]
        path = f"PATH={self.cluster.tools}:{os.environ['PATH']}"
        return tuple(engine.inside(self.cluster, "env", *clean, path, f"DOCKER_HOST={DOCKER}"))

    def succeeds(self, *argv: str) -> bool:
        return host.succeeds([*self.where(), *argv])

    def publish_node_image(self) -> None:
        archive = cache("node-images", f"{nodeimage.key(self.cluster.plan.containerd)}.tar.zst")
        host.pipe(["zstd", "-dc", "-q", str(archive)], self.push(NODE_IMAGE))

    def push(self, name: str) -> list[str]:
        return engine.inside(self.cluster, "python3", registry.__file__, REGISTRY, name)


def fetch() -> Path:
    """Return the folder with the registry and the way to the internet, from the cache when they are there."""
    return debian.unpacked("ordinary", PACKAGES)


if __name__ == "__main__":
    if names := sys.argv[1:]:
        Ordinary(Cluster(names[0])).bring()
    else:
        fetch()
