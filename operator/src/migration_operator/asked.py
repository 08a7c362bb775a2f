"""What agents are asked for, as far as an observation says it. Pure."""

from __future__ import annotations

from migration_api.wire import StoredRef, Successor
from migration_operator.freeze_budget import effective_freeze_budget
from migration_operator.observation import Observation
from migration_operator.pods import Pod


class Incomplete(Exception):
    """What was observed does not have what the action needs: the plan must not have asked for it."""


def stored_of(o: Observation) -> StoredRef | None:
    """Return what the target's agent is to fetch by itself; None when a source sends it.

    Raises:
        Incomplete: nobody has looked at the checkpoint in its store yet.
    """
    checkpoint = o.checkpoint
    if checkpoint is None:
        return None
    if checkpoint.status.digest is None:
        raise Incomplete("nobody has looked at the checkpoint in its store")
    return StoredRef(uid=checkpoint.uid, digest=checkpoint.status.digest)


def successor_of(o: Observation) -> Successor | None:
    """Return what is known of a target pod that comes only when the source is gone; None when it is there before.

    Raises:
        Incomplete: the source pod was never written down.
    """
    if not o.same_name:
        return None
    source = o.migration.status.source
    if source.pod_uid is None or source.revision is None:
        raise Incomplete("the source pod and its revision were not written down")
    return Successor(source_pod_uid=source.pod_uid, revision=source.revision)


def order_of(o: Observation) -> tuple[str, ...]:
    """Return all containers of the pod in the order in which the kubelet starts them."""
    return o.origin_pod.order if o.origin_pod else ()


def containers_of(o: Observation) -> tuple[str, ...]:
    """Return those that move, in the pod's order, whatever the order in which the user named them."""
    kept = o.checkpoint.status.source if o.checkpoint else None
    asked = kept.containers if kept else o.migration.spec.containers
    return tuple(name for name in order_of(o) if not asked or name in asked)


def budget_of(o: Observation, pod: Pod) -> int:
    """Return what the agents enforce, in seconds: a liveness probe must never kill a frozen source."""
    return effective_freeze_budget(o.migration.spec.freeze_budget_seconds, pod).whole_seconds
