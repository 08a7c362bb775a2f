"""Fixtures of all tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In place of pytest's own, which has the test's name: the path of a Unix socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="test-", ignore_cleanup_errors=True) as path:
        yield Path(path)
