"""Everyone who might write to the API, each with an account and a token of its own."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from support.cluster import SYSTEM, Kubectl, Manifest, agents

OPERATOR = "container-migration-operator"
AGENT = "container-migration-agent"

Done = subprocess.CompletedProcess[str]


@dataclass(frozen=True)
class Writer:
    """Someone who writes: kubectl with a kubeconfig of that account alone.

    `kubectl --token` would not do: beside a client certificate, as in kind's kubeconfig, the token is ignored.
    """

    kubectl: Kubectl
    kubeconfig: Path | None = None

    def __call__(self, *args: str) -> Done:
        who = ("--kubeconfig", str(self.kubeconfig)) if self.kubeconfig else ()
        return self.kubectl(*who, *args, check=False)

    def patch(self, kind: str, name: str, patch: Manifest, *args: str) -> Done:
        return self("patch", kind, name, "--type=merge", "-p", json.dumps(patch), *args)


@dataclass(frozen=True)
class Writers:
    """Everyone who might write. `unbound` is the agents' account with a token that is bound to no pod."""

    admin: Writer
    operator: Writer
    source: Writer
    target: Writer
    unbound: Writer

    def __getitem__(self, who: str) -> Writer:
        return getattr(self, who)


def all_writers(kubectl: Kubectl, source: str, target: str, folder: Path) -> Writers:
    """Make a token for each; `source` and `target` are nodes with a running agent, `folder` gets the kubeconfigs."""
    config: dict[str, Any] = yaml.safe_load(kubectl("config", "view", "--raw", "--flatten", "--minify").stdout)

    def writer(name: str, account: str, *bound: str) -> Writer:
        token = kubectl("create", "token", account, "-n", SYSTEM, *bound).stdout.strip()
        config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
        path = folder / name
        path.write_text(yaml.safe_dump(config))
        return Writer(kubectl, path)

    def agent(name: str, node: str) -> Writer:
        return writer(name, AGENT, "--bound-object-kind=Pod", f"--bound-object-name={agents(kubectl)[node]}")

    return Writers(
        admin=Writer(kubectl),
        operator=writer("operator", OPERATOR),
        source=agent("source", source),
        target=agent("target", target),
        unbound=writer("unbound", AGENT),
    )


def accepted(done: Done) -> None:
    assert done.returncode == 0, done.stderr


def refused(done: Done, *because: str) -> None:
    """Two policies may refuse one write; the API server then names either, in no fixed order."""
    assert done.returncode != 0, f"accepted: {done.stdout}"
    assert any(reason in done.stderr for reason in because), done.stderr
