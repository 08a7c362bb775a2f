"""Fixtures of the contract tests."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_api import failpoints


@pytest.fixture
def armed(tmp_path: Path) -> Iterator[Path]:
    """The directory in which failpoints are looked for."""
    folder = tmp_path / "failpoints"
    folder.mkdir()
    failpoints.look_in(folder)
    yield folder
    failpoints.look_in(None)
    shutil.rmtree(folder)  # whoever still hangs goes on, also when the test has failed
