"""One worker process, as the agent sees it: one statement at a time, with a deadline after which it is killed."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from zeek_agent.containment import channel, messages
from zeek_agent.containment.agent_log import LINE_CHARACTERS, LINES_PER_SECOND
from zeek_agent.containment.channel import ChannelError
from zeek_agent.containment.encoded_result import DeltaDescriptor, EncodedResult
from zeek_agent.containment.messages import (
    Compile,
    CompiledStatement,
    Finished,
    Give,
    Head,
    LogLine,
    Need,
    NotReady,
    ReadTable,
    Ready,
    RunStatement,
    Spawn,
    SpoolBatch,
    StatementFailed,
    TableRead,
)
from zeek_agent.containment.protections import Protections
from zeek_agent.errors import AccessDeniedError, DamagedStateError, LimitError, SqlError
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.config.sections import LimitSettings
    from zeek_agent.containment.zygote import Started

log = logging.getLogger(__name__)

GRACE_SECONDS: Final = 2.0
"""How long after its time limit a statement's worker is killed; in nearly all cases SQLite has ended it earlier."""
HELPER_GRACE_SECONDS: Final = 0.5
"""The same for a helper: the statement that waits for its rows fails before its own worker would be killed."""
ABANDON_SECONDS: Final = 1.0
"""A killed process that is still there then waits in the kernel for something that may never come: it is abandoned."""
CANCEL_SECONDS: Final = 0.1
"""How long a cancelled statement may go on; there is no message that ends it."""

MESSAGES_PER_TURN: Final = 32
"""Messages of a worker that are handled before others get their turn: a flood may delay nobody else."""
LOG_LINES_PER_SECOND_MAX: Final = 1_000
"""A worker that sends more is killed. Its own limit is the lower one."""
ERROR_CHARACTERS: Final = 10_000

NeedHandler = Callable[[Need], Awaitable[tuple[bytes, Sequence[int]]]]
"""Answers a worker's need with rows as msgpack and descriptors, which are closed once sent. Raises SqlError."""


class KillCause(StrEnum):
    """Why a worker was killed or ended."""

    TIME = "time"
    MEMORY = "memory"
    PROTOCOL = "protocol"
    CRASH = "crash"
    CANCELLED = "cancelled"
    CLOSED = "closed"
    BLOCKING = "blocking"
    """It kept the event store's writer from reusing its log."""


