"""Operator and agents as pods: what they may do on a node, and what both sides of the contract must agree on."""

from __future__ import annotations

from pathlib import Path

from migration_agent.settings import Settings
from migration_api import names
from migration_api.transport import SharedVolume, Transport, TransportType
from migration_operator.transport_facts import TransportRules
from support.chart import Manifest, Render, container, of_kind, pod_spec


def environment(part: Manifest) -> dict[str, str]:
    return {e["name"]: e["value"] if "value" in e else e["valueFrom"]["fieldRef"]["fieldPath"] for e in part["env"]}


def test_the_operator_is_confined(manifests: list[Manifest]) -> None:
    spec = pod_spec(manifests, "operator")
    assert spec["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(manifests, "operator")["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostPID", "hostNetwork", "hostIPC"} & set(spec)
    assert all("hostPath" not in volume for volume in spec["volumes"])


def test_the_agent_is_privileged_and_no_more_than_that(manifests: list[Manifest]) -> None:
    spec = pod_spec(manifests, "agent")
    assert spec["hostPID"] is True
    assert not {"hostNetwork", "hostIPC", "securityContext"} & set(spec)
    assert container(manifests, "agent")["securityContext"] == {
        "privileged": True,
        "runAsUser": 0,
        "readOnlyRootFilesystem": True,
    }


def test_host_paths_are_the_same_inside(manifests: list[Manifest]) -> None:
    on_host = {v["name"]: v["hostPath"] for v in pod_spec(manifests, "agent")["volumes"]}
    mounts = {m["name"]: m for m in container(manifests, "agent")["volumeMounts"]}
    assert {v["path"]: v["type"] for v in on_host.values()} == {
        names.INSTALL_DIR: "DirectoryOrCreate",
        names.STATE_DIR: "DirectoryOrCreate",
        names.RUN_DIR: "DirectoryOrCreate",
        "/var/lib/kubelet": "Directory",
        "/run/containerd": "Directory",
    }
    for name, volume in on_host.items():
        assert mounts[name]["mountPath"] == volume["path"]
        assert mounts[name]["mountPropagation"] == "HostToContainer"


def test_what_the_values_say_of_transports_reaches_both_parts(render: Render) -> None:
    paths = "transport.sharedVolume.allowedPaths={/mnt/a,/srv/b}"
    endpoints = "transport.objectStore.allowedEndpoints={https://s3.example.org}"
    limits = ("transport.bytesPerSecondPerNode=125000000", "transport.leftoverHours=72")
    default = ("transport.default.type=SharedVolume", "transport.default.sharedVolume.path=/mnt/a")
    manifests = render(paths, endpoints, *limits, *default)
    agent, operator = (environment(container(manifests, part)) for part in ("agent", "operator"))
    assert Settings.from_environment({**agent, "POD_IP": "10.0.0.1"}) == Settings(
        node=agent["NODE_NAME"],
        address="10.0.0.1",
        operator_account=agent["OPERATOR_ACCOUNT"],
        shared_paths=(Path("/mnt/a"), Path("/srv/b")),
        leftover_seconds=72 * 3600,
        bytes_per_second=125_000_000,
        checkpoints_on_disk=True,
    )
    on_disk = environment(container(render("agent.checkpointsOnDisk=false"), "agent"))
    assert not Settings.from_environment({**on_disk, "POD_IP": "10.0.0.1"}).checkpoints_on_disk
    rules = TransportRules.from_environment(operator)
    assert rules.default == Transport(type=TransportType.SHARED_VOLUME, shared_volume=SharedVolume(path="/mnt/a"))
    assert rules.allowed_paths == ("/mnt/a", "/srv/b")
    assert rules.allowed_endpoints == ("https://s3.example.org",)
    host = {v["name"]: v["hostPath"] for v in pod_spec(manifests, "agent")["volumes"]}
    mounts = {m["mountPath"]: m for m in container(manifests, "agent")["volumeMounts"]}
    for path in ("/mnt/a", "/srv/b"):
        assert host[mounts[path]["name"]] == {"path": path, "type": "DirectoryOrCreate"}
        assert mounts[path]["mountPropagation"] == "HostToContainer"


def test_without_values_nothing_is_shared(manifests: list[Manifest]) -> None:
    image = container(manifests, "agent")["image"]
    rules = TransportRules.from_environment(environment(container(manifests, "operator")))
    assert rules == TransportRules(mount_image=image)
    assert Settings.from_environment({**environment(container(manifests, "agent")), "POD_IP": "::1"}).shared_paths == ()


def test_the_hook_before_the_uninstallation(render: Render) -> None:
    job = of_kind(render("uninstall.waitSeconds=100"), "Job")["container-migration-uninstall"]
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-delete"
    assert (job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]) == (0, 160)
    spec = job["spec"]["template"]["spec"]
    operator = pod_spec(render(), "operator")
    assert spec["serviceAccountName"] == operator["serviceAccountName"]
    assert spec["securityContext"] == operator["securityContext"]
    [hook] = spec["containers"]
    assert hook["command"] == ["container-migration-uninstall"]
    assert hook["image"] == operator["containers"][0]["image"]
    assert hook["securityContext"] == operator["containers"][0]["securityContext"]
    assert hook["env"] == [{"name": "WAIT_SECONDS", "value": "100"}]


