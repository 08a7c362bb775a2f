"""How fast a checkpoint moves between two nodes: `make bench-transfer`, on the cluster that KUBECONFIG names.

Every method moves the same file between the same two nodes' agents in one run, from tmpfs to tmpfs, round after round:
plain `socket.sendfile` and blocking TLS, which check nothing, and Direct, which seals and verifies every chunk.
Writes docs/benchmarks/transfer.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from support.cluster import SYSTEM, Kubectl, agents

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "docs/benchmarks"
METHODS = ("sendfile", "tls", "direct", "direct-zstd")
CONTENTS = ("random", "half-zero", "redis-like")
SCRIPT = "/tmp/transfer_end.py"  # in the agents' pods
MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class End:
    """An agent's pod."""

    pod: str
    address: str

    def command(self, *words: str) -> list[str]:
        return ["kubectl", "exec", "-i", "-n", SYSTEM, self.pod, "--", "python3", SCRIPT, *words]

    def run(self, *words: str) -> str:
        done = subprocess.run(self.command(*words), check=True, stdout=subprocess.PIPE, text=True, timeout=300)
        return done.stdout


@dataclass
class Case:
    """One method on one content."""

    content: str
    method: str
    mebibytes: int
    seconds: list[float] = field(default_factory=list[float])
    memory: int = 0
    """The larger peak of both ends, in bytes."""

    @property
    def rate(self) -> float:
        """Bytes per second, the median."""
        return self.mebibytes * MEBIBYTE / statistics.median(self.seconds)

    def measure(self, source: End, target: End, pems: dict[str, str]) -> None:
        receiving = target.command("receive", self.method, json.dumps(pems["bench-source"]))
        with subprocess.Popen(receiving, stdout=subprocess.PIPE, text=True) as receiver:
            assert receiver.stdout is not None
            port = json.loads(receiver.stdout.readline())["port"]
            words = ("send", self.method, target.address, str(port), json.dumps(pems["bench-target"]))
            sent = json.loads(source.run(*words))
            received = json.loads(receiver.stdout.readline())
        if received["error"]:
            raise RuntimeError(received["error"])
        self.seconds.append(sent["seconds"])
        self.memory = max(self.memory, sent["peakMemoryBytes"], received["peakMemoryBytes"])


def ends(kubectl: Kubectl) -> tuple[End, End]:
    """Return two agents' pods, with the script in them."""
    found: list[End] = []
    for _, pod in sorted(agents(kubectl).items())[:2]:
        it = kubectl.get("pod", pod, SYSTEM)
        assert it is not None
        found.append(End(pod, it["status"]["podIP"]))
        script = (HERE / "transfer_end.py").read_text()
        kubectl("exec", "-i", "-n", SYSTEM, pod, "--", "sh", "-c", f"cat > {SCRIPT}", stdin=script)
    return found[0], found[1]


def report(cases: list[Case], rounds: int) -> tuple[str, dict[str, Any]]:
    """Return the table and what is kept as JSON."""
    plain = {case.content: case.rate for case in cases if case.method == "sendfile"}
    rows: list[dict[str, Any]] = []
    lines = [
        "# Transfer between two nodes",
        "",
        f"`make bench-transfer`: median of {rounds} rounds; all methods in one run, between the same two nodes.",
        f"From tmpfs to tmpfs; {os.cpu_count()} cores shared by both ends, kernel {platform.release()}.",
        "",
        "| content | MiB | method | GB/s | of sendfile | peak memory of an end, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for case in cases:
        share = case.rate / plain[case.content] if case.content in plain else None
        rows.append(
            {
                "content": case.content,
                "mebibytes": case.mebibytes,
                "method": case.method,
                "seconds": case.seconds,
                "bytesPerSecond": case.rate,
                "ofSendfile": share,
                "peakMemoryBytes": case.memory,
            }
        )
        of_plain = f"{share:.0%}" if share else "-"
        lines.append(
            f"| {case.content} | {case.mebibytes} | {case.method} | {case.rate / 1e9:.2f} | {of_plain} "
            f"| {case.memory / MEBIBYTE:.0f} |"
        )
    return "\n".join([*lines, ""]), {"rounds": rounds, "cores": os.cpu_count(), "cases": rows}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=4096, help="MiB of the one large checkpoint; 0: none")
    options = parser.parse_args()
    kubectl, console = Kubectl(), Console()
    source, target = ends(kubectl)
    names = {"bench-source": source, "bench-target": target}
    pems = {name: json.loads(end.run("identity", name)) for name, end in names.items()}
    cases: list[Case] = []
    try:
        for content in CONTENTS:
            source.run("make", content, str(options.mebibytes))
            some = [Case(content, method, options.mebibytes) for method in METHODS]
            for _ in range(options.rounds):
                for case in some:
                    case.measure(source, target, pems)
                    console.print(f"{content} {case.method}: {case.seconds[-1]:.2f} s")
            cases += some
        if options.large:
            source.run("make", "random", str(options.large))
            large = Case("random, large", "direct", options.large)
            large.measure(source, target, pems)
            cases.append(large)
    finally:
        for end in (source, target):
            end.run("clean", "all")
    table, kept = report(cases, options.rounds)
    REPORT.mkdir(exist_ok=True)
    (REPORT / "transfer.md").write_text(table)
    (REPORT / "transfer.json").write_text(json.dumps(kept, indent=2) + "\n")
    console.print(table)


if __name__ == "__main__":
    main()
