"""Fixtures of the end-to-end tests: a cluster that runs the operator, and a fresh namespace per test."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from chaos.lab import Lab
from chaos.laboratory import laboratory
from chaos.trial import Trial
from chaos.workload import Workload
from support import machine
from support import programs as programs_support
from support import testbed as testbed_support
from support.cluster import Kubectl, NotInTimeError, able, on_node, schedulable, wait_for, what_happened, workers
from support.follower import Follower
from support.kept import Kept
from support.migration import Migrations, leftovers
from support.points import FAILPOINTS, Points
from support.stores import Bucket, Folder
from support.table import Table

REPORT = pytest.StashKey[pytest.TestReport]()
DESELECTED = pytest.StashKey[list[pytest.Item]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kubeconfig", help="the cluster to test; default: the environment's KUBECONFIG")
    parser.addoption("--workloads-table", help="the page whose rows are written anew: docs/workloads.md")


def has_lanes(config: pytest.Config) -> bool:
    """Say whether this process only hands tests out, to workers (`-n`) that have a cluster each."""
    return bool(config.getoption("numprocesses")) and not hasattr(config, "workerinput")


def pytest_configure(config: pytest.Config) -> None:
    """Without a cluster to test, the project's own is brought up, or used as it is."""
    config.addinivalue_line("markers", "testbed: needs the project's own kind cluster (tests/kind)")
    config.addinivalue_line("markers", "thorough: one more of a kind that CI tries once or twice, left out there")
    path = config.getoption("--kubeconfig")
    if has_lanes(config):
        if path:
            raise pytest.UsageError("--kubeconfig names one cluster, and each worker of -n takes its own")
    elif worker := os.environ.get("PYTEST_XDIST_WORKER"):
        testbed_support.enter(testbed_support.lane(int(worker.removeprefix("gw"))))
    elif path:
        if path != os.environ.get("KUBECONFIG"):
            os.environ.pop(testbed_support.NAME, None)
        os.environ["KUBECONFIG"] = str(path)
    elif "KUBECONFIG" not in os.environ and not config.option.collectonly:
        testbed_support.enter(testbed_support.lane(0))


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say what is tested: a cluster that was not made from packages may have any versions."""
    if has_lanes(config):
        return []
    info = ".status.nodeInfo"
    columns = f"NODE:.metadata.name,KUBELET:{info}.kubeletVersion,RUNTIME:{info}.containerRuntimeVersion"
    return Kubectl()("get", "nodes", "-o", f"custom-columns={columns}", check=False).stdout.splitlines()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Elsewhere than on the test bed its own tests are not selected, and the summary says so."""
    if testbed_support.current() is None:
        config.stash[DESELECTED] = [item for item in items if item.get_closest_marker("testbed")]
        items[:] = [item for item in items if item not in config.stash[DESELECTED]]
        config.hook.pytest_deselected(items=config.stash[DESELECTED])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    deselected: list[pytest.Item] = config.stash.get(DESELECTED, list[pytest.Item]())
    for item in deselected:
        terminalreporter.write_line(f"DESELECTED {item.nodeid}: needs the project's own kind cluster (tests/kind)")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call":
        item.stash[REPORT] = report
        namespaces = [v for k, v in getattr(item, "funcargs", {}).items() if k == "namespace"]
        if report.failed:
            report.sections.append(("what happened in the cluster", what_happened(Kubectl(), namespaces)))
    return report


@pytest.fixture(autouse=True)
def no_follower_stays() -> Iterator[None]:
    """A test that fails, or that has seen enough, leaves no process behind that a later one would be blamed for."""
    yield
    Follower.end_all()


@pytest.fixture(scope="session")
def api() -> Kubectl:
    """kubectl as cluster admin, on a cluster that need not run the operator."""
    kubectl = Kubectl()
    try:
        wait_for("two nodes that pods are scheduled to", lambda: len(schedulable(kubectl)) >= 2, seconds=90)
    except NotInTimeError as problem:
        pytest.exit(f"{problem}\n{kubectl('get', 'nodes', '-o', 'wide', check=False).stdout}", returncode=1)
    return kubectl


@pytest.fixture(scope="session")
def pair(api: Kubectl) -> tuple[str, str]:
    """Two nodes that pods are scheduled to."""
    first, second, *_ = schedulable(api)
    return first, second


@pytest.fixture(scope="session")
def testbed() -> testbed_support.Testbed:
    """The project's own kind cluster; a test that takes it is marked `testbed`."""
    found = testbed_support.current()
    assert found, "mark the test with `testbed`: there is none"
    return found


