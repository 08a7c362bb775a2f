"""Debian's packages and roots. The mirror is whatever this machine's own apt is configured with."""

import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from . import host, versions
from .places import cache, digest, finished, scratch
from .progress import step

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

HOST_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "jq": "jq",
    "buildah": "buildah",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "iptables": "iptables",
    "nft": "nftables",
    "zstd": "zstd",
    "dpkg": "dpkg",
    "tar": "tar",
}
"""A command, and the package it comes in. nft is for the tests of the packet drop, the others are for the test bed."""

RECORD = "debian-packages.txt"
"""In a folder of unpacked packages: which versions they are, one `NAME VERSION` a line."""

EXPIRED = "Acquire::Check-Valid-Until=false"
"""A mirror may be a snapshot whose Release file has expired; the signature is still checked."""


@dataclass(frozen=True)
class Mirror:
    """Where apt gets Debian from."""

    archive: str
    security: str | None

    def sources(self, suite: str) -> str:
        """The deb822 text of the official base images (their consumers `sed` the suite), for this mirror."""
        if suite != versions.NODE_SUITE:  # not released: it has no updates yet
            return stanza(self.archive, suite)
        stanzas = [(self.archive, f"{suite} {suite}-updates")]
        if self.security:
            stanzas.append((self.security, f"{suite}-security"))
        return "\n".join(stanza(uri, suites) for uri, suites in stanzas)


def stanza(uri: str, suites: str) -> str:
    return f"Types: deb\nURIs: {uri}\nSuites: {suites}\nComponents: main\nSigned-By: {KEYRING}\n"


def mirror() -> Mirror:
    """Asks apt itself, so that every way to configure it is understood."""
    formats = "$(ORIGIN) $(LABEL) $(REPO_URI)"
    lines = host.run(["apt-get", "indextargets", "--format", formats, "Created-By: Packages"]).splitlines()
    known = {label: uri for origin, label, uri in (line.split(" ", 2) for line in lines) if origin == "Debian"}
    if "Debian" not in known:
        raise host.TestbedError("apt knows no Debian archive: add one to its sources and run `apt-get update`.")
    return Mirror(known["Debian"], known.get("Debian-Security"))


def install_missing() -> None:
    """The commands that the test bed runs on this machine."""
    packages = sorted(package for command, package in HOST_PACKAGES.items() if not shutil.which(command))
    if packages:
        with step(f"installing missing packages on this machine: {' '.join(packages)}"):
            install(packages)
    elif not apt_is_updated():
        host.run(["apt-get", "update", "-q"])


def apt_is_updated() -> bool:
    return "Debian" in host.run(["apt-get", "indextargets", "--format", "$(ORIGIN)", "Created-By: Packages"])


def install(packages: Sequence[str]) -> None:
    command = ["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]
    environment = {"DEBIAN_FRONTEND": "noninteractive"}
    if apt_is_updated() and host.succeeds(command, env=environment):
        return
    host.run(["apt-get", "update", "-q"])
    host.run(command, env=environment)


def unpacked(purpose: str, packages: Sequence[str], suite: str | None = None) -> Path:
    """The packages' files in one folder, unpacked and not installed; `suite` None means the host's own."""
    target = cache("debs", f"{purpose}-{digest(*packages, suite or host_release(), RECORD)}")
    if not target.is_dir():
        with (
            step(f"fetching Debian packages: {' '.join(packages)}", "10 s"),
            finished(target) as out,
            scratch() as work,
        ):
            options = [] if suite is None else suite_options(suite, work)
            download(packages, options, work)
            files = [str(package) for package in sorted(work.glob("*.deb"))]
            versions_there = [host.run(["dpkg-deb", "--show", file]).strip().replace("\t", " ") for file in files]
            refuse_old(packages, versions_there if suite else [])
            for file in files:
                host.run(["dpkg", "-x", file, str(out)])
            (out / RECORD).write_text("\n".join(versions_there) + "\n")
    return target


def refuse_old(asked: Iterable[str], found: Iterable[str]) -> None:
    """A release that is behind, perhaps because the mirror is: said now, not by a migration that fails.

    What only comes along is not looked at: Debian's podman brings a CRIU that the nodes do not use.
    """
    least_of = {name: versions.LEAST.get(name) for name in asked}
    for name, _, there in (package.partition(" ") for package in found):
        least = least_of.get(name)
        if least and host.succeeds(["dpkg", "--compare-versions", there, "lt", least]):
            raise host.TestbedError(f"This mirror's {name} is {there}; at least {least} is needed.")


def installed(root_tarball: Path) -> list[str]:
    """The packages in a root, each as `NAME VERSION`."""
    status = host.run(["tar", "-xOf", str(root_tarball), "./var/lib/dpkg/status"])
    return [f"{name} {there}" for name, there in re.findall(r"(?ms)^Package: (\S+)$.*?^Version: (\S+)$", status)]


def host_release() -> str:
    return Path("/etc/os-release").read_text()


def suite_options(suite: str, work: Path) -> list[str]:
    """Options that point apt at one suite and at lists of its own: the host's apt state is not touched."""
    sources = work / "sources.list"
    sources.write_text(f"deb [signed-by={KEYRING}] {mirror().archive} {suite} main\n")
    for folder in ("lists/partial", "archives/partial"):
        (work / folder).mkdir(parents=True)
    settings = {
        "Dir::Etc::SourceList": str(sources),
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": f"{work}/lists",
        "Dir::Cache": f"{work}",
        "APT::Sandbox::User": "root",
    }
    options = ["-o", EXPIRED, *(word for key, value in settings.items() for word in ("-o", f"{key}={value}"))]
    host.run(["apt-get", *options, "update", "-q"])
    return options


def download(packages: Sequence[str], options: Sequence[str], folder: Path) -> None:
    options = [*options, "-o", "APT::Sandbox::User=root"]
    host.run(["apt-get", *options, "download", "-q", *packages], cwd=folder)


def root(purpose: str, packages: Sequence[str], usually: str, suite: str = versions.NODE_SUITE) -> Path:
    """A tarball of a minimal root of the suite with these packages."""
    sources = mirror().sources(suite)
    target = cache("roots", f"{purpose}-{digest('minbase', sources, *packages)}.tar")
    if not target.is_file():
        with step(f"making a Debian {suite} root ({purpose})", usually), scratch() as work:
            excludes = [f"--dpkgopt=path-exclude=/usr/share/{kind}/*" for kind in ("doc", "man", "locale", "info")]
            partial = work / "root.tar"
            mmdebstrap = host.contained(
                *("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root"),
                *(f"--aptopt={EXPIRED.replace('=', ' ')}", f"--include={','.join(packages)}", *excludes),
                *(suite, str(partial), "-"),
            )
            host.run(mmdebstrap, stdin=sources, env={"TMPDIR": str(work)})
            refuse_old(packages, installed(partial))
            partial.rename(target)
    return target
