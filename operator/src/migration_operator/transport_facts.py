"""How checkpoints may travel in this cluster, and what is known of one migration's way. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from migration_api.migration import ContainerMigration
from migration_api.shipping import ProbeReport
from migration_api.transport import Transport, TransportType


@dataclass(frozen=True)
class TransportRules:
    """What the chart's values say.

    Attributes:
        default: for migrations that say nothing.
        allowed_paths: directories that a shared volume may be, or be below: the agents, who may write anywhere on a
            node, must not be led anywhere by whoever may create migrations.
        allowed_endpoints: servers other than the providers' own that agents may be led to.
    """

    default: Transport = field(default_factory=lambda: Transport(type=TransportType.DIRECT))
    allowed_paths: tuple[str, ...] = ()
    allowed_endpoints: tuple[str, ...] = ()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> TransportRules:
        """Read DEFAULT_TRANSPORT (a `spec.transport` as JSON), SHARED_PATHS and STORE_ENDPOINTS (by commas).

        Raises:
            ValueError: the default is no transport.
        """
        default = environ.get("DEFAULT_TRANSPORT") or '{"type": "Direct"}'
        return cls(
            default=Transport.model_validate_json(default),
            allowed_paths=_listed(environ.get("SHARED_PATHS", "")),
            allowed_endpoints=_listed(environ.get("STORE_ENDPOINTS", "")),
        )

    def transport(self, migration: ContainerMigration) -> Transport:
        """Return how this migration's checkpoint travels; once it has begun, what was written down then."""
        return migration.status.transport or migration.spec.transport or self.default

    def allows_path(self, path: str) -> bool:
        """Return whether a shared volume may be there."""
        asked = PurePosixPath(path)
        return any(asked.is_relative_to(PurePosixPath(allowed)) for allowed in self.allowed_paths)

    def allows_endpoint(self, endpoint: str) -> bool:
        """Return whether agents may be led to that server."""
        return endpoint.rstrip("/") in {allowed.rstrip("/") for allowed in self.allowed_endpoints}


def _listed(text: str) -> tuple[str, ...]:
    return tuple(word for word in text.split(",") if word)


@dataclass(frozen=True)
class SecretFacts:
    """Of a Secret what may be told: its type and the names of its keys, no values."""

    type: str
    keys: frozenset[str]


@dataclass(frozen=True)
class StoreAnswer:
    """What one node found when it tried the store."""

    node: str
    report: ProbeReport


@dataclass(frozen=True)
class TransportFacts:
    """What the preflight looks at.

    Attributes:
        transport: how the checkpoint is to travel.
        rules: what the chart's values allow.
        secret: what `secretRef` names; None when there is none of that name, or none is needed.
        source: what the source's node found; None when it was not asked.
        targets: what the nodes that may become the target found.
    """

    transport: Transport
    rules: TransportRules
    secret: SecretFacts | None = None
    source: StoreAnswer | None = None
    targets: tuple[StoreAnswer, ...] = ()
