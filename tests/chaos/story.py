"""What cluster and nodes have to say about a cell that did not end as it must."""

from __future__ import annotations

import subprocess
from contextlib import suppress

from chaos.lab import RUNC, Lab, OnNodeError
from support.cluster import SYSTEM, what_happened

_ON_NODE = f"""
for f in /var/lib/container-migration/migrations/*/*.json; do [ -e "$f" ] && echo "== $f" && cat "$f" && echo; done
ls -lR /var/lib/container-migration/tickets /var/lib/container-migration/pods 2>/dev/null
find /run/container-migration/images -name '*.log' | while read -r f; do echo "== $f"; tail -15 "$f"; done
echo "== containers"; {RUNC} list
echo "== processes"; for p in /proc/[0-9]*; do
  case "$(readlink $p/exe)" in */criu|*/runc|*/runc-migratable) echo "${{p#/proc/}} $(tr '\\0' ' ' < $p/cmdline)";; esac
done
ls -l /run/container-migration/failpoints 2>/dev/null
echo "== services"
journalctl --no-pager --since=-3min -u kubelet -u containerd -o short-precise | cut -c1-400 | tail -150
true
"""


def story(lab: Lab) -> str:
    """Return conditions, pods, events, logs, journals, tickets, processes, services' logs, as far as known."""
    parts = [what_happened(lab.kubectl, (lab.namespace,))]
    for node in lab.nodes:
        with suppress(OnNodeError):
            parts.append(f"--- node {node}\n{lab.sh(node, _ON_NODE)}")
    with suppress(AssertionError, subprocess.TimeoutExpired):
        label = "app.kubernetes.io/component"
        logs = ("logs", "-n", SYSTEM, "--prefix", "--previous", "--tail=60", "-l")
        for component in ("operator", "agent"):
            done = lab.kubectl(*logs, f"{label}={component}", check=False)
            parts.append(f"--- {component}, the life before\n{done.stdout}{done.stderr}")
    return "\n".join(parts)
