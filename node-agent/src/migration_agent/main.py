"""The agent's process: wires everything, and stops without touching what is frozen or held."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import ssl
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from migration_agent import host as host_module
from migration_agent.bridge import MemoryLender, PeerBridge
from migration_agent.certificate import ensure_certificate
from migration_agent.checkpoint.post_dump import Answer, PostDumpBroker
from migration_agent.clearing import Clearing
from migration_agent.facts import fills_memory, kernel_features, node_facts, pod_facts, problems
from migration_agent.freeze import Fence, PacketDrop
from migration_agent.freeze_turn import FreezeTurn
from migration_agent.freezer import Freezer
from migration_agent.gate import Gates
from migration_agent.gate_desk import GateDesk
from migration_agent.gate_server import GateServer
from migration_agent.handler_registration import HandlerRegistration
from migration_agent.host import Host
from migration_agent.install import InstallFailure, install
from migration_agent.journal import Journal, SourceRecord, TargetRecord
from migration_agent.kept import Kept
from migration_agent.memory_home import mount_memory_home
from migration_agent.metrics import certificate_ends
from migration_agent.metrics import serve as serve_metrics
from migration_agent.migrations import Migrations
from migration_agent.mounts import Mounts
from migration_agent.pages.relay import PageRelay
from migration_agent.paths import Layout
from migration_agent.peer import PeerServer
from migration_agent.peer_client import PeerClient
from migration_agent.peer_questions import PeerQuestions
from migration_agent.places import Places
from migration_agent.podman_facts import podman_facts
from migration_agent.podman_freezer import PodmanFreezer
from migration_agent.ports import FreezerLike
from migration_agent.processes import Processes
from migration_agent.publisher import Publisher
from migration_agent.registers import Api
from migration_agent.room import RoomFinder
from migration_agent.runtime.containerd import Containerd
from migration_agent.runtime.podman import Podman
from migration_agent.server import ApiServer, Doorkeeper
from migration_agent.settings import Settings, SettingsError
from migration_agent.source import SourceSide, SourceTools
from migration_agent.strays import Strays
from migration_agent.target import TargetSide, TargetTools
from migration_agent.target_podman import PodmanTargetSide
from migration_agent.ticket import Tickets
from migration_agent.transport.bandwidth import Bandwidth
from migration_agent.transport.manifest import PODMANS_ARCHIVE
from migration_agent.trust import Identity, Peer, Trust
from migration_agent.vault import Vault
from migration_api import failpoints
from migration_api.node import NodeFacts
from migration_api.wire import RunBy

log = logging.getLogger(__name__)

_FETCH_SECONDS = 15.0
_THREADS = 64
"""Dumps and transfers each hold a thread for long; a dump waits for its hook, which needs another one."""


class HostClock:
    """Implements `ports.Clock`."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def boottime_ns(self) -> int:
        return host_module.boottime_ns()

    def boot_id(self) -> str:
        return self._host.boot_id()