@pytest.fixture
def folder(testbed: testbed_support.Testbed) -> Iterator[Folder]:
    """A fresh directory of the folder that all nodes share; removed with what lies in it."""
    match = re.search(r"in every node is (\S+) here", testbed("status"))
    assert match is not None
    name = f"e2e-{secrets.token_hex(4)}"
    path = Path(match[1]) / name
    path.mkdir()
    yield Folder(path, f"{testbed_support.SHARED}/{name}")
    shutil.rmtree(path)


@pytest.fixture
def bucket(testbed: testbed_support.Testbed, kubectl: Kubectl, namespace: str) -> Bucket:
    """A fresh bucket of the test bed's S3 server; its credentials are in a Secret of the namespace."""
    it = Bucket(f"e2e-{secrets.token_hex(4)}", testbed.variables("s3"))
    it.create()
    kubectl.apply(it.secret(namespace))
    return it


@pytest.fixture(scope="session")
def programs(testbed: testbed_support.Testbed) -> None:
    """The image of `support.programs` on every node, built where the packages are: outside the cluster's network."""
    builder = testbed_support.Testbed(testbed.name, machine.machines_network())
    builder("build", "workload-full", timeout=900)
    builder("load", programs_support.IMAGE, timeout=900)


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Iterator[Table]:
    """The table of what moves, written at the end when a page for it is given."""
    table = Table()
    yield table
    if path := pytestconfig.getoption("--workloads-table"):
        table.write(Path(str(path)))


@pytest.fixture(scope="session")
def kubectl(api: Kubectl) -> Kubectl:
    """kubectl as cluster admin; the operator and all agents are ready."""
    kubectl = api
    try:
        able(kubectl, 90)
    except NotInTimeError as problem:
        pytest.exit(f"{problem}\n{what_happened(kubectl, ())}", returncode=1)
    return kubectl


@pytest.fixture(scope="session")
def nodes(kubectl: Kubectl) -> tuple[str, str]:
    """Two nodes that can take part in a migration."""
    first, second, *_ = workers(kubectl)
    return first, second


@pytest.fixture
def namespace(api: Kubectl) -> Iterator[str]:
    """A fresh namespace; removed with all that is in it, the pods while the next test begins."""
    name = f"e2e-{secrets.token_hex(3)}"
    api("create", "namespace", name)
    yield name
    if api.get("crd", "containermigrations.containermigration.io"):
        api("delete", "cmig", "--all", "-n", name, "--wait=true", timeout=120)
    api("delete", "deployments,statefulsets", "--all", "-n", name, "--wait=true", timeout=120)
    api("delete", "pods", "--all", "-n", name, "--grace-period=1", "--wait=false")
    api("delete", "namespace", name, "--wait=false")


@pytest.fixture
def migrations(kubectl: Kubectl, namespace: str) -> Migrations:
    """The migrations and pods of the test's namespace."""
    return Migrations(kubectl, namespace)


@pytest.fixture
def kept(kubectl: Kubectl, migrations: Migrations, folder: Folder) -> Iterator[Kept]:
    """At the end no checkpoint is left, while the folder is still there; so no store has anything of them."""
    assert folder.path.exists()
    yield Kept(kubectl, migrations)
    kubectl("delete", "ccp", "--all", "-n", migrations.namespace, "--wait=true", timeout=60)


@pytest.fixture
def clean_nodes(kubectl: Kubectl) -> Iterator[None]:
    """After the test no node may have anything left of a migration; an object forced away is the housekeeping's."""
    yield
    try:
        wait_for("clean nodes", lambda: not leftovers(kubectl), seconds=90, every=1)
    except NotInTimeError:
        assert leftovers(kubectl) == {}


@pytest.fixture
def hanging_pager(kubectl: Kubectl, nodes: tuple[str, str]) -> Iterator[None]:
    """Let the pager at the target hang when all is restored: nothing comes but what was asked for before."""
    on_node(kubectl, nodes[1], f"mkdir -p {FAILPOINTS} && echo hang > {FAILPOINTS}/pager.filling")
    yield
    on_node(kubectl, nodes[1], f"rm -rf {FAILPOINTS}")


@pytest.fixture(scope="module")
def lab(kubectl: Kubectl) -> Iterator[Lab]:
    """The deployed operator, with failpoints, and everything that dies put back afterwards."""
    with laboratory(kubectl) as it:
        yield it


@pytest.fixture(scope="module")
def trial(lab: Lab) -> Trial:
    """Lets a counter migrate again and again, each time with an accident."""
    return Trial(lab, Workload(lab, "counter"))


@pytest.fixture
def points(kubectl: Kubectl) -> Iterator[Points]:
    """The agents' failpoints; none stays armed."""
    points = Points(kubectl)
    yield points
    points.clear()
