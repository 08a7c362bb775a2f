"""What the chart's values say to the operator. Values only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from migration_api.checkpoint import Retention
from migration_operator.estimates import LATE_GATE_SECONDS
from migration_operator.queueing import Limits
from migration_operator.transport_facts import TransportRules


@dataclass(frozen=True)
class Rules:
    """Fixed for the life of the process.

    Attributes:
        transport: how checkpoints may travel.
        late_gate_seconds: how long a freeze may be estimated without a late gate.
        limits: how many migrations may run at once.
        retention: for how long checkpoints are kept that do not say it themselves.
        removal_seconds: how long it is tried to remove a deleted checkpoint from its store.
        namespace: the operator's own, the only one in which nodes' own containers may be moved.
    """

    transport: TransportRules = field(default_factory=TransportRules)
    late_gate_seconds: float = LATE_GATE_SECONDS
    limits: Limits = field(default_factory=Limits)
    retention: Retention = field(default_factory=Retention)
    removal_seconds: float = 120.0
    namespace: str = ""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Rules:
        """Read LATE_GATE_SECONDS, CHECKPOINT_RETENTION (JSON; 0 is no limit), CHECKPOINT_REMOVAL_SECONDS, NAMESPACE, ….

        Raises:
            ValueError: one of them is not what it must be.
        """
        return cls(
            TransportRules.from_environment(environ),
            float(environ.get("LATE_GATE_SECONDS", LATE_GATE_SECONDS)),
            Limits.from_environment(environ),
            _retention(environ.get("CHECKPOINT_RETENTION") or "{}"),
            float(environ.get("CHECKPOINT_REMOVAL_SECONDS", cls.removal_seconds)),
            environ.get("NAMESPACE", ""),
        )


def _retention(text: str) -> Retention:
    limits: dict[str, int] = json.loads(text)
    return Retention.model_validate({name: value for name, value in limits.items() if value})
