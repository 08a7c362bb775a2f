"""The barrier of a pod's hooks at pre-resume (docs/protocol.md, section 3), as `barrier.go` does it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple


class Barrier(NamedTuple):
    """The hooks' state by container, the ticket and the mutex."""

    hooks: tuple[str, ...]
    """`told`, `ready`, `runs`, or `dead`: its tree is killed."""
    ticket: str = "pending"
    mutex: int = -1
    """Whose turn it is: who found all ready and is about to rename."""
    called: tuple[bool, ...] = ()
    """Whom the agent has called back, or who has lost it."""
    killed: bool = False
    """A hook was killed by SIGKILL: it gives up its lock without the mutex."""


def steps(b: Barrier, *, with_mutex: bool) -> Iterator[Barrier]:
    """Everything that can happen next."""
    for i, hook in enumerate(b.hooks):
        if hook in {"told", "ready"}:
            yield from _turn(b, i, with_mutex=with_mutex)
            if not b.called[i]:
                yield b._replace(called=_set(b.called, i, value=True))
            if not b.killed:  # its tree is released when the ticket says so, else its interposer kills it
                after = "runs" if b.ticket == "resuming" else "dead"
                mutex = -1 if b.mutex == i else b.mutex
                yield b._replace(hooks=_put(b.hooks, i, after), killed=True, mutex=mutex)
    if b.ticket == "pending":
        yield b._replace(ticket="destroyed")


def _turn(b: Barrier, i: int, *, with_mutex: bool) -> Iterator[Barrier]:
    """One turn with the mutex, or its second half: the rename."""
    if b.mutex == i:
        renamed = b.ticket == "pending"
        hooks = _put(b.hooks, i, "runs" if renamed else "dead")
        yield b._replace(hooks=hooks, mutex=-1, ticket="resuming" if renamed else b.ticket)
    elif b.mutex >= 0 and with_mutex:
        return
    elif b.ticket == "resuming" and b.hooks[i] == "ready":
        yield b._replace(hooks=_put(b.hooks, i, "runs"))
    elif b.ticket != "pending" or b.called[i]:
        yield b._replace(hooks=_put(b.hooks, i, "dead"))
    else:
        hooks = _put(b.hooks, i, "ready")
        yield b._replace(hooks=hooks, mutex=i if all(h == "ready" for h in hooks) else b.mutex)


def _put(hooks: tuple[str, ...], i: int, value: str) -> tuple[str, ...]:
    return (*hooks[:i], value, *hooks[i + 1 :])


def _set(flags: tuple[bool, ...], i: int, *, value: bool) -> tuple[bool, ...]:
    return (*flags[:i], value, *flags[i + 1 :])


def reachable(containers: int, *, with_mutex: bool = True) -> set[Barrier]:
    """Return every state of a pod with so many restored containers."""
    start = Barrier(("told",) * containers, called=(False,) * containers)
    seen, queue = {start}, deque([start])
    while queue:
        for after in steps(queue.popleft(), with_mutex=with_mutex):
            if after not in seen:
                seen.add(after)
                queue.append(after)
    return seen


def ended(b: Barrier) -> bool:
    return all(hook in {"runs", "dead"} for hook in b.hooks)


def halves(states: set[Barrier]) -> list[Barrier]:
    """Return the ends in which some of the pod runs and some is dead, though no hook was killed."""
    return [b for b in states if ended(b) and not b.killed and len(set(b.hooks)) > 1]
