"""How much of a process a checkpoint would hold."""

from __future__ import annotations

from migration_agent.host import Host


def process_bytes(host: Host, pid: int) -> int:
    """Return what CRIU writes for a process: its own pages, also from swap, and its share of shared memory."""
    try:
        lines = host.path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split()[:2] for line in lines[1:])
    return sum(int(fields.get(key, 0)) for key in ("Anonymous:", "Swap:", "Pss_Shmem:")) * 1024
