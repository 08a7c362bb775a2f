"""What an admin touches of the chart: values, the package, the samples."""

from __future__ import annotations

import re
import tarfile
from pathlib import Path

import pytest
import yaml

from migration_api.migration import ContainerMigration
from support.chart import Helm, Manifest, Render, container, of_kind, pod_spec

ROOT = Path(__file__).parents[3]
SAMPLES = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))


@pytest.mark.parametrize(
    "value",
    [
        "nonsense=1",
        "image.controller.tag=dev",
        "image.operator.tags=dev",
        "image.agent.pullPolicy=Sometimes",
        "image.agent.repository=",
        "image.agent.tag=not a tag",
        "logLevel=loud",
        "agent.hostNetwork=true",
        "agent.resources.limit.memory=1Gi",
        "agent.tolerations[0].keys=a",
        "operator.replicas=2",
        "uninstall.waitSeconds=0",
        "metrics.podMonitor.enabled=maybe",
        "metrics.podMonitor.interval=often",
        "imagePullSecrets[0]=registry",
        "agent=null",
    ],
)
def test_unknown_and_wrong_values_are_refused(helm: Helm, value: str) -> None:
    done = helm("template", "x", ".", "--set", value, check=False)
    assert done.returncode != 0
    assert re.search(r"don't meet the specifications of the schema|at '/", done.stderr), done.stderr


def test_images(render: Render) -> None:
    version = yaml.safe_load((ROOT / "Chart.yaml").read_text())["appVersion"]
    for component in ("operator", "agent"):
        default = container(render(), component)
        assert default["image"] == f"container-migration/{component}:{version}"
        assert default["imagePullPolicy"] == "IfNotPresent"
        image = f"image.{component}"
        repository = f"localhost/container-migration/{component}"
        chosen = render(f"{image}.repository={repository}", f"{image}.tag=dev", f"{image}.pullPolicy=Never")
        assert container(chosen, component)["image"] == f"{repository}:dev"
        assert container(chosen, component)["imagePullPolicy"] == "Never"


@pytest.mark.parametrize("component", ["operator", "agent"])
def test_where_and_how_the_parts_run_can_be_chosen(render: Render, component: str) -> None:
    manifests = render(
        f"{component}.nodeSelector.pool=a",
        f"{component}.tolerations[0].operator=Exists",
        f"{component}.resources.limits.memory=1Gi",
        "imagePullSecrets[0].name=registry",
    )
    spec = pod_spec(manifests, component)
    assert spec["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "a"}
    assert spec["tolerations"] == [{"operator": "Exists"}]
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert container(manifests, component)["resources"]["limits"] == {"memory": "1Gi"}


def test_everything_says_what_it_belongs_to(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        labels = manifest["metadata"]["labels"]
        assert labels["app.kubernetes.io/name"] == "container-migration"
        assert labels["app.kubernetes.io/instance"] == "container-migration"
        assert labels["app.kubernetes.io/managed-by"] == "Helm"
        assert labels["helm.sh/chart"].startswith("container-migration-")


def test_a_pod_monitor_only_when_asked_for(render: Render) -> None:
    assert not of_kind(render(), "PodMonitor")
    asked = render("metrics.podMonitor.enabled=true", "metrics.podMonitor.labels.release=prometheus")
    monitor = of_kind(asked, "PodMonitor")["container-migration"]
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    [endpoint] = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["interval"] == "30s"
    for component in ("operator", "agent"):
        workloads = {**of_kind(asked, "Deployment"), **of_kind(asked, "DaemonSet")}
        labels = workloads[f"container-migration-{component}"]["spec"]["template"]["metadata"]["labels"]
        assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
        assert endpoint["port"] in {port["name"] for port in container(asked, component)["ports"]}


def test_lint(helm: Helm) -> None:
    helm("lint", ".", "--strict", "--namespace", "container-migration")


@pytest.mark.parametrize(("version", "able"), [("1.33.9", False), ("1.34.0", True), ("1.37.2", True)])
def test_older_clusters_are_refused(helm: Helm, version: str, able: bool) -> None:
    done = helm("template", "x", ".", "--kube-version", version, check=False)
    assert (done.returncode == 0) is able, done.stderr


def test_the_package_is_small_and_holds_the_chart_alone(helm: Helm, tmp_path: Path) -> None:
    helm("package", ".", "--destination", str(tmp_path))
    [package] = tmp_path.glob("*.tgz")
    assert package.stat().st_size < 200_000
    with tarfile.open(package) as archive:
        packed = {name.removeprefix("container-migration/") for name in archive.getnames()}
    inside = {str(p.relative_to(ROOT)) for folder in ("crds", "templates") for p in (ROOT / folder).iterdir()}
    assert packed == inside | {"Chart.yaml", "LICENSE", "values.yaml", "values.schema.json"}
    assert sum(name.startswith("crds/") for name in packed) == 3


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: p.name)
def test_samples_are_what_the_models_know(sample: Path) -> None:
    for manifest in yaml.safe_load_all(sample.read_text()):
        if manifest["kind"] != "ContainerMigration":
            continue
        spec = ContainerMigration.model_validate(manifest).spec.dump()
        assert manifest["spec"].keys() <= spec.keys(), "a field that the API does not have"
        assert manifest["spec"]["target"].items() <= spec["target"].items()


def test_the_sample_moves_the_sample_pod() -> None:
    documents = [d for sample in SAMPLES for d in yaml.safe_load_all(sample.read_text())]
    by_kind = {d["kind"]: d for d in documents}
    assert by_kind["ContainerMigration"]["spec"]["podName"] == by_kind["Pod"]["metadata"]["name"]
    assert by_kind["Service"]["spec"]["selector"].items() <= by_kind["Pod"]["metadata"]["labels"].items()
