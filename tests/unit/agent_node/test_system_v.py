from __future__ import annotations

from collections.abc import Callable

from migration_agent.runtime.containerd import Containerd
from support.fake_host import FakeHost, write
from support.fake_runc import POD

MAPS = """55d0c0a00000-55d0c0a01000 rw-p 00000000 08:01 42                         /usr/bin/SYSV00000001
7f0000000000-7f0000001000 rw-s 00000000 00:01 7                          {name}
"""


def test_attached_system_v_memory_is_found_in_the_mappings(
    containerd: Containerd, host: FakeHost, add: Callable[..., None]
) -> None:
    add("c1", name="user", pid=100)
    add("c2", name="other", pid=200)
    write(host.root / "proc/100/maps", MAPS.format(name="/SYSV00001092 (deleted)"))
    write(host.root / "proc/200/maps", MAPS.format(name="/dev/shm/SYSV"))
    attached = {it.name: containerd.attaches_memory(it) for it in containerd.containers(POD)}
    assert attached == {"user": True, "other": False}
