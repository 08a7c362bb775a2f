"""Makes what the two agents are asked for; how much there is to copy, the source's agent is asked."""

from __future__ import annotations

from migration_api.migration import TcpConnections
from migration_api.podman import ENTRY, PodmanContainerFacts
from migration_api.shipping import Shipping
from migration_api.wire import MigrationRef, RunBy, SourceRequest, TargetRequest, Thaw
from migration_operator.agents import Agents
from migration_operator.asked import Incomplete, budget_of, containers_of, order_of, stored_of, successor_of
from migration_operator.estimates import room_needed
from migration_operator.generated import late_gate_name, names_of
from migration_operator.observation import Observation
from migration_operator.podman_facts import container_of
from migration_operator.podman_preflight import room_needed as podman_room_needed
from migration_operator.pods import Pod


async def target_request(agents: Agents, o: Observation, ref: MigrationRef, shipping: Shipping) -> TargetRequest:
    """Return what the target's agent is to expect.

    Raises:
        Incomplete: there is no target pod or nothing that it is made from.
        AgentUnreachable, AgentRefused: the source's agent does not say how much there is.
    """
    if o.migration.of_podman:
        return await _podmans_target(agents, o, ref, shipping)
    origin = o.origin_pod
    pod = origin if o.same_name else o.target_pod
    if pod is None or origin is None:
        raise Incomplete("there is no target pod or no source")
    generated, late = names_of(ref.uid, pod), late_gate_name(ref.uid)
    return TargetRequest(
        migration=ref,
        pod_name=pod.name,
        pod_uid=None if o.same_name else pod.uid,
        successor=successor_of(o),
        containers=containers_of(o),
        order=order_of(o),
        post_copy=o.post_copy,
        pre_copy=o.pre_copy,
        source_node=o.source_agent.node.name if o.source_agent else None,
        stored=stored_of(o),
        freeze_budget_seconds=budget_of(o, origin),
        shipping=shipping,
        expected_bytes=await _expected_bytes(agents, o, origin),
        init=tuple(name for name in pod.init_names if name in {*generated, *origin.init_names}),
        generated=generated,
        late_gate=late if late in generated else None,
    )


async def source_request(agents: Agents, o: Observation, ref: MigrationRef, shipping: Shipping) -> SourceRequest:
    """Return what the source's agent is to do. Raises as `target_request`."""
    if o.migration.of_podman:
        return await _podmans_source(agents, o, ref, shipping)
    if o.source_pod is None or o.target_agent is None:
        raise Incomplete("there is no source pod or no target")
    return SourceRequest(
        migration=ref,
        pod_name=o.source_pod.name,
        pod_uid=o.source_pod.uid,
        containers=containers_of(o),
        order=order_of(o),
        post_copy=o.post_copy,
        pre_copy=o.pre_copy,
        target_node=o.target_agent.node.name,
        thaw=Thaw.DUMPED if o.clone else Thaw.DECIDED,
        same_name=o.same_name,
        refuse_connections=o.migration.spec.tcp_connections is TcpConnections.REFUSE,
        freeze_budget_seconds=budget_of(o, o.source_pod),
        shipping=shipping,
        expected_bytes=await _expected_bytes(agents, o, o.source_pod),
    )


async def _expected_bytes(agents: Agents, o: Observation, source: Pod) -> int:
    """Return what each node needs room for; 0 when there is no agent to ask, or it does not find the pod any more."""
    if o.checkpoint is not None:
        return o.checkpoint.status.size_bytes or 0
    view = o.source_agent
    if view is None or view.node.agent is None:
        return 0
    facts = await agents.pod(view.node.agent, source.uid)
    return room_needed(facts, o.migration.spec.strategy) if facts else 0


async def _podmans_target(agents: Agents, o: Observation, ref: MigrationRef, shipping: Shipping) -> TargetRequest:
    container_id, name, size = await _podmans(agents, o)
    return TargetRequest(
        migration=ref,
        run_by=RunBy.PODMAN,
        pod_name=name,
        pod_uid=container_id,
        containers=(ENTRY,),
        source_node=o.migration.status.source.node_name,
        freeze_budget_seconds=o.migration.spec.freeze_budget_seconds,
        shipping=shipping,
        expected_bytes=size,
    )


async def _podmans_source(agents: Agents, o: Observation, ref: MigrationRef, shipping: Shipping) -> SourceRequest:
    container_id, name, size = await _podmans(agents, o)
    return SourceRequest(
        migration=ref,
        run_by=RunBy.PODMAN,
        pod_name=name,
        pod_uid=container_id,
        containers=(ENTRY,),
        target_node=o.migration.status.target.node_name,
        thaw=Thaw.DUMPED if o.clone else Thaw.DECIDED,
        refuse_connections=True,  # Podman can restore them only under the same address
        freeze_budget_seconds=o.migration.spec.freeze_budget_seconds,
        shipping=shipping,
        expected_bytes=size,
    )


async def _podmans(agents: Agents, o: Observation) -> tuple[str, str, int]:
    """Return the container's ID and name, and what it takes; one that is gone is its agent's to report."""
    container_id, view = o.migration.status.source.pod_uid, o.source_agent
    if container_id is None or view is None:
        raise Incomplete("no container was written down")
    found: PodmanContainerFacts | None = await container_of(agents, view.node, container_id)
    return container_id, found.name if found else container_id, podman_room_needed(found) if found else 0
