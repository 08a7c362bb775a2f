"""Copying memory while it changes: how often, and when it is time to stand still (docs/protocol.md, section 13)."""

from __future__ import annotations

from collections.abc import Sequence

from migration_agent.runtime.interface import Copied

ROUNDS_MAX = 8
LITTLE_BYTES = 16 * 1024 * 1024
"""Not worth another round: what looks for changes takes longer than to send so much."""
FALLING = 0.7
"""The most that a round may find of what the one before it found, to be worth another."""
COPIES_MAX = 2.5
"""How much is written in all, of the memory that there is: both nodes have room for that (`PRE_COPY_ROOM`). The last
round, in the freeze, may have to write everything once more."""


def another(rounds: Sequence[Copied]) -> bool:
    """Say whether one more round, with the container running, would make the freeze shorter."""
    if len(rounds) <= 1:
        return not rounds or rounds[0].looked > LITTLE_BYTES
    last, before = rounds[-1], rounds[-2]
    if len(rounds) >= ROUNDS_MAX or last.written <= LITTLE_BYTES or limit(rounds) <= LITTLE_BYTES:
        return False
    return last.written < FALLING * before.written


def limit(rounds: Sequence[Copied]) -> int:
    """Return how many bytes the next round may write, if it is not the first and not the last one."""
    looked = rounds[-1].looked
    return max(0, int((COPIES_MAX - 1) * looked) - sum(it.written for it in rounds))
