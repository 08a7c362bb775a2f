"""I1 to I4 in every state that the move of a Podman container can reach, and each rule broken on purpose is missed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from migration_agent.seen import Verdict
from migration_agent.source_plan import SourceObservation, SourceStep, next_source_step
from migration_agent.target_plan import TargetObservation, next_target_step
from migration_agent.target_steps import TargetStep
from support.protocol.podman import Wrong, explore
from support.protocol.podman_world import Rules, World

pytestmark = pytest.mark.timeout(600)


def test_without_accidents_it_succeeds_or_is_given_up_for_its_budget() -> None:
    _, ends = explore(World())
    assert ends == {"Abort, runs at the source", "Commit, runs at the target"}


def test_i1_to_i4_whatever_goes_wrong_once() -> None:
    states, ends = explore(World(accidents=1))
    assert states >= 25_000, "the world must be rich enough to mean something"
    assert ends >= {"Commit, runs at the source", "Commit, runs at the target"}


def _source(change: Callable[[SourceObservation, SourceStep], SourceStep]) -> Rules:
    return Rules(source_step=lambda it: change(it, next_source_step(it)))


def _target(change: Callable[[TargetObservation, TargetStep], TargetStep]) -> Rules:
    return Rules(target_step=lambda it: change(it, next_target_step(it)))


def _release_on_commit(it: SourceObservation, step: SourceStep) -> SourceStep:
    committed = it.verdict is Verdict.COMMIT and it.state.value in {"Dumped", "Sent"}
    return SourceStep.RELEASE if committed else step


def _thaw_when_unsure(_: SourceObservation, step: SourceStep) -> SourceStep:
    return SourceStep.THAW if step is SourceStep.ASK_PROMISE else step


def _resume_undecided(_: TargetObservation, step: TargetStep) -> TargetStep:
    return TargetStep.RESUME if step is TargetStep.COMMIT else step


def _never_return(_: TargetObservation, step: TargetStep) -> TargetStep:
    return TargetStep.WAIT if step is TargetStep.RETURN_IF_INTACT else step


def _promise_with_something_there(it: TargetObservation, _: TargetStep) -> TargetStep:
    return next_target_step(replace(it, dead=True))


MUTATIONS: dict[str, tuple[Rules, str]] = {
    "the source is removed on Commit": (_source(_release_on_commit), "I2"),
    "the source goes on when the registers are out of reach": (_source(_thaw_when_unsure), "I1"),
    "it is restored before the decision": (_target(_resume_undecided), "I1"),
    "the target never gives back": (_target(_never_return), "I4"),
    "the promise comes before the container is gone": (_target(_promise_with_something_there), "I1|promised"),
    "the target does not wait for a command of an earlier life": (Rules(target_waits=False), "I1|promised"),
    "the source does not wait for a command of an earlier life": (Rules(source_waits=False), "I1|I2|I4"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_found(name: str) -> None:
    rules, finds = MUTATIONS[name]
    with pytest.raises(Wrong) as wrong:
        explore(World(accidents=1), rules)
    first = str(wrong.value).splitlines()[0]
    print(wrong.value)
    assert any(words in first for words in finds.split("|")), first
