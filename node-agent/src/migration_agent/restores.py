"""The restored containers of one target pod as the gate sees them: who waits, who is held, and what they are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from migration_agent.gate import Gate, Gates, Hook, Starter
from migration_agent.journal import TargetRecord
from migration_agent.lineup import Lineup
from migration_agent.paths import MEMORY_LOG, ONLY_LOOPBACK, SHARED_DIRECTORY, Layout
from migration_agent.processes import ProcessRef
from migration_api.wire import LAZY_FROM_BYTES, TargetTask


def restore_options(record: TargetRecord, container: str, *, lazily: bool) -> tuple[str, ...]:
    """Return the options for CRIU.

    Connections with the outside are bound to an address that this pod does not have. CRIU knows only all or nothing,
    so those within the pod are kept when there are no others.

    Args:
        record: of the migration.
        container: which one.
        lazily: whether this node can fill memory in after the restore.
    """
    kept = any(entry.path == f"{SHARED_DIRECTORY}/{ONLY_LOOPBACK}" for entry in record.entries or ())
    connections = ("tcp-established",) if kept else ("tcp-close",) if record.request.tcp_close else ()
    lazy = ("lazy-pages",) if is_lazy(record, container, lazily=lazily) else ()
    return (*connections, "file-locks", *lazy)


def is_lazy(record: TargetRecord, container: str, *, lazily: bool) -> bool:
    """Say whether a container's memory is filled in after its restore: it is much, or stays at the source."""
    if record.request.post_copy:
        return True
    if any(it.path == f"{container}/{MEMORY_LOG}" for it in record.entries or ()):
        return True
    pages = f"{container}/images/pages-"
    held = sum(it.size for it in record.entries or () if it.path.startswith(pages))
    return lazily and held >= LAZY_FROM_BYTES


@dataclass
class Restores:
    """One pod's. Nothing here decides: `target_plan` does."""

    gates: Gates
    layout: Layout
    request: TargetTask
    pod_uid: str
    """Empty: the pod has not come yet, and nobody is there."""
    _engaged: tuple[Gate, ...] = field(default=())
    _losing: bool = False

    def lineup(self) -> Lineup:
        """Return how far each is now."""
        places = tuple(self.gates.place(self.pod_uid, name) for name in self.request.containers)
        sandboxes = {gate.hello.sandbox_id for gate in self.gates.of_pod(self.pod_uid) if gate.restoring}
        return Lineup(places, one_sandbox=len(sandboxes) <= 1)

    def losing(self) -> bool:
        """Say whether a tree was lost while others live: since the last call, or before and they still live."""
        lineup = self.lineup()
        engaged = tuple(gate for gate in self.gates.of_pod(self.pod_uid) if gate.restoring and gate.link.alive())
        lost = any(all(gate is not other for other in engaged) for gate in self._engaged)
        self._engaged = engaged
        self._losing = lineup.engaged and (self._losing or lost or lineup.broken)
        return self._losing

    def hooks(self) -> tuple[Hook, ...]:
        """Return those that hold a tree."""
        found = (self.gates.hook(self.pod_uid, name) for name in self.request.containers)
        return tuple(hook for hook in found if hook is not None)

    def accompanied(self) -> bool:
        """Say whether all that are left out are created and wait for their start: then the pod can run as a whole."""
        left_out = (name for name in self.request.all_containers if name not in self.request.containers)
        return all(self.gates.starter(self.pod_uid, name) for name in left_out)

    def late_gate(self) -> Starter | None:
        """Return who waits at the late gate for the copy to be complete."""
        name = self.request.late_gate
        return None if name is None else self.gates.starter(self.pod_uid, name)

    def held_processes(self) -> tuple[ProcessRef, ...]:
        """Return the processes of the trees that are held and of those who hold them."""
        return tuple(p for hook in self.hooks() for p in (hook.gate.link.process, hook.link.process, hook.init))

    def waiting(self) -> Gate | None:
        """Return the interposer whose turn it is."""
        turn = self.lineup().next
        return None if turn is None else self.gates.gate(self.pod_uid, self.request.containers[turn])

    async def admit(self) -> None:
        """Answer those at the gate whose answer needs no decision.

        The last container of the pod blocks in its `create` until the commit; the kubelet would not start it while an
        earlier one does, so those leave a keeper.
        """
        for gate in self.gates.of_pod(self.pod_uid):
            name = gate.hello.container
            if gate.answered:
                continue
            last = name == self.request.all_containers[-1]
            if name in self.request.init:
                await gate.do_nothing(late=name == self.request.late_gate)
            elif name not in self.request.all_containers:
                await gate.refuse(f"migration {self.request.migration.uid} knows no container {name} of this pod")
            elif name not in self.request.containers:
                await gate.start_afresh(last=last)
            elif not last and not gate.hello.keeper:
                await gate.keep()

    async def restore(self, gate: Gate, options: tuple[str, ...]) -> None:
        await gate.restore(self.layout.image(self.request.migration.uid, gate.hello.container), options)

    async def resume(self) -> bool:
        """Let all go on; False, and nobody is told, when not all are held."""
        if not self.lineup().held:
            return False
        for hook in self.hooks():
            if not hook.resume_sent:
                await hook.resume()
        return True

    async def lose(self, message: str) -> None:
        """Kill every tree that is held, and send those away who came to join them."""
        for hook in self.hooks():
            await hook.kill(message)
        for name in self.request.containers:
            waiting = self.gates.waiting(self.pod_uid, name)
            if waiting is not None:
                await waiting.kill(message)
        await self.turn_away()

    async def turn_away(self) -> None:
        """Refuse those for whom it is not their turn: the kubelet then begins again with the first that is missing."""
        for index in self.lineup().out_of_turn:
            name = self.request.containers[index]
            gate = self.gates.gate(self.pod_uid, name)
            if gate is not None:
                await gate.refuse(f"container {name} comes after another one that was lost and is restored again first")

    async def refuse(self, message: str) -> None:
        """Refuse everybody who waits."""
        await self.gates.refuse_pod(self.pod_uid, message)
