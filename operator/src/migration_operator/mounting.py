"""Starts, finds and removes the pods that mount a claim for agents, and has what lies in the claim removed.

Nothing is remembered: they are found by their labels, owner and names, whoever has started them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from migration_api.base import now
from migration_api.shipping import StoreAccess
from migration_api.stored import RemoveRequest
from migration_api.transport import Transport
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.claim_endings import clearing_agent
from migration_operator.kube import ConflictError, Kube, KubeError
from migration_operator.mounts import Owner, is_mount_of, mount_pod, node_of_mount, point_of
from migration_operator.observation import Observation
from migration_operator.pods import Pod, mapping
from migration_operator.transport_facts import ClaimFacts, MountPoint

log = logging.getLogger(__name__)

_REFUSED = (403, 422)
_WORDS = 600


class NotMounted(Exception):
    """The API server refuses a pod that is to mount the claim; the message is for an admin."""


class NotCleared(Exception):
    """What lies in the claim was not removed; the message says why.

    Attributes:
        passing: another try may help.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


async def claim_facts(kube: Kube, namespace: str, transport: Transport) -> ClaimFacts | None:
    """Return what the transport's claim is like; None when there is none of that name, or none is needed."""
    found = await kube.claim(namespace, transport.claim) if transport.claim else None
    if found is None:
        return None
    spec, status = mapping(found.get("spec")), mapping(found.get("status"))
    modes = (
        status.get("accessModes") or spec.get("accessModes") or ()
    )  # one that waits for its first user has no status
    return ClaimFacts(
        modes=frozenset(str(mode) for mode in modes),
        block=spec.get("volumeMode") == "Block",
        deleting=bool(mapping(found.get("metadata")).get("deletionTimestamp")),
    )


async def mounts_of(kube: Kube, owner: Owner) -> list[Pod]:
    """Return the pods that mount a claim for this owner."""
    return [pod for pod in await kube.mount_pods(owner.namespace, owner.uid) if is_mount_of(pod, owner)]


async def mount_points(kube: Kube, owner: Owner, claim: str) -> tuple[MountPoint, ...]:
    """Return how far they are, with what the kubelet says of those that are not ready."""

    async def point(pod: Pod) -> MountPoint:
        known = point_of(pod, node_of_mount(pod), claim, "", now())
        if known.ready:
            return known
        said = await kube.warnings(pod)
        return point_of(pod, node_of_mount(pod), claim, said[-1][:_WORDS] if said else "", now())

    return tuple(await asyncio.gather(*(point(pod) for pod in await mounts_of(kube, owner))))


async def start_mounts(kube: Kube, owner: Owner, claim: str, image: str, nodes: Iterable[str]) -> None:
    """Start one on each of the nodes, unless there is one.

    Raises:
        NotMounted: the API server refuses it.
        KubeError: the API server could not be asked.
    """
    for node in nodes:
        try:
            await kube.create_pod(mount_pod(owner, claim, node, image))
        except ConflictError as conflict:
            if conflict.status in _REFUSED:
                raise NotMounted(str(conflict)) from conflict
        except KubeError as error:
            if error.status in _REFUSED:
                raise NotMounted(str(error)) from error
            raise


async def stop_mounts(kube: Kube, owner: Owner) -> None:
    """Delete them all."""
    for pod in await mounts_of(kube, owner):
        if not pod.deleting:
            await kube.delete_pod(pod)


async def mount_for(kube: Kube, image: str, o: Observation) -> None:
    """Start what the migration lacks: before it begins on all nodes that are tried, at the end on one.

    Raises: as `start_mounts`.
    """
    facts = o.preflight.transport if o.preflight else None
    claim, nodes = o.claim, list[str]()
    if facts is not None and facts.transport.claim is not None:
        claim, nodes = facts.transport.claim, [mount.node for mount in facts.mounts if mount.missing]
    elif (found := clearing_agent(o)) is not None:
        nodes = [found[0].node.name]
    if claim is not None:
        await start_mounts(kube, Owner.of(o.migration), claim, image, nodes)


async def clear_for(agents: Agents, o: Observation) -> None:
    """Let an agent remove what the migration has left in its claim.

    Raises:
        NotCleared: it could not.
    """
    transport, found = o.migration.status.transport, clearing_agent(o)
    agent, mount = found or (None, None)
    if transport is None or agent is None or agent.node.agent is None or mount is None:
        raise NotCleared("no agent has it mounted", passing=True)
    if not mount.ready:
        raise NotCleared(f"node {mount.node}: {mount.failure}", passing=False)
    access = StoreAccess(shared_volume=transport.shared_volume, mount_pod=mount.pod_uid)
    try:
        report = await agents.remove(agent.node.agent, RemoveRequest(uid=o.migration.metadata.uid, store=access))
    except (AgentUnreachable, AgentRefused) as problem:
        raise NotCleared(f"node {mount.node}: {problem}", passing=True) from problem
    if report.problem:
        raise NotCleared(f"node {mount.node}: {report.problem}", passing=report.passing)
