"""The pre-delete hook: `container-migration-uninstall`. No migration is left in the middle, no object with a finalizer.

The operator still runs, and it alone decides: this only asks (spec.cancel), waits, and takes finalizers off what has
ended. What cannot end, because an agent is away, is named, and the uninstallation fails: a frozen source needs it.
Kept checkpoints stay, object, key and all: the next operator goes on with them, and without one they can be deleted.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from dataclasses import dataclass

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration, Decision
from migration_api.names import CHECKPOINT_FINALIZER, FINALIZER
from migration_operator.checkpoint_plan import ready_status
from migration_operator.kube import ConflictError, Kube, KubeError
from migration_operator.observation import is_finished

log = logging.getLogger(__name__)

_WAIT_SECONDS = 240.0
_PERIOD_SECONDS = 1.0


@dataclass(frozen=True)
class Todo:
    """What is to be done with all our objects of the cluster, as they are now."""

    cancel: tuple[ContainerMigration, ...] = ()
    """Undecided: to be asked to go back."""
    wait_for: tuple[ContainerMigration | ContainerCheckpoint, ...] = ()
    """Not at their end yet."""
    let_go: tuple[ContainerMigration | ContainerCheckpoint, ...] = ()
    """At their end, but held by our finalizer."""


def todo(migrations: list[ContainerMigration], checkpoints: list[ContainerCheckpoint]) -> Todo:
    """Return what is to be done."""
    unfinished = tuple(m for m in migrations if not is_finished(m))
    held = tuple(c for c in checkpoints if CHECKPOINT_FINALIZER in c.metadata.finalizers)
    return Todo(
        cancel=tuple(m for m in unfinished if m.status.decision is not Decision.COMMIT and not m.spec.cancel),
        wait_for=(*unfinished, *(c for c in held if not _rests(c))),
        let_go=(
            *(m for m in migrations if is_finished(m) and FINALIZER in m.metadata.finalizers),
            *(c for c in held if _rests(c)),
        ),
    )


def _rests(checkpoint: ContainerCheckpoint) -> bool:
    """Return whether it is neither being taken nor being removed."""
    return ready_status(checkpoint) != "Unknown" and not checkpoint.deleting


async def prepare(kube: Kube, seconds: float) -> list[str]:
    """Bring all to their end; return those that are not there in time, as sentences."""
    deadline = time.monotonic() + seconds
    while True:
        problem, now = "", Todo()
        try:
            now = todo(await kube.all_migrations(), await kube.all_checkpoints())
            for migration in now.cancel:
                log.info("%s is asked to go back", _name(migration))
                await kube.cancel(migration)
            for it in now.let_go:
                await _let_go(kube, it)
        except ConflictError as conflict:
            problem = str(conflict)  # the operator was faster: look again
        except KubeError as error:
            problem = str(error)
            log.warning("%s", error)
        if now == Todo() and not problem:
            return []
        if time.monotonic() > deadline:
            return [f"{_name(m)}: {m.status.message or 'the operator has not looked at it'}" for m in now.wait_for] or [
                problem or "finalizers could not be removed"
            ]
        await asyncio.sleep(_PERIOD_SECONDS)


async def _let_go(kube: Kube, it: ContainerMigration | ContainerCheckpoint) -> None:
    others = [name for name in it.metadata.finalizers if name not in {FINALIZER, CHECKPOINT_FINALIZER}]
    if isinstance(it, ContainerMigration):
        await kube.set_finalizers(it, others)
    else:
        await kube.set_checkpoint_finalizers(it, others)


def _name(it: ContainerMigration | ContainerCheckpoint) -> str:
    return f"{type(it).__name__} {it.metadata.namespace}/{it.metadata.name}"


async def _run(seconds: float) -> int:
    kube = await Kube.connect()
    try:
        left = await prepare(kube, seconds)
    finally:
        await kube.close()
    for sentence in left:
        log.error("%s", sentence)
    if left:
        log.error("these have not ended; docs/rescue.md says how to end them by hand, then uninstall again")
        return 1
    log.info("nothing is unfinished, no object is held")
    return 0


def main() -> None:
    """Run; WAIT_SECONDS says how long to wait for the end of what goes on."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    sys.exit(asyncio.run(_run(float(os.environ.get("WAIT_SECONDS", _WAIT_SECONDS)))))


if __name__ == "__main__":
    main()
