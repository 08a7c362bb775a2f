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
        mount_image: of the pods that mount a claim: the agent's, which every node with an agent has.
    """

    default: Transport = field(default_factory=lambda: Transport(type=TransportType.DIRECT))
    allowed_paths: tuple[str, ...] = ()
    allowed_endpoints: tuple[str, ...] = ()
    mount_image: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> TransportRules:
        """Read DEFAULT_TRANSPORT (a `spec.transport` as JSON), SHARED_PATHS, STORE_ENDPOINTS (by commas), MOUNT_IMAGE.

        Raises:
            ValueError: the default is no transport.
        """
        default = environ.get("DEFAULT_TRANSPORT") or '{"type": "Direct"}'
        return cls(
            default=Transport.model_validate_json(default),
            allowed_paths=_listed(environ.get("SHARED_PATHS", "")),
            allowed_endpoints=_listed(environ.get("STORE_ENDPOINTS", "")),
            mount_image=environ.get("MOUNT_IMAGE", ""),
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
class ClaimFacts:
    """Of a PersistentVolumeClaim what decides whether two nodes can use it at once."""

    modes: frozenset[str]
    block: bool = False
    deleting: bool = False


@dataclass(frozen=True)
class MountPoint:
    """The pod that mounts a claim on one node, for its agent.

    Attributes:
        node: the node.
        pod_uid: empty when there is no such pod yet.
        ready: the claim is mounted there.
        gone: the pod is being deleted, or has ended.
        failure: why it is not waited for any longer; empty when it is.
        waits_for: what scheduler and kubelet say is in the way.
    """

    node: str
    pod_uid: str = ""
    ready: bool = False
    gone: bool = False
    failure: str = ""
    waits_for: str = ""

    @property
    def missing(self) -> bool:
        return not self.pod_uid

    @property
    def pending(self) -> bool:
        """It is not there, and may still come."""
        return not self.ready and not self.failure


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
        claim: what the claim is like; None when there is none of that name, or none is needed.
        mounts: where the claim is, or is to be, mounted: first on the node that is asked first, then on those that may
            become the target.
        untried: how many more may become the target, and are not tried because there are so many.
    """

    transport: Transport
    rules: TransportRules
    secret: SecretFacts | None = None
    source: StoreAnswer | None = None
    targets: tuple[StoreAnswer, ...] = ()
    claim: ClaimFacts | None = None
    mounts: tuple[MountPoint, ...] = ()
    untried: int = 0
