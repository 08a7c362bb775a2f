"""Hold all of it, and look at it when asked."""

from __future__ import annotations

import errno
import time

from support.everything.channels import (
    connection_to_itself,
    epoll,
    event_descriptor,
    fifo,
    pipe_with_bytes,
    socket_pair,
    terminal,
    udp_socket,
    unix_listeners,
)
from support.everything.files import deleted_file, locks, one_offset_of_two, root_file_system, volumes, watches
from support.everything.kit import DATA, Check
from support.everything.processes import (
    memory_file,
    own_settings,
    pending_signal,
    session_with_a_grandchild,
    shared_with_a_child,
    system_v_memory,
    threads,
    zombie,
)
from support.everything.timers import interval_timer, timer_far_from_its_end, timer_that_has_rung, timer_that_is_due

KINDS = (
    deleted_file, locks, pipe_with_bytes, fifo, socket_pair, unix_listeners, connection_to_itself, udp_socket,
    interval_timer, timer_far_from_its_end, timer_that_is_due, timer_that_has_rung, event_descriptor, epoll,
    memory_file, shared_with_a_child, system_v_memory, zombie, session_with_a_grandchild, pending_signal, watches,
    one_offset_of_two, root_file_system, volumes, terminal, own_settings, threads,
)  # fmt: skip
"""Children are made before threads are; what is inherited from `own_settings` on is everybody's."""


def look(checks: dict[str, Check]) -> list[str]:
    wrong: list[str] = []
    for name, check in checks.items():
        try:
            check()
        except (AssertionError, OSError) as error:
            code = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else ""
            wrong.append(f"{name}: {code} {error!r}")
    return wrong


def main() -> None:
    checks = {make.__name__: make() for make in KINDS}
    number = 0
    while True:
        number += 1
        print(number, flush=True)
        time.sleep(0.1)
        if (DATA / "check").exists():
            report = "\n".join([*look(checks), f"{len(checks)} looked at"])
            (DATA / "report.new").write_text(report)
            (DATA / "check").unlink()
            (DATA / "report.new").rename(DATA / "report")


if __name__ == "__main__":
    main()
