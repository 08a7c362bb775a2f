"""The kind cluster itself, from any state: none, fragment, stopped, made from something else, or running."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from . import (
    ahead,
    daemon,
    diagnosis,
    engine,
    gobuild,
    host,
    limits,
    machine,
    nodeimage,
    podnetwork,
    readiness,
    removal,
    source,
)
from .nodes import environment
from .places import Cluster, digest, lock
from .plan import Plan
from .progress import note, step

SHARED = "/mnt/shared"
"""Where every node has the folder that all of them share."""

HOST_TOOLS = ("kind", "helm")

KIND_CONFIG = """\
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  ipFamily: ipv4
  disableDefaultCNI: {without_kindnet}
  podSubnet: {pod_subnet}
  serviceSubnet: {service_subnet}
kubeadmConfigPatches:
- |
  kind: KubeletConfiguration
  failCgroupV1: false
  cgroupDriver: {cgroup_driver}
- |
  kind: ClusterConfiguration
  etcd:
    local:
      extraArgs:
      - name: unsafe-no-fsync
        value: "true"
containerdConfigPatches:
- |
  [plugins."io.containerd.grpc.v1.cri"]
    restrict_oom_score_adj = {restrict_oom_score_adj}
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
    SystemdCgroup = {systemd_cgroup}
nodes:
"""
"""Plugin names are those of configuration version 2, in which kind writes the file that this is merged into.

etcd does not wait for the disk: a cluster that the machine's crash takes along is made anew anyway, and on a busy disk
the waiting makes the API server give up.
"""

NODE = """\
- role: {role}
  extraMounts: [{{hostPath: {shared}, containerPath: {mount_point}}}]
"""


def plan(name: str, wishes: source.Wishes, chosen: source.Source) -> Plan:
    """What a cluster with these choices is made from."""
    containerd = wishes.containerd or Plan().containerd
    wanted = Plan(
        workers=wishes.workers,
        containerd=containerd,
        engine=chosen.engine,
        engine_host=chosen.engine_host,
        image=chosen.image or nodeimage.name(containerd),
        kindnet=chosen.kindnet,
        why=chosen.why,
    )
    return replace(wanted, config=digest(config(Cluster(name, wanted))))


def config(cluster: Cluster) -> str:
    here = machine.inspect()
    text = KIND_CONFIG.format(
        without_kindnet=str(not cluster.plan.kindnet).lower(),
        pod_subnet=podnetwork.POD_SUBNET,
        service_subnet=podnetwork.SERVICE_SUBNET,
        restrict_oom_score_adj=str(not here.sys_resource).lower(),
        cgroup_driver="systemd" if here.cgroup_v2 else "cgroupfs",
        systemd_cgroup=str(here.cgroup_v2).lower(),
    )
    roles = ["control-plane", *(["worker"] * cluster.plan.workers)]
    return text + "".join(NODE.format(role=role, shared=cluster.shared, mount_point=SHARED) for role in roles)


def up(there: Cluster, wishes: source.Wishes) -> None:
    """Brings up the cluster that is wished for, reusing one that is just that."""
    chosen = source.choose(there, wishes, running=is_whole(there))
    cluster = replace(there, plan=plan(there.name, wishes, chosen))
    note(f"engine: {cluster.plan.engine}; node image: {cluster.plan.image}; because {cluster.plan.why}")
    reused = is_reusable(there, cluster)
    if not reused:
        remove_other(there)
    prepare(cluster, reused=reused)
    if not reused:
        create(cluster)
    if not cluster.plan.kindnet:
        podnetwork.connect(cluster)
    readiness.wait_until_it_answers(cluster)


def is_reusable(there: Cluster, cluster: Cluster) -> bool:
    if not is_whole(there):
        return False
    if there.plan == cluster.plan:
        return True
    note(f"cluster {cluster.name} is there, but made from something else: {there.plan.differences(cluster.plan)}")
    return False


def is_whole(cluster: Cluster) -> bool:
    """Created to the end, and the containers of all nodes still run."""
    if not (cluster.created.exists() and cluster.recorded_plan.exists() and engine.is_running(cluster)):
        return False
    running = engine.docker(cluster, "ps", "--format", "{{.Names}}").split()
    return set(cluster.nodes) <= set(running)


def remove_other(cluster: Cluster) -> None:
    if cluster.run.exists() or cluster.state.exists():
        with step(f"removing the cluster {cluster.name} that is there, or what is left of it"):
            removal.remove(cluster)


def prepare(cluster: Cluster, *, reused: bool) -> None:
    """Builds what is missing, one cluster at a time: two at once would build the same, and fight for the cores."""
    with lock("prepare"):
        tools = build_tools(cluster)
        if not reused:
            begin(cluster)
        engine.link_tools(cluster, *tools)
        if cluster.plan.is_private:
            daemon.start(cluster)
            nodeimage.ensure(cluster)


def build_tools(cluster: Cluster) -> list[Path]:
    """What runs on this machine; for a node image from packages all that goes into it as well."""
    if not cluster.plan.is_private:
        return [gobuild.tool(name) for name in HOST_TOOLS]
    gobuild.warn_when_cold()
    modules = gobuild.node_modules(cluster.plan.containerd)
    fetches = [partial(gobuild.fetch, module) for module in gobuild.missing(modules)]
    with ahead.of_need(*fetches, daemon.folder, partial(nodeimage.fetch, cluster)):
        return [*(gobuild.tool(name) for name in HOST_TOOLS), gobuild.build_all(modules)["kubectl"]]


def begin(cluster: Cluster) -> None:
    """From here on `down` knows what to remove, and where."""
    for folder in (cluster.run, cluster.shared):
        folder.mkdir(parents=True, exist_ok=True)
    cluster.shared.chmod(0o777)
    limits.raise_them()
    cluster.plan.save(cluster.recorded_plan)


def create(cluster: Cluster) -> None:
    kind = ["kind", "create", "cluster", "--name", cluster.name, "--image", cluster.plan.image, "--retain"]
    command = engine.inside(cluster, *engine.owned(cluster, *kind, "--config", "-"))
    with step("kind create cluster", "30 s"):
        try:
            host.run(command, env=environment(cluster), stdin=config(cluster))
        except host.CommandError as error:
            raise host.TestbedError(f"{error}\n{diagnosis.report(cluster)}") from error
    if not (cluster.tools / "kubectl").exists():
        engine.docker(cluster, "cp", f"{cluster.nodes[0]}:/usr/bin/kubectl", str(cluster.tools / "kubectl"))
    cluster.created.touch()
