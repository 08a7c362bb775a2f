"""What the chart's values say to the operator. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from migration_operator.preflight import LATE_GATE_SECONDS
from migration_operator.queueing import Limits
from migration_operator.transport_facts import TransportRules


@dataclass(frozen=True)
class Rules:
    """Fixed for the life of the process.

    Attributes:
        transport: how checkpoints may travel.
        late_gate_seconds: how long a freeze may be estimated without a late gate.
        limits: how many migrations may run at once.
    """

    transport: TransportRules = field(default_factory=TransportRules)
    late_gate_seconds: float = LATE_GATE_SECONDS
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Rules:
        """Read LATE_GATE_SECONDS, and what the rules within read.

        Raises:
            ValueError: one of them is not what it must be.
        """
        return cls(
            TransportRules.from_environment(environ),
            float(environ.get("LATE_GATE_SECONDS", LATE_GATE_SECONDS)),
            Limits.from_environment(environ),
        )
