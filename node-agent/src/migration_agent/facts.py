"""What a node can do: facts that must match between two nodes, and sentences for everything that is missing here."""

from __future__ import annotations

import os
import re

from migration_agent.containerd_config import handler_problems
from migration_agent.host import CommandFailed, Host
from migration_agent.room import Room
from migration_agent.runtime.interface import Runtime
from migration_api.names import IMAGES_DIR, INSTALL_DIR
from migration_api.node import NodeFacts, RuntimeFacts
from migration_api.wire import ContainerFacts, PodFacts

CRIU_MINIMUM = (4, 2)
"""Older ones fail on every TCP socket with kernels from 6.16 on."""

RUN_BYTES_MINIMUM = 128 << 20
"""Less room than this in memory holds hardly any checkpoint."""

_COMMAND_SECONDS = 20
_INTERPOSER = f"{INSTALL_DIR}/bin/runc-migratable"
_CONTAINERD_STATE = "/run/containerd"


_RESTORE_FEATURES = (
    "aio_remap",
    "get_rseq_conf",
    "loginuid",
    "move_mount_set_group",
    "nsid",
    "openat2",
    "pidfd_store",
    "seccomp_filters",
    "timens",
    "timerfd",
    "userns",
)
"""As `criu check --feature` knows them: what a dump may hold because one kernel has it, and another cannot restore."""


def kernel_features(host: Host) -> tuple[str, ...]:
    """Return which features that a restore may need the kernel has; a dozen commands, and the answer never changes."""
    return tuple(name for name in _RESTORE_FEATURES if _has_feature(host, name))


def fills_memory(host: Host) -> bool:
    """Say whether memory can be filled in after a restore, also when the process forks, moves or drops it meanwhile."""
    return _has_feature(host, "uffd-noncoop")


def _has_feature(host: Host, name: str) -> bool:
    try:
        host.run_on_host(["criu", "check", "--feature", name], timeout=_COMMAND_SECONDS)
    except CommandFailed:
        return False
    return True


def node_facts(
    host: Host, features: tuple[str, ...] = (), *, room: Room | None = None, post_copy: bool = False
) -> NodeFacts:
    """Return what this node is; a part that cannot be found out is left empty.

    Args:
        host: the node.
        features: of its kernel.
        post_copy: whether memory can be filled in after a restore.
        room: what is free for checkpoints.
    """
    system = os.uname()
    return NodeFacts(
        kernel_version=system.release,
        architecture=system.machine,
        cpu_flags=_cpu_flags(host),
        kernel_features=features,
        post_copy=post_copy,
        criu_version=_version(host, ["criu", "--version"], r"Version: (\S+)"),
        runtime=_runtime_facts(host),
        run_bytes_free=room.memory if room else 0,
        disk_bytes_free=room.disk if room else 0,
    )


def pod_facts(runtime: Runtime, pod_uid: str, migration: str | None) -> PodFacts | None:
    """Return what the preflight needs of a pod; None when it has no container on this node.

    Args:
        runtime: the node's container runtime.
        pod_uid: the pod.
        migration: the UID of the migration that holds the pod in this node's journal.

    Raises:
        RuntimeFailure: the runtime's commands failed.
    """
    containers = runtime.containers(pod_uid)
    if not containers:
        return None
    shared = runtime.shared(pod_uid)
    return PodFacts(
        pod_uid=pod_uid,
        migration=migration,
        shared_bytes=runtime.shared_bytes(shared),
        connections=runtime.connections(shared),
        containers=tuple(
            ContainerFacts(
                name=container.name,
                container_id=container.container_id,
                memory_bytes=container.memory_bytes,
                runtime=container.runtime,
            )
            for container in containers
        ),
    )


def problems(facts: NodeFacts, host: Host) -> tuple[str, ...]:
    """Return a sentence for everything that keeps this node from being source or target; empty when it is ready."""
    found = [*_criu_problems(facts, host), *_runtime_problems(facts, host)]
    if not os.access(host.path(_INTERPOSER), os.X_OK):
        found.append(f"The interposer {_INTERPOSER} is not installed on the node: see the agent's log.")
    if facts.run_bytes_free < RUN_BYTES_MINIMUM:
        found.append(
            f"Only {facts.run_bytes_free >> 20} MiB are free in {IMAGES_DIR}, where checkpoints lie; at least "
            f"{RUN_BYTES_MINIMUM >> 20} MiB are needed: make the tmpfs larger."
        )
    return tuple(found)


def _criu_problems(facts: NodeFacts, host: Host) -> list[str]:
    if not facts.criu_version:
        try:
            host.run_on_host(["criu", "--version"], timeout=_COMMAND_SECONDS)
        except CommandFailed as error:
            return [f"CRIU does not run on the node: {error}."]
    found: list[str] = []
    if _numbers(facts.criu_version) < CRIU_MINIMUM:
        wanted = ".".join(map(str, CRIU_MINIMUM))
        found.append(f"CRIU {facts.criu_version or 'of an unknown version'} is too old, {wanted} is needed.")
    try:
        host.run_on_host(["criu", "check"], timeout=_COMMAND_SECONDS)
    except CommandFailed as error:
        found.append(
            f"The node's kernel {facts.kernel_version} cannot checkpoint (it needs CONFIG_CHECKPOINT_RESTORE and what "
            f"`criu check` names): {error.output}."
        )
    return found


def _runtime_problems(facts: NodeFacts, host: Host) -> list[str]:
    if facts.runtime is None:
        return [f"No containerd was found on the node ({_CONTAINERD_STATE} is missing): only containerd is supported."]
    found = list(handler_problems(host))
    if not facts.runtime.oci_version:
        found.append("runc was not found in the node's PATH: containers cannot be checkpointed without it.")
    return found


def _runtime_facts(host: Host) -> RuntimeFacts | None:
    if not host.path(_CONTAINERD_STATE).is_dir():
        return None
    return RuntimeFacts(
        name="containerd",
        version=_version(host, ["containerd", "--version"], r"v?(\d+\.\d+\.\S+)"),
        oci_version=_version(host, ["runc", "--version"], r"runc version (\S+)"),
        handler_registered=not handler_problems(host),
    )


def _version(host: Host, argv: list[str], pattern: str) -> str:
    """Return the version that a command prints; empty when it does not run or prints none."""
    try:
        found = re.search(pattern, host.run_on_host(argv, timeout=_COMMAND_SECONDS).stdout)
    except CommandFailed:
        return ""
    return found[1] if found else ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _cpu_flags(host: Host) -> tuple[str, ...]:
    """Return the first CPU's features, as x86 (`flags`) or Arm (`Features`) names them."""
    for line in host.path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return tuple(sorted(set(value.split())))
    return ()
