"""Worker processes by recipient: who gets one, for how long it stays, and which statements have to rest.

A recipient is a destination, or a local user. Each has an event worker and up to `limits.workers` snapshot workers, so
that nobody's statement waits for another recipient's. A worker runs one statement at a time, so it is certain which
one is to blame when the worker has to be killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from zeek_agent.containment import spool
from zeek_agent.containment.channel import close_all
from zeek_agent.containment.cpu_share import CpuShare
from zeek_agent.containment.messages import Exited, Imports, RunStatement, Setup, Spawn
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.worker_process import KillCause, NeedHandler, WorkerProcess, WorkerState
from zeek_agent.containment.zygote import Started, WorkerLostError, Zygote
from zeek_agent.errors import LimitError, SqlError

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from zeek_agent.config import LimitSettings
    from zeek_agent.containment.encoded_result import EncodedResult
    from zeek_agent.containment.messages import CompiledStatement

log = logging.getLogger(__name__)

WORKER_IDLE_SECONDS: Final = 60.0
"""An idle worker ends after that: it costs about 5 MB, and a new one starts in 10 ms."""
ZYGOTE_IDLE_SECONDS: Final = 300.0
"""The zygote ends so long after the last worker: it costs about 17 MB, and a new one takes 150 ms."""
START_SECONDS: Final = 20.0
"""A worker that is not ready by then is killed; the zygote's start is included."""
SECOND_WORKER_SECONDS: Final = 1.0
"""A recipient's second snapshot worker is started once the first has been busy that long."""
SHUTDOWN_SECONDS: Final = 0.5
ABANDONED_MAX: Final = 4
"""Abandoned processes; with so many, no more snapshot workers are started until one is gone."""
REST_SECONDS: Final = 60.0
REST_GROWTH: Final = 4
REST_SECONDS_MAX: Final = 600.0
RESTING_MAX: Final = 10_000
"""Statements that are remembered as the reason for a killed worker."""
RESTART_SECONDS: Final = (1.0, 60.0)
"""Pause after the zygote was lost: the first, and the longest."""

T = TypeVar("T")

_STATEMENTS_FAULT: Final = frozenset({KillCause.TIME, KillCause.MEMORY, KillCause.CRASH, KillCause.PROTOCOL})


@dataclass(slots=True)
class Rest:
    """A statement that killed a worker: it is not run before `until` (monotonic seconds)."""

    until: float
    seconds: float
    cause: KillCause
    shown: str
    """`until` as UTC, the same in each message so that a repeated error is recognized."""


class WorkerStatus(NamedTuple):
    """A row of `zeek_agent_workers`, which describes the columns."""

    recipient: str
    worker_class: str
    pid: int
    state: str
    since: float
    statements: int
    cpu: float
    memory: int


class SpawnSettings(NamedTuple):
    """What a worker is bound to; one that was started with others is retired."""

    store_uri: str | None
    generation: int
    iterators: bool
    imports: Imports


