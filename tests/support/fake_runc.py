"""A runc that keeps its containers in the test."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from migration_agent.runtime.containerd import Containerd
from migration_agent.runtime.interface import Container
from support.fake_host import Call, fails

POD = "0d9b5d4e-6a60-4a53-9a86-6a4d9a1d0a11"
BUNDLES = "run/containerd/io.containerd.runtime.v2.task/k8s.io"


@dataclass
class FakeRunc:
    """Answers the commands of runc as runc 1.3 does."""

    status: dict[str, str] = field(default_factory=dict[str, str])
    pids: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    listed: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """What `runc ps` says when it is not `pids`."""
    on_pause: Callable[[Call], None] = field(default=lambda _: None)
    on_resume: Callable[[], None] = field(default=lambda: None)
    on_checkpoint: Callable[[Call], None] = field(default=lambda _: None)

    def __call__(self, call: Call) -> str:
        container_id, verb = call.argv[-1], next(a for a in call.argv if a in dir(self))
        if container_id not in self.status:
            raise fails(call, 'level=error msg="container does not exist"')
        return getattr(self, verb)(container_id, call) or ""

    def state(self, container_id: str, _: Call) -> str:
        return json.dumps({"id": container_id, "status": self.status[container_id], "pid": self.pids[container_id][0]})

    def ps(self, container_id: str, _: Call) -> str:
        return json.dumps(self.listed.get(container_id, self.pids[container_id]) or None)

    def pause(self, container_id: str, call: Call) -> None:
        self.on_pause(call)
        if self.status[container_id] != "running":
            raise fails(call, "container not running")
        self.status[container_id] = "paused"

    def resume(self, container_id: str, call: Call) -> None:
        if self.status[container_id] != "paused":
            raise fails(call, "container not paused")
        self.on_resume()
        self.status[container_id] = "running"

    def checkpoint(self, container_id: str, call: Call) -> None:
        assert self.status[container_id] == "paused"
        self.on_checkpoint(call)


def the_one(containerd: Containerd) -> Container:
    (container,) = containerd.containers(POD)
    return container
