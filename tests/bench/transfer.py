"""How fast a checkpoint moves between two nodes: `make bench-transfer`, on the cluster that KUBECONFIG names.

Every method moves the same file between the same two nodes' agents in one run, from tmpfs to tmpfs, round after round:
plain `socket.sendfile` and blocking TLS, which check nothing; Direct, SharedVolume and ObjectStore, which seal and
verify every chunk, each with zstd and without. Shares are medians of each round's own, since a machine may be busier in
one round than in another. Writes docs/benchmarks/transfer.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import secrets
import statistics
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from support.cluster import SYSTEM, Kubectl, agents
from support.migration import pod
from support.stores import Bucket
from support.testbed import SHARED, current

HERE = Path(__file__).parent
REPORT = HERE.parents[1] / "docs/benchmarks"
PLAIN = ("sendfile", "tls")
METHODS = (*PLAIN, *(f"{kind}{zstd}" for kind in ("direct", "volume", "bucket") for zstd in ("", "-zstd")))
CONTENTS = ("random", "half-zero", "redis")
SCRIPT = "/dev/shm/transfer_end.py"  # in the agents' pods, whose root cannot be written
MEBIBYTE = 1 << 20
NAMESPACE = "bench-transfer"

RECORDS = """
local f = '{"id":%d,"name":"user%d","mail":"user%d@example.org","session":"%s","cart":[%d,%d,%d],"seen":"%s"}'
for i = tonumber(ARGV[1]), tonumber(ARGV[1]) + 49999 do
  local a = redis.sha1hex(i)
  redis.call('SET', 'session:' .. a, string.format(f, i, i, i, a .. redis.sha1hex(a), i % 97, i % 89, i % 83, a))
end
"""
"""What a web shop keeps there; half of it is random."""
RECORD_BYTES = 320
"""What redis needs for one, at least."""


@dataclass(frozen=True)
class End:
    """An agent's pod."""

    pod: str
    node: str
    address: str

    def command(self, *words: str) -> list[str]:
        return ["kubectl", "exec", "-i", "-n", SYSTEM, self.pod, "--", "python3", SCRIPT, *words]

    def run(self, *words: str, stdin: str = "") -> str:
        done = subprocess.run(
            self.command(*words), check=True, stdout=subprocess.PIPE, input=stdin, text=True, timeout=600
        )
        return done.stdout


@dataclass
class Case:
    """One method on one content."""

    content: str
    method: str
    mebibytes: int
    seconds: list[float] = field(default_factory=list[float])
    processor_seconds: list[float] = field(default_factory=list[float])
    """Of both ends, with the start of Python."""
    memory: int = 0
    """The larger peak of both ends, in bytes."""

    @property
    def rate(self) -> float:
        """Bytes per second, the median."""
        return self.mebibytes * MEBIBYTE / statistics.median(self.seconds)

    def share(self, other: Case) -> float:
        """Return how fast it is beside another method: the median of the rounds."""
        return statistics.median(theirs / ours for ours, theirs in zip(self.seconds, other.seconds, strict=True))

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
        self.processor_seconds.append(sent["cpuSeconds"] + received["cpuSeconds"])
        self.memory = max(self.memory, sent["peakMemoryBytes"], received["peakMemoryBytes"])


def ends(kubectl: Kubectl) -> tuple[End, End]:
    """Return two agents' pods, with the script in them."""
    found: list[End] = []
    for node, name in sorted(agents(kubectl).items())[:2]:
        it = kubectl.get("pod", name, SYSTEM)
        assert it is not None
        found.append(End(name, node, it["status"]["podIP"]))
        script = (HERE / "transfer_end.py").read_text()
        kubectl("exec", "-i", "-n", SYSTEM, name, "--", "sh", "-c", f"cat > {SCRIPT}", stdin=script)
    return found[0], found[1]


def stores() -> str:
    """Return where the test bed's volume and a new bucket are, as JSON; the agents must have the volume mounted."""
    testbed = current()
    assert testbed is not None, "volume and bucket are the test bed's"
    bucket = Bucket(f"bench-{secrets.token_hex(4)}", testbed.variables("s3"))
    bucket.create()
    keys = {"access_key_id": "AWS_ACCESS_KEY_ID", "secret_access_key": "AWS_SECRET_ACCESS_KEY"}
    told = {
        "url": f"s3://{bucket.name}",
        "endpoint": bucket.variables["AWS_ENDPOINT_URL"],
        "region": bucket.variables["AWS_REGION"],
        "credentials": {setting: bucket.variables[key] for setting, key in keys.items()},
    }
    return json.dumps({"volume": f"{SHARED}/bench-transfer", "bucket": told})


