"""kind's node image, from Debian packages, Go-built binaries and kind's own files.

The steps are those of kind's `images/base/Dockerfile` and of `kind build node-image`.
"""

import json
import re
import shutil
from pathlib import Path

from . import debian, engine, gobuild, host, machine, versions
from .places import Cluster, cache, digest, scratch
from .progress import step

DEBIAN_ROOT = "localhost/debian-root:testbed"

PACKAGES = (
    *("systemd", "conntrack", "iptables", "nftables", "iproute2", "ethtool", "util-linux", "mount", "kmod", "tar"),
    *("libseccomp2", "pigz", "e2fsprogs", "bash", "ca-certificates", "curl", "jq", "procps", "socat"),
)
RUNTIME_PACKAGES = ("runc", "containernetworking-plugins")
CNI_PLUGINS = ("host-local", "loopback", "ptp", "portmap")

INSTALLED = {
    "usr/local/bin": ("containerd", "ctr", "containerd-shim-runc-v2"),
    "usr/bin": ("kubelet", "kubectl", "kubeadm"),
}
"""Where kind's files expect the binaries."""

LEGACY_CGROUPS = ("systemd.unified_cgroup_hierarchy=0", "systemd.legacy_systemd_cgroup_controller=1")
"""With systemd's default, the hybrid layout, workers never become Ready, while `kind create` exits with 0."""

CONFIGURE = """
find /lib/systemd/system/sysinit.target.wants/ -name systemd-tmpfiles-setup.service -delete
rm -f /lib/systemd/system/multi-user.target.wants/* /etc/systemd/system/*.wants/* \
    /lib/systemd/system/local-fs.target.wants/* /lib/systemd/system/sockets.target.wants/*udev* \
    /lib/systemd/system/sockets.target.wants/*initctl* /lib/systemd/system/basic.target.wants/*
echo ReadKMsg=no >> /etc/systemd/journald.conf
ln -sf /usr/lib/systemd/systemd /sbin/init
systemctl -q enable kubelet.service containerd.service undo-mount-hacks.service
systemctl -q mask systemd-binfmt.service
"""
"""What kind's Dockerfile does to systemd: a node starts nothing but containerd and the kubelet."""

SIDE_LOAD = """
containerd >/tmp/containerd.log 2>&1 &
until ctr version >/dev/null 2>&1; do sleep 0.1; done
ctr -n k8s.io images import --label=io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests - >/dev/null
kill $!
wait $! || true
"""


def ensure(cluster: Cluster) -> None:
    """The node image is in the cluster's daemon: there already, loaded from the cache, or built."""
    archive = kept(cluster)
    if archive.is_file():
        if not engine.docker(cluster, "images", "-q", cluster.plan.image).strip():
            with step("loading the node image", "15 s"):
                load(cluster, archive)
        return
    with step("building the node image", "1 minute with all binaries cached"):
        build(cluster)
    with step("keeping the node image for next time", "10 s"):
        save(cluster, archive)


def kept(cluster: Cluster) -> Path:
    return cache("node-images", f"{key(cluster.plan.containerd)}.tar.zst")


def fetch(cluster: Cluster) -> None:
    """The parts that come from Debian, unless the image is kept already."""
    if not kept(cluster).is_file():
        runtime()
        debian_root()


def runtime() -> Path:
    return debian.unpacked("runtime", RUNTIME_PACKAGES, versions.RUNTIME_SUITE)


def debian_root() -> Path:
    return debian.root("node", PACKAGES, "30 s")


def name(containerd: str) -> str:
    """The image with that series of containerd, whether it is made already or not."""
    return f"localhost/container-migration/kind-node:{key(containerd)}"


def key(containerd: str) -> str:
    """Everything that goes into the image; the machine's cgroups do because systemd's options stand in it."""
    binaries = [gobuild.key(module) for module in gobuild.node_modules(containerd)]
    pinned = (versions.KUBERNETES, versions.NODE_SUITE, versions.RUNTIME_SUITE)
    return digest(Path(__file__), *pinned, *binaries, *entrypoint())


def entrypoint() -> list[str]:
    legacy = () if machine.inspect().cgroup_v2 else LEGACY_CGROUPS
    return ["/usr/local/bin/entrypoint", "/sbin/init", *legacy]


def load(cluster: Cluster, archive: Path) -> None:
    host.pipe(["zstd", "-dc", "-q", str(archive)], ["docker", "load", "-q"], env=engine.environment(cluster))


def save(cluster: Cluster, archive: Path) -> None:
    with scratch() as work:
        compress = ["zstd", "-3", "-T2", "-q", "-c"]
        partial = work / "image"
        host.pipe(["docker", "save", cluster.plan.image], compress, env=engine.environment(cluster), output=partial)
        partial.rename(archive)


def build(cluster: Cluster) -> None:
    binaries = gobuild.build_all(gobuild.node_modules(cluster.plan.containerd))
    root = debian_root()
    with scratch() as work:
        images = control_plane_images(cluster, binaries, root, work)
        base = base_image(cluster, binaries, root, work)
        side_load(cluster, base, images)


