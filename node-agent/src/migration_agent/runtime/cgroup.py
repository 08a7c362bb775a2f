"""Whether a process stands still, by the kernel's files: what runc looks at, without the time that runc takes."""

from __future__ import annotations

from migration_agent.host import Host

_ELSEWHERE = "/.."
"""How a path begins that lies outside of the reader's cgroup namespace."""


def is_frozen(host: Host, pid: int) -> bool | None:
    """Say whether the freezer of a process's cgroup has stopped all its tasks; None when that cannot be seen from here.

    Source: Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst (`freezer.state`) and cgroup-v2.rst (`frozen` in
    `cgroup.events`).
    """
    try:
        lines = host.path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8").splitlines()
        paths = {name: path for _, names, path in (line.split(":", 2) for line in lines) for name in names.split(",")}
        path = paths.get("freezer", paths.get("", _ELSEWHERE))
        if path.startswith(_ELSEWHERE):
            return None
        if "freezer" in paths:
            state = host.host_file(f"/sys/fs/cgroup/freezer{path}/freezer.state").read_text(encoding="ascii")
            return state.strip() == "FROZEN"
        events = host.host_file(f"/sys/fs/cgroup{path}/cgroup.events").read_text(encoding="ascii")
        return "frozen 1" in events.splitlines()
    except (OSError, ValueError):
        return None