class WorkerState(StrEnum):
    """State of a worker process."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    DEAD = "dead"
    ABANDONED = "abandoned"
    """It was killed and is still there."""


@dataclass(slots=True)
class _Request:
    """What was asked of the worker last. The files are closed with it unless a result takes them over."""

    reply: asyncio.Future[Any]
    files: Sequence[int]
    answer: type
    """The message that answers it."""


class WorkerProcess:
    """A worker. `on_free` is called when it can take another statement, or never again, and `on_fault` when it ended
    during the statement `statement`, before whoever waits for that gets the error.
    """

    def __init__(
        self,
        spawn: Spawn,
        recipient: str,
        started: Started,
        *,
        limits: LimitSettings,
        need: NeedHandler,
        on_free: Callable[[WorkerProcess], None],
        on_fault: Callable[[WorkerProcess], None],
    ) -> None:
        self.number = spawn.worker
        self.kind = spawn.kind
        self.spawn = spawn
        self.recipient = recipient
        self.pid = started.pid
        self.state = WorkerState.STARTING
        self.was_abandoned = False
        self.statements = 0
        self.cpu = 0.0
        self._charged_cpu = 0.0
        self.peak = 0
        self.protections: Protections | None = None
        self.busy_since = self.idle_since = time.monotonic()
        self.is_spent = False
        self.statement: Hashable = None
        """The statement that it was reserved for last."""
        self.succeeded = False
        """Whether that has run to its end."""
        self.is_accounted = False
        """Whether the zygote has reported its end."""
        self._limits = limits
        self._on_fault = on_fault
        self._is_signalled = False
        self._log = WorkerLog()
        self._loop = asyncio.get_running_loop()
        self._connection = started.connection
        self._pidfd = started.pidfd
        self._need = need
        self._on_free = on_free
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._request: _Request | None = None
        self._result: EncodedResult | None = None
        self._id = 0
        self._cause: KillCause | None = None
        self._timers: list[asyncio.TimerHandle] = []
        self._abandonment: asyncio.TimerHandle | None = None
        self._giving: asyncio.Task[None] | None = None
        self._helped: asyncio.Task[None] | None = None
        """The part of `_giving` that ends with this worker: a helper reads a table for it."""
        self._deadline = 0.0
        self._loop.add_reader(self._connection, self._read)
        self._loop.add_reader(self._pidfd, self._ended)

    async def ready(self) -> None:
        """Wait until the worker has dropped its privileges. Raises SqlError when it ends before."""
        await asyncio.shield(self._ready)

    async def compile(self, sql: str, profile: str, seconds: float) -> CompiledStatement:
        """Compile a statement; the worker is killed after the seconds. Raises SqlError."""
        return await self._ask(lambda number: Compile(number, sql, profile), CompiledStatement, seconds)  # type: ignore[no-any-return]

    async def run(self, statement: RunStatement, files: Sequence[int], seconds: float) -> EncodedResult:
        """Run a statement; returns when its result's head is known. Raises SqlError.

        `files` are the spool and, for a comparison, the delta file: from now on they are the result's.
        """
        return await self._ask(lambda number: messages.numbered(statement, number), Head, seconds, files)  # type: ignore[no-any-return]

    async def read_table(self, table: str, arguments: bytes, spool: int, seconds: float) -> TableRead:
        """Have a helper read a table into the spool, which stays the caller's. Raises SqlError."""
        message = partial(ReadTable, table=table, arguments=arguments, seconds=seconds)
        return await self._ask(message, TableRead, seconds, passed=[spool], grace=HELPER_GRACE_SECONDS)  # type: ignore[no-any-return]

    @property
    def seconds_left(self) -> float:
        """What is left of its statement's time."""
        return self._deadline - self._loop.time()

    def take(self, statement: Hashable) -> None:
        """Reserve the idle or new worker for one statement."""
        assert self.state in (WorkerState.STARTING, WorkerState.IDLE)
        self.state = WorkerState.BUSY
        self.statement, self.succeeded = statement, False
        self.busy_since = time.monotonic()

    def take_uncharged_cpu(self) -> float:
        """Processor seconds used since this was last called, as far as the worker or the zygote has reported them."""
        seconds, self._charged_cpu = self.cpu - self._charged_cpu, self.cpu
        return seconds

    def release(self) -> None:
        """The statement that it was reserved for does not come."""
        self._free()

    @property
    def state(self) -> WorkerState:
        return self._state

    @state.setter
    def state(self, state: WorkerState) -> None:
        self._state = state
        self.since = time.time()

    @property
    def counts(self) -> bool:
        """Whether it takes one of its recipient's places."""
        return self._cause is None and self.state not in (WorkerState.DEAD, WorkerState.ABANDONED)

    @property
    def is_ending(self) -> bool:
        """Whether it was told to end, and is still there."""
        return self._cause is not None and self.state not in (WorkerState.DEAD, WorkerState.ABANDONED)

    @property
    def is_alive(self) -> bool:
        return self.state is not WorkerState.DEAD

    def kill(self, cause: KillCause) -> None:
        """End the process at once. What is not dead after a second is abandoned."""
        self._cause = self._cause or cause
        self._signal()

    def retire(self) -> None:
        """Let an idle worker end by closing its socket; it is killed if it does not."""
        if self._cause is not None:
            return
        self._cause = KillCause.CLOSED
        self._disconnect()
        self._timers.append(self._loop.call_later(GRACE_SECONDS, self._signal))

    def _signal(self) -> None:
        if self._is_signalled or self.state in (WorkerState.DEAD, WorkerState.ABANDONED):
            return
        self._is_signalled = True
        try:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        except ProcessLookupError:
            log.debug("worker %d has ended already", self.pid)
        except PermissionError:
            log.error("cannot kill worker %d: CAP_KILL is missing", self.pid)
        self._abandonment = self._loop.call_later(ABANDON_SECONDS, self._abandon)

    async def _ask(
        self,
        message: Callable[[int], Any],
        answer: type,
        seconds: float,
        files: Sequence[int] = (),
        *,
        passed: Sequence[int] = (),
        grace: float | None = None,
    ) -> Any:
        """The answer. The files are the request's from now on; those `passed` stay the caller's."""
        assert self._request is None
        assert self.state is WorkerState.BUSY
        self._id += 1
        self.statements += 1
        request = self._request = _Request(self._loop.create_future(), files, answer)
        self._deadline = self._loop.time() + seconds
        grace = GRACE_SECONDS if grace is None else grace
        deadline = self._loop.call_later(seconds + grace, self.kill, KillCause.TIME)
        self._timers = [deadline]
        try:
            channel.send(self._connection, messages.encode(message(self._id)), [*files, *passed])
        except OSError as error:
            log.debug("worker %d: %s", self.pid, error)
            self.kill(KillCause.CRASH)
        try:
            return await request.reply
        except asyncio.CancelledError:
            if self._request is request:
                self._timers.append(self._loop.call_later(CANCEL_SECONDS, self.kill, KillCause.CANCELLED))
            raise

    # What the worker sends

    def _read(self) -> bool:
        """Handle what has come, but not more than `MESSAGES_PER_TURN`. Returns whether there may be more."""
        cause = KillCause.CRASH
        try:
            for _ in range(MESSAGES_PER_TURN):
                body = channel.receive_body(self._connection)
                if body is None:
                    break
                self._handle(messages.decode_from_worker(body))
                if self._connection.fileno() < 0:
                    return False
            else:
                return True
        except BlockingIOError:
            return False
        except (ChannelError, ValueError, RecursionError) as error:
            log.error("worker %d sent an invalid message and was killed: %s", self.pid, clipped(str(error)))
            cause = KillCause.PROTOCOL
        except OSError as error:
            log.debug("worker %d: %s", self.pid, error)
        self.kill(cause)
        self._disconnect()
        self._fail()
        return False

    def _handle(self, message: Any) -> None:
        match message:
            case LogLine():
                self._log.write(message)
            case Ready() | NotReady() if not self._ready.done():
                self._begin(message)
            case Need() if self._giving is None and message.id == self._id and self.state is WorkerState.BUSY:
                self._giving = self._loop.create_task(self._give(message))
                self._helped = self._giving if message.what == "table" else None
            case CompiledStatement() | TableRead() if self._answers(message):
                if isinstance(message, TableRead):
                    self._note_usage(message)
                    self.is_spent |= message.spent
                self._resolve(message)
                self._free()
            case Head() if self._answers(message) and self._request is not None:
                self._result = self._begin_result(self._request, message)
                self._resolve(self._result)
            case SpoolBatch() if message.id == self._id and self._result is not None:
                self._result.add(message)
            case Finished() if message.id == self._id and self._result is not None:
                self._note_usage(message)
                self._result.finish()
                self.succeeded, self._result = True, None
                self._free()
            case StatementFailed() if message.id == self._id and (self._request or self._result) is not None:
                self._reject(_KINDS.get(message.kind, SqlError)(clipped(message.text, ERROR_CHARACTERS)))
                self.is_spent |= message.spent
                self._free()
            case _:
                raise ChannelError(f"{type(message).__name__} was not expected")

    def _begin(self, message: Ready | NotReady) -> None:
        if isinstance(message, Ready):
            self.protections = message.protections
            self._ready.set_result(None)
        else:
            self._cause = self._cause or KillCause.CLOSED
            self._ready.set_exception(SqlError(clipped(message.reason, ERROR_CHARACTERS)))

    def _answers(self, message: CompiledStatement | Head | TableRead) -> bool:
        return message.id == self._id and self._request is not None and type(message) is self._request.answer

    def _note_usage(self, message: Finished | TableRead) -> None:
        if not (0 <= message.cpu < math.inf and message.peak >= 0):
            raise ChannelError(f"a worker cannot have used {message.cpu} s and {message.peak} bytes")
        self.cpu, self.peak = message.cpu, message.peak

    def _begin_result(self, request: _Request, head: Head) -> EncodedResult:
        """The result, which has the request's files from now on."""
        delta = None
        if len(request.files) > 1:
            delta = DeltaDescriptor(request.files[1], head.delta_bytes)
        spool, request.files = request.files[0], ()
        try:
            return EncodedResult(spool, head, self._limits, lambda: self.kill(KillCause.PROTOCOL), delta)
        except BaseException:
            os.close(spool)
            raise

    async def _give(self, need: Need) -> None:
        descriptors: Sequence[int] = ()
        try:
            rows, descriptors = await self._need(need)
            answer = Give(need.id, rows)
        except SqlError as error:
            answer = Give(need.id, error=str(error), kind=type(error).__name__)
        except Exception as error:
            log.exception("a worker's request for %s %s failed", need.what, clipped(need.name))
            answer = Give(need.id, error=f"the agent failed to answer, see its log: {clipped(repr(error))}")
        finally:
            self._giving = self._helped = None
        try:
            if self._connection.fileno() >= 0:
                channel.send(self._connection, messages.encode(answer), descriptors)
        except OSError as error:
            log.debug("worker %d: %s", self.pid, error)
            self.kill(KillCause.CRASH)
        finally:
            channel.close_all(descriptors)

    # The end of a statement, and of the process

    def _resolve(self, value: Any) -> None:
        request, self._request = self._request, None
        if request is not None and not request.reply.done():
            request.reply.set_result(value)

    def _reject(self, error: SqlError) -> None:
        request, self._request = self._request, None
        if request is not None:
            channel.close_all(request.files)
            if not request.reply.done():
                request.reply.set_exception(error)
        if self._result is not None:
            result, self._result = self._result, None
            result.finish(error)

    def _free(self) -> None:
        """The statement has ended."""
        self._cancel_timers()
        if self.state is WorkerState.BUSY and self._cause is None:
            self.state = WorkerState.IDLE
            self.idle_since = time.monotonic()
        self._on_free(self)

    def _ended(self) -> None:
        """The process is dead."""
        if self._connection.fileno() >= 0 and not self._is_signalled and self._read():
            return  # the rest of what it sent comes first
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.state = WorkerState.DEAD
        self._cancel_timers()
        if self._abandonment is not None:
            self._abandonment.cancel()
        self._disconnect()
        self._fail()
        if self.was_abandoned:
            log.info("worker %d, which was abandoned, has ended", self.pid)
        self._on_free(self)

    def _abandon(self) -> None:
        if self.state is WorkerState.DEAD:
            return
        log.warning("worker %d does not end although it was killed: it waits in the kernel, and is abandoned", self.pid)
        self.state = WorkerState.ABANDONED
        self.was_abandoned = True
        self._disconnect()
        self._fail()
        self._on_free(self)

    def _fail(self) -> None:
        """Whoever waits gets an error; after the reason for it is known."""
        if self._helped is not None:
            self._helped.cancel()
        if self._cause is None:
            self._cause = KillCause.CRASH
        error = _ERRORS[self._cause]
        if not self._ready.done():
            self._ready.set_exception(error())
            self._ready.exception()
        if self._request is not None or self._result is not None:
            self._on_fault(self)
        self._reject(error())

    @property
    def cause(self) -> KillCause | None:
        """Why it was killed or ended; None while it may go on."""
        return self._cause

    def _disconnect(self) -> None:
        if self._connection.fileno() >= 0:
            self._loop.remove_reader(self._connection)
            self._connection.close()

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            timer.cancel()
        self._timers = []


