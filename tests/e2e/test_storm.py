"""Ten migrations while things die at random, as `make chaos` does it with more."""

from __future__ import annotations

import pytest

from chaos.lab import Lab
from chaos.storm import Storm

pytestmark = pytest.mark.timeout(900)

SEED = "57"
"""Of these none falls into the moment in which a container that crashes starts cold (docs/chaos.md)."""


def test_a_small_storm(lab: Lab) -> None:
    said: list[str] = [f"seed {SEED}"]
    tally = Storm(lab, SEED, number=10, jobs=3, say=said.append).run()
    print("\n".join([*said, tally.last_line(10)]))
    assert tally.good, tally
    assert tally.succeeded + tally.rolled_back == 10
