"""What kopf calls: events wake drivers, nothing is decided here.

Only `on.event` handlers: kopf then writes nothing into any object, neither annotations nor finalizers (see `drivers`).
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

import kopf
from pydantic import ValidationError

from migration_api.checkpoint import ContainerCheckpoint
from migration_api.migration import ContainerMigration
from migration_api.names import CHECKPOINTS, FINALIZER, GROUP, LABEL_MIGRATION, MIGRATIONS, NODES, VERSION
from migration_operator.agents import Agents
from migration_operator.checkpoint_keeper import CheckpointKeeper
from migration_operator.drivers import Drivers
from migration_operator.expiry import Expiry
from migration_operator.kube import Kube
from migration_operator.metrics import Metrics
from migration_operator.node_labels import NodeLabels
from migration_operator.observation import is_finished
from migration_operator.rules import Rules

log = logging.getLogger(__name__)

SILENCE_SECONDS = 180.0
"""A loop that has not turned for so long hangs: every request in it has a time limit far below."""


@dataclass
class Context:
    """What the handlers share: made once, closed at the end."""

    kube: Kube
    agents: Agents
    rules: Rules = field(default_factory=Rules)
    metrics: Metrics = field(init=False)
    drivers: Drivers = field(init=False)
    labels: NodeLabels = field(init=False)
    expiry: Expiry = field(init=False)
    keeper: CheckpointKeeper = field(init=False)

    def __post_init__(self) -> None:
        self.metrics = Metrics()
        self.drivers = Drivers(self.kube, self.agents, self.metrics, self.rules)
        self.labels = NodeLabels(self.kube)
        self.expiry = Expiry(self.kube)
        self.keeper = CheckpointKeeper(self.kube, self.agents, self.rules)

    def silence(self) -> float:
        """Return how many seconds ago the laziest loop turned."""
        clock = asyncio.get_running_loop().time()
        loops = (self.labels.turned_at, self.expiry.turned_at, self.keeper.turned_at)
        return max(self.drivers.oldest_turn(), *(clock - turned_at for turned_at in loops))


def registry_for(context: Context, login: Any = None) -> kopf.OperatorRegistry:
    """Return the handlers, bound to `context`.

    Args:
        context: what they act on.
        login: how kopf finds the API server; tests have their own.
    """
    registry = kopf.OperatorRegistry()
    kopf.on.login(registry=registry)(login or _login)
    _watch(registry, context)

    @kopf.on.startup(registry=registry)
    async def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
        configure_kopf(settings)

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        """End the drivers before kopf waits for what it takes for hung tasks."""
        await context.drivers.stop()
        await context.keeper.stop()

    @kopf.on.probe(id="turning", registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    async def turning(**_: Any) -> float:
        """Fail when a loop hangs; an API server or agent that is away is no reason to be restarted."""
        age = context.silence()
        if age > SILENCE_SECONDS:
            raise kopf.PermanentError(f"a loop has not turned for {age:.0f} s")
        return round(age, 1)

    return registry


def _watch(registry: kopf.OperatorRegistry, context: Context) -> None:
    @kopf.on.event(GROUP, VERSION, MIGRATIONS, registry=registry)
    async def migration_changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002  # kopf's name
        try:
            migration = ContainerMigration.model_validate(dict(body))
        except ValidationError as error:
            log.error("a ContainerMigration is not as its schema says: %s", error)  # noqa: TRY400  no traceback
            return
        # A finished one needs a driver only to take a finalizer away that was left behind.
        idle = is_finished(migration) and FINALIZER not in migration.metadata.finalizers
        context.drivers.notice(migration, idle=idle)
        context.metrics.notice(migration, deleted=type == "DELETED")
        if type != "DELETED":
            context.expiry.notice(migration)

    @kopf.on.event(GROUP, VERSION, CHECKPOINTS, registry=registry)
    async def checkpoint_changed(type: str | None, body: kopf.Body, **_: Any) -> None:  # noqa: A002  # kopf's name
        try:
            checkpoint = ContainerCheckpoint.model_validate(dict(body))
        except ValidationError as error:
            log.error("a ContainerCheckpoint is not as its schema says: %s", error)  # noqa: TRY400  no traceback
            return
        context.keeper.notice(checkpoint, gone=type == "DELETED")

    @kopf.on.event("", "v1", "pods", registry=registry, labels={LABEL_MIGRATION: kopf.PRESENT})
    async def target_pod_changed(labels: kopf.Labels, **_: Any) -> None:
        context.drivers.wake(labels.get(LABEL_MIGRATION, ""))

    @kopf.on.event(GROUP, VERSION, NODES, registry=registry)
    async def agent_reported(**_: Any) -> None:
        context.labels.wake()


def configure_kopf(settings: kopf.OperatorSettings) -> None:
    """Only what differs from kopf's defaults."""
    settings.scanning.disabled = True  # no rights on namespaces and CRDs; all resources exist before the operator
    settings.posting.enabled = False  # our events are few and explicit
    settings.networking.request_timeout = 30  # not 5 minutes
    settings.networking.connect_timeout = 10
    settings.watching.label_selectors["", "v1", "pods"] = LABEL_MIGRATION  # never every pod of the cluster
    settings.process.ultimate_exiting_timeout = 20


def _login(**kwargs: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