class NodeSides:
    """Implements `migrations.Sides` with this node's own tools."""

    def __init__(
        self,
        settings: Settings,
        host: Host,
        *,
        api: Api,
        runtime: Containerd,
        journal: Journal,
        vault: Vault,
        tickets: Tickets,
        gates: Gates,
        peers: PeerClient,
        places: Places,
        lazily: bool,
    ) -> None:
        self.runtime = runtime
        self.podman = Podman(host)
        self.processes = Processes(host.process_start, tracer=host.tracer)
        self.clock = HostClock(host)
        self._settings, self._host, self._api = settings, host, api
        self._journal, self._vault, self._tickets = journal, vault, tickets
        self._gates, self._peers, self._places = gates, peers, places
        self.lazily = lazily
        self._turn = FreezeTurn()

    def source(self, record: SourceRecord, *, changed: Callable[[], None], restarted: bool) -> SourceSide:
        by_podman = record.request.run_by is RunBy.PODMAN
        freezer = self._podman_freezer(record) if by_podman else self._freezer(record)
        tools = SourceTools(
            journal=self._journal,
            vault=self._vault,
            registers=self._api,
            peers=self._peers,
            clock=self.clock,
            freezer=freezer,
            node=self._settings.node,
            turn=self._turn,
        )
        return SourceSide(record, tools, changed=changed, restarted=restarted)

    def _freezer(self, record: SourceRecord) -> FreezerLike:
        return Freezer(
            pod_uid=record.request.pod_uid,
            runtime=self.runtime,
            processes=self.processes,
            fence_of=lambda pod_uid: Fence(self._host, pod_uid),
            drop_of=lambda pid: PacketDrop(self._host, pid),
        )

    def _podman_freezer(self, record: SourceRecord) -> FreezerLike:
        request = record.request
        return PodmanFreezer(
            container_id=request.pod_uid,
            podman=self.podman,
            processes=self.processes,
            archive=self._journal.layout.image(request.migration.uid, request.containers[0]) / PODMANS_ARCHIVE,
        )

    def target(self, record: TargetRecord, *, changed: Callable[[], None], restarted: bool) -> TargetSide:
        tools = TargetTools(
            journal=self._journal,
            vault=self._vault,
            tickets=self._tickets,
            registers=self._api,
            peers=self._peers,
            gates=self._gates,
            clock=self.clock,
            processes=self.processes,
            node=self._settings.node,
            store_of=self._places.store_of,
            lazily=self.lazily,
        )
        if record.request.run_by is RunBy.PODMAN:
            return PodmanTargetSide(record, tools, self.podman, changed=changed, restarted=restarted)
        return TargetSide(record, tools, changed=changed, restarted=restarted)


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="blocking"))
    stopped = _stopped(loop)
    host, layout = Host(), Layout()
    await asyncio.to_thread(_make_room, host, layout)
    failpoints.look_in(layout.failpoints)
    install_problem = await asyncio.to_thread(_install, host)

    def certificate() -> str:
        return ensure_certificate(layout.certificate, layout.key, settings.node, settings.address)

    await asyncio.to_thread(certificate)
    api = await Api.in_cluster()

    def fetch() -> tuple[Peer, ...]:
        return asyncio.run_coroutine_threadsafe(api.peers(), loop).result(_FETCH_SECONDS)

    trust = Trust(Identity(layout.certificate, layout.key), layout.peers, fetch)
    broker, gates = PostDumpBroker(), Gates()
    journal, vault, tickets = Journal(layout), Vault(layout), Tickets(layout)
    runtime, room = Containerd(host, broker), RoomFinder(layout, settings.checkpoints_on_disk)
    limit, places = _limit(settings), _places(settings, Mounts(runtime, host.process_start))
    peers = PeerClient(trust, places.store_of, limit=limit)
    sides = NodeSides(
        settings,
        host,
        api=api,
        runtime=runtime,
        journal=journal,
        vault=vault,
        tickets=tickets,
        gates=gates,
        peers=peers,
        places=places,
        lazily=await asyncio.to_thread(fills_memory, host),
    )
    migrations = Migrations(journal, vault, tickets, sides.clock, sides, gates=gates, room=room.look)

    async def post_dump(migration: str, container: str) -> bool:
        return await asyncio.to_thread(broker.arrived, migration, container) is Answer.DONE

    look = await asyncio.to_thread(_look, settings, host, room, migrations, install_problem, post_copy=sides.lazily)

    gate_server = GateServer(
        layout.socket, gates, GateDesk(tickets, migrations.target_of, migrations.expecting), sides.processes, post_dump
    )
    peer_server = PeerServer(
        trust,
        PeerBridge(PeerQuestions(migrations), loop),
        settings.address,
        settings.peer_port,
        store_of=places.store_of,
        limit=limit,
    )
    page_relay = PageRelay(layout.pages_socket, MemoryLender(migrations, peers, loop))
    api_server = ApiServer(
        migrations,
        Doorkeeper(settings.operator_account, api.user_of),
        lambda uid, held_by: pod_facts(sides.runtime, uid, held_by),
        places.probe,
        Kept(places),
        podman=lambda question: podman_facts(sides.podman, question, journal.holder),
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3

    def renewed() -> str:
        pem = certificate()
        context.load_cert_chain(layout.certificate, layout.key)  # counts for the next connections
        certificate_ends(pem)
        return pem

    await migrations.start()
    await gate_server.start()
    for server in (peer_server, page_relay):
        server.start()
    Clearing(vault, places, journal.migrations).start()
    await asyncio.to_thread(renewed)
    await api_server.start(settings.address, settings.api_port, context)
    stop_metrics = serve_metrics(settings.address, settings.metrics_port, migrations.frozen_containers)
    background = (
        asyncio.create_task(Publisher(settings, api, renewed, look).run(), name="publisher"),
        asyncio.create_task(Strays(gates, migrations.target_of, api.pod).run(), name="strays"),
        asyncio.create_task(_housekeeping(migrations, trust, settings.housekeeping_seconds), name="housekeeping"),
    )
    log.info("node %s: the agent serves at %s", settings.node, settings.endpoint(settings.api_port))
    await stopped.wait()
    log.info("the agent stops; what is frozen or held stays so")
    await _cancelled(background)
    await api_server.stop()
    await asyncio.to_thread(stop_metrics)
    for server in (page_relay, peer_server):
        await asyncio.to_thread(server.close)
    await migrations.stop()
    await gate_server.stop()
    await api.close()


def _stopped(loop: asyncio.AbstractEventLoop) -> asyncio.Event:
    """Return what is set when the agent is to end."""
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    return stopped


async def _cancelled(tasks: Iterable[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _places(settings: Settings, mounts: Mounts) -> Places:
    return Places(settings.node, settings.shared_paths, settings.leftover_seconds, mounts)


def _limit(settings: Settings) -> Bandwidth | None:
    return Bandwidth(settings.bytes_per_second) if settings.bytes_per_second else None


def _look(
    settings: Settings,
    host: Host,
    room: RoomFinder,
    migrations: Migrations,
    install_problem: tuple[str, ...],
    *,
    post_copy: bool,
) -> Callable[[], tuple[NodeFacts, tuple[str, ...]]]:
    """Return what looks at the node, in a thread: its facts and problems. The handler is registered on the way."""
    registration = HandlerRegistration(host, room.layout.state) if settings.register_handler else None
    features = kernel_features(host)

    def look() -> tuple[NodeFacts, tuple[str, ...]]:
        unregistered = registration.ensure() if registration and migrations.idle() and not install_problem else None
        facts = node_facts(host, features, room=room.look(), post_copy=post_copy)
        return facts, (*install_problem, *([unregistered] if unregistered else []), *problems(facts, host))

    return look


def _make_room(host: Host, layout: Layout) -> None:
    """Make the directories and the file system in memory, before anything lies there."""
    layout.prepare()
    mount_memory_home(host, layout)


def _install(host: Host) -> tuple[str, ...]:
    """Bring CRIU and the interposer to the host; a failure is reported, it must not keep frozen pods waiting."""
    try:
        install(host)
    except (InstallFailure, OSError) as error:
        log.error("the host's installation failed: %s", error)  # noqa: TRY400  # the message says it all
        return (f"The agent could not install CRIU and the interposer on the node: {error}.",)
    return ()


async def _housekeeping(migrations: Migrations, trust: Trust, seconds: float) -> None:
    """Sweep, and keep the list of agents fresh, so that no frozen container waits for it."""
    while True:
        try:
            await asyncio.to_thread(trust.refresh)
            await migrations.housekeeping()
        except Exception:
            log.exception("housekeeping failed; it is tried again")
        await asyncio.sleep(seconds)


def main() -> None:
    """Run the agent."""
    try:
        settings = Settings.from_environment(os.environ)
    except SettingsError as error:
        sys.exit(str(error))
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
