"""A counter that is moved again and again, and what the witness and the nodes say of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from chaos.lab import Lab, counter_pod
from support.cluster import Manifest, NotInTimeError, condition, wait_for
from support.migration import migration

FREEZE_BUDGET = 20
DEADLINE = 120
END_SECONDS = 240
"""The deadline of every migration here, whatever happens: restarts by the kubelet with their pauses are in it."""
LABEL = "containermigration.io/migration-uid"


@dataclass
class End:
    """How a migration ended."""

    succeeded: bool | None
    """None: the object is gone."""
    reason: str
    message: str
    reasons: tuple[str, ...] = ()
    """All that the conditions said."""


@dataclass
class Workload:
    """One counter; its pod changes with every move."""

    lab: Lab
    name: str
    mebibytes: int = 8
    pod: str = ""
    node: str = ""
    before: tuple[int, int, int] = (0, 0, 0)
    """How much the witness had found before the present migration: doubled, lost, gaps."""
    _uid: str = ""
    _starts: int = 0

    def start(self, node: str, **spec: object) -> None:
        """Begin counting on that node, afresh when there was a pod before; `spec` adds to the container's."""
        self._starts += 1
        self.pod, self.node = f"{self.name}-{self._starts}", node
        manifest = counter_pod(self.lab, self.name, node, self.mebibytes) | _named(self.lab, self.pod)
        manifest["spec"]["containers"][0] |= spec
        self.lab.kubectl.apply(manifest)
        before = self.lab.seen(self.name)["number"]
        wait_for(f"{self.name} counts", lambda: self.lab.seen(self.name)["number"] != before, seconds=60)

    def apply(self, move: str, **spec: object) -> None:
        """Ask for a migration to the other node."""
        seen = self.lab.seen(self.name)
        self.before = (len(seen["doubled"]), len(seen["lost"]), len(seen["gaps"]))
        usual = {"target": {"nodeName": self.lab.other(self.node)}, "deadlineSeconds": DEADLINE}
        every = {"freezeBudgetSeconds": FREEZE_BUDGET, **usual, **spec}
        self.lab.kubectl.apply(migration(move, self.lab.namespace, self.pod, **every))
        self._uid = (self.get(move) or {"metadata": {"uid": ""}})["metadata"]["uid"]

    def give_up(self) -> None:
        """Remove all that this counter is or was, after something went wrong; the next one begins afresh."""
        here = ("-n", self.lab.namespace, "--ignore-not-found", "--timeout=60s")
        self.lab.kubectl("delete", "cmig", "--all", *here, check=False, timeout=70)
        self.lab.kubectl("delete", "pods", "-l", "app=counter", "--grace-period=1", *here, check=False, timeout=70)
        self.pod = ""

    def get(self, move: str) -> Manifest | None:
        return self.lab.kubectl.get("cmig", move, self.lab.namespace)

    def end(self, move: str, seconds: float = END_SECONDS) -> End:
        """Wait until the migration has ended, or the object is gone; then the pod is known that goes on.

        Raises:
            NotInTimeError: it did not end in time.
        """

        def ended() -> End | None:
            it = self.get(move)
            verdict = condition(it, "Succeeded")
            if it is None:
                return End(None, "", "the object is gone")
            if verdict.get("status") not in {"True", "False"}:
                return None
            reasons = tuple(dict.fromkeys(c["reason"] for c in it["status"]["conditions"]))
            return End(verdict["status"] == "True", verdict["reason"], verdict["message"], reasons)

        return wait_for(f"the end of {move}", ended, seconds=seconds, every=0.5)

    def target_pod(self) -> str | None:
        """Return the name of the target pod of the present migration."""
        names = self.lab.kubectl("get", "pods", "-n", self.lab.namespace, "-l", f"{LABEL}={self._uid}", "-o", "name")
        return names.stdout.strip().removeprefix("pod/") or None

    def settle(self, end: End, seconds: float = 90) -> str:
        """Wait until exactly the right pod is left and counts; return `target`, `source`, or what is wrong instead.

        With the object gone either pod is right, but only one.
        """
        last: list[str] = [""]

        def settled() -> str | None:
            pods = {name: it for name in {self.pod, self.target_pod() or self.pod} if (it := self._pod(name))}
            last[0] = f"pods {sorted(pods)}, the witness hears {self._heard()}"
            if len(pods) != 1:
                return None
            [(name, it)] = pods.items()
            where = "source" if name == self.pod else "target"
            if end.succeeded is not None and where != ("target" if end.succeeded else "source"):
                return None
            address = it["status"].get("podIP")
            if self._heard() != {address}:
                return None
            self.pod, self.node = name, it["spec"]["nodeName"]
            return where

        try:
            return wait_for("one runner", settled, seconds=seconds, every=0.5)
        except NotInTimeError:
            return f"not one runner: {last[0]}"

    def found(self) -> list[str]:
        """Return what the witness found since the present migration was applied."""
        seen = self.lab.seen(self.name)
        doubled, lost, _ = self.before
        return [f"doubled {it}" for it in seen["doubled"][doubled:]] + [f"lost {it}" for it in seen["lost"][lost:]]

    def gap(self) -> float:
        """Return how long the counter stood still at most since the present migration was applied, in seconds."""
        gaps: list[float] = self.lab.seen(self.name)["gaps"]
        return max(gaps[self.before[2] :], default=0.0)

    def _pod(self, name: str) -> Manifest | None:
        it = self.lab.kubectl.get("pod", name, self.lab.namespace)
        return it if it and it["status"].get("phase") not in {"Succeeded", "Failed"} else None

    def _heard(self) -> set[str]:
        """Return from where the increments of the last two seconds came; more than five must have come."""
        recent: list[list[Any]] = self.lab.seen(self.name)["recent"]
        lately = [peer for age, peer in recent if age < 2.0]
        return set(lately) if len(lately) > 5 else set()


def _named(lab: Lab, name: str) -> Manifest:
    return {"metadata": {"name": name, "namespace": lab.namespace, "labels": {"app": "counter"}}}
