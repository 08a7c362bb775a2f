"""The laboratory undoes what it did to the operator's Deployment, whoever was killed in between."""

from __future__ import annotations

from chaos.laboratory import with_settings, without_settings

ENV = [
    {"name": "FIRST", "value": "1"},
    {"name": "PARALLEL_MIGRATIONS_PER_CLUSTER", "value": "5"},
    {"name": "LAST", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
]
KEPT = [ENV[1]]


def test_the_variables_are_as_they_were_and_in_their_order() -> None:
    prepared = with_settings(ENV)
    assert {"name": "PARALLEL_MIGRATIONS_PER_CLUSTER", "value": "8"} in prepared
    assert {"name": "FAILPOINTS", "value": "/failpoints"} in prepared
    assert without_settings(prepared, KEPT) == ENV


def test_prepared_twice_is_prepared_once() -> None:
    """As after a laboratory that was killed, when the next one did not find that."""
    assert with_settings(with_settings(ENV)) == with_settings(ENV)


def test_killed_before_anything_was_changed() -> None:
    assert without_settings(ENV, KEPT) == ENV
