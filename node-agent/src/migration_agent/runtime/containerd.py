"""containerd with runc: containers found by their bundles, handled by the very runc that the shim uses."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

from pydantic import BaseModel, TypeAdapter, ValidationError

from migration_agent.checkpoint import criu, description, memory, rootfs, volumes
from migration_agent.checkpoint.copier import MemoryCopier
from migration_agent.checkpoint.post_dump import Expectation, PostDumpBroker
from migration_agent.connections import connections
from migration_agent.host import CommandFailed, Completed, Host, wait_for_exit
from migration_agent.paths import ONLY_LOOPBACK
from migration_agent.processes import Processes, ProcessRef
from migration_agent.runtime.bundle import Bundle, pod_bundles, read_bundle
from migration_agent.runtime.cgroup import is_frozen
from migration_agent.runtime.interface import Container, ContainerStatus, Dump, RuntimeFailure, Shared
from migration_agent.runtime.memory import process_bytes
from migration_api.wire import Connections

log = logging.getLogger(__name__)

_COMMAND_SECONDS = 30
_DUMP_SECONDS = 3600
"""Only against a CRIU that hangs for ever: killing it in the middle would leave its code in the container's tasks."""
_EXIT_SECONDS = 30
_KILL_ROUNDS = 20
_PAUSE_ATTEMPTS = 5
_NOT_FROZEN = "unable to freeze"
_UNKNOWN_CONTAINER = "does not exist"
_SYSTEM_V = re.compile(r" /SYSV[0-9a-f]{8} \(deleted\)$")
"""How the kernel names a mapping of System V shared memory."""

_STATUS = {
    "created": ContainerStatus.RUNNING,
    "running": ContainerStatus.RUNNING,
    "paused": ContainerStatus.PAUSED,
    "stopped": ContainerStatus.STOPPED,
}


class _State(BaseModel):
    """What `runc state` prints."""

    status: str
    pid: int = 0


_PIDS = TypeAdapter(list[int] | None)


