"""Fixtures of the end-to-end tests: a cluster that runs the operator, and a fresh namespace per test."""

from __future__ import annotations

import os
import secrets
from collections.abc import Generator, Iterator

import pytest

from support.cluster import Kubectl, NotInTimeError, agents, wait_for, what_happened, workers
from support.migration import Migrations, leftovers

REPORT = pytest.StashKey[pytest.TestReport]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeconfig", help="the cluster to test; default: the environment's KUBECONFIG")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--kubeconfig"):
        os.environ["KUBECONFIG"] = str(path)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
        namespaces = [v for k, v in getattr(item, "funcargs", {}).items() if k == "namespace"]
        if report.failed:
            report.sections.append(("what happened in the cluster", what_happened(Kubectl(), namespaces)))
    return report


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """kubectl as cluster admin; the operator and all agents are ready."""
    kubectl = Kubectl()
    try:
        wait_for(
            "two nodes that can take part", lambda: len(workers(kubectl)) >= 2 and len(agents(kubectl)) >= 2, seconds=90
        )
    except NotInTimeError as problem:
        pytest.exit(f"{problem}\n{what_happened(kubectl, ())}", returncode=1)
    return kubectl


@pytest.fixture(scope="session")
def nodes(kubectl: Kubectl) -> tuple[str, str]:
    """Two nodes that can take part in a migration."""
    first, second, *_ = workers(kubectl)
    return first, second


@pytest.fixture
def namespace(kubectl: Kubectl) -> Iterator[str]:
    """A fresh namespace; removed with all that is in it."""
    name = f"e2e-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    yield name
    kubectl("delete", "cmig", "--all", "-n", name, "--wait=true", timeout=120)
    kubectl("delete", "pods", "--all", "-n", name, "--grace-period=1", "--wait=true", timeout=120)
    kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def migrations(kubectl: Kubectl, namespace: str) -> Migrations:
    """The migrations and pods of the test's namespace."""
    return Migrations(kubectl, namespace)


@pytest.fixture
def clean_nodes(kubectl: Kubectl) -> Iterator[None]:
    """After the test no node may have anything left of a migration."""
    yield
    try:
        wait_for("clean nodes", lambda: not leftovers(kubectl), seconds=30, every=1)
    except NotInTimeError:
        assert leftovers(kubectl) == {}
