"""Each failpoint is in one place; nothing happens unless a test asks for it, and then once."""

from __future__ import annotations

import ast
import asyncio
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration_agent.paths import Layout
from migration_agent.source_plan import SourceStep
from migration_agent.target_steps import TargetStep
from migration_api import failpoints
from migration_api.failpoints import Failpoint, FailpointHit, reach, reach_in_thread
from migration_operator.checkpoint_plan import CheckpointAction
from migration_operator.step import Action

ROOT = Path(__file__).parents[3]
SOURCES = (ROOT / "operator" / "src", ROOT / "node-agent" / "src")
FAMILIES = {
    'Failpoint(f"operator.{turn.step.action}")': [f"operator.{a}" for a in Action if a is not Action.REST],
    'Failpoint(f"operator.checkpoint.{action}")': [
        f"operator.checkpoint.{a}" for a in CheckpointAction if a is not CheckpointAction.REST
    ],
    'Failpoint(f"source.{step}")': [f"source.{s}" for s in SourceStep if s is not SourceStep.WAIT],
    'Failpoint(f"target.{step}")': [f"target.{s}" for s in TargetStep if s is not TargetStep.WAIT],
}


def calls() -> list[str]:
    """Return the arguments of all calls of `reach` in operator and agent."""
    nodes = (
        node
        for path in sorted(p for folder in SOURCES for p in folder.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    )
    return [
        ast.unparse(node.args[0]).replace("'", '"')
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in {"reach", "reach_in_thread"}
    ]


def test_each_is_used_in_exactly_one_place_and_all_that_is_used_is_listed() -> None:
    used: Counter[str] = Counter()
    for argument in calls():
        used.update(FAMILIES.get(argument) or [Failpoint[argument.removeprefix("Failpoint.")]])
    assert used == Counter(Failpoint)


def test_those_of_the_interposer_have_other_names() -> None:
    text = (ROOT / "node-agent" / "interposer" / "failpoint.go").read_text(encoding="utf-8")
    names = re.findall(r'^\tat\w+ += "([a-z.-]+)"', text, flags=re.MULTILINE)
    assert len(names) > 10
    assert not set(names) & set(Failpoint)


def test_nothing_that_is_installed_switches_them_on() -> None:
    """Only whoever may write on the node as root, or change the operator's Deployment, can."""
    installed = [*(ROOT / "templates").iterdir(), *(ROOT / "manifests").glob("*.yaml"), ROOT / "values.yaml"]
    installed += [ROOT / "operator" / "Dockerfile", ROOT / "node-agent" / "Dockerfile"]
    for path in installed:
        assert "failpoint" not in path.read_text(encoding="utf-8").lower(), path


def test_the_agents_lie_where_only_root_can_enter(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.prepare()
    assert layout.failpoints.parent.stat().st_mode & 0o777 == 0o700
    assert not layout.failpoints.exists()


@pytest.fixture
def armed(tmp_path: Path) -> Iterator[Path]:
    failpoints.look_in(tmp_path)
    yield tmp_path
    failpoints.look_in(None)


POINT = Failpoint.SOURCE_PAUSED


def arm(folder: Path, deed: str) -> Path:
    (folder / POINT).write_text(deed + "\n")
    return folder / f"{POINT}.hit"


async def test_off_nothing_happens(tmp_path: Path) -> None:
    hit = arm(tmp_path, "kill")
    await reach(POINT)
    reach_in_thread(POINT)
    assert not hit.exists()


async def test_unarmed_nothing_happens(armed: Path) -> None:
    arm(armed, "kill").with_suffix("").rename(armed / Failpoint.SOURCE_DUMPED)
    await reach(POINT)
    assert (armed / Failpoint.SOURCE_DUMPED).exists()


async def test_a_failure_is_raised_once(armed: Path) -> None:
    hit = arm(armed, "fail")
    with pytest.raises(FailpointHit):
        await reach(POINT)
    assert hit.exists()
    await reach(POINT)
    arm(armed, "fail")
    with pytest.raises(OSError, match=POINT):
        reach_in_thread(POINT)


async def test_what_hangs_goes_on_when_the_test_says_so_and_the_loop_turns_meanwhile(armed: Path) -> None:
    hit = arm(armed, "hang")
    hanging = asyncio.create_task(reach(POINT))
    await asyncio.wait([hanging], timeout=0.2)
    assert hit.exists()
    assert not hanging.done()
    hit.unlink()
    await hanging


@pytest.mark.parametrize("deed", ["", "explode", "delay 0.01"])
async def test_other_deeds_do_no_harm(armed: Path, deed: str) -> None:
    hit = arm(armed, deed)
    await reach(POINT)
    assert hit.exists()


def test_a_process_that_is_to_die_dies_at_once(tmp_path: Path) -> None:
    hit = arm(tmp_path, "kill")
    program = (
        "import sys, atexit; from pathlib import Path; from migration_api import failpoints as f\n"
        "atexit.register(print, 'tidied up')\n"
        "f.look_in(Path(sys.argv[1])); f.reach_in_thread(f.Failpoint.SOURCE_PAUSED); print('went on')"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == -9
    assert done.stdout == ""
    assert hit.exists()
