"""The health check for Argo CD, run as Argo CD does: a Lua chunk that gets `obj` and returns `status` and `message`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from lupa.lua51 import LuaRuntime  # the version of Argo CD's own interpreter

from migration_api.conditions import Reason
from migration_api.migration import ContainerMigration, MigrationSpec
from migration_operator.observation import Observation
from migration_operator.status import report
from migration_operator.step import Action, Step
from support.controller import NOW, begun, migration

ROOT = Path(__file__).parents[3]
KEY = "resource.customizations.health.containermigration.io_ContainerMigration"
SAMPLES = sorted((ROOT / "manifests" / "samples" / "gitops").glob("*.yaml"))


def health(thing: dict[str, Any]) -> tuple[str, str]:
    """Return what the check says of the object."""
    chunk = yaml.safe_load((ROOT / "manifests" / "gitops" / "argocd-cm.yaml").read_text())["data"][KEY]
    lua: Any = LuaRuntime(unpack_returned_tuples=True)
    lua.globals().obj = lua.table_from(thing, recursive=True)
    result = lua.execute(chunk)
    return str(result["status"]), str(result["message"])


def seen(status: dict[str, Any], step: Step, **spec: Any) -> dict[str, Any]:
    """Return a migration with the status that the operator writes while it takes the step."""
    of = migration(status=status, spec=spec, generation=1)
    return {
        "metadata": {"name": "move", "generation": 1},
        "spec": of.spec.dump(),
        "status": report(Observation(NOW + timedelta(seconds=1), of), step).dump(),
    }


ABORTED = begun(decision="Abort")
CANCELLED = Step(Action.FINISH, Reason.ROLLED_BACK, "the source runs on; spec.cancel was set")
TABLE: list[tuple[str, dict[str, Any], str]] = [
    ("Progressing", seen(begun(), Step(Action.WAIT, Reason.PREPARING_TARGET, "the target is starting")), "starting"),
    ("Progressing", seen(ABORTED, Step(Action.SETTLE, Reason.ROLLING_BACK, "going back")), "going back"),
    ("Healthy", seen(begun(decision="Commit"), Step(Action.FINISH, Reason.SUCCEEDED, "it runs on")), "it runs on"),
    ("Degraded", seen({}, Step(Action.FINISH, Reason.PREFLIGHT_FAILED, "hostNetwork")), "hostNetwork"),
    ("Degraded", seen(ABORTED, Step(Action.FINISH, Reason.ROLLED_BACK, "the copy broke")), "the copy broke"),
    ("Degraded", seen(ABORTED, Step(Action.FINISH, Reason.SOURCE_LOST, "it died"), cancel=True), "it died"),
    (
        "Degraded",
        seen(begun(decision="Commit"), Step(Action.WAIT, Reason.TARGET_LOST_AFTER_COMMIT, "away", stalled=True)),
        "away",
    ),
    ("Suspended", seen(ABORTED, CANCELLED, cancel=True), "spec.cancel was set"),
]


@pytest.mark.parametrize(("expected", "thing", "words"), TABLE, ids=[f"{e}-{w}" for e, _, w in TABLE])
def test_argo_cd_health(expected: str, thing: dict[str, Any], words: str) -> None:
    status, message = health(thing)
    assert status == expected
    assert words in message


def test_what_the_operator_has_not_looked_at_is_progressing() -> None:
    spec = MigrationSpec(pod_name="redis").dump()
    assert health({"metadata": {"generation": 1}, "spec": spec})[0] == "Progressing"
    new = {"metadata": {"generation": 1}, "spec": spec, "status": {"observedGeneration": -1}}
    assert health(new) == ("Progressing", "waiting for the migration operator")
    done = seen(begun(decision="Commit"), Step(Action.FINISH, Reason.SUCCEEDED, "it runs on"))
    changed = {**done, "metadata": {"generation": 2}}
    assert health(changed)[0] == "Progressing"


def test_samples_for_gitops_pin_the_pod_and_do_not_expire() -> None:
    documents = [d for sample in SAMPLES for d in yaml.safe_load_all(sample.read_text())]
    [of] = [d for d in documents if d["kind"] == "ContainerMigration"]
    spec = ContainerMigration.model_validate(of).spec
    assert of["spec"].keys() <= spec.dump().keys()
    assert spec.pod_uid
    assert spec.ttl_seconds_after_finished is None
