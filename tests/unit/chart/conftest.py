"""Fixtures of the chart's tests: helm itself renders, so a missing helm is a failure, not a skip."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from support.chart import Helm, Manifest, Render

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def helm() -> Helm:
    """Runs helm; `$HELM` names it, otherwise it is found by PATH."""
    binary = shutil.which(os.environ.get("HELM") or "helm")
    if binary is None:
        pytest.fail(
            f"helm is missing (HELM={os.environ.get('HELM', '')!r}, and none in PATH). `make unit` brings it along; "
            'by hand: HELM="$(tests/kind/cluster tool --path helm)" .venv/bin/pytest tests/unit/chart'
        )

    def run(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run((binary, *args), cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0 or not check, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def render(helm: Helm) -> Render:
    """Renders the chart with `--set` values into its objects."""

    def run(*values: str, namespace: str = "container-migration") -> list[Manifest]:
        sets = [word for value in values for word in ("--set", value)]
        served = ("--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy")
        done = helm("template", "container-migration", ".", "--namespace", namespace, *served, *sets)
        return list(yaml.safe_load_all(done.stdout))

    return run


@pytest.fixture(scope="session")
def manifests(render: Render) -> list[Manifest]:
    """The chart's objects with its default values."""
    return render()