@contextmanager
def redis(kubectl: Kubectl, node: str, mebibytes: int) -> Generator[None]:
    """Let a redis with so much data run on a node."""
    kubectl("create", "namespace", NAMESPACE, check=False)
    kubectl.apply(pod("redis", NAMESPACE, ["redis-server", "--save", ""], node))
    try:
        kubectl("wait", "pod/redis", "-n", NAMESPACE, "--for=condition=Ready", "--timeout=60s", timeout=70)
        for first in range(0, mebibytes * MEBIBYTE // RECORD_BYTES, 50_000):
            kubectl.exec("redis", NAMESPACE, "redis-cli", "EVAL", RECORDS, "0", str(first), timeout=120)
        yield
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def report(cases: list[Case], rounds: int, load: list[float]) -> tuple[str, dict[str, Any]]:
    """Return the table and what is kept as JSON."""
    by_method = {(case.content, case.method): case for case in cases}
    rows: list[dict[str, Any]] = []
    lines = [
        "# Transfer between two nodes",
        "",
        f"`make bench-transfer`: medians of {rounds} rounds, in each all methods in turn, between the same two nodes,",
        "from tmpfs to tmpfs. sendfile and tls check nothing; the others seal and verify every chunk. volume is a",
        "directory on this machine's disk, bucket an S3 server that writes to the same disk.",
        f"{os.cpu_count()} cores are shared by both ends; kernel {platform.release()};",
        f"load average {load[0]:.1f} before and {load[1]:.1f} after. Processor time is that of both ends, per GiB.",
        "",
        "| content | MiB | method | GB/s | of sendfile | of tls | processor, s | peak memory of an end, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        shares = {it: case.share(other) for it in PLAIN if (other := by_method.get((case.content, it)))}
        processor = statistics.median(case.processor_seconds) * 1024 / case.mebibytes
        row = {
            "content": case.content,
            "mebibytes": case.mebibytes,
            "method": case.method,
            "seconds": case.seconds,
            "bytesPerSecond": case.rate,
            "ofSendfile": shares.get("sendfile"),
            "ofTls": shares.get("tls"),
            "processorSeconds": case.processor_seconds,
            "peakMemoryBytes": case.memory,
        }
        rows.append(row)
        beside = " | ".join(f"{shares[it]:.0%}" if it in shares else "-" for it in PLAIN)
        lines.append(
            f"| {case.content} | {case.mebibytes} | {case.method} | {case.rate / 1e9:.2f} | {beside} "
            f"| {processor:.2f} | {case.memory / MEBIBYTE:.0f} |"
        )
    return "\n".join([*lines, ""]), {"rounds": rounds, "cores": os.cpu_count(), "load": load, "cases": rows}


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", type=int, default=4096, help="MiB of the one large checkpoint; 0: none")
    parser.add_argument("--methods", default=",".join(METHODS))
    options = parser.parse_args()
    methods: list[str] = options.methods.split(",")
    kubectl, console = Kubectl(), Console()
    source, target = ends(kubectl)
    names = {"bench-source": source, "bench-target": target}
    pems = {name: json.loads(end.run("identity", name)) for name, end in names.items()}
    if any(method.startswith(("volume", "bucket")) for method in methods):
        told = stores()
        for end in names.values():
            end.run("stores", stdin=told)
    load = [os.getloadavg()[0]]
    cases: list[Case] = []
    try:
        for content in CONTENTS:
            if content == "redis":
                with redis(kubectl, source.node, options.mebibytes):
                    source.run("make", content, str(options.mebibytes))
            else:
                source.run("make", content, str(options.mebibytes))
            some = [Case(content, method, options.mebibytes) for method in methods]
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
    table, kept = report(cases, options.rounds, [*load, os.getloadavg()[0]])
    REPORT.mkdir(exist_ok=True)
    (REPORT / "transfer.md").write_text(table)
    (REPORT / "transfer.json").write_text(json.dumps(kept, indent=2) + "\n")
    console.print(table)


if __name__ == "__main__":
    main()
