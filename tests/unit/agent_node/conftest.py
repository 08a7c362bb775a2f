from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from migration_agent.checkpoint.post_dump import PostDumpBroker
from migration_agent.runtime.containerd import Containerd
from support.fake_host import FakeHost, write
from support.fake_runc import BUNDLES, POD, FakeRunc


@pytest.fixture
def runc() -> FakeRunc:
    return FakeRunc()


@pytest.fixture
def host(tmp_path: Path, runc: FakeRunc) -> FakeHost:
    return FakeHost(tmp_path, answer=runc)


@pytest.fixture
def broker() -> PostDumpBroker:
    return PostDumpBroker()


@pytest.fixture
def containerd(host: FakeHost, broker: PostDumpBroker) -> Containerd:
    return Containerd(host, broker)


@pytest.fixture
def add(host: FakeHost, runc: FakeRunc) -> Callable[..., None]:
    """Return a function that makes a container with one process and its bundle."""

    def make(
        container_id: str,
        *,
        name: str = "app",
        pod: str = POD,
        status: str = "running",
        age: int = 0,
        pid: int = 100,
        annotations: dict[str, str] | None = None,
        options: dict[str, object] | None = None,
    ) -> None:
        kind = "container" if name else "sandbox"
        identity = {"io.kubernetes.cri.sandbox-uid": pod, "io.kubernetes.cri.container-type": kind}
        if name:
            identity["io.kubernetes.cri.container-name"] = name
        bundle = host.root / BUNDLES / container_id
        write(bundle / "config.json", json.dumps({"annotations": identity | (annotations or {})}))
        options_file = write(bundle / "options.json", json.dumps(options or {"systemd_cgroup": True}))
        os.utime(options_file, (1_000_000 - age, 1_000_000 - age))
        runc.status[container_id], runc.pids[container_id] = status, [pid]
        write(host.root / f"proc/{pid}/stat", f"{pid} (x) " + " ".join(str(i) for i in range(3, 53)))

    return make