def control_plane_images(cluster: Cluster, binaries: dict[str, Path], tarball: Path, work: Path) -> list[str]:
    """The images kubeadm asks for, under the names it asks for: one static binary each."""
    command = [str(binaries["kubeadm"]), "config", "images", "list", "--kubernetes-version", versions.KUBERNETES]
    names = host.run(command).split()
    engine.docker(cluster, "import", str(tarball), DEBIAN_ROOT)
    for name in names:
        binary = name.rpartition("/")[2].partition(":")[0]
        with step(f"  image {name}"):
            if binary == "kube-proxy":
                from_debian_root(cluster, name, binaries[binary], work)
            else:
                from_binary(cluster, name, binaries[binary], work)
    return names


def from_binary(cluster: Cluster, name: str, binary: Path, work: Path) -> None:
    root = work / binary.name
    (root / "tmp").mkdir(parents=True)
    shutil.copy(binary, root / binary.name)
    import_root(cluster, root, name, ("ENV PATH=/", f'ENTRYPOINT ["/{binary.name}"]'))


def from_debian_root(cluster: Cluster, name: str, binary: Path, work: Path) -> None:
    """kube-proxy runs iptables and nft. The classic builder, because BuildKit is not in Debian's package."""
    context = work / "context"
    context.mkdir()
    shutil.copy(binary, context)
    (context / "Dockerfile").write_text(f"FROM {DEBIAN_ROOT}\nCOPY {binary.name} /usr/local/bin/\n")
    build_command = ["docker", "build", "-q", "-t", name, str(context)]
    host.run(build_command, env={**engine.environment(cluster), "DOCKER_BUILDKIT": "0"})


def import_root(cluster: Cluster, root: Path, name: str, changes: tuple[str, ...]) -> None:
    options = [word for change in changes for word in ("--change", change)]
    tar = ["tar", "-C", str(root), "-c", "."]
    host.pipe(tar, ["docker", "import", *options, "-", name], env=engine.environment(cluster))


def base_image(cluster: Cluster, binaries: dict[str, Path], tarball: Path, work: Path) -> str:
    """kind's base image: its files, the container runtime and Kubernetes' node binaries on a Debian root."""
    name = "localhost/kind-base:testbed"
    root = work / "node"
    root.mkdir()
    with step("  kind's base image"):
        host.run(["tar", "-C", str(root), "-xf", str(tarball)])
        copy_kind_files(root)
        for folder, names in INSTALLED.items():
            for binary in names:
                shutil.copy(binaries[binary], root / folder)
        unpacked = runtime()
        shutil.copy(unpacked / "usr/sbin/runc", root / "usr/local/sbin/")
        (root / "opt/cni/bin").mkdir(parents=True)
        for plugin in CNI_PLUGINS:
            shutil.copy(unpacked / "usr/lib/cni" / plugin, root / "opt/cni/bin")
        shutil.copy(unpacked / debian.RECORD, root / "kind")
        host.run(["chroot", str(root), "bash", "-euc", CONFIGURE])
        configure_containerd(root, binaries)
        (root / "kind/version").write_text(versions.KUBERNETES)
        import_root(cluster, root, name, ("ENV container=docker",))
    return name


def copy_kind_files(root: Path) -> None:
    files = gobuild.module_source("kind", "sigs.k8s.io/kind") / "images/base/files"
    for source in sorted(path for path in files.rglob("*") if path.is_file() and path.parts[-2] != "LICENSES"):
        target = root / source.relative_to(files)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if target.parent.name == "bin" else 0o644)
    for folder in ("etc/kubernetes/manifests", "kind/manifests"):
        (root / folder).mkdir(parents=True, exist_ok=True)


def configure_containerd(root: Path, binaries: dict[str, Path]) -> None:
    """The base OCI spec with kind's hook and without rlimits, and the pause image that this kubeadm asks for."""
    spec = json.loads(host.run([str(binaries["ctr"]), "oci", "spec"]))
    spec.setdefault("hooks", {}).setdefault("createContainer", []).append({"path": "/kind/bin/mount-product-files.sh"})
    spec["process"].pop("rlimits", None)
    (root / "etc/containerd/cri-base.json").write_text(json.dumps(spec))
    list_images = ["config", "images", "list", "--kubernetes-version", versions.KUBERNETES]
    names = host.run([str(binaries["kubeadm"]), *list_images]).split()
    pause = next(name for name in names if "/pause:" in name)
    config = root / "etc/containerd/config.toml"
    config.write_text(re.sub(r'sandbox_image = ".*"', f'sandbox_image = "{pause}"', config.read_text()))


def side_load(cluster: Cluster, base: str, images: list[str]) -> None:
    """Puts the control plane's images into the node image's containerd, so that no node pulls anything."""
    builder = f"{cluster.name}-node-image"
    with step("  side-loading the control plane's images"):
        host.succeeds(["docker", "rm", "-fv", builder], env=engine.environment(cluster))
        unconfined = ("--security-opt", "seccomp=unconfined")
        engine.docker(cluster, "run", "-d", "--name", builder, "--entrypoint", "sleep", *unconfined, base, "infinity")
        import_images = ["docker", "exec", "-i", builder, "bash", "-euc", SIDE_LOAD]
        host.pipe(["docker", "save", *images], import_images, env=engine.environment(cluster))
        change = f"ENTRYPOINT {json.dumps(entrypoint())}"
        engine.docker(cluster, "commit", "--change", change, builder, cluster.plan.image)
        engine.docker(cluster, "rm", "-fv", builder)
