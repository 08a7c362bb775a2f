"""Whatever dies, wherever: no increment is seen twice, none is missing, one copy runs on, and nothing is left over."""

from __future__ import annotations

import pytest

from chaos.cells import DEATHS, Accident, Cell
from chaos.trial import Trial
from migration_api.failpoints import Failpoint

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("cell", DEATHS, ids=str)
def test_whatever_dies_one_copy_runs_on_with_all_it_had(trial: Trial, cell: Cell) -> None:
    trial.survived(cell)


def test_what_the_user_deletes_is_not_brought_back(trial: Trial) -> None:
    """Before the commit the source's pod is deleted: nothing runs, and nothing is left over."""
    outcome = trial.run(Cell(Failpoint.SOURCE_DUMPING, Accident.SOURCE_POD))
    assert not outcome.faults, outcome.told()
    assert outcome.reached
    assert outcome.reason == "SourceLost"
