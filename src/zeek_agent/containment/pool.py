"""Worker processes by recipient: who gets one, and for how long it stays.

A recipient is a destination, or a local user. Each has an event worker and up to `limits.workers` snapshot workers, so
that nobody's statement waits for another recipient's. A worker runs one statement at a time, so it is certain which
one is to blame when the worker has to be killed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias, TypeVar

from zeek_agent.containment import spool
from zeek_agent.containment.channel import close_all
from zeek_agent.containment.cpu_share import CpuShare
from zeek_agent.containment.helper_pool import Grant, HelperPool
from zeek_agent.containment.messages import Exited, Imports, RunStatement, Setup, Spawn
from zeek_agent.containment.protections import WorkerClass
from zeek_agent.containment.rests import RestingStatements
from zeek_agent.containment.usage import (
    Accounts,
    StatementKey,
    StatementUsage,
    cpu_seconds,
    ended_children_cpu_seconds,
    memory,
    statement_key,
)
from zeek_agent.containment.worker_process import KillCause, NeedHandler, WorkerProcess, WorkerState
from zeek_agent.containment.zygote import Started, WorkerLostError, Zygote
from zeek_agent.errors import SqlError, WorkerUnavailableError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from zeek_agent.config.sections import LimitSettings
    from zeek_agent.containment.encoded_result import EncodedResult
    from zeek_agent.containment.messages import CompiledStatement, Need

log = logging.getLogger(__name__)

WORKER_IDLE_SECONDS: Final = 20.0
"""An idle worker ends after that: it costs about 5 MB, and a new one starts in 10 ms."""
ZYGOTE_IDLE_SECONDS: Final = 300.0
"""The zygote ends so long after the last worker: it costs about 17 MB, and a new one takes 150 ms."""
START_SECONDS: Final = 20.0
"""A worker that is not ready by then is killed, and so is a zygote that has answered before."""
SECOND_WORKER_SECONDS: Final = 1.0
"""A recipient's second snapshot worker is started once the first has been busy that long."""
SHUTDOWN_SECONDS: Final = 0.5
ABANDONED_MAX: Final = 4
"""Abandoned processes; with so many, statements that open files are not run until one is gone."""
RESTART_SECONDS: Final = (1.0, 60.0)
"""Pause after the zygote was lost: the first, and the longest."""

T = TypeVar("T")
Place: TypeAlias = "tuple[str, WorkerClass]"
"""Recipient and class: whose workers of which kind."""

_STATEMENTS_FAULT: Final = frozenset({KillCause.TIME, KillCause.MEMORY, KillCause.CRASH, KillCause.PROTOCOL})


class WorkerStatus(NamedTuple):
    """A row of `zeek_agent_workers`, which describes the columns."""

    recipient: str
    worker_class: str
    pid: int
    state: str
    since: float
    statements: int
    cpu: float
    resident_bytes: int
    peak_bytes: int
    uid: int | None
    capabilities: list[str] | None
    seccomp: int | None
    landlock_abi: int | None
    missing: list[str] | None


class SpawnSettings(NamedTuple):
    """What a worker is bound to, besides its zygote; one that was started with others is retired."""

    store_uri: str | None
    generation: int
    iterators: bool
    imports: Imports


