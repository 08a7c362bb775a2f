"""What the interposer adds to a call of runc: `make bench-interposer`.

Each round calls the real runc by itself and through the interposer, in turn and in changing order, so that a busy
machine is busy for both. The differences of the pairs count, not those of two averages. `create` is measured with a
bundle as the kubelet's, whose root file system is missing: runc reads it all and then refuses it, with and without the
interposer, so no container is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "node-agent" / "interposer"
TARGET_MS = 3.0
_MOUNTS = 40
_ENVIRONMENT = 200
"""As in a pod in a namespace with many Services: config.json is parsed by the interposer, too."""


@dataclass(frozen=True)
class Result:
    """Milliseconds of one kind of call; medians over all rounds."""

    call: str
    plain: float
    interposed: float
    added: float
    """The median of the pairs' differences."""
    added_cpu: float
    """The same of the processor's time: what is left of it when others keep the machine busy."""


def build(directory: Path) -> Path:
    """Build the interposer as the agent's image does, and return it."""
    binary = directory / "runc-migratable"
    command = ("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", str(binary), ".")
    subprocess.run(command, cwd=SOURCE, check=True, env={**_environment(), "CGO_ENABLED": "0"})
    return binary


def _environment() -> dict[str, str]:
    return {"PATH": "/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}


def make_bundle(directory: Path, runc: str) -> Path:
    """Return a bundle as containerd makes it for an ordinary pod, without a root file system."""
    bundle = directory / "bundle"
    bundle.mkdir()
    subprocess.run((runc, "spec"), cwd=bundle, check=True)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["annotations"] = {
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.container-name": "main",
        "io.kubernetes.cri.sandbox-name": "pod",
        "io.kubernetes.cri.sandbox-namespace": "default",
        "io.kubernetes.cri.sandbox-uid": "0f3c8a52-6d1e-4b7a-9c2d-1a2b3c4d5e6f",
    }
    config["process"]["env"] += [f"SERVICE_{n}_PORT=tcp://10.96.0.{n % 256}:80" for n in range(_ENVIRONMENT)]
    volume = "/var/lib/kubelet/pods/0f3c8a52-6d1e-4b7a-9c2d-1a2b3c4d5e6f/volumes/kubernetes.io~configmap"
    config["mounts"] += [
        {"destination": f"/etc/config-{n}", "type": "bind", "source": f"{volume}/c{n}", "options": ["rbind", "ro"]}
        for n in range(_MOUNTS)
    ]
    path.write_text(json.dumps(config))
    return bundle


def measure(call: str, plain: list[str], interposed: list[str], rounds: int) -> Result:
    """Call both in turn, the first one changing, and compare the pairs."""

    pairs: list[tuple[_Cost, _Cost]] = []
    for number in range(rounds + 5):
        if number % 2:
            first = _cost(plain)
            pairs.append((first, _cost(interposed)))
        else:
            first = _cost(interposed)
            pairs.append((_cost(plain), first))
    pairs = pairs[5:]  # the first ones fill the caches
    return Result(
        call,
        plain=statistics.median(p.wall for p, _ in pairs),
        interposed=statistics.median(i.wall for _, i in pairs),
        added=statistics.median(i.wall - p.wall for p, i in pairs),
        added_cpu=statistics.median(i.cpu - p.cpu for p, i in pairs),
    )


@dataclass(frozen=True)
class _Cost:
    """Milliseconds of one call."""

    wall: float
    cpu: float


def _cost(command: list[str]) -> _Cost:
    used, began = _cpu_seconds(), time.perf_counter_ns()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=_environment())
    return _Cost((time.perf_counter_ns() - began) / 1e6, (_cpu_seconds() - used) * 1e3)


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def report(results: list[Result], runc: str, rounds: int) -> None:
    """Print the table."""
    table = Table(title=f"runc by itself and through the interposer, medians of {rounds} pairs")
    table.add_column("call")
    for name in ("runc, ms", "with interposer, ms", "added, ms", "of it CPU", "ratio"):
        table.add_column(name, justify="right")
    for r in results:
        numbers = (r.plain, r.interposed, r.added, r.added_cpu, r.interposed / r.plain)
        table.add_row(r.call, *(f"{number:.2f}" for number in numbers))
    console = Console()
    console.print(f"runc: {runc}; load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    console.print(table)


def main() -> int:
    """Run; the exit code says whether the target was met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runc", default=shutil.which("runc"), help="the real runc; default: by PATH")
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    if not options.runc:
        sys.exit("There is no runc in PATH: name one with --runc (make bench-interposer finds the test bed's).")
    runc = str(Path(options.runc).resolve())
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        interposer = build(directory)
        (directory / "bin").mkdir()
        (directory / "bin" / "runc").symlink_to(runc)
        bundle, root = make_bundle(directory, runc), directory / "state"
        calls = {
            "--version": ["--version"],
            "state": ["--root", str(root), "state", "nobody"],
            "create": ["--root", str(root), "create", "--bundle", str(bundle), "bench"],
        }
        path = ["env", f"PATH={directory / 'bin'}:/usr/sbin:/usr/bin:/sbin:/bin"]
        results = [
            measure(call, [*path, runc, *args], [*path, str(interposer), *args], options.rounds)
            for call, args in calls.items()
        ]
    report(results, runc, options.rounds)
    busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    worst = max(result.added_cpu if busy else result.added for result in results)
    of = "of processor time (others keep the machine busy, so the clock says nothing)" if busy else "by the clock"
    print(f"at most {worst:.2f} ms {of} are added to a call; the target is below {TARGET_MS:.0f} ms")
    return 0 if worst < TARGET_MS else 1


if __name__ == "__main__":
    sys.exit(main())
