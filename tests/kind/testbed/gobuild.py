"""Binaries built from pinned Go modules, kept by the hash of everything that goes into them."""

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from . import host, machine, versions
from .places import SOURCES, cache, digest, finished, lock
from .progress import note, step

KUBERNETES_VERSION = f"-X k8s.io/component-base/version.gitVersion={versions.KUBERNETES}"
"""Without it the nodes report v0.0.0 and kubeadm's version check fails."""

ENVIRONMENT = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
"""What the person's own settings must not change."""

FETCH_ATTEMPTS, FETCH_PAUSE_SECONDS = 4, 10
"""Go asks its proxy once; a slow or busy one gets more chances before an hour's work is given up."""

COMPILER_GIB = 2.0
"""What one more compiler at a time may need: Kubernetes takes 2.6 GiB with two."""


@dataclass(frozen=True)
class Module:
    """A folder below `modules/` and the tools that its go.mod names."""

    name: str
    binaries: tuple[str, ...]
    usually: str
    ldflags: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    packages: str = "tool"

    @property
    def folder(self) -> Path:
        return SOURCES / "modules" / self.name


MODULES = (
    Module("kind", ("kind",), "20 s"),
    Module(
        "kubernetes",
        ("kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubeadm", "kubectl", "kubelet"),
        "9 minutes on 2 cores",
        ldflags=KUBERNETES_VERSION,
    ),
    *(
        Module(f"containerd-{series}", ("containerd", "containerd-shim-runc-v2", "ctr"), "1 minute")
        for series in versions.CONTAINERD
    ),
    Module("etcd", ("etcd",), "1 minute", renames=(("server", "etcd"),)),
    Module("coredns", ("coredns",), "2 minutes"),
    Module("helm", ("helm",), "2 minutes"),
    Module("versitygw", ("versitygw",), "2 minutes"),
    Module("checkpointctl", ("checkpointctl",), "1 minute"),
    Module("pause", ("pause",), "1 s", packages="."),
)


def node_modules(containerd: str) -> list[Module]:
    """What a node image is made of, with that series of containerd."""
    wanted = ("kubernetes", f"containerd-{containerd}", "etcd", "coredns", "pause")
    return [module for module in MODULES if module.name in wanted]


def flags(module: Module) -> list[str]:
    return ["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {module.ldflags}".strip()]


def key(module: Module) -> str:
    """Names the binaries by everything that goes into them."""
    go_version = host.run(["go", "env", "GOVERSION", "GOOS", "GOARCH"])
    return digest(module.folder, go_version, *flags(module))


def build(module: Module) -> Path:
    """The folder with the module's binaries, from the cache or built now."""
    target = built(module)
    if target.is_dir():
        return target
    with lock(f"go-{module.name}"):  # two lanes of tests may want the same tool at once
        if not target.is_dir():
            make(module, target)
    return target


def make(module: Module, target: Path) -> None:
    """Builds the module's binaries into a new folder."""
    with step(f"building {module.name} with Go", module.usually), finished(target) as out:
        fetch(module)
        compilers = ("-p", str(compilers_at_a_time(os.cpu_count() or 1, machine.available_memory())))
        command = ["nice", "-n", "5", "go", "build", *compilers, *flags(module), "-o", f"{out}/", module.packages]
        host.run(host.contained(*command), cwd=module.folder, env=ENVIRONMENT)
        for old, new in module.renames:
            (out / old).rename(out / new)


def built(module: Module) -> Path:
    """Where its binaries are, or will be."""
    return cache("bin", f"{module.name}-{key(module)}")


def missing(modules: Iterable[Module]) -> list[Module]:
    return [module for module in modules if not built(module).is_dir()]


def compilers_at_a_time(cores: int, memory: float) -> int:
    """All cores, as far as there is memory for them (in GiB)."""
    return max(2, min(cores, int(memory / COMPILER_GIB)))


def fetch(module: Module) -> None:
    """Brings the module's dependencies into Go's module cache."""
    for attempt in range(1, FETCH_ATTEMPTS + 1):
        try:
            host.run(["go", "mod", "download"], cwd=module.folder, env=ENVIRONMENT)
        except host.CommandError as error:
            if attempt == FETCH_ATTEMPTS:
                raise
            note(f"fetching what {module.name} is made of failed; trying again in {FETCH_PAUSE_SECONDS} s: {error}")
            time.sleep(FETCH_PAUSE_SECONDS)
        else:
            return


def build_all(modules: Iterable[Module]) -> dict[str, Path]:
    """Their binaries by name."""
    return {binary: build(module) / binary for module in modules for binary in module.binaries}


def tool(name: str) -> Path:
    """One binary for use on the host; only its own module is built."""
    for module in MODULES:
        if name in module.binaries:
            return build(module) / name
    known = ", ".join(binary for module in MODULES for binary in module.binaries)
    raise host.TestbedError(f"There is no tool {name!r}; there are: {known}.")


def module_source(module: str, path: str) -> Path:
    """The unpacked source of a dependency, as Go's module cache holds it."""
    folder = next(item.folder for item in MODULES if item.name == module)
    host.run(["go", "mod", "download", path], cwd=folder)
    return Path(host.run(["go", "list", "-mod=readonly", "-m", "-f", "{{.Dir}}", path], cwd=folder).strip())


def warn_when_cold() -> None:
    """Says beforehand that the first `up` takes its time."""
    if not any(cache("bin", "any").parent.glob("kubernetes-*")):
        note("Nothing is cached yet: building Kubernetes and its friends takes about 17 minutes on 2 cores, once.")
