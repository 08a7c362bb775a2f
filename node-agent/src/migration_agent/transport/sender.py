"""The sending end of one connection: reads, packs, seals and ships chunks in a few threads, the manifest last."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

import zstandard

from migration_agent.metrics import SENT
from migration_agent.ports import GaveUp, Sending
from migration_agent.transport.bandwidth import Bandwidth, throttle
from migration_agent.transport.chunks import CHUNK_BYTES, Seal, Sealer, blob_name
from migration_agent.transport.compression import Payoff
from migration_agent.transport.frames import Answer, Frame, FrameError, read_frame, write_frame
from migration_agent.transport.manifest import MANIFEST_NAME, sealed_manifest
from migration_agent.transport.outgoing import Job, Outgoing, read_job
from migration_agent.transport.receiver import readable
from migration_agent.transport.store import Store, StoreFailure
from migration_api.failpoints import Failpoint, reach_in_thread

_KEEP_ALIVE_SECONDS = 5.0
_LOOK_SECONDS = 0.02
_WAIT_SECONDS = 0.2
_STORE_PAUSE_SECONDS = 0.5
_ZSTD_LEVEL = 1


class Lane(Protocol):
    """Carries sealed chunks; for one thread."""

    def ship(self, name: str, blob: memoryview) -> None: ...

    def finish(self) -> None:
        """Nothing follows."""
        ...

    def abort(self) -> None:
        """End a `ship` that hangs; called in another thread."""
        ...


@dataclass(frozen=True)
class StreamLane:
    """A data connection: chunks one after another, then its end."""

    connection: socket.socket

    def ship(self, name: str, blob: memoryview) -> None:  # noqa: ARG002  # the blob itself says what it is
        self.connection.sendall(blob)

    def finish(self) -> None:
        self.connection.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)


@dataclass
class StoreLane:
    """A store: each chunk a blob, told to the target when it is there. A store that is away is tried again."""

    store: Store
    sending: Sending
    tell: Callable[[str], None]
    _aborted: bool = False

    def ship(self, name: str, blob: bytes | memoryview) -> None:
        """Put a blob; while the store is away try again for as long as the attempt goes on."""
        while True:
            try:
                self.store.put(name, blob)
                break
            except StoreFailure as error:
                if not error.passing:
                    raise
                self.sending.progress.trouble = str(error)
                if self.sending.stop.wait(_STORE_PAUSE_SECONDS) or self._aborted:
                    raise GaveUp from error
        self.sending.progress.trouble = ""
        self.tell(name)

    def finish(self) -> None:
        """Every blob was told already."""

    def abort(self) -> None:
        self._aborted = True


@dataclass
class Sender:
    """One attempt; what the target has already is not sent again."""

    control: socket.socket
    sending: Sending
    answer: Answer
    lanes: Callable[[Callable[[str], None]], list[Lane]]
    """Makes the lanes, given how to tell the target of a blob."""
    store: Store | None = None
    """Where the manifest goes too, so that what lies there is whole without us."""
    limits: Sequence[Bandwidth] = ()
    """What is sent is under all of them: the migration's own, and the node's."""
    _jobs: queue.Queue[Job | None] = field(default_factory=lambda: queue.Queue[Job | None](16))
    _outbox: queue.SimpleQueue[Frame] = field(default_factory=queue.SimpleQueue[Frame])
    _failure: BaseException | None = None
    _spoke: float = 0.0

    def run(self) -> Answer:
        """Send all of it and return the target's last answer, or the one with which it broke off.

        Raises:
            FormatError: what lies here is no checkpoint.
            FrameError: the connection broke; what the target has it keeps.
            StoreFailure: the store refuses a blob.
            GaveUp: the migration was given up.
            OSError: a file cannot be read, or the connection broke.
        """
        progress = self.sending.progress
        progress.begin()
        self._seal = Seal(self.sending.shipping.key_bytes, self.sending.migration)
        outgoing = Outgoing(
            self.sending.directory,
            self.sending.complete.is_set,
            self.answer.have,
            announce=lambda path: self._outbox.put(Frame(entry=path)),
        )
        self._outgoing = outgoing
        with self._working(self.lanes(lambda name: self._outbox.put(Frame(blob=name)))) as finish:
            self.sending.connected()
            while not outgoing.exhausted:
                for job in outgoing.jobs():
                    progress.expected = max(progress.expected, outgoing.size)
                    if not self._give(job):
                        return read_frame(self.control, Answer)
                if not outgoing.exhausted:
                    if not self._look(0):
                        return read_frame(self.control, Answer)
                    self.sending.complete.wait(_LOOK_SECONDS)
            progress.expected = outgoing.size
            if not finish():
                return read_frame(self.control, Answer)
        blob = sealed_manifest(self._seal, outgoing.manifest(self.sending.migration))
        if self.store is not None:
            StoreLane(self.store, self.sending, lambda _: None).ship(MANIFEST_NAME, blob)
        self._flush()
        self._say(Frame(expected=outgoing.size, manifest=len(blob)))
        self.control.sendall(blob)
        while self._look(_WAIT_SECONDS):
            pass
        return read_frame(self.control, Answer)

    def _say(self, frame: Frame) -> None:
        write_frame(self.control, frame)
        self._spoke = time.monotonic()

    def _flush(self) -> None:
        while not self._outbox.empty():
            self._say(self._outbox.get())

    def _look(self, seconds: float) -> bool:
        """Keep the connection alive for a moment; False when the target has something to say: then it is over."""
        if self.sending.stop.is_set():
            raise GaveUp
        if self._failure is not None:
            # The target may have said why it closed a stream.
            if readable(self.control, _WAIT_SECONDS):
                return False
            raise self._failure
        self._flush()
        if time.monotonic() - self._spoke > _KEEP_ALIVE_SECONDS:
            self._say(Frame(expected=self.sending.progress.expected))
        return not readable(self.control, seconds)

    def _give(self, job: Job | None) -> bool:
        """Hand a job to a worker; False when the target has something to say."""
        while True:
            try:
                self._jobs.put(job, timeout=_WAIT_SECONDS)
            except queue.Full:
                if not self._look(0):
                    return False
            else:
                return self._outbox.empty() or self._look(0)

    @contextmanager
    def _working(self, lanes: list[Lane]) -> Generator[Callable[[], bool]]:
        """Let a thread work for each lane; the yielded function waits for the end of all jobs."""
        threads = [threading.Thread(target=self._work, args=(lane,), name="send", daemon=True) for lane in lanes]
        for thread in threads:
            thread.start()

        try:
            yield lambda: self._finish(threads)
        finally:
            if any(thread.is_alive() for thread in threads):
                self._failure = self._failure or FrameError("the attempt is over")
                self._empty(len(threads))
                for lane in lanes:
                    lane.abort()
                for thread in threads:
                    thread.join()

    def _finish(self, threads: list[threading.Thread]) -> bool:
        """Wait for the end of all jobs; False when the target has something to say."""
        if not all(self._give(None) for _ in threads):
            return False
        while working := [thread for thread in threads if thread.is_alive()]:
            if not self._look(0):
                return False
            working[0].join(_LOOK_SECONDS)
        return self._look(0)

    def _empty(self, workers: int) -> None:
        """Replace what is queued by the word for each worker that nothing follows."""
        with self._jobs.mutex:
            self._jobs.queue.clear()
            self._jobs.queue.extend([None] * workers)
            self._jobs.not_empty.notify_all()

    def _over(self, seconds: float) -> bool:
        """Wait; True when the attempt is over."""
        return self.sending.stop.wait(seconds) or self._failure is not None

    def _work(self, lane: Lane) -> None:
        buffer = memoryview(bytearray(CHUNK_BYTES))
        sealer, payoff = Sealer(self._seal), Payoff(self.sending.shipping.compression)
        zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL)
        try:
            while (job := self._jobs.get()) is not None and self._failure is None:
                plain = read_job(job, buffer)
                if job.held is not None and self._seal.digest(job.held.nonce, plain) == job.held.digest:
                    self._outgoing.done(job, job.held)
                    self.sending.progress.count(job.length, resumed=True)
                    continue
                packed = _packed(zstd, payoff, plain)
                record, blob = sealer.sealed(job.path, job.index, plain, packed)
                began = time.perf_counter()
                throttle(self.limits, len(blob), self._over)
                reach_in_thread(Failpoint.SOURCE_CHUNK)
                lane.ship(blob_name(job.path, job.index), blob)
                payoff.carried(len(blob), time.perf_counter() - began)
                self._outgoing.done(job, record)
                self.sending.progress.count(job.length, resumed=False)
                SENT.inc(job.length)
            if self._failure is None:
                lane.finish()
        except BaseException as error:  # noqa: BLE001  # whatever it is, `run` must end with it
            self._failure = self._failure or error


def _packed(zstd: zstandard.ZstdCompressor, payoff: Payoff, plain: memoryview) -> bytes | None:
    if not payoff.decide():
        return None
    began = time.perf_counter()
    packed = zstd.compress(plain)
    payoff.compressed(len(plain), len(packed), time.perf_counter() - began)
    return packed