class WorkerPool:
    """Runs statements in worker processes. All methods belong to the event loop's thread.

    `bound` gives the present settings of new workers, `need` answers what workers ask for during a statement, and
    spools are made in `directory`.
    """

    def __init__(
        self,
        setup: Setup,
        limits: LimitSettings,
        bound: Callable[[], SpawnSettings],
        need: NeedHandler,
        directory: Path | None = None,
    ) -> None:
        self._setup = setup
        self._limits = limits
        self._bound = bound
        self._need = need
        self._directory = directory
        self._zygote: Zygote | None = None
        self._workers: dict[int, WorkerProcess] = {}
        self._bound_to: dict[int, SpawnSettings] = {}
        self._starting: Counter[tuple[str, WorkerClass]] = Counter()
        self._collectors: dict[int, Callable[[Exited], None]] = {}
        self._number = 0
        self._changed = asyncio.Condition()
        self._resting: OrderedDict[tuple[str, bytes], Rest] = OrderedDict()
        self._shares: dict[str, CpuShare] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._restart_after = 0.0
        self._restart_pause = RESTART_SECONDS[0]
        self._empty_since: float | None = None
        self._closed = False
        self._ending: asyncio.Task[None] | None = None
        self.killed: Counter[str] = Counter()
        """Workers that were killed or lost, by cause, since the agent started."""
        self.zygote_starts = 0

    async def compile(self, recipient: str, sql: str, profile: str) -> CompiledStatement:
        """Compile a statement. Raises SqlError."""
        seconds = self._limits.time
        return await self._work(
            recipient, WorkerClass.SNAPSHOTS, sql, lambda worker: worker.compile(sql, profile, seconds)
        )

    async def run(self, recipient: str, kind: WorkerClass, statement: RunStatement) -> EncodedResult:
        """Run a statement: returns once it has ended well, while frames may still be written. Raises SqlError."""

        async def run(worker: WorkerProcess) -> EncodedResult:
            files: list[int] = []
            try:
                files.append(spool.create(self._directory))
                if statement.comparison is not None:
                    files.append(spool.create(self._directory))
            except OSError as error:
                close_all(files)
                worker.release()
                raise SqlError(f"there is no room for a result: {error.strerror}") from error
            return await worker.run(statement, files, self._limits.time)

        return await self._work(recipient, kind, statement.sql, run)

    async def start_collector(self, on_exit: Callable[[Exited], None]) -> Started:
        """Start a process of the collector's class, which runs no statements and which the caller ends.

        `on_exit` is called at its end, unless the zygote ends first. Raises SqlError.
        """
        if (pause := self._restart_after - time.monotonic()) > 0:
            raise SqlError(f"worker processes cannot be started; next attempt in {pause:.0f} s")
        number = self._next_number()
        self._collectors[number] = on_exit
        try:
            async with asyncio.timeout(START_SECONDS):
                zygote = self._running_zygote()
                return await zygote.start(Spawn(number, WorkerClass.COLLECTOR, None, 0, False, Imports()))
        except (WorkerLostError, TimeoutError) as error:
            self._collectors.pop(number, None)
            reason = str(error) or f"the zygote does not answer within {START_SECONDS:g} s"
            raise SqlError(f"cannot start a worker process: {reason}") from error

    def status(self) -> Iterable[WorkerStatus]:
        """One per process."""
        return [
            WorkerStatus(
                worker.recipient,
                worker.kind.value,
                worker.pid,
                worker.state.value,
                worker.since,
                worker.statements,
                worker.cpu,
                worker.peak,
            )
            for worker in self._workers.values()
        ]

    @property
    def zygote_pid(self) -> int | None:
        return None if self._zygote is None else self._zygote.pid

    @property
    def processes(self) -> Iterable[WorkerProcess]:
        """The workers that exist now."""
        return tuple(self._workers.values())

    async def close(self) -> None:
        """Kill all workers and end the zygote; what waits in the kernel is left behind."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
        for worker in self.processes:
            worker.kill(KillCause.CLOSED)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while time.monotonic() < deadline and any(worker.is_alive for worker in self._workers.values()):
            await asyncio.sleep(0.005)
        if self._zygote is not None:
            self._zygote.close()
            await self._zygote.wait(SHUTDOWN_SECONDS)
        if self._ending is not None:
            await self._ending
        for worker in self.processes:
            if worker.is_alive:
                log.warning("worker %d is left behind: it was killed and does not end", worker.pid)

    # A statement

    async def _work(
        self, recipient: str, kind: WorkerClass, sql: str, work: Callable[[WorkerProcess], Awaitable[T]]
    ) -> T:
        key = (recipient, hashlib.sha256(sql.encode(errors="surrogatepass")).digest())
        self._refuse_resting(key)
        if (seconds := self._share_of(recipient).wait_seconds) > 0:
            await asyncio.sleep(seconds)
        worker = await self._acquire(recipient, kind)
        try:
            result = await work(worker)
        except SqlError:
            if worker.cause in _STATEMENTS_FAULT and self._zygote is not None and self._zygote.is_running():
                self._let_rest(key, worker.cause)
            raise
        self._resting.pop(key, None)
        return result

    def _share_of(self, recipient: str) -> CpuShare:
        share = self._shares.get(recipient)
        if share is None:
            share = self._shares[recipient] = CpuShare(self._limits.cpu)
        return share

    def _charge(self, worker: WorkerProcess) -> None:
        """Count the processor time that the worker has used since this was last called."""
        if (seconds := worker.take_uncharged_cpu()) > 0:
            self._share_of(worker.recipient).use(seconds)

    def _refuse_resting(self, key: tuple[str, bytes]) -> None:
        rest = self._resting.get(key)
        left = 0.0 if rest is None else rest.until - time.monotonic()
        if rest is not None and left > 0:
            raise LimitError(f"not run before {rest.shown}: its last run ended its worker process ({rest.cause})")

    def _let_rest(self, key: tuple[str, bytes], cause: KillCause) -> None:
        before = self._resting.pop(key, None)
        seconds = REST_SECONDS if before is None else min(before.seconds * REST_GROWTH, REST_SECONDS_MAX)
        shown = datetime.fromtimestamp(time.time() + seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self._resting[key] = Rest(time.monotonic() + seconds, seconds, cause, shown)
        if len(self._resting) > RESTING_MAX:
            self._resting.popitem(last=False)

    # Workers

    async def _acquire(self, recipient: str, kind: WorkerClass) -> WorkerProcess:
        """A worker for one statement: an idle one, or a new one, or the next that is free."""
        while True:
            if self._closed:
                raise SqlError("the database is closed")
            worker = self._idle(recipient, kind)
            if worker is not None:
                worker.take()
                return worker
            if self._may_start(recipient, kind):
                return await self._start(recipient, kind)
            async with self._changed:
                try:
                    async with asyncio.timeout(SECOND_WORKER_SECONDS):
                        await self._changed.wait()
                except TimeoutError:
                    continue

    def _idle(self, recipient: str, kind: WorkerClass) -> WorkerProcess | None:
        bound = self._bound()
        for worker in self._of(recipient, kind):
            if worker.state is WorkerState.IDLE:
                if self._bound_to[worker.number] == bound and not worker.is_spent:
                    return worker
                self._retire(worker)
        return None

    def _of(self, recipient: str, kind: WorkerClass) -> list[WorkerProcess]:
        """The recipient's workers of this class, except dead and abandoned ones."""
        return [
            worker
            for worker in self.processes
            if worker.recipient == recipient and worker.kind is kind and worker.counts
        ]

    def _may_start(self, recipient: str, kind: WorkerClass) -> bool:
        """Whether the recipient may have one more; another recipient's idle worker ends for it if need be."""
        own = self._of(recipient, kind)
        number = len(own) + self._starting[recipient, kind]
        most = self._limits.workers if kind is WorkerClass.SNAPSHOTS else 1
        if number >= most:
            return False
        if number and (
            self._starting[recipient, kind]
            or time.monotonic() - max(worker.busy_since for worker in own) < SECOND_WORKER_SECONDS
        ):
            return False
        if self._alive() + self._starting.total() < self._limits.processes:
            return True
        idle = [worker for worker in self.processes if worker.state is WorkerState.IDLE and worker.counts]
        if idle and not any(worker.is_ending for worker in self.processes):
            self._retire(min(idle, key=lambda worker: worker.idle_since))
        return False

    def _alive(self) -> int:
        """Processes that take a place, those included that are about to end."""
        return sum(worker.is_alive and worker.state is not WorkerState.ABANDONED for worker in self.processes)

    async def _start(self, recipient: str, kind: WorkerClass) -> WorkerProcess:
        abandoned = sum(worker.state is WorkerState.ABANDONED for worker in self.processes)
        if abandoned >= ABANDONED_MAX and kind is WorkerClass.SNAPSHOTS:
            raise SqlError(f"not run: {abandoned} processes wait in the kernel, for file systems that do not answer")
        if (pause := self._restart_after - time.monotonic()) > 0:
            raise SqlError(f"not run: worker processes cannot be started; next attempt in {pause:.0f} s")
        self._starting[recipient, kind] += 1
        try:
            async with asyncio.timeout(START_SECONDS):
                worker = await self._spawn(recipient, kind)
                await worker.ready()
        except (WorkerLostError, TimeoutError) as error:
            reason = str(error) or f"not ready after {START_SECONDS:g} s"
            raise SqlError(f"cannot start a worker process: {reason}") from error
        finally:
            self._starting[recipient, kind] -= 1
            await self._notify()
        worker.take()
        self._restart_pause = RESTART_SECONDS[0]
        return worker

    async def _spawn(self, recipient: str, kind: WorkerClass) -> WorkerProcess:
        zygote = self._running_zygote()
        bound = self._bound()
        spawn = Spawn(self._next_number(), kind, bound.store_uri, bound.generation, bound.iterators, bound.imports)
        started = await zygote.start(spawn)
        worker = WorkerProcess(spawn, recipient, started, self._need, self._freed)
        self._workers[worker.number], self._bound_to[worker.number] = worker, bound
        self._schedule_expiry()
        return worker

    def _running_zygote(self) -> Zygote:
        """Raises WorkerLostError."""
        if self._zygote is None:
            self._zygote = Zygote(self._setup, self._exited, self._zygote_lost)
            self.zygote_starts += 1
        return self._zygote

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _retire(self, worker: WorkerProcess) -> None:
        worker.retire()

    def _freed(self, worker: WorkerProcess) -> None:
        """A worker has ended its statement, or itself."""
        self._charge(worker)
        if worker.state is WorkerState.DEAD:
            del self._workers[worker.number], self._bound_to[worker.number]
            if worker.cause not in (None, KillCause.CLOSED, KillCause.CANCELLED):
                self.killed[worker.cause.value] += 1
                log.warning("worker %d of %s ended: %s", worker.pid, worker.recipient, worker.cause)
        elif worker.is_spent and worker.state is WorkerState.IDLE:
            self._retire(worker)
        if not self._closed:
            asyncio.get_running_loop().create_task(self._notify())

    async def _notify(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _exited(self, exited: Exited) -> None:
        if (on_exit := self._collectors.pop(exited.worker, None)) is not None:
            on_exit(exited)
        worker = self._workers.get(exited.worker)
        if worker is not None:
            worker.cpu, worker.peak = exited.cpu, exited.peak
            self._charge(worker)

    def _zygote_lost(self) -> None:
        """Workers die with the zygote; a new one is started after a pause."""
        if self._closed:
            return
        log.error("the zygote of worker processes has ended; the next is started in %g s", self._restart_pause)
        zygote, self._zygote = self._zygote, None
        self._collectors.clear()
        if zygote is not None:
            self._ending = asyncio.get_running_loop().create_task(zygote.wait(START_SECONDS))
        self._restart_after = time.monotonic() + self._restart_pause
        self._restart_pause = min(self._restart_pause * 2, RESTART_SECONDS[1])

    # Expiry

    def _schedule_expiry(self) -> None:
        if self._expiry is None and not self._closed:
            self._expiry = asyncio.get_running_loop().call_later(WORKER_IDLE_SECONDS / 4, self._expire)

    def _expire(self) -> None:
        """End workers that have been idle for long, and the zygote when there are none."""
        self._expiry = None
        now = time.monotonic()
        for worker in self.processes:
            if worker.state is WorkerState.IDLE and now - worker.idle_since > WORKER_IDLE_SECONDS:
                self._retire(worker)
        self._shares = {recipient: share for recipient, share in self._shares.items() if not share.is_full}
        if self._workers or self._starting.total() or self._collectors:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = now
        elif now - self._empty_since > ZYGOTE_IDLE_SECONDS and self._zygote is not None:
            zygote, self._zygote = self._zygote, None
            zygote.close()
            self._empty_since = None
            self._ending = asyncio.get_running_loop().create_task(zygote.wait(START_SECONDS))
            return
        self._schedule_expiry()