class WorkerLog:
    """A worker's part of the agent's log: it can neither fill it nor write as another part of the agent."""

    def __init__(self) -> None:
        self._second = 0
        self._lines = 0

    def write(self, line: LogLine) -> None:
        """Log the line, unless there are too many. Raises ChannelError if there are so many that it is an attack."""
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._lines = second, 0
        self._lines += 1
        if self._lines > LOG_LINES_PER_SECOND_MAX:
            raise ChannelError("a flood of log lines")
        if self._lines == LINES_PER_SECOND + 1:
            log.warning("further log lines of a worker in this second are dropped")
        if self._lines > LINES_PER_SECOND:
            return
        known = line.logger in logging.Logger.manager.loggerDict and line.logger.startswith(_OWN_LOGGERS)
        logger = logging.getLogger(line.logger) if known and line.logger != _AUDIT else log
        logger.log(min(max(line.level, logging.DEBUG), logging.ERROR), "%s", clipped(line.text, LINE_CHARACTERS))


_OWN_LOGGERS: Final = "zeek_agent."
_AUDIT: Final = "zeek_agent.audit"


def _lost() -> SqlError:
    return SqlError("the statement's worker process was lost: it crashed, or needed more than limits.worker_bytes")


_KINDS: Final[dict[str, type[SqlError]]] = {
    "AccessDeniedError": AccessDeniedError,
    "LimitError": LimitError,
    "DamagedResultError": DamagedStateError,
}
"""Errors that the agent treats differently from others."""

_ERRORS: Final[dict[KillCause, Callable[[], SqlError]]] = {
    KillCause.TIME: lambda: LimitError("the statement took longer than limits.time; its process was killed"),
    KillCause.MEMORY: lambda: LimitError("the statement needs more memory than limits.worker_bytes allows"),
    KillCause.PROTOCOL: _lost,
    KillCause.CRASH: _lost,
    KillCause.CANCELLED: lambda: SqlError("the statement was cancelled"),
    KillCause.CLOSED: lambda: SqlError("the database is closed"),
    KillCause.BLOCKING: lambda: LimitError("the statement read the event store for so long that recording had to wait"),
}
