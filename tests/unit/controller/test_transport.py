"""How a checkpoint may travel: rules, what stands against it, and the nodes' tries."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from migration_api.migration import MigrationSpec
from migration_api.node import MigrationNode
from migration_api.preflight_reasons import PreflightReason as Why
from migration_api.shipping import ProbeProblem, ProbeReport, ProbeStep, StoreAccess, StoreProbe
from migration_api.transport import (
    CREDENTIALS,
    SECRET_TYPE,
    ObjectStore,
    SecretReference,
    SharedVolume,
    Transport,
    TransportType,
)
from migration_operator.agents import AgentUnreachable
from migration_operator.preflight import problems
from migration_operator.store_probe import try_store
from migration_operator.transport_checks import transport_problems
from migration_operator.transport_facts import SecretFacts, StoreAnswer, TransportFacts, TransportRules
from support.controller import NOW, migration, migration_node, preflight_facts

VOLUME = Transport(type=TransportType.SHARED_VOLUME, shared_volume=SharedVolume(path="/mnt/shared/team"))
BUCKET = Transport(
    type=TransportType.OBJECT_STORE,
    object_store=ObjectStore(url="s3://checkpoints/a", endpoint="http://s3", secret_ref=SecretReference(name="s3")),
)
RULES = TransportRules(allowed_paths=("/mnt/shared",), allowed_endpoints=("http://s3/",))
SECRET = SecretFacts(SECRET_TYPE, frozenset({"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "else"}))
FINE = ProbeReport()
BROKEN = ProbeReport(problem=ProbeProblem.UNUSABLE, message="the shared volume /mnt/shared/team is read-only")
ASTRAY = ProbeReport(problem=ProbeProblem.NOT_SHARED, message="it sees another volume")


def found(facts: TransportFacts) -> list[Why]:
    return [problem.reason for problem in transport_problems(facts)]


@pytest.mark.parametrize(
    "spec",
    [
        {"type": "SharedVolume"},
        {"type": "ObjectStore", "sharedVolume": {"path": "/mnt"}},
        {"type": "Direct", "sharedVolume": {"path": "/mnt"}},
        {"sharedVolume": {"path": "/mnt"}},
        {"type": "SharedVolume", "sharedVolume": {"path": "/mnt/../etc"}},
        {"type": "SharedVolume", "sharedVolume": {"path": "mnt"}},
        {"type": "SharedVolume", "sharedVolume": {}},
        {"type": "SharedVolume", "sharedVolume": {"path": "/mnt", "claim": "checkpoints"}},
        {"type": "SharedVolume", "sharedVolume": {"claim": "../checkpoints"}},
        {"type": "SharedVolume", "sharedVolume": {"path": "/"}},
        {"type": "SharedVolume", "sharedVolume": {"path": "/mnt,/etc"}},
        {"type": "ObjectStore", "objectStore": {"url": "s3://checkpoints"}},
        {"type": "ObjectStore", "objectStore": {"url": "file:///etc", "secretRef": {"name": "s3"}}},
        {"type": "ObjectStore", "objectStore": {"url": "s3://a/../b", "secretRef": {"name": "s3"}}},
        {"type": "ObjectStore", "objectStore": {"url": "s3://a", "secretRef": {"name": "../pods"}}},
        {"type": "Direct", "bytesPerSecond": 1},
    ],
)
def test_i8_what_makes_no_sense_is_no_transport(spec: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MigrationSpec.model_validate({"podName": "redis", "transport": spec})


def test_what_is_written_down_counts_then_what_is_asked_for_then_the_default() -> None:
    asked = VOLUME.dump()
    rules = replace(RULES, default=BUCKET)
    assert rules.transport(migration()) == BUCKET
    assert rules.transport(migration(spec={"transport": asked})) == VOLUME
    assert rules.transport(migration(spec={"transport": asked}, status={"transport": {"type": "Direct"}})) == Transport(
        type=TransportType.DIRECT
    )
    assert TransportRules.from_environment({}).transport(migration()).type is TransportType.DIRECT
    with pytest.raises(ValueError, match="SharedVolume"):
        TransportRules.from_environment({"DEFAULT_TRANSPORT": '{"type": "SharedVolume"}'})


def test_a_path_is_allowed_in_or_below_those_that_are_named() -> None:
    for path, allowed in (
        ("/mnt/shared", True),
        ("/mnt/shared/a/b", True),
        ("/mnt/shared-not", False),
        ("/mnt", False),
        ("/etc", False),
    ):
        assert RULES.allows_path(path) is allowed
    assert not TransportRules().allows_path("/mnt")


def test_nothing_stands_against_what_is_allowed_and_works() -> None:
    fine = (StoreAnswer("a", FINE), (StoreAnswer("b", FINE),))
    assert found(TransportFacts(Transport(type=TransportType.DIRECT), TransportRules())) == []
    assert found(TransportFacts(VOLUME, RULES, source=fine[0], targets=fine[1])) == []
    assert found(TransportFacts(BUCKET, RULES, SECRET, *fine)) == []


def test_everything_that_stands_against_it_is_said_at_once_with_what_to_do() -> None:
    facts = preflight_facts(transport=TransportFacts(BUCKET, TransportRules()))
    messages = {p.reason: p.message for p in problems(migration(spec={"containers": ["other"]}), facts, NOW)}
    assert set(messages) == {Why.CONTAINER_NOT_FOUND, Why.ENDPOINT_NOT_ALLOWED, Why.STORE_SECRET_NOT_FOUND}
    assert "no Secret s3" in messages[Why.STORE_SECRET_NOT_FOUND]
    assert "allowedEndpoints" in messages[Why.ENDPOINT_NOT_ALLOWED]


@pytest.mark.parametrize(
    ("facts", "reason", "what"),
    [
        (TransportFacts(VOLUME, TransportRules()), Why.PATH_NOT_ALLOWED, "/mnt/shared/team is not in or below"),
        (TransportFacts(BUCKET, RULES), Why.STORE_SECRET_NOT_FOUND, "there is no Secret s3"),
        (TransportFacts(BUCKET, RULES, replace(SECRET, type="Opaque")), Why.STORE_SECRET_INVALID, "the type Opaque"),
        (
            TransportFacts(BUCKET, RULES, replace(SECRET, keys=frozenset({"AWS_ACCESS_KEY_ID"}))),
            Why.STORE_SECRET_INVALID,
            "no key AWS_SECRET_ACCESS_KEY",
        ),
        (TransportFacts(VOLUME, RULES, source=StoreAnswer("node-a", BROKEN)), Why.STORE_UNUSABLE, "node-a: the shared"),
        (
            TransportFacts(VOLUME, RULES, source=StoreAnswer("a", FINE), targets=(StoreAnswer("node-b", ASTRAY),)),
            Why.STORE_NOT_SHARED,
            "node-b: it sees another",
        ),
    ],
)
def test_i8_each_finding_has_its_reason(facts: TransportFacts, reason: Why, what: str) -> None:
    [problem] = transport_problems(facts)
    assert problem.reason is reason
    assert what in problem.message
    assert problem.message.endswith(f"{reason.remedy}.")


def test_a_bandwidth_limit_counts_for_how_long_it_stands_still() -> None:
    """64 MiB at 1 MiB/s take longer than the freeze budget of 30 s."""
    limited = Transport(type=TransportType.DIRECT, bytes_per_second=1024 * 1024)
    facts = preflight_facts(transport=TransportFacts(limited, RULES))
    assert [p.reason for p in problems(migration(), facts, NOW)] == [Why.FREEZE_TOO_LONG]


def test_when_the_scheduler_picks_one_node_that_can_use_the_store_is_enough() -> None:
    targets = (StoreAnswer("b", BROKEN), StoreAnswer("c", FINE), StoreAnswer("d", ASTRAY))
    assert found(TransportFacts(VOLUME, RULES, source=StoreAnswer("a", FINE), targets=targets)) == []
    none = (targets[0], targets[2])
    assert found(TransportFacts(VOLUME, RULES, source=StoreAnswer("a", FINE), targets=none)) == [
        Why.STORE_UNUSABLE,
        Why.STORE_NOT_SHARED,
    ]


def test_what_each_provider_needs() -> None:
    assert CREDENTIALS["az"].missing({"AZURE_STORAGE_ACCOUNT_NAME"}) == (
        "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN"
    )
    assert CREDENTIALS["az"].missing({"AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_SAS_TOKEN"}) == ""
    assert CREDENTIALS["gs"].missing(()) == "GOOGLE_SERVICE_ACCOUNT_KEY"


@dataclass
class Agents:
    """Answers by node and step; notes what was asked."""

    answers: dict[tuple[str, ProbeStep], ProbeReport | AgentUnreachable] = field(
        default_factory=dict[tuple[str, ProbeStep], ProbeReport | AgentUnreachable]
    )
    asked: list[tuple[str, ProbeStep]] = field(default_factory=list[tuple[str, ProbeStep]])
    probes: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    async def probe(self, node: MigrationNode, probe: StoreProbe) -> ProbeReport:
        self.asked.append((node.metadata.name, probe.step))
        self.probes.add((probe.uid, probe.content))
        answer = self.answers.get((node.metadata.name, probe.step), FINE)
        if isinstance(answer, AgentUnreachable):
            raise answer
        return answer


async def tried(agents: Agents) -> tuple[StoreAnswer, tuple[StoreAnswer, ...]]:
    access = StoreAccess(shared_volume=VOLUME.shared_volume)
    nodes = [migration_node(name) for name in "bc"]
    return await try_store(agents, lambda _: access, migration_node("a"), nodes)  # pyright: ignore[reportArgumentType]


async def test_one_puts_the_others_fetch_and_what_was_put_is_removed() -> None:
    agents = Agents({("c", ProbeStep.READ): ASTRAY})
    source, targets = await tried(agents)
    assert agents.asked == [("a", ProbeStep.WRITE), *((n, ProbeStep.READ) for n in "bc"), ("a", ProbeStep.REMOVE)]
    assert len(agents.probes) == 1
    assert (source.report, [t.report for t in targets]) == (FINE, [FINE, ASTRAY])
    await tried(agents)
    assert len(agents.probes) == 2, "each probe has a UID and a content of its own"


async def test_a_source_that_cannot_is_enough_to_know() -> None:
    agents = Agents({("a", ProbeStep.WRITE): BROKEN})
    assert await tried(agents) == (StoreAnswer("a", BROKEN), ())
    assert agents.asked == [("a", ProbeStep.WRITE)]
    source, _ = await tried(Agents({("a", ProbeStep.REMOVE): BROKEN}))
    assert source.report == BROKEN


async def test_an_agent_that_does_not_answer_cannot_use_it() -> None:
    _, targets = await tried(Agents({("b", ProbeStep.READ): AgentUnreachable("no answer within 30 s")}))
    assert targets[0].report.problem is ProbeProblem.UNUSABLE
    assert "no answer within 30 s" in targets[0].report.message


def test_i7_no_dump_or_text_of_a_store_shows_its_credentials() -> None:
    access = StoreAccess(object_store=BUCKET.object_store, credentials={"secret_access_key": SecretStr("hush")})
    probe = StoreProbe(uid="x", step=ProbeStep.WRITE, content="0" * 16, store=access)
    for thing in (access, probe):
        assert "hush" not in repr(thing) + str(thing) + thing.model_dump_json() + json.dumps(thing.dump())
    assert "hush" in json.dumps(probe.dump(reveal=True))
