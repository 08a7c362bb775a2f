"""Where checkpoints lie in memory: a tmpfs of their own, with large pages where the kernel has them.

A new page of 4 KiB costs more than what is copied into it. With large ones a MiB is written in a ninth of the time and
read in a third; source and target do both for every MiB, mostly while a container stands still.
"""

from __future__ import annotations

import logging
from pathlib import Path

from migration_agent.host import CommandFailed, Host
from migration_agent.paths import Layout

log = logging.getLogger(__name__)

_COMMAND_SECONDS = 10
_OPTIONS = ("nodev,noexec,nosuid,mode=0700,huge=within_size", "nodev,noexec,nosuid,mode=0700")
"""The second where the kernel knows no large pages. `within_size`: small files take no more than they need."""


def mount_memory_home(host: Host, layout: Layout) -> None:
    """Mount it in the host's namespace, from where it comes into ours; it stays until the node is rebooted.

    Where that fails, or where a version that knew no such mount has left checkpoints that are still needed, they go on
    to lie in /run itself, as slow as it is.
    """
    home = layout.images_home
    if home.is_mount():
        return
    if any(home.iterdir()):
        log.warning("%s holds checkpoints of an older version of the agent: it stays as slow as /run", home)
        return
    try:
        _mount(host, home)
    except CommandFailed as error:
        log.warning("%s stays as slow as /run: %s", home, error)
        return
    if not home.is_mount():
        # CRIU and the interposer would see one directory there, and the agent another.
        host.run_on_host(["umount", str(home)], timeout=_COMMAND_SECONDS)
        log.warning("%s stays as slow as /run: what the host mounts does not come into the agent's container", home)


def _mount(host: Host, home: Path) -> None:
    for options in _OPTIONS:
        try:
            host.run_on_host(
                ["mount", "-t", "tmpfs", "-o", options, "container-migration", str(home)], timeout=_COMMAND_SECONDS
            )
        except CommandFailed:
            if options == _OPTIONS[-1]:
                raise
        else:
            return
