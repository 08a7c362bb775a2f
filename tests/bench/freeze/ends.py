"""The two nodes' ends, as the benchmark talks to them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.freeze.method import NAME, MoveFailed
from support.cluster import Kubectl, Manifest
from support.migration import WORKLOAD

PROGRAM = (Path(__file__).parent / "node.py").read_text()


@dataclass(frozen=True)
class Counters:
    """What machine and node have used so far."""

    at: int
    processorSeconds: float  # noqa: N815  # as the end writes it
    sentBytes: int  # noqa: N815
    availableBytes: int  # noqa: N815
    freeBytes: int  # noqa: N815


class End:
    """One node's end."""

    def __init__(self, node: str, address: str, pod: str) -> None:
        self.node, self.address = node, address
        words = ("kubectl", "exec", "-i", "-n", NAME, pod, "--", "python3", "-u", "-c", PROGRAM)
        # Ctrl-C is for us alone: an end cleans up when its input ends.
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(300)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def __call__(self, do: str, **words: object) -> dict[str, Any]:
        """Let it do something; return its answer."""
        assert self._process.stdin and self._process.stdout  # noqa: PT018
        self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the benchmark's end on node {self.node} has gone")
        answer = json.loads(line)
        if "error" in answer:
            raise MoveFailed(f"{self.node}: {answer['error']}")
        return answer

    def run(self, script: str) -> str:
        """Run a shell script on the node; return what it said."""
        return str(self("run", script=script)["said"]).strip()

    def counters(self) -> Counters:
        return Counters(**self("counters"))


def pod(node: str) -> Manifest:
    """Return the pod of a node's end: as privileged as an agent, with a fair share of the processor."""
    container: Manifest = {
        "name": "main",
        "image": WORKLOAD,
        "imagePullPolicy": "Never",
        "command": ["sleep", "infinity"],
        "securityContext": {"privileged": True},
        "resources": {"requests": {"cpu": "500m"}},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"end-{node}", "namespace": NAME},
        "spec": {
            "nodeName": node,
            "hostPID": True,
            "hostNetwork": True,
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 0,
            "restartPolicy": "Never",
            "containers": [container],
        },
    }


@contextmanager
def namespace(kubectl: Kubectl) -> Generator[None]:
    """The namespace of everything, empty; what an earlier run left behind is removed first."""
    remove = ("delete", "namespace", NAME, "--ignore-not-found", "--timeout=240s")
    kubectl(*remove, timeout=250)
    kubectl("create", "namespace", NAME)
    try:
        yield
    finally:
        kubectl(*remove, timeout=250)


@contextmanager
def two_ends(kubectl: Kubectl, source: str, target: str) -> Generator[tuple[End, End]]:
    """Start the ends of both nodes, connected."""
    kubectl.apply(*(pod(node) for node in (source, target)))
    with ExitStack() as opened:
        ends: list[End] = []
        for node in (source, target):
            name = f"pod/end-{node}"
            kubectl("wait", name, "-n", NAME, "--for=condition=Ready", "--timeout=60s", timeout=70)
            it = kubectl.get("pod", f"end-{node}", NAME)
            assert it
            ends.append(opened.enter_context(End(node, it["status"]["hostIP"], f"end-{node}")))
        port = ends[1]("listen")["port"]
        ends[0]("connect", host=ends[1].address, port=port)
        yield ends[0], ends[1]