class WorkerPool:
    """Runs statements in worker processes, and has helpers read their tables with privileges (`helper_pool`).

    All methods belong to the event loop's thread.

    `bound` returns the current settings for new workers, `need` answers what workers ask for during a statement,
    `grant` returns what a helper gets for a table with privileges, and spools are created in `directory`.
    """

    def __init__(
        self,
        setup: Setup,
        limits: LimitSettings,
        bound: Callable[[], SpawnSettings],
        need: NeedHandler,
        directory: Path | None = None,
        *,
        grant: Callable[[str], Grant] | None = None,
    ) -> None:
        self._setup = setup
        self._limits = limits
        self._bound = bound
        self._need = need
        self._directory = directory
        self._helpers = HelperPool(self._start_helper, self._check_abandoned, grant, directory)
        self._zygote: Zygote | None = None
        self._former: set[Zygote] = set()
        """Zygotes with an earlier setup; each ends with the last of its processes."""
        self._parents: dict[int, Zygote] = {}
        """The zygotes of processes by number, from when they are asked for until they have ended."""
        self._workers: dict[int, WorkerProcess] = {}
        self._bound_to: dict[int, SpawnSettings] = {}
        self._unaccounted: dict[int, WorkerProcess] = {}
        """Dead ones whose processor time the zygote has yet to report."""
        self._starting: Counter[Place] = Counter()
        self._collectors: dict[int, Callable[[Exited], None]] = {}
        self._number = 0
        self._sleepers: dict[asyncio.Future[None], None] = {}
        self._waiting: dict[Place, int] = {}
        """How many statements wait, by place: the place comes first that has waited longest for a turn."""
        self._resting = RestingStatements()
        self._accounts = Accounts()
        self._shares: dict[str, CpuShare] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._restart_after = 0.0
        self._restart_pause = RESTART_SECONDS[0]
        self._empty_since: float | None = None
        self._closed = False
        self._ending: set[asyncio.Task[None]] = set()
        self.killed: Counter[str] = Counter()
        """Workers that were killed or lost, by cause, since the agent started."""
        self.abandoned = 0
        """Workers that did not end when they were killed, since the agent started."""
        self.zygote_starts = 0

    async def compile(self, recipient: str, sql: str, profile: str) -> CompiledStatement:
        """Compile a statement. Raises SqlError."""
        seconds = self._limits.time
        return await self._work(
            recipient, WorkerClass.SNAPSHOTS, sql, lambda worker: worker.compile(sql, profile, seconds)
        )

    async def run(
        self, recipient: str, kind: WorkerClass, statement: RunStatement, *, opens_files: bool = True
    ) -> EncodedResult:
        """Run a statement: returns once it has ended well, while frames may still be written. Raises SqlError.

        `opens_files` is whether it reads a table that opens paths, which may lead to a file system that hangs.
        """
        if opens_files:
            self._check_abandoned()

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
                zygote = self._parents[number] = self._running_zygote()
                return await zygote.start(Spawn(number, WorkerClass.COLLECTOR, None, 0, False, Imports()))
        except (WorkerLostError, TimeoutError) as error:
            self._collectors.pop(number, None)
            self._forget_parent(number)
            reason = str(error) or f"the zygote does not answer within {START_SECONDS:g} s"
            raise SqlError(f"cannot start a worker process: {reason}") from error

    def reconfigure(self, setup: Setup, limits: LimitSettings) -> None:
        """Start processes with another setup and other limits. Statements that run now end in their processes."""
        self._setup, self._limits = setup, limits
        self._shares.clear()
        if self._zygote is not None:
            self._former.add(self._zygote)
            self._zygote = None
        for worker in self.processes:
            worker.is_spent = True
            if worker.state is WorkerState.IDLE:
                self._retire(worker)
        self._end_former()
        self._wake()

    @property
    def setup(self) -> Setup:
        """What new processes are started with."""
        return self._setup

    def status(self) -> Iterable[WorkerStatus]:
        """One per process."""
        return [_status_of(worker) for worker in self.processes]

    def totals(self) -> dict[str, int]:
        """The number of processes now, and counts since the agent started."""
        return {
            "running": self._alive(),
            "abandoned": sum(worker.state is WorkerState.ABANDONED for worker in self.processes),
            "abandoned_in_all": self.abandoned,
            "zygote_starts": self.zygote_starts,
        }

    def usage(self, recipient: str, sql: str) -> StatementUsage:
        """What a recipient's statement has used so far."""
        return self._accounts.of(statement_key(recipient, sql))

    def resting_until(self, recipient: str, sql: str) -> float | None:
        """When the statement runs again, in seconds since the epoch; None if it does not rest."""
        return self._resting.ends_at(statement_key(recipient, sql))

    @property
    def zygote_pid(self) -> int | None:
        return None if self._zygote is None else self._zygote.pid

    @property
    def processes(self) -> Iterable[WorkerProcess]:
        """The workers that exist now."""
        return tuple(self._workers.values())

    def end_readers(self) -> None:
        """Kill the workers that may keep the event store's writer waiting.

        These are those without a statement, which have nothing to read, and those whose statement has used up its time.
        """
        late = time.monotonic() - self._limits.time
        for worker in self.processes:
            if worker.kind is WorkerClass.HELPER:
                continue  # it has no store
            if worker.state is WorkerState.IDLE or (worker.state is WorkerState.BUSY and worker.busy_since < late):
                worker.kill(KillCause.BLOCKING)

    def cancel_all(self) -> None:
        """Kill the workers that run statements."""
        for worker in self.processes:
            if worker.state is WorkerState.BUSY:
                worker.kill(KillCause.CANCELLED)

    async def close(self) -> None:
        """Kill all workers and end the zygote; what waits in the kernel is left behind."""
        self._closed = True
        self._wake()
        if self._expiry is not None:
            self._expiry.cancel()
        for worker in self.processes:
            worker.kill(KillCause.CLOSED)
        deadline = time.monotonic() + SHUTDOWN_SECONDS
        while time.monotonic() < deadline and any(worker.is_alive for worker in self._workers.values()):
            await asyncio.sleep(0.005)
        zygotes = [*self._former, *([self._zygote] if self._zygote is not None else [])]
        for zygote in zygotes:
            zygote.close()
        for zygote in zygotes:
            await zygote.wait(SHUTDOWN_SECONDS)
        await asyncio.gather(*self._ending)
        for worker in self.processes:
            if worker.is_alive:
                log.warning("worker %d is left behind: it was killed and does not end", worker.pid)

    # A statement

    async def _work(
        self, recipient: str, kind: WorkerClass, sql: str, work: Callable[[WorkerProcess], Awaitable[T]]
    ) -> T:
        key = statement_key(recipient, sql)
        self._resting.check(key)
        if (seconds := self._share_of(recipient).wait_seconds) > 0:
            await asyncio.sleep(seconds)
        return await work(await self._acquire(key, kind))

    def _share_of(self, recipient: str) -> CpuShare:
        share = self._shares.get(recipient)
        if share is None:
            share = self._shares[recipient] = CpuShare(self._limits.cpu)
        return share

    def _charge(self, worker: WorkerProcess) -> None:
        """Count the processor time that the worker has used since this was last called, and its memory."""
        if worker.state is not WorkerState.DEAD and not worker.is_accounted:
            worker.cpu = cpu_seconds(worker.pid) or worker.cpu
            if worker.kind is WorkerClass.HELPER:
                worker.cpu += ended_children_cpu_seconds(worker.pid)
            if not worker.succeeded:
                worker.peak = max(worker.peak, memory(worker.pid).peak)
        seconds = max(0.0, worker.take_uncharged_cpu())
        if seconds > 0:
            self._share_of(worker.recipient).use(seconds)
        if worker.statement is not None:
            self._accounts.charge(worker.statement, seconds, worker.peak)  # type: ignore[arg-type]

    def _let_rest(self, worker: WorkerProcess) -> None:
        """Called when a worker ended during its statement."""
        cause = worker.cause
        zygote = self._parents.get(worker.number)
        if cause not in _STATEMENTS_FAULT or zygote is None or not zygote.is_running():
            return
        assert cause is not None
        key: StatementKey = worker.statement  # type: ignore[assignment]
        self._accounts.count_kill(key)
        self._resting.begin(key, cause)

    # Workers

    async def _acquire(self, key: StatementKey, kind: WorkerClass) -> WorkerProcess:
        """A worker for one statement: an idle one, or a new one, or the next that is free."""
        place = (key[0], kind)
        with self._in_turn(place):
            while True:
                if self._closed:
                    raise SqlError("the database is closed")
                self._resting.check(key)
                worker = self._idle(*place)
                if worker is not None:
                    worker.take(key)
                    return worker
                if self._may_start(place):
                    break
                await self._change()
        return await self._start(key, kind)

    @contextmanager
    def _in_turn(self, place: Place) -> Iterator[None]:
        """Count a statement that waits; places without a worker get theirs in the order in which they began to wait."""
        self._waiting[place] = self._waiting.get(place, 0) + 1
        try:
            yield
        finally:
            left = self._waiting.pop(place) - 1
            if left:
                self._waiting[place] = left  # at the end: it has had its turn

    async def _change(self) -> None:
        """Wait until a worker may be free, or time has made a second one possible."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers[future] = None
        try:
            async with asyncio.timeout(SECOND_WORKER_SECONDS):
                await future
        except TimeoutError:
            pass  # `_wake` may have been called at the same moment
        finally:
            self._sleepers.pop(future, None)

    def _wake(self) -> None:
        """Have all that wait look again, in the order in which they came."""
        waiters, self._sleepers = self._sleepers, {}
        for future in waiters:
            if not future.done():
                future.set_result(None)

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

    def _may_start(self, place: Place) -> bool:
        """Whether the recipient may have one more; another recipient's idle worker ends for it if need be."""
        own = self._of(*place)
        number = len(own) + self._starting[place]
        most = self._limits.workers if place[1] is WorkerClass.SNAPSHOTS else 1
        if number >= most:
            return False
        if number and (
            self._starting[place] or time.monotonic() - max(worker.busy_since for worker in own) < SECOND_WORKER_SECONDS
        ):
            return False
        room = self._room()
        if room > len(self._before(place)):
            return True
        if room <= 0:
            self._make_room()
        return False

    def _before(self, place: Place) -> list[Place]:
        """Those that have no worker and have waited longer than this one for their first, or than a second one."""
        waiting = [one for one in self._waiting if not self._starting[one] and not self._of(*one)]
        return waiting[: waiting.index(place)] if place in waiting else waiting

    def _make_room(self) -> None:
        """End the worker that has been idle longest, unless one is ending already."""
        workers = [worker for worker in self.processes if worker.kind is not WorkerClass.HELPER]
        idle = [worker for worker in workers if worker.state is WorkerState.IDLE and worker.counts]
        if idle and not any(worker.is_ending for worker in workers):
            self._retire(min(idle, key=lambda worker: worker.idle_since))

    def _room(self) -> int:
        """How many more processes there may be; helpers have places of their own, so that none waits for its asker."""
        starting = sum(number for (_, kind), number in self._starting.items() if kind is not WorkerClass.HELPER)
        helpers = sum(_takes_place(worker) for worker in self.processes if worker.kind is WorkerClass.HELPER)
        return self._limits.processes - (self._alive() - helpers) - starting

    def _alive(self) -> int:
        """Processes that take a place, those included that are about to end."""
        return sum(map(_takes_place, self.processes))

    async def _start(self, key: StatementKey, kind: WorkerClass, grant: Grant | None = None) -> WorkerProcess:
        place = (key[0], kind)
        if (pause := self._restart_after - time.monotonic()) > 0:
            raise WorkerUnavailableError(f"not run: worker processes cannot be started; next attempt in {pause:.0f} s")
        worker: WorkerProcess | None = None
        self._starting[place] += 1
        try:
            async with asyncio.timeout(START_SECONDS):
                worker = await self._spawn(*place, grant)
                await worker.ready()
            if not worker.counts:
                raise WorkerLostError("it ended as soon as it was ready")
            worker.take(key)
        except (WorkerLostError, TimeoutError) as error:
            if worker is not None:
                worker.kill(KillCause.CRASH)
            elif isinstance(error, TimeoutError) and self._zygote is not None and not self._zygote.may_be_loading():
                self._zygote.kill()
            reason = str(error) or f"not ready after {START_SECONDS:g} s"
            raise WorkerUnavailableError(f"cannot start a worker process: {reason}") from error
        except BaseException:
            if worker is not None:
                worker.kill(KillCause.CANCELLED)
            raise
        finally:
            self._starting[place] -= 1
            if not self._starting[place]:
                del self._starting[place]
            self._wake()
        self._restart_pause = RESTART_SECONDS[0]
        return worker

    def _check_abandoned(self) -> None:
        """Raises SqlError if so many processes wait in the kernel that no other may join them."""
        abandoned = sum(worker.state is WorkerState.ABANDONED for worker in self.processes)
        if abandoned >= ABANDONED_MAX:
            raise SqlError(f"not run: {abandoned} processes wait in the kernel, for file systems that do not answer")

    async def _start_helper(self, key: StatementKey, grant: Grant) -> WorkerProcess:
        """A new helper, reserved for the statement. Raises SqlError."""
        return await self._start(key, WorkerClass.HELPER, grant)

    async def _spawn(self, recipient: str, kind: WorkerClass, grant: Grant | None) -> WorkerProcess:
        zygote = self._running_zygote()
        bound, number = self._bound(), self._next_number()
        self._parents[number] = zygote
        if grant is None:
            spawn = Spawn(number, kind, bound.store_uri, bound.generation, bound.iterators, bound.imports)
        else:
            spawn = Spawn(number, kind, None, 0, False, Imports(), grant.privileges, grant.group_sockets)
        try:
            started = await zygote.start(spawn)
        except BaseException:
            self._forget_parent(number)
            raise

        async def give(need: Need) -> tuple[bytes, Sequence[int]]:
            return await self._give(worker, need)

        worker = WorkerProcess(
            spawn,
            recipient,
            started,
            limits=self._limits,
            need=give,
            on_free=self._freed,
            on_fault=self._let_rest,
        )
        worker.is_spent = zygote is not self._zygote  # the setup has changed meanwhile
        self._workers[worker.number], self._bound_to[worker.number] = worker, bound
        if self._closed:
            worker.kill(KillCause.CLOSED)
        self._schedule_expiry()
        return worker

    async def _give(self, worker: WorkerProcess, need: Need) -> tuple[bytes, Sequence[int]]:
        """Answer a worker's need. A helper gets nothing but the privileges of its table. Raises SqlError."""
        if worker.kind is WorkerClass.HELPER:
            raise SqlError(f"a helper process has no {need.what} {need.name}".rstrip())
        if need.what == "table":
            return await self._helpers.read(worker, need)
        return await self._need(need)

    def _running_zygote(self) -> Zygote:
        """Raises WorkerLostError."""
        if self._zygote is None:
            zygote = Zygote(self._setup, self._exited, lambda: self._zygote_lost(zygote))
            self._zygote = zygote
            self.zygote_starts += 1
        return self._zygote

    def _forget_parent(self, number: int) -> None:
        """A process has ended, or does not start."""
        self._parents.pop(number, None)
        self._end_former()

    def _end_former(self) -> None:
        """End zygotes with an earlier setup that have no process any more."""
        for zygote in self._former.difference(self._parents.values()):
            self._former.remove(zygote)
            self._end(zygote)

    def _end(self, zygote: Zygote) -> None:
        zygote.close()
        task = asyncio.get_running_loop().create_task(zygote.wait(START_SECONDS))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _next_number(self) -> int:
        self._number += 1
        return self._number

    def _retire(self, worker: WorkerProcess) -> None:
        worker.retire()

    def _freed(self, worker: WorkerProcess) -> None:
        """A worker has ended its statement, or itself."""
        self._charge(worker)
        self._count_end(worker)
        if worker.state is WorkerState.DEAD:
            self._remove(worker)
        elif worker.kind is WorkerClass.HELPER:
            self._helpers.freed(worker)
        elif worker.state is WorkerState.IDLE:
            if worker.succeeded:
                self._resting.forget(worker.statement)  # type: ignore[arg-type]
            if worker.is_spent:
                self._retire(worker)
            elif self._is_wanted_elsewhere(worker):
                self._retire(worker)
                place = (worker.recipient, worker.kind)
                if place in self._waiting:
                    self._waiting[place] = self._waiting.pop(place)
        self._wake()

    def _remove(self, worker: WorkerProcess) -> None:
        """Forget a worker that has ended; its processor time may still have to be reported."""
        del self._workers[worker.number], self._bound_to[worker.number]
        if worker.is_accounted:
            self._forget_parent(worker.number)
        elif worker.number in self._parents:
            self._unaccounted[worker.number] = worker
        if worker.cause not in (None, KillCause.CLOSED, KillCause.CANCELLED):
            log.warning("worker %d of %s ended: %s", worker.pid, worker.recipient, worker.cause)

    def _count_end(self, worker: WorkerProcess) -> None:
        """Count a worker that was killed or lost: one that does not die when it is abandoned."""
        is_abandoned = worker.state is WorkerState.ABANDONED
        self.abandoned += is_abandoned
        has_ended = is_abandoned or (worker.state is WorkerState.DEAD and not worker.was_abandoned)
        if has_ended and worker.cause not in (None, KillCause.CLOSED, KillCause.CANCELLED):
            self.killed[worker.cause.value] += 1

    def _is_wanted_elsewhere(self, worker: WorkerProcess) -> bool:
        """Whether a recipient without a worker waits for this one's place: nobody keeps a place by being busy."""
        place = (worker.recipient, worker.kind)
        waiting = [one for one in self._before(place) if one != place]
        room = self._room()
        ending = sum(one.is_ending for one in self.processes if one.kind is not WorkerClass.HELPER)
        return len(waiting) > room + ending

    def _exited(self, exited: Exited) -> None:
        if (on_exit := self._collectors.pop(exited.worker, None)) is not None:
            on_exit(exited)
        worker = self._workers.get(exited.worker) or self._unaccounted.pop(exited.worker, None)
        if exited.worker not in self._workers:
            self._forget_parent(exited.worker)
        if worker is not None:
            worker.is_accounted = True
            worker.cpu, worker.peak = exited.cpu, exited.peak
            self._charge(worker)

    def _zygote_lost(self, zygote: Zygote) -> None:
        """Workers die with the zygote; a new one is started after a pause."""
        if self._closed:
            return
        lost = {number for number, parent in self._parents.items() if parent is zygote}
        for numbers in (self._collectors, self._unaccounted, self._parents):
            for number in lost & numbers.keys():
                del numbers[number]
        self._end(zygote)
        if zygote in self._former:
            self._former.remove(zygote)
            log.error("a zygote of worker processes that was about to end has ended too early")
            return
        self._zygote = None
        log.error("the zygote of worker processes has ended; the next is started in %g s", self._restart_pause)
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
            self._empty_since = None
            self._end(zygote)
            return
        self._schedule_expiry()


def _takes_place(worker: WorkerProcess) -> bool:
    return worker.is_alive and worker.state is not WorkerState.ABANDONED


def _status_of(worker: WorkerProcess) -> WorkerStatus:
    used, shown = memory(worker.pid), worker.protections
    return WorkerStatus(
        recipient=worker.recipient,
        worker_class=worker.kind.value,
        pid=worker.pid,
        state=worker.state.value,
        since=worker.since,
        statements=worker.statements,
        cpu=worker.cpu if worker.is_accounted else cpu_seconds(worker.pid) or worker.cpu,
        resident_bytes=used.resident,
        peak_bytes=max(used.peak, worker.peak),
        uid=None if shown is None else shown.uid,
        capabilities=None if shown is None else list(shown.capabilities),
        seccomp=None if shown is None else shown.seccomp,
        landlock_abi=None if shown is None else shown.landlock_abi,
        missing=None if shown is None else list(shown.missing),
    )
