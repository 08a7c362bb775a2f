"""docs/conditions.md is what the constants say."""

from __future__ import annotations

from pathlib import Path

import pytest

from migration_api.checkpoint_reasons import CheckpointCondition, CheckpointReason
from migration_api.conditions import ConditionType, Reason
from migration_api.docs import conditions_page
from migration_api.preflight_reasons import PreflightReason

PAGE = Path(__file__).parents[3] / "docs" / "conditions.md"


def test_the_file_is_the_generated_page() -> None:
    assert PAGE.read_text(encoding="utf-8") == conditions_page()


@pytest.mark.parametrize("name", [*ConditionType, *Reason, *PreflightReason, *CheckpointCondition, *CheckpointReason])
def test_every_constant_is_explained(name: str) -> None:
    assert f"| `{name}` | " in conditions_page()


@pytest.mark.parametrize("reason", [*Reason, *PreflightReason, *CheckpointReason])
def test_a_reason_is_its_text(reason: Reason | PreflightReason | CheckpointReason) -> None:
    assert type(reason)(str(reason)) is reason
    assert reason.meaning