class Containerd:
    """Implements `Runtime` for containerd's k8s.io namespace."""

    name = "containerd"

    def __init__(self, host: Host, broker: PostDumpBroker) -> None:
        self._host = host
        self._broker = broker
        self._processes = Processes(host.process_start)

    def containers(self, pod_uid: str) -> tuple[Container, ...]:
        """Return the pod's containers that have not ended; of a restarted one the newest. See `Runtime`."""
        newest = {bundle.name: bundle for bundle in pod_bundles(self._host, pod_uid) if not bundle.is_sandbox}
        found = (self._container(bundle) for bundle in newest.values())
        return tuple(container for container in found if container)

    def network_pid(self, pod_uid: str) -> int | None:
        """Return the pid of the pod's newest sandbox; None when it has none that lives. See `Runtime`."""
        for bundle in reversed(pod_bundles(self._host, pod_uid)):
            if bundle.is_sandbox:
                status, pid = self._state(bundle)
                return pid if status is not ContainerStatus.STOPPED else None
        return None

    def status(self, container: Container) -> ContainerStatus:
        """Look at its cgroup, as runc does, and ask runc itself when it is not frozen. See `Runtime`."""
        if self._processes.alive(container.init) and is_frozen(self._host, container.init_pid):
            return ContainerStatus.PAUSED
        bundle = read_bundle(self._host, container.container_id)
        return self._state(bundle)[0] if bundle else ContainerStatus.STOPPED

    def pause(self, container: Container) -> None:
        """Freeze the container with `runc pause`. See `Runtime`.

        The freezer of cgroup v1 may miss a task that is being forked, again and again when processors are busy; runc
        then gives up and lets all go on. It is tried again, as the kernel's documentation asks for.
        """
        for _ in range(_PAUSE_ATTEMPTS - 1):
            try:
                self._pause(container)
            except RuntimeFailure as error:
                if _NOT_FROZEN not in str(error):
                    raise
                log.warning("container %s: %s; it is tried again", container.container_id, error)
            else:
                return
        self._pause(container)

    def _pause(self, container: Container) -> None:
        try:
            self._runc(self._bundle(container), "pause", container.container_id)
        except RuntimeFailure:  # looked at only now: the freeze waits for it
            status = self.status(container)
            if status is ContainerStatus.STOPPED:
                raise RuntimeFailure(
                    f"container {container.name} ({container.container_id}) cannot be paused: it has ended"
                ) from None
            if status is not ContainerStatus.PAUSED:
                raise

    def resume(self, container: Container) -> None:
        """Thaw the container with `runc resume`. See `Runtime`."""
        if self.status(container) is not ContainerStatus.PAUSED:
            return
        try:
            self._runc(self._bundle(container), "resume", container.container_id)
        except RuntimeFailure:
            if self.status(container) is ContainerStatus.PAUSED:
                raise

    def prepare(self, dump: Dump) -> None:
        """Write what describes the container, and what CRIU is told. See `Runtime`."""
        bundle = self._bundle(dump.container)
        self._demand_dumpable(dump.container, bundle)
        try:
            shutil.rmtree(dump.directory, ignore_errors=True)
            criu.prepare(self._host, dump)
            description.describe(self._host, bundle, dump.directory)
        except (OSError, ValueError) as error:
            raise RuntimeFailure(f"the checkpoint's directory could not be prepared: {error}") from error

    def dump(self, dump: Dump, *, file_locks: bool, while_frozen: Callable[[], None] | None = None) -> None:
        """Checkpoint the paused container with `runc checkpoint`. See `Runtime`."""
        bundle = self._bundle(dump.container)

        def work() -> None:
            rootfs.copy_changes(self._host, bundle.path / "rootfs", dump.directory / "rootfs-diff.tar")
            if while_frozen is not None:
                while_frozen()

        with ThreadPoolExecutor(1) as beside:
            # Whoever stands still makes no processes: they are found while CRIU is at work.
            processes = beside.submit(self._by_inner_pid, dump.container) if dump.memory_stays else None
            with self._broker.expect(dump.migration, dump.container.name, work) as expectation:
                self._checkpoint(dump, bundle, expectation, file_locks=file_locks)
        if processes is not None:
            _note_memory(dump, processes.result())
        with suppress(OSError):  # nobody needs them to go on
            description.keep_statistics(criu.work(dump), dump.directory)

    def copier(self, dump: Dump) -> MemoryCopier:
        """Start a process that copies. See `Runtime`."""
        return MemoryCopier(self._host, dump, lambda: self._by_inner_pid(dump.container))

    def _by_inner_pid(self, container: Container) -> dict[int, ProcessRef]:
        """Return a container's processes as they are now, by the pids that images count."""
        init = container.init
        found: dict[int, ProcessRef] = {}
        for pid in self._pids(self._bundle(container), init):
            inside, start = self._host.pid_in_namespace_of(init.pid, pid), self._host.process_start(pid)
            if inside is not None and start is not None:
                found[inside] = ProcessRef(pid=pid, start=start)
        return found

    def attaches_memory(self, container: Container) -> bool:
        """Look at the mappings of all its processes. See `Runtime`."""
        return any(self._attaches(pid) for pid in self._pids(self._bundle(container), container.init))

    def _attaches(self, pid: int) -> bool:
        try:
            maps = self._host.path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return False
        return any(_SYSTEM_V.search(line) for line in maps.splitlines())

    def shared(self, pod_uid: str) -> Shared:
        """Look at the newest sandbox: a container may have mounted a volume over its /dev/shm. See `Runtime`."""
        sandboxes = [bundle for bundle in pod_bundles(self._host, pod_uid) if bundle.is_sandbox]
        memory = sandboxes[-1].shared_memory or None if sandboxes else None
        return Shared(pod_uid, memory, self.network_pid(pod_uid))

    def copy_shared(self, shared: Shared, directory: Path) -> Connections:
        """Write the pod's emptyDir volumes and its sandbox's /dev/shm, and what its network is like. See `Runtime`."""
        found = self.connections(shared)
        try:
            volumes.copy_shared(self._host, shared.pod_uid, shared.shared_memory, directory)
            if found.stay:
                (directory / ONLY_LOOPBACK).touch(mode=0o600)
        except (rootfs.RootfsFailure, OSError) as error:
            raise RuntimeFailure(str(error)) from error
        return found

    def connections(self, shared: Shared) -> Connections:
        """Count those in the sandbox's network namespace. See `Runtime`."""
        if shared.network_pid is None:
            return Connections()
        try:
            return connections(self._host.path(f"/proc/{shared.network_pid}"))
        except OSError as error:
            raise RuntimeFailure(f"the connections of pod {shared.pod_uid} could not be read: {error}") from error

    def shared_bytes(self, shared: Shared) -> int:
        """Return about how much `copy_shared` would write. See `Runtime`."""
        return volumes.shared_bytes(self._host, shared.pod_uid, shared.shared_memory)

    def kill_frozen(self, container: Container) -> None:
        """Kill with the signal pending before the thaw: no task returns to its program. See `Runtime`.

        A container that is dead already is thawed all the same: containerd cannot delete what runc calls paused.
        """
        if self.status(container) is ContainerStatus.STOPPED:
            return
        bundle = self._bundle(container)
        self.pause(container)
        with ExitStack() as opened:
            pidfds = self._signal_all(container, bundle, opened)
            # With cgroup v2 the tasks are dead already; with v1 they die before they return from the freezer.
            self.resume(container)
            if not wait_for_exit(pidfds, _EXIT_SECONDS):
                raise RuntimeFailure(
                    f"container {container.name} ({container.container_id}) was killed but some of its tasks still "
                    f"live after {_EXIT_SECONDS} s; look for tasks in state D on the node"
                )

    def _container(self, bundle: Bundle) -> Container | None:
        status, pid = self._state(bundle)
        start = self._host.process_start(pid)
        if status is ContainerStatus.STOPPED or start is None:
            return None
        init = ProcessRef(pid=pid, start=start)
        return Container(
            name=bundle.name,
            container_id=bundle.container_id,
            pod_uid=bundle.pod_uid,
            init_pid=pid,
            init_start=start,
            bundle=bundle.path,
            memory_bytes=sum(process_bytes(self._host, task) for task in self._pids(bundle, init)),
            runtime=Path(bundle.runtime).name,
        )

    def _checkpoint(self, dump: Dump, bundle: Bundle, expectation: Expectation, *, file_locks: bool) -> None:
        container_id = dump.container.container_id
        options = [
            *("--image-path", str(criu.images(dump)), "--work-path", str(criu.work(dump))),
            *("--leave-running", "--tcp-established", "--tcp-skip-in-flight", "--link-remap"),
            *(["--file-locks"] if file_locks else []),
            *("--manage-cgroups-mode", "ignore"),
            *(["--lazy-pages", "--page-server", f"127.0.0.1:{criu.PAGE_SERVER_PORT}"] if dump.memory_stays else []),
        ]
        # A restored container's annotation names the same file: given twice, the hook would run twice.
        env = {} if bundle.criu_config else {"CRIU_CONFIG_FILE": criu.configuration_path(container_id)}
        try:
            within = criu.WITHOUT_MEMORY if dump.memory_stays else ()
            self._runc(bundle, "checkpoint", *options, container_id, env=env, timeout=_DUMP_SECONDS, within=within)
        except RuntimeFailure as error:
            self._freeze_again(dump.container)
            raise RuntimeFailure(_dump_failure(dump, expectation, error)) from (expectation.failure or error)
        if not expectation.arrived:
            raise RuntimeFailure(f"the dump of container {dump.container.name} did not run its hook {criu.HOOK}")

    def _freeze_again(self, container: Container) -> None:
        """Keep the promise that a container whose dump failed is paused; a container that has ended stays ended."""
        with suppress(RuntimeFailure):
            self.pause(container)

    def _signal_all(self, container: Container, bundle: Bundle, opened: ExitStack) -> list[int]:
        """Send SIGKILL to every task of a paused container and return their pidfds, closed with `opened`."""
        pidfds: dict[int, int] = {}
        init = container.init
        for _ in range(_KILL_ROUNDS):
            new = self._pids(bundle, init) - pidfds.keys()
            if not new:
                break
            candidates = {pid: pidfd for pid in new if (pidfd := _open_pidfd(pid, opened)) is not None}
            # A pid listed before and after the pidfd was opened is the container's: it was not given away meanwhile.
            confirmed = self._pids(bundle, init)
            for pid, pidfd in candidates.items():
                if pid in confirmed:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    pidfds[pid] = pidfd
        else:
            raise RuntimeFailure(
                f"container {bundle.name} ({bundle.container_id}) makes new tasks although it is paused"
            )
        if init.pid not in pidfds and self._processes.alive(init):
            # Whoever is not found is not killed, and would run after the thaw beside the moved copy.
            raise RuntimeFailure(
                f"the first process {init.pid} of container {bundle.name} ({bundle.container_id}) is not among the "
                "tasks that were found; the container stays frozen"
            )
        return list(pidfds.values())

    def _pids(self, bundle: Bundle, init: ProcessRef) -> set[int]:
        """Return the pids of all the container's processes; none when runc does not know it any more.

        runc's list alone is not enough: with cgroup v1 it comes from the `devices` hierarchy, where systemd moves the
        tasks of the first pod of a QoS class out of the container's group (seen with systemd 257). So the members of
        the container's own PID namespace count as well.
        """
        try:
            output = self._runc(bundle, "ps", "--format", "json", bundle.container_id).stdout
            members = self._host.pid_namespace_members(init.pid)
            if not self._processes.alive(init):
                members = set[int]()  # checked afterwards: its pid may be another container's by now
            return set(_PIDS.validate_json(output) or ()) | members
        except RuntimeFailure as error:
            if _UNKNOWN_CONTAINER in str(error):
                return set()
            raise
        except ValidationError as error:
            raise RuntimeFailure(f"`runc ps` of {bundle.container_id} was not understood: {error}") from error

    def _state(self, bundle: Bundle) -> tuple[ContainerStatus, int]:
        """Return the status and the pid of the container's first process."""
        try:
            state = _State.model_validate_json(self._runc(bundle, "state", bundle.container_id).stdout)
            return _STATUS[state.status], state.pid
        except RuntimeFailure as error:
            if _UNKNOWN_CONTAINER in str(error):
                return ContainerStatus.STOPPED, 0
            raise
        except (ValidationError, KeyError) as error:
            raise RuntimeFailure(f"`runc state` of {bundle.container_id} was not understood: {error}") from error

    def _bundle(self, container: Container) -> Bundle:
        bundle = read_bundle(self._host, container.container_id)
        if bundle is None or bundle.pod_uid != container.pod_uid:
            raise RuntimeFailure(f"container {container.name} ({container.container_id}) is not on this node any more")
        return bundle

    @staticmethod
    def _demand_dumpable(container: Container, bundle: Bundle) -> None:
        if Path(bundle.runtime).name != "runc":
            raise RuntimeFailure(f"container {container.name} was started with {bundle.runtime}: only runc can migrate")
        expected = criu.configuration_path(container.container_id)
        if bundle.criu_config not in ("", expected):
            raise RuntimeFailure(
                f"container {container.name} has the annotation org.criu.config={bundle.criu_config!r}, which would "
                "take the place of the migration's own CRIU configuration: remove it from the pod"
            )

    def _runc(
        self,
        bundle: Bundle,
        *arguments: str,
        env: dict[str, str] | None = None,
        timeout: float = _COMMAND_SECONDS,
        within: Sequence[str] = (),
    ) -> Completed:
        argv = [*within, bundle.runtime, *bundle.runtime_arguments, *arguments]
        try:
            return self._host.run_on_host(argv, timeout=timeout, env=env)
        except CommandFailed as error:
            raise RuntimeFailure(str(error)) from error


def _open_pidfd(pid: int, opened: ExitStack) -> int | None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    opened.callback(os.close, pidfd)
    return pidfd


def _note_memory(dump: Dump, processes: Mapping[int, ProcessRef]) -> None:
    try:
        memory.note(dump.directory, processes)
    except OSError as error:
        raise RuntimeFailure(f"where the memory is cannot be written down: {error}") from error


def _dump_failure(dump: Dump, expectation: Expectation, error: RuntimeFailure) -> str:
    """Say why a dump failed: what our own work in it said, or CRIU's last errors, or else what runc wrote."""
    why = str(expectation.failure) if expectation.failure else criu.log_errors(criu.work(dump) / "dump.log")
    return f"the checkpoint of container {dump.container.name} failed: {why or error}"
