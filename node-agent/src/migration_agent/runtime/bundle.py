"""What containerd's shim wrote about a container: its bundle, read without asking containerd."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path

from pydantic import AliasChoices, BaseModel, Field, ValidationError

from migration_agent.host import Host
from migration_agent.runtime.interface import RuntimeFailure
from migration_api.names import INSTALL_DIR

log = logging.getLogger(__name__)

BUNDLES = "/run/containerd/io.containerd.runtime.v2.task/k8s.io"
RUNC_ROOT = "/run/containerd/runc"
NAMESPACE = "k8s.io"
CRIU_CONFIG_ANNOTATION = "org.criu.config"

_MAX_BYTES = 8 << 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


class _Mount(BaseModel):
    destination: str = ""
    source: str = ""


class _Config(BaseModel):
    """The part of the OCI specification that identifies a container, and its mounts."""

    annotations: dict[str, str] = Field(default_factory=dict)
    mounts: list[_Mount] = Field(default_factory=list[_Mount])

    def source_of(self, destination: str) -> str:
        return next((mount.source for mount in self.mounts if mount.destination == destination), "")


class _Options(BaseModel):
    """The shim's options for the OCI runtime, as containerd 1.x and 2.x write them to options.json."""

    binary_name: str = Field(default="", validation_alias=AliasChoices("binary_name", "BinaryName"))
    root: str = Field(default="", validation_alias=AliasChoices("root", "Root"))
    systemd_cgroup: bool = Field(default=False, validation_alias=AliasChoices("systemd_cgroup", "SystemdCgroup"))


@dataclass(frozen=True)
class Bundle:
    """A container or a sandbox as its bundle describes it."""

    container_id: str
    path: Path
    """On the host."""
    created_ns: int
    pod_uid: str
    is_sandbox: bool
    name: str
    """Empty for a sandbox."""
    criu_config: str
    """The annotation `org.criu.config`; empty when there is none."""
    shared_memory: str
    """What is mounted at /dev/shm, a path on the host; empty when nothing is."""
    runtime: str
    """The OCI runtime's binary: a name in the host's PATH, or a path on the host."""
    runtime_arguments: tuple[str, ...]
    """The global options that the shim gives to it."""


def pod_bundles(host: Host, pod_uid: str) -> tuple[Bundle, ...]:
    """Return the bundles of a pod, its sandbox's included, in order of creation.

    A bundle that vanishes meanwhile is left out; one that is not understood is logged and left out.
    """
    root = host.path(BUNDLES)
    try:
        identifiers = [entry.name for entry in root.iterdir() if _ID.fullmatch(entry.name)]
    except FileNotFoundError:
        return ()
    found: list[Bundle] = []
    for identifier in identifiers:
        try:
            bundle = read_bundle(host, identifier)
        except RuntimeFailure as error:
            log.warning("a bundle is left out: %s", error)
            continue
        if bundle is not None and bundle.pod_uid == pod_uid:
            found.append(bundle)
    return tuple(sorted(found, key=lambda bundle: (bundle.created_ns, bundle.container_id)))


def read_bundle(host: Host, container_id: str) -> Bundle | None:
    """Return one bundle; None when there is none.

    Raises:
        RuntimeFailure: it could not be read or is not understood.
    """
    directory = host.path(f"{BUNDLES}/{container_id}")
    try:
        config = _Config.model_validate(_json(directory / "config.json"))
        annotations = config.annotations
        options, created_ns = _options(directory)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, ValidationError) as error:
        raise RuntimeFailure(f"the bundle {directory} could not be read: {error}") from error
    return Bundle(
        container_id=container_id,
        path=Path(BUNDLES) / container_id,
        created_ns=created_ns,
        pod_uid=annotations.get("io.kubernetes.cri.sandbox-uid", ""),
        is_sandbox=annotations.get("io.kubernetes.cri.container-type") == "sandbox",
        name=annotations.get("io.kubernetes.cri.container-name", ""),
        criu_config=annotations.get(CRIU_CONFIG_ANNOTATION, ""),
        shared_memory=config.source_of("/dev/shm"),  # noqa: S108  # the pod's, not ours
        runtime=_binary(options.binary_name),
        runtime_arguments=(
            *("--root", f"{options.root or RUNC_ROOT}/{NAMESPACE}"),
            *(("--systemd-cgroup",) if options.systemd_cgroup else ()),
        ),
    )


def specification(host: Host, bundle: Bundle) -> str:
    """Return the OCI specification that a container was made from.

    Raises:
        OSError: it could not be read.
        ValueError: it is larger than any is.
    """
    return _text(host.path(f"{BUNDLES}/{bundle.container_id}") / "config.json")


def _options(directory: Path) -> tuple[_Options, int]:
    """Return the shim's options and when the bundle was made: the shim writes this file once, before `create`."""
    file = directory / "options.json"
    return _Options.model_validate(_json(file)), file.stat().st_mtime_ns


def _binary(name: str) -> str:
    """Return the runtime itself also when the shim calls it through our interposer."""
    return "runc" if name in ("", f"{INSTALL_DIR}/bin/runc-migratable") else name


def _json(path: Path) -> object:
    return json.loads(_text(path))


def _text(path: Path) -> str:
    with path.open("rb") as file:
        text = file.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f"{path} is larger than {_MAX_BYTES} bytes")
    return text.decode()
