"""The last rules of a migration through a claim: what lies there is removed, then the pods that mount it. Pure.

They stand behind the agents' forgetting: nobody writes into the claim any more. Whoever comes back after a crash finds
the pods, or none, and does it again.
"""

from __future__ import annotations

from migration_api.conditions import Reason
from migration_api.migration import Outcome
from migration_operator.observation import AgentView, Observation
from migration_operator.step import Action, Step
from migration_operator.transport_facts import MountPoint


def clear_and_unmount(o: Observation, reason: Reason) -> Step | None:
    """Remove what was stored, unless it stays, and then the pods without which nobody could."""
    return _clear(o, reason) or unmount(o, reason)


def unmount(o: Observation, reason: Reason) -> Step | None:
    """Remove the pods; what is being deleted already is its kubelet's business."""
    if any(not mount.gone for mount in o.mounts):
        return Step(Action.UNMOUNT, reason, "removing the pods that mounted the claim")
    return None


def left_in_the_claim(o: Observation) -> str:
    """Return what is to be said of what could not be removed; empty when nothing is left."""
    if not o.cleared:
        return ""
    what = f"container-migration/{o.migration.metadata.uid} in the claim {o.claim}"
    return f"; {what} could not be removed ({o.cleared}): remove it by hand"


def clearing_agent(o: Observation) -> tuple[AgentView, MountPoint | None] | None:
    """Return the agent that can remove it, and where the claim is mounted for that one; None when no agent answers.

    One whose claim is mounted goes first; any of the two sees the same.
    """
    reached = [agent for agent in (o.source_agent, o.target_agent) if agent is not None and agent.reached]
    views = [(agent, o.mount_on(agent.node.name)) for agent in reached]
    views.sort(key=lambda view: view[1] is None or not view[1].ready)
    return views[0] if views else None


def _clear(o: Observation, reason: Reason) -> Step | None:
    """What is restored from stays, and what a migration keeps."""
    kept = o.migration.restores or (o.migration.spec.retain and o.outcome is Outcome.RESUMED)
    if o.claim is None or kept or o.cleared is not None:
        return None
    found = clearing_agent(o)
    if found is None:
        return None  # what is left is swept, by its age, by a later migration through the claim
    agent, mount = found
    name = agent.node.name
    if mount is None:
        return Step(Action.MOUNT, reason, f"mounting the claim {o.claim} on {name} to remove what lies there")
    if mount.ready or mount.failure:  # the act says the failure, which then counts as the last word
        return Step(Action.CLEAR, reason, f"the agent on {name} removes what lies in the claim {o.claim}")
    waits = f" ({mount.waits_for})" if mount.waits_for else ""
    return Step(Action.WAIT, reason, f"waiting for the claim {o.claim} on {name}, to remove what lies there{waits}")
