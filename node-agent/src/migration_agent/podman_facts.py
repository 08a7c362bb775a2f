"""What the preflight asks of a node's Podman."""

from __future__ import annotations

from collections.abc import Callable

from migration_agent.podman_freezer import own_connections
from migration_agent.runtime.podman import Podman, PodmanContainer
from migration_api.podman import PodmanContainerFacts, PodmanFacts, PodmanQuestion
from migration_api.wire import Connections


def podman_facts(podman: Podman, question: PodmanQuestion, holder: Callable[[str], str | None]) -> PodmanFacts:
    """Answer; blocks.

    Args:
        podman: the node's.
        question: of the operator.
        holder: by a container's ID, the migration that holds it in this node's journal.

    Raises:
        RuntimeFailure: Podman is there and does not answer.
    """
    if trouble := podman.trouble():
        return PodmanFacts(problem=trouble)
    it = podman.look(question.container, size=True)
    host = podman.host
    return PodmanFacts(
        criu_version=podman.criu_version(),
        container=_container(podman, it, holder(it.id)) if it is not None else None,
        image_id=podman.image_id(question.image_name) if question.image_name else "",
        missing_paths=tuple(path for path in question.paths if not host.host_file(path).exists()),
    )


def _container(podman: Podman, it: PodmanContainer, holder: str | None) -> PodmanContainerFacts:
    found = own_connections(podman, it.id, it.pid) if it.pid else Connections()
    return PodmanContainerFacts(
        id=it.id,
        name=it.name,
        status=it.status,
        image_id=it.image_id,
        image_name=it.image_name,
        memory_bytes=podman.memory_bytes(it.id),
        changed_bytes=it.changed_bytes,
        volumes=it.volumes,
        binds=it.binds,
        dependencies=it.dependencies,
        pod=it.pod,
        restart_policy=it.restart_policy,
        systemd_unit=it.systemd_unit,
        auto_remove=it.auto_remove,
        cgroups=it.cgroups,
        host_network=it.host_network,
        connections=found,
        migration=holder,
    )
