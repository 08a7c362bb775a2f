"""Each rule of the protocol, broken on purpose, is missed: the exploration finds what goes wrong, the shortest way."""

from __future__ import annotations

import pytest

from support.protocol.explore import Exploration, Wrong
from support.protocol.mutations import MUTATIONS, Mutation
from support.protocol.world import World

pytestmark = pytest.mark.timeout(1800)


def counterexample(mutation: Mutation) -> list[str]:
    exploration = Exploration(mutation.rules, mutation.kinds)
    with pytest.raises(Wrong) as wrong:  # noqa: PT012  # either finds it
        start = World(
            accidents=mutation.accidents, clone=mutation.clone, post_copy=mutation.post_copy, same=mutation.same
        )
        exploration.explore(start)
        exploration.demand_an_end()
    return str(wrong.value).splitlines()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.name)
def test_a_broken_rule_is_found(mutation: Mutation) -> None:
    lines = counterexample(mutation)
    assert mutation.finds in lines[0]
    assert len(lines) < 60, "the shortest history that shows it"


def test_a_counterexample_is_a_story() -> None:
    """Who thaws without reading the register meets a Commit that was written meanwhile."""
    mutation = next(m for m in MUTATIONS if m.name == "thaw without reading the register")
    lines = counterexample(mutation)
    print("\n".join(lines))
    order = [next(i for i, line in enumerate(lines) if words in line) for words in ("plans thaw", "resumes the")]
    commit = next(i for i, line in enumerate(lines) if "proposes Commit" in line)
    assert order[0] < commit
    assert max(commit, order[1]) < len(lines)
