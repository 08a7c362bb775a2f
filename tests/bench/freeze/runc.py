"""Bare runc: `runc checkpoint`, a copy of the images, `runc restore`."""

from __future__ import annotations

import json
from typing import Any

from bench.freeze.containers import BASE, IMAGES, WORK, Commands, InNodes
from bench.freeze.ends import End
from bench.freeze.method import NAME, command
from support.migration import WORKLOAD

BUNDLE, ROOTFS, ROOT, CONFIGURATION = f"{BASE}/bundle", f"{BASE}/rootfs", f"{BASE}/runc", f"{BASE}/criu.conf"
IMAGE_OPTIONS = ("--image-path", IMAGES, "--work-path", WORK, "--manage-cgroups-mode", "ignore")

MOUNT = f"""
mkdir -p {BUNDLE} {ROOTFS} {IMAGES} {WORK}
ctr -n k8s.io images mount --rw {WORKLOAD} {ROOTFS} >&2
ip netns add {NAME}
ip -n {NAME} link set lo up
echo 'network-lock skip' > {CONFIGURATION}
"""
"""CRIU's lock of the network costs 60 to 80 ms, and here there is no connection that needs it."""

REMOVE = f"""
set +e
umount -l {ROOT}/{NAME}/criu-root 2>/dev/null
runc --root {ROOT} delete --force {NAME}
ctr -n k8s.io images unmount --rm {ROOTFS} || umount {ROOTFS}
ip netns del {NAME}
rm -rf --one-file-system {BASE}
[ ! -e {BASE} ]
"""


def bundle_of(plain: dict[str, Any], mebibytes: int) -> dict[str, Any]:
    """Return the bundle's configuration, from that of `runc spec`: like a pod's container, in a network of its own."""
    namespaces = [it for it in plain["linux"]["namespaces"] if it["type"] not in {"network", "cgroup"}]
    network = {"type": "network", "path": f"/run/netns/{NAME}"}
    environment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
    process = {"terminal": False, "args": command(mebibytes), "env": environment}
    return {
        **plain,
        "process": {**plain["process"], **process},
        "root": {"path": ROOTFS, "readonly": False},
        "hostname": NAME,
        "mounts": [it for it in plain["mounts"] if it["destination"] != "/sys/fs/cgroup"],
        "annotations": {"org.criu.config": CONFIGURATION},
        "linux": {**plain["linux"], "namespaces": [*namespaces, network], "cgroupsPath": f"/{NAME}"},
    }


class Runc(InNodes):
    """The memory is copied as a whole while the container stands still."""

    name = "runc"

    def prepare(self) -> None:
        """Nothing: the nodes have runc, and the agents have brought CRIU."""

    def versions(self) -> dict[str, str]:
        """Return runc's and CRIU's."""
        runc, criu = (self.source.run(f"{tool} --version | head -1").split()[-1] for tool in ("runc", "criu"))
        return {"runc": runc, "CRIU": criu}

    @property
    def removal(self) -> str:
        """See `InNodes`."""
        return REMOVE

    def start(self, mebibytes: int) -> None:
        """See `InNodes`."""
        for end in (self.source, self.target):
            end.run(MOUNT)
            plain = json.loads(end.run(f"cd {BUNDLE} && runc spec && cat config.json"))
            end("write", path=f"{BUNDLE}/config.json", text=json.dumps(bundle_of(plain, mebibytes)))
        log = f"--log {BASE}/runc.log"
        run = f"runc --root {ROOT} {log} run --detach --bundle {BUNDLE} {NAME} < /dev/null > /dev/null 2>&1"
        self.source.run(f"{run} || {{ cat {BASE}/runc.log; exit 1; }}")

    def pid(self, end: End) -> int:
        """See `InNodes`."""
        return json.loads(end.run(f"runc --root {ROOT} state {NAME}"))["pid"]

    def commands(self) -> Commands:
        """See `InNodes`."""
        return Commands(self.checkpoint(), self.restore())

    @staticmethod
    def checkpoint(*options: str) -> list[str]:
        return ["runc", "--root", ROOT, "checkpoint", *IMAGE_OPTIONS, *options, NAME]

    @staticmethod
    def restore(*options: str) -> list[str]:
        return ["runc", "--root", ROOT, "restore", "--detach", *IMAGE_OPTIONS, "--bundle", BUNDLE, *options, NAME]
