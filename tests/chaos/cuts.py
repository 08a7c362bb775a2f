"""Accidents that last: something is away for a time, and comes back. Done in the nodes, without the API server."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from chaos.lab import AGENT_POINTS, Lab
from support.testbed import Testbed

API_PORT = 6443
PEER_PORT = 9444


@dataclass(frozen=True)
class Cut:
    """What is done to a node, and what undoes it."""

    node: str
    do: str
    undo: str


@dataclass(frozen=True)
class Stage:
    """Where a migration is cut off from something."""

    lab: Lab
    testbed: Testbed
    source: str
    target: str

    def node(self, node: str, script: str) -> str:
        """Run a script in a node, also when no kubectl works."""
        return self.testbed("node", node, "--", "sh", "-c", script, timeout=60)

    def release(self, node: str, point: str) -> None:
        """Let an agent that hangs there go on."""
        self.node(node, f"rm -f {AGENT_POINTS}/{point}.hit")

    @contextmanager
    def cut(self, *cuts: Cut) -> Generator[None]:
        """Do it, and undo it at the end, whatever happens."""
        try:
            for it in cuts:
                self.node(it.node, it.do)
            yield
        finally:
            for it in cuts:
                self.node(it.node, it.undo)

    def agent_address(self, node: str) -> str:
        """Return the address of a node's agent."""
        it = self.lab.part("agent", node)
        assert it
        return it["status"]["podIP"]


def _dropped(node: str, chain: str, what: str) -> Cut:
    return Cut(node, f"iptables -I {chain} {what} -j DROP", f"iptables -D {chain} {what} -j DROP")


def api_away(stage: Stage) -> tuple[Cut, ...]:
    """Nobody reaches the API server; it goes on."""
    control_plane = next(
        node["metadata"]["name"]
        for node in stage.lab.kubectl.list("nodes", "-l", "node-role.kubernetes.io/control-plane")
    )
    return (_dropped(control_plane, "INPUT", f"-p tcp --dport {API_PORT}"),)


def agents_apart(stage: Stage) -> tuple[Cut, ...]:
    """The agents do not reach each other's peer port."""
    return tuple(_dropped(node, "FORWARD", f"-p tcp --dport {PEER_PORT}") for node in stage.lab.nodes)


def source_agent_alone(stage: Stage) -> tuple[Cut, ...]:
    """The source's agent does not reach the API server."""
    return (_alone(stage, stage.source),)


def target_agent_alone(stage: Stage) -> tuple[Cut, ...]:
    """The target's agent does not reach the API server."""
    return (_alone(stage, stage.target),)


def _alone(stage: Stage, node: str) -> Cut:
    return _dropped(node, "FORWARD", f"-s {stage.agent_address(node)} -p tcp --dport {API_PORT}")


def target_full(stage: Stage) -> tuple[Cut, ...]:
    """Not a byte is left in the file system that checkpoints arrive in."""
    full = "/run/full-of-it"
    return (Cut(stage.target, f"head -c 64G /dev/zero > {full} 2>/dev/null; true", f"rm -f {full}"),)


Kind = Callable[[Stage], tuple[Cut, ...]]