def test_the_hook_is_not_in_the_rendered_installation() -> None:
    """Applied by kubectl it would run at once, and cancel every migration."""
    text = (Path(__file__).parents[3] / "manifests" / "install.yaml").read_text()
    assert "kind: Job" not in text
    assert "kind: DaemonSet" in text


def test_there_is_one_operator_at_a_time(manifests: list[Manifest]) -> None:
    spec = of_kind(manifests, "Deployment")["container-migration-operator"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})


def test_agents_are_replaced_one_by_one_and_evicted_last(manifests: list[Manifest]) -> None:
    spec = of_kind(manifests, "DaemonSet")["container-migration-agent"]["spec"]
    assert spec["updateStrategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}
    pod = pod_spec(manifests, "agent")
    assert (pod["priorityClassName"], pod["terminationGracePeriodSeconds"]) == ("system-node-critical", 30)


def test_the_operator_has_a_memory_limit_and_the_agent_has_none(manifests: list[Manifest]) -> None:
    """The kernel charges a received checkpoint to the agent: a limit kills it in the middle of a large copy."""
    operator, agent = (container(manifests, component)["resources"] for component in ("operator", "agent"))
    assert operator["limits"] == {"memory": "256Mi"}
    assert "limits" not in agent
    for resources in (operator, agent):
        assert {"cpu", "memory"} <= set(resources["requests"])


def test_the_environment_that_the_parts_read(render: Render) -> None:
    manifests = render("logLevel=debug", namespace="elsewhere")
    assert environment(container(manifests, "operator")) == {
        "NAMESPACE": "metadata.namespace",
        "AGENT_TOKEN_FILE": "/var/run/secrets/container-migration/token",
        "LATE_GATE_SECONDS": "60",
        "PARALLEL_MIGRATIONS_PER_CLUSTER": "5",
        "PARALLEL_MIGRATIONS_PER_NODE": "2",
        "LOG_LEVEL": "debug",
        "DEFAULT_TRANSPORT": '{"type":"Direct"}',
        "CHECKPOINT_RETENTION": '{"ageSeconds":0,"count":0,"totalBytes":0}',
        "CHECKPOINT_REMOVAL_SECONDS": "120",
        "SHARED_PATHS": "",
        "MOUNT_IMAGE": container(manifests, "agent")["image"],
        "STORE_ENDPOINTS": "",
    }
    assert environment(container(manifests, "agent")) == {
        "NODE_NAME": "spec.nodeName",
        "POD_IP": "status.podIP",
        "NAMESPACE": "metadata.namespace",
        "OPERATOR_ACCOUNT": "system:serviceaccount:elsewhere:container-migration-operator",
        "REGISTER_HANDLER": "false",
        "LOG_LEVEL": "debug",
        "SHARED_PATHS": "",
        "LEFTOVER_SECONDS": "172800",
        "CHECKPOINTS_ON_DISK": "true",
    }
    allowed = container(render("agent.registerHandler=true"), "agent")
    assert environment(allowed)["REGISTER_HANDLER"] == "true"
    for component in ("operator", "agent"):
        assert pod_spec(manifests, component)["serviceAccountName"] == f"container-migration-{component}"


def test_the_operators_token_is_for_agents_only(manifests: list[Manifest]) -> None:
    [volume] = pod_spec(manifests, "operator")["volumes"]
    token = {"audience": names.AGENT_AUDIENCE, "expirationSeconds": 3600, "path": "token"}
    assert volume["projected"]["sources"] == [{"serviceAccountToken": token}]
    [mount] = container(manifests, "operator")["volumeMounts"]
    file = environment(container(manifests, "operator"))["AGENT_TOKEN_FILE"]
    assert f"{mount['mountPath']}/token" == file


def test_probes_ask_what_the_parts_answer(manifests: list[Manifest]) -> None:
    operator, agent = container(manifests, "operator"), container(manifests, "agent")
    assert {p["name"]: p["containerPort"] for p in operator["ports"]} == {"health": 8080, "metrics": 8081}
    assert operator["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert {p["name"]: p["containerPort"] for p in agent["ports"]} == {"api": 9443, "peer": 9444, "metrics": 9445}
    for probe in (agent["livenessProbe"], agent["readinessProbe"]):
        assert probe["httpGet"] == {"path": "/healthz", "port": "api", "scheme": "HTTPS"}


def test_selectors_match_their_pods_and_have_no_version(manifests: list[Manifest]) -> None:
    for workload in (m for m in manifests if "selector" in m.get("spec", {}) and "template" in m["spec"]):
        selector = workload["spec"]["selector"]["matchLabels"]
        assert selector.items() <= workload["spec"]["template"]["metadata"]["labels"].items()
        assert set(selector) == {f"app.kubernetes.io/{key}" for key in ("name", "instance", "component")}


def test_the_runtime_class_leads_to_able_nodes_and_stays(manifests: list[Manifest]) -> None:
    runtime_class = of_kind(manifests, "RuntimeClass")[names.RUNTIME_HANDLER]
    assert runtime_class["handler"] == names.RUNTIME_HANDLER
    assert runtime_class["scheduling"] == {"nodeSelector": {names.LABEL_TARGET_NODE: "true"}}
    assert runtime_class["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
