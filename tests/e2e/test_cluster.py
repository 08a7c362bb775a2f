"""The cluster itself: what every other test relies on, with nothing of this project deployed."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from urllib.request import urlopen

import pytest

from support import machine
from support.cluster import Kubectl, Manifest, NotInTimeError, condition, wait_for
from support.migration import WORKLOAD, pod
from support.s3 import presigned
from support.testbed import SHARED, Testbed

PORT = 8000
SERVE = f"mkdir /www && cd /www && hostname > name && echo serving && exec python3 -u -m http.server {PORT}"
FETCH = "import sys, urllib.request as r; print(r.urlopen(sys.argv[1], timeout=5).read().decode().strip())"
PUT = (
    "import sys, urllib.request as r; r.urlopen(r.Request(sys.argv[1], sys.argv[2].encode(), method='PUT'), timeout=5)"
)


def server(name: str, namespace: str, node: str, **spec: object) -> Manifest:
    """Return a pod that serves its own name over HTTP, and logs each request."""
    manifest = pod(name, namespace, ["sh", "-c", SERVE], node, **spec)
    manifest["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    return manifest


def service(name: str, namespace: str) -> Manifest:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": PORT}]},
    }


def controlled(kind: str, name: str, namespace: str, **spec: object) -> Manifest:
    """Return a Deployment or StatefulSet of two such servers."""
    template = server(name, namespace, "")
    del template["spec"]["nodeName"]
    body = {"metadata": {"labels": {"app": name}}, "spec": template["spec"]}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": body, **spec},
    }


def ready(api: Kubectl, namespace: str, *pods: str) -> None:
    api(
        "wait", "-n", namespace, "--for=condition=Ready", "--timeout=60s", *(f"pod/{name}" for name in pods), timeout=70
    )


def fetch(api: Kubectl, client: str, namespace: str, url: str) -> str:
    return api.exec(client, namespace, "python3", "-c", FETCH, url).strip()


def fetched(api: Kubectl, client: str, namespace: str, url: str, seconds: float) -> str:
    """Fetch again and again: names and rules of a new Service take a moment to be everywhere."""
    command = ("exec", client, "-n", namespace, "--", "python3", "-c", FETCH, url)
    return wait_for(
        f"{url} answers {client}", lambda: api(*command, check=False).stdout.strip() or None, seconds=seconds
    )


def ip(api: Kubectl, name: str, namespace: str) -> str:
    found = api.get("pod", name, namespace)
    assert found
    return found["status"]["podIP"]


def test_all_nodes_are_ready(api: Kubectl) -> None:
    for node in api.list("nodes"):
        assert condition(node, "Ready")["status"] == "True", node["metadata"]["name"]


@pytest.mark.testbed
def test_the_nodes_are_those_that_were_asked_for(api: Kubectl, testbed: Testbed) -> None:
    plan = json.loads(Path(f"/run/container-migration-testbed/{testbed.name}/plan.json").read_text())
    infos = [node["status"]["nodeInfo"] for node in api.list("nodes")]
    runtimes = {info["containerRuntimeVersion"] for info in infos}
    print(f"engine {plan['engine']}, node image {plan['image']}, {runtimes}")
    assert len(infos) == plan["workers"] + 1
    assert len(runtimes) == 1
    if plan["engine"] == "private":  # a pulled node image may carry another containerd
        assert runtimes.pop().startswith(f"containerd://{plan['containerd']}.")


def test_pods_on_different_nodes_reach_each_other(api: Kubectl, namespace: str, pair: tuple[str, str]) -> None:
    names = ("one", "other")
    api.apply(*(server(name, namespace, node) for name, node in zip(names, pair, strict=True)))
    ready(api, namespace, *names)
    for client, target in (names, names[::-1]):
        assert fetch(api, client, namespace, f"http://{ip(api, target, namespace)}:{PORT}/name") == target


def test_a_service_is_reached_by_its_name_from_every_node(api: Kubectl, namespace: str, pair: tuple[str, str]) -> None:
    api.apply(server("web", namespace, pair[0]), service("web", namespace))
    clients = [f"client-{number}" for number in range(2)]
    api.apply(*(pod(c, namespace, ["sleep", "infinity"], node) for c, node in zip(clients, pair, strict=True)))
    ready(api, namespace, "web", *clients)
    address = api.get("service", "web", namespace)
    assert address
    names = ("web", f"web.{namespace}.svc.cluster.local", address["spec"]["clusterIP"])
    for client in clients:
        for name in names:
            assert fetched(api, client, namespace, f"http://{name}/name", seconds=20) == "web"


def test_logs_exec_and_port_forward(api: Kubectl, namespace: str, pair: tuple[str, str]) -> None:
    api.apply(server("web", namespace, pair[1]))
    ready(api, namespace, "web")
    assert api("logs", "web", "-n", namespace).stdout.splitlines()[0] == "serving"
    assert api.exec("web", namespace, "cat", "/www/name").strip() == "web"
    forward = ("kubectl", "port-forward", "-n", namespace, "pod/web", f":{PORT}")
    with subprocess.Popen(forward, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            [port] = re.findall(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            with urlopen(f"http://127.0.0.1:{port}/name", timeout=10) as answer:
                assert answer.read().decode().strip() == "web"
        finally:
            process.terminate()
    assert any("GET /name" in line for line in api.logs("web", namespace))


def test_a_deployment_replaces_its_pods(api: Kubectl, namespace: str) -> None:
    api.apply(controlled("Deployment", "web", namespace))
    api("rollout", "status", "-n", namespace, "deployment/web", "--timeout=60s", timeout=70)
    before = {p["metadata"]["uid"] for p in api.list("pods", namespace)}
    assert len(before) == 2
    api("rollout", "restart", "-n", namespace, "deployment/web")
    api("rollout", "status", "-n", namespace, "deployment/web", "--timeout=60s", timeout=70)
    alive = [p for p in api.list("pods", namespace) if "deletionTimestamp" not in p["metadata"]]
    assert len(alive) == 2
    assert not before & {p["metadata"]["uid"] for p in alive}


def test_a_stateful_set_gives_a_lost_pod_its_name_again(api: Kubectl, namespace: str) -> None:
    headless = service("web", namespace)
    headless["spec"]["clusterIP"] = "None"
    api.apply(headless, controlled("StatefulSet", "web", namespace, serviceName="web"))
    api("rollout", "status", "-n", namespace, "statefulset/web", "--timeout=60s", timeout=70)
    first = api.get("pod", "web-0", namespace)
    assert first
    api("delete", "pod", "web-0", "-n", namespace, "--grace-period=1")
    api("rollout", "status", "-n", namespace, "statefulset/web", "--timeout=60s", timeout=70)
    ready(api, namespace, "web-0", "web-1")
    again = api.get("pod", "web-0", namespace)
    assert again
    assert again["metadata"]["uid"] != first["metadata"]["uid"]
    # The name of the lost pod may be cached for 30 s.
    assert fetched(api, "web-1", namespace, f"http://web-0.web:{PORT}/name", seconds=60) == "web-0"


@pytest.mark.testbed
def test_all_nodes_share_a_folder(api: Kubectl, namespace: str, pair: tuple[str, str], testbed: Testbed) -> None:
    volumes = [{"name": "shared", "hostPath": {"path": SHARED, "type": "Directory"}}]
    for name, node in zip(("writer", "reader"), pair, strict=True):
        manifest = pod(name, namespace, ["sleep", "infinity"], node, volumes=volumes)
        manifest["spec"]["containers"][0]["volumeMounts"] = [{"name": "shared", "mountPath": "/data"}]
        api.apply(manifest)
    ready(api, namespace, "writer", "reader")
    file = f"/data/{namespace}"
    api.exec("writer", namespace, "sh", "-c", f"echo {namespace} > {file}")
    assert api.exec("reader", namespace, "cat", file).strip() == namespace
    api.exec("reader", namespace, "rm", file)
    assert not api.exec("writer", namespace, "ls", "/data").count(namespace)


@pytest.mark.testbed
@pytest.mark.timeout(300)
def test_an_object_put_on_one_node_is_got_on_the_other(
    api: Kubectl, namespace: str, pair: tuple[str, str], testbed: Testbed
) -> None:
    variables = testbed.variables("s3")
    clients = ("putter", "getter")
    api.apply(*(pod(c, namespace, ["sleep", "infinity"], node) for c, node in zip(clients, pair, strict=True)))
    ready(api, namespace, *clients)
    for path, content in ((f"/{namespace}", ""), (f"/{namespace}/a key", "kept")):
        api.exec("putter", namespace, "python3", "-c", PUT, presigned("PUT", path, variables), content)
    assert fetch(api, "getter", namespace, presigned("GET", f"/{namespace}/a key", variables)) == "kept"
    forged = presigned("GET", f"/{namespace}/a key", {**variables, "AWS_SECRET_ACCESS_KEY": "guessed"})
    denied = api("exec", "getter", "-n", namespace, "--", "python3", "-c", FETCH, forged, check=False)
    assert "403" in denied.stderr


@pytest.mark.testbed
@pytest.mark.timeout(300)
def test_an_image_is_built_and_loaded_into_every_worker(
    api: Kubectl, namespace: str, pair: tuple[str, str], testbed: Testbed
) -> None:
    testbed("build", "workload")
    testbed("load", WORKLOAD)
    names = ("one", "other")
    api.apply(*(pod(n, namespace, ["redis-server", "--version"], node) for n, node in zip(names, pair, strict=True)))
    ids: set[str] = set()
    for name in names:
        wait_for(
            f"the version that {name} logs",
            lambda n=name: api("logs", n, "-n", namespace, check=False).stdout.startswith("Redis server"),
            seconds=30,
        )
        found = api.get("pod", name, namespace)
        assert found
        ids.add(found["status"]["containerStatuses"][0]["imageID"])
    assert len(ids) == 1


@pytest.mark.testbed
@pytest.mark.timeout(900)
def test_a_killed_up_recovers_and_down_leaves_nothing(testbed: Testbed) -> None:
    """A second cluster beside the first: its `up` is killed half way, then finished; then its `down` is killed."""
    second = Testbed(f"{testbed.name}-second")
    second("down")
    before = machine.look()
    try:
        second.kill_at("kind create cluster", "up", "--workers", "1")
        said = second.told("up", "--workers", "1")
        assert "removing the cluster" in said
        assert "2 nodes Ready" in said
        assert len(second("kubectl", "get", "nodes", "-o", "name").split()) == 2
        assert "NOT READY" not in testbed("status")  # the first one goes on beside it
        own = machine.processes_below(f"container-migration-testbed-{second.name}/")
        namespaces = machine.namespaces_of(own)
        if os.environ.get(
            "TESTBED_NETNS"
        ):  # the containers of this machine's own engine are in its cgroups, not in ours
            assert {kind.partition(":")[0] for kind in namespaces} >= {"net", "mnt", "pid"}
        second.kill_at("removing", "down")
    finally:
        second("down")
    assert not machine.processes_in(namespaces, second.name)
    assert not machine.still_there(own)
    assert not list(machine.cgroups(f"container-migration-testbed-{second.name}/"))
    for folder in ("/run", "/var/lib"):
        assert not Path(f"{folder}/container-migration-testbed/{second.name}").exists()
    assert second.name not in Path("/proc/self/mountinfo").read_text()
    try:
        wait_for("the machine as it was", lambda: machine.look() == before, seconds=30, every=2)
    except NotInTimeError:
        assert not machine.look().differences(before)
