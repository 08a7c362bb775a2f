"""What agents are asked about a kept checkpoint in its store, and by which of them; a claim is mounted for that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import SecretStr

from migration_api.base import now
from migration_api.checkpoint import ContainerCheckpoint
from migration_api.checkpoint_reasons import CheckpointReason
from migration_api.node import MigrationNode
from migration_api.shipping import StoreAccess
from migration_api.stored import KeepReport, KeepRequest, RemoveReport, RemoveRequest
from migration_operator.agents import AgentRefused, Agents, AgentUnreachable
from migration_operator.checkpoint_plan import Trouble
from migration_operator.kube import Kube
from migration_operator.mounting import NotMounted, claim_facts, mount_points, start_mounts
from migration_operator.mounts import Owner
from migration_operator.observation import agent_trouble
from migration_operator.rules import Rules
from migration_operator.shipping import NoAccess, NoKey, secret_facts, store_access, stored_key
from migration_operator.transport_checks import setting_problems
from migration_operator.transport_facts import TransportFacts

Q = TypeVar("Q")
A = TypeVar("A")


class Failed(Exception):
    """The step was not done."""

    def __init__(self, reason: CheckpointReason, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.trouble = Trouble(reason, message, passing)


@dataclass(frozen=True)
class CheckpointStore:
    """Asks the nodes, one after another. All methods raise `Failed`."""

    kube: Kube
    agents: Agents
    rules: Rules

    async def keep(self, checkpoint: ContainerCheckpoint) -> KeepReport:
        """Return the word of the first node that finds it complete, or what the others have found instead.

        A node that does not see the volume that the others see finds nothing: its word alone counts for nothing.
        """
        key = await self._key(checkpoint)
        found, troubles = list[KeepReport](), list[str]()
        for node, access in await self._places(checkpoint):
            report = await self._ask(node, self.agents.keep, KeepRequest(uid=checkpoint.uid, key=key, store=access))
            if isinstance(report, KeepReport) and not report.problem:
                return report
            problem = report if isinstance(report, str) else report.problem
            troubles.append(f"node {node.metadata.name}: {problem}")
            if isinstance(report, KeepReport) and not report.passing:
                found.append(report.model_copy(update={"problem": troubles[-1]}))
        if len(found) == len(troubles):
            return found[0]
        raise Failed(CheckpointReason.STORE_UNAVAILABLE, "; ".join(troubles[:3]))

    async def remove(self, checkpoint: ContainerCheckpoint) -> None:
        """Return when one node has removed it, or all say that there is nothing."""
        troubles, passing = list[str](), False
        for node, access in await self._places(checkpoint):
            report = await self._ask(node, self.agents.remove, RemoveRequest(uid=checkpoint.uid, store=access))
            if isinstance(report, RemoveReport) and not report.problem:
                if report.found:
                    return
                continue
            passing = passing or isinstance(report, str) or report.passing
            troubles.append(f"node {node.metadata.name}: {report if isinstance(report, str) else report.problem}")
        if troubles:
            raise Failed(CheckpointReason.STORE_UNAVAILABLE, "; ".join(troubles[:3]), passing=passing)

    async def _places(self, checkpoint: ContainerCheckpoint) -> list[tuple[MigrationNode, StoreAccess]]:
        """Return the nodes to ask, with what opens the store there; agents are led only where the chart allows."""
        namespace, transport = checkpoint.metadata.namespace, checkpoint.spec.transport
        facts = TransportFacts(
            transport,
            self.rules.transport,
            secret=await secret_facts(self.kube, namespace, transport),
            claim=await claim_facts(self.kube, namespace, transport),
        )
        problems = [problem.message for problem in setting_problems(facts)]
        if problems:
            raise Failed(CheckpointReason.STORE_UNAVAILABLE, " ".join(problems), passing=False)
        nodes = await self._nodes(checkpoint)
        mounts = await self._mounts(checkpoint, transport.claim, nodes) if transport.claim else {}
        places: list[tuple[MigrationNode, StoreAccess]] = []
        for node in nodes:
            if transport.claim and node.metadata.name not in mounts:
                continue
            try:
                access = await store_access(self.kube, namespace, transport, mounts.get(node.metadata.name))
            except NoAccess as error:
                raise Failed(CheckpointReason.STORE_UNAVAILABLE, str(error), passing=False) from error
            if access is None:
                raise Failed(CheckpointReason.STORE_UNAVAILABLE, "it names no store", passing=False)
            places.append((node, access))
        return places

    async def _mounts(self, checkpoint: ContainerCheckpoint, claim: str, nodes: list[MigrationNode]) -> dict[str, str]:
        """Return the pods that mount the claim, by node. One node is enough; it is the first, unless that cannot."""
        owner = Owner.of(checkpoint)
        points = {point.node: point for point in await mount_points(self.kube, owner, claim)}
        if ready := {point.node: point.pod_uid for point in points.values() if point.ready}:
            return ready
        names = [node.metadata.name for node in nodes]
        waiting = [point for name, point in points.items() if name in names and point.pending]
        if not waiting:
            new = [name for name in names if name not in points][:1]
            try:
                await start_mounts(self.kube, owner, claim, self.rules.transport.mount_image, new)
            except NotMounted as refusal:
                what = f"the API server refuses the pod that is to mount the claim {claim}: {refusal}"
                raise Failed(CheckpointReason.STORE_UNAVAILABLE, what, passing=False) from refusal
        troubles = [
            f"node {point.node}: {why}" for point in points.values() if (why := point.failure or point.waits_for)
        ]
        what = f"waiting for the claim {claim} to be mounted"
        raise Failed(CheckpointReason.STORE_UNAVAILABLE, "; ".join([what, *troubles[:3]]))

    async def _key(self, checkpoint: ContainerCheckpoint) -> SecretStr:
        try:
            return await stored_key(self.kube, checkpoint)
        except NoKey as error:
            raise Failed(CheckpointReason.KEY_SECRET_NOT_FOUND, str(error)) from error
        except NoAccess as error:
            raise Failed(CheckpointReason.KEY_SECRET_INVALID, str(error)) from error

    async def _ask(self, node: MigrationNode, ask: Callable[[MigrationNode, Q], Awaitable[A]], question: Q) -> A | str:
        """Return the agent's answer, or why there is none."""
        try:
            return await ask(node, question)
        except (AgentUnreachable, AgentRefused) as error:
            return str(error)

    async def _nodes(self, checkpoint: ContainerCheckpoint) -> list[MigrationNode]:
        """Return the nodes to ask, in this order: the one that it was taken on has seen the store."""
        source = checkpoint.status.source.node_name if checkpoint.status.source else None
        able = [n for n in await self.kube.migration_nodes() if not agent_trouble(n, now())]
        if not able:
            raise Failed(CheckpointReason.STORE_UNAVAILABLE, "no node has an agent that could do it")
        return sorted(able, key=lambda n: (n.metadata.name != source, n.metadata.name))
