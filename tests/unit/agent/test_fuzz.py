"""Whatever comes over the gate's socket or the operator's requests is within its bounds, or refused.

Seeded, so that a failure comes again; `SEED=… pytest` looks elsewhere.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from migration_agent.gate_messages import HELLO, GateEvent
from migration_agent.ticket import Ticket
from migration_api.wire import SourceRequest, TargetRequest
from support.agent import source_request, target_request

SEED = int(os.environ.get("SEED", "7"))
ROUNDS = 2000
GATE = {
    "role": "gate", "podUID": "7e7e-1", "namespace": "default", "pod": "redis-moved", "migration": "m-1",
    "container": "main", "containerID": "c0ffee",
    "sandboxID": "5a", "deadlineBoottimeNs": 5, "keeper": False,
}  # fmt: skip
HOOK = {"role": "hook", "action": "post-restore", "podUID": "7e7e-1", "container": "main", "initPID": 7}
SEEDS: dict[str, tuple[TypeAdapter[Any], dict[str, Any]]] = {
    "gate": (HELLO, GATE),
    "hook": (HELLO, HOOK),
    "start": (HELLO, {"role": "start", "podUID": "7e7e-1", "container": "main"}),
    "event": (TypeAdapter(GateEvent), {"event": "failed", "message": "why"}),
    "source": (TypeAdapter(SourceRequest), source_request().dump(reveal=True)),
    "target": (TypeAdapter(TargetRequest), target_request().dump(reveal=True)),
    "ticket": (TypeAdapter(Ticket), {"migration": "m-1", "containers": ["main"]}),
}
NASTY: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 2**70, 1e308, "", ".", "..", "../../etc/passwd", "/etc/passwd", "a/b", "a\x00b", "a\nb",
    "\ud800", "x" * 70_000, [], {}, [[]], ["main"] * 5000, {"a": {"a": {}}}, "main; rm -rf /", "--root=/", "%s%n",
)  # fmt: skip
NAMES = {"pod_uid", "container", "container_id", "containers", "order", "uid", "pod_name", "namespace", "name", "pod"}
"""What becomes a part of a path, a URL or an argument."""


def mutants(seed: dict[str, Any], name: str) -> Iterator[bytes]:
    """Yield bodies: fields replaced, dropped, added, at any depth; and bytes flipped, cut off and repeated."""
    chance = random.Random(f"{SEED}-{name}")  # noqa: S311  # repeatable
    for _ in range(ROUNDS):
        body = json.loads(json.dumps(seed))
        for _ in range(chance.randint(1, 3)):
            _mutate(body, chance)
        data = json.dumps(body).encode("utf-8", "surrogatepass")
        if chance.random() < 0.3:
            at = chance.randrange(len(data))
            data = chance.choice((data[:at], data[:at] + bytes([chance.randrange(256)]) + data[at:], data + data))
        yield data


def _mutate(body: dict[str, Any], chance: random.Random) -> None:
    here = body
    while deeper := _inside(here):
        if chance.random() < 0.5:
            break
        here = chance.choice(deeper)
    key = chance.choice([*here, "unknown"])
    if chance.random() < 0.2:
        here.pop(key, None)
    else:
        here[key] = copy.deepcopy(chance.choice(NASTY))


def _inside(body: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in body.values() if isinstance(value, dict) and value]


@pytest.mark.parametrize("name", SEEDS)
def test_i8_whatever_is_accepted_is_within_its_bounds(name: str) -> None:
    adapter, seed = SEEDS[name]
    assert adapter.validate_json(json.dumps(seed)), "the seed itself is accepted"
    refused = 0
    for data in mutants(seed, name):
        try:
            value = adapter.validate_json(data)
        except ValidationError:
            refused += 1
        else:
            _demand_harmless(value, data)
    assert 0 < refused < ROUNDS, "some are refused and some are accepted"


def _demand_harmless(value: Any, data: bytes) -> None:
    """No name leaves its directory, hides an option, or is longer than a file name may be."""
    for field, text in _texts(value.model_dump()):
        if field in NAMES:
            assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,252}", text), (field, text[:80], data[:300])
        assert len(text) <= 70_000, field


def _texts(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inside in value.items():  # pyright: ignore[reportUnknownVariableType]
            yield from _texts(inside, str(key))  # pyright: ignore[reportUnknownArgumentType]
    elif isinstance(value, (list, tuple)):
        for inside in value:  # pyright: ignore[reportUnknownVariableType]
            yield from _texts(inside, field)
    elif isinstance(value, str):
        yield field, value
