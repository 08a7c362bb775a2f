"""Whatever dies, wherever: no increment is seen twice, none is missing, one copy runs on, and nothing is left over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from chaos.cells import PAIRWISE, Accident, Cell
from chaos.lab import Lab, laboratory
from chaos.storm import Storm
from chaos.trial import Trial
from chaos.workload import Workload
from support.cluster import Kubectl

pytestmark = pytest.mark.timeout(600)


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
    assert outcome.reached
    assert outcome.faults == []
    assert outcome.ended in {"source", "target"}


def test_what_the_user_deletes_is_not_brought_back(trial: Trial) -> None:
    """Before the commit the source's pod is deleted: nothing runs, and nothing is left over."""
    outcome = trial.run(Cell("source.dumping", Accident.SOURCE_POD))
    assert outcome.reached
    assert outcome.faults == []
    assert outcome.reason == "SourceLost"


def test_a_small_storm(lab: Lab) -> None:
    storm = Storm(lab, seed="ci", number=10, jobs=3)
    tally = storm.run()
    assert tally.good, tally
    assert tally.succeeded + tally.rolled_back == 10
