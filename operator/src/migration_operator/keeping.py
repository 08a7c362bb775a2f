"""Makes the ContainerCheckpoint of a migration that keeps its checkpoint. Each act can be repeated at any time.

The object comes first, with its finalizer: from then on somebody cleans up. Then a Secret of its own with the key,
since the migration's goes with the migration. What lies in the store is looked at later, by the object's own keeper:
no migration waits for a store.
"""

from __future__ import annotations

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import KeptCheckpoint
from migration_operator.checkpoints import checkpoint_name, described, kept_manifest
from migration_operator.kube import ConflictError, Kube, KubeError
from migration_operator.observation import Observation
from migration_operator.shipping import NoAccess, copy_key
from migration_operator.transport_facts import TransportRules

_REFUSED = (403, 422)
"""The API server will refuse it again: a quota, or an admission policy."""


async def keep(kube: Kube, rules: TransportRules, o: Observation) -> KeptCheckpoint:
    """Return what is to stand in the migration's status: the object's name, or why there is none.

    Raises:
        KubeError: the API server could not be asked; it is to be tried again.
    """
    migration, pod = o.migration, o.source_pod or o.target_pod
    if pod is None:
        return KeptCheckpoint(message="both pods are gone, and nobody can say any more what it was taken from")
    try:
        checkpoint = await _object(kube, rules, o)
        secret = await copy_key(kube, migration, checkpoint)
    except NoAccess as problem:
        return KeptCheckpoint(message=str(problem))
    except KubeError as error:
        if error.status not in _REFUSED:
            raise
        return KeptCheckpoint(message=f"the API server refuses it: {error}")
    if checkpoint.status.uid is None:
        status, source = migration.status, o.source_agent
        moved = migration.spec.containers or pod.order
        description = described(
            pod,
            uid=migration.metadata.uid,
            key_secret=secret,
            containers=tuple(name for name in pod.order if name in moved),
            node_name=status.source.node_name,
            facts=source.node.facts if source else None,
            taken_at=status.timings.dumped_at,
        )
        await kube.patch_checkpoint_status(checkpoint, description.dump())
    return KeptCheckpoint(name=checkpoint.metadata.name)


async def _object(kube: Kube, rules: TransportRules, o: Observation) -> ContainerCheckpoint:
    migration = o.migration
    namespace, name = migration.metadata.namespace, checkpoint_name(migration)
    found = await kube.checkpoint(namespace, name)
    if found is None:
        try:
            await kube.create_checkpoint(kept_manifest(migration, rules.transport(migration)))
        except ConflictError as conflict:
            if conflict.status in _REFUSED:
                raise
        found = await kube.checkpoint(namespace, name)
    if found is None or found.uid != migration.metadata.uid:
        raise NoAccess(f"another ContainerCheckpoint has the name {name}, or it was deleted at once")
    return found
