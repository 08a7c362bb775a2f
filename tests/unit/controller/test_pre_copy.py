"""The strategy PreCopy as the operator sees it: what is estimated, refused and asked for."""

from __future__ import annotations

import pytest

from migration_api.migration import Strategy
from migration_api.preflight_reasons import PreflightReason
from migration_api.wire import LAZY_FROM_BYTES
from migration_operator.estimates import PRE_COPY_ROOM, ROOM_FACTOR, checkpoint_bytes, freeze_estimate, room_needed
from migration_operator.observation import Observation
from migration_operator.preflight import problems
from support.controller import FACTS, NOW, SOURCE, TARGET, migration, node, pod_facts, preflight_facts, source_pod

PRE_COPY = {"strategy": "PreCopy"}
CANNOT = FACTS.model_copy(update={"post_copy": False})


def test_the_freeze_does_not_wait_for_the_memory_but_both_nodes_need_room_for_it_several_times() -> None:
    large = pod_facts(4096)
    assert checkpoint_bytes(large, Strategy.PRE_COPY) == LAZY_FROM_BYTES
    assert room_needed(large, Strategy.PRE_COPY) == int(4096 * 2**20 * PRE_COPY_ROOM * ROOM_FACTOR)
    pod = source_pod()
    assert (
        freeze_estimate(migration(spec=PRE_COPY), pod, large, None) < freeze_estimate(migration(), pod, large, None) / 5
    )


@pytest.mark.parametrize("where", [SOURCE, TARGET])
def test_a_node_that_cannot_fill_memory_in_is_refused(where: str) -> None:
    of = preflight_facts(**{"source" if where == SOURCE else "target": node(where, CANNOT)})
    found = problems(migration(spec=PRE_COPY), of, NOW)
    assert [it.reason for it in found] == [PreflightReason.PRE_COPY_NOT_POSSIBLE]
    assert where in found[0].message
    assert problems(migration(), of, NOW) == ()


def test_only_one_of_both_is_asked_for() -> None:
    it = Observation(NOW, migration(spec=PRE_COPY))
    assert it.pre_copy
    assert not it.post_copy
