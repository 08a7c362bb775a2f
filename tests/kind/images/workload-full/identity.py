"""Checks ten times a second that it is still who it was: user, groups, rights, limits, terminal, where it stands."""

from __future__ import annotations

import os
import resource
import sys
import termios
from pathlib import Path

from checks import check, run

FIELDS = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "Umask")
LIMITS = [getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")]
UNWRITABLE = "/etc/new"


def writable() -> bool:
    try:
        Path(UNWRITABLE).touch()
    except OSError as error:
        return "Read-only file system" not in str(error)
    return True


def me() -> dict[str, object]:
    """Return all that a move must not change."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        **{field: status[field].split() for field in FIELDS},
        "limits": [resource.getrlimit(limit) for limit in LIMITS],
        "terminal": termios.tcgetattr(0)[:4] if os.isatty(0) else None,
        "session": (os.getpid(), os.getsid(0), os.getpgid(0)),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "root is writable": writable(),
    }


# What the test asked for is really so; then it must stay so.
os.umask(0o027)
os.chdir("/data")
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))
os.setpriority(os.PRIO_PROCESS, 0, 5)
first = me()
expected = {"Uid": ["1000"] * 4, "Groups": ["2000"], "Seccomp": ["2"], "NoNewPrivs": ["1"], "root is writable": False}
for field, value in expected.items():
    if first[field] != value:
        raise SystemExit(f"{field} is {first[field]}, not {value}: the test has not set what it tests")
if not (os.isatty(0) and sys.stdout.isatty()):
    raise SystemExit("there is no terminal: the test has not set what it tests")


@check
def unchanged(_: int) -> None:
    now = me()
    changed = {field: (first[field], now[field]) for field in first if first[field] != now[field]}
    if changed:
        raise SystemExit(f"changed: {changed}")


run()
