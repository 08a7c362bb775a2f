"""As `test_witness.py`: an API server, networks and disks that are of no use for a while."""

from __future__ import annotations

import pytest

from chaos.cells import OUTAGES, Cell
from chaos.trial import Trial

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("cell", OUTAGES, ids=str)
def test_whatever_is_away_for_a_while_one_copy_runs_on_with_all_it_had(trial: Trial, cell: Cell) -> None:
    trial.survived(cell)
