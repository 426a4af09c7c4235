"""One connection to osquery for the whole agent, and manners: nothing is asked twice at a time or right after harm.

osquery's watchdog ends a worker that takes too much memory or processor time, and a worker that is ended over a query
would be ended again by its repetition: after a question was not answered, its like is refused for a while.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from zeek_agent.osquery.wire import (
    CHECK_INTERVAL,
    CancelCheck,
    GoneError,
    OsqueryRefusedError,
    OsqueryRow,
    ThriftConnection,
    UnreachableError,
)

log = logging.getLogger(__name__)

RECONNECT_MIN: Final = 1.0
RECONNECT_MAX: Final = 15.0
REST_MIN: Final = 60.0
"""Seconds until a kind of question may be asked again that osquery did not survive, or not answer."""
REST_MAX: Final = 3_600.0
LONG: Final = 2.0
"""Seconds of work after which a question that was given up counts as one that was not answered."""
SHARED_FOR: Final = 0.5
"""Seconds that an answer serves statements that ask the same."""
SHARED_ROWS_MAX: Final = 50_000

Cells: TypeAlias = "Sequence[tuple[Any, ...]]"


class RestingError(OsqueryRefusedError):
    """Such a question was not answered a short while ago and is not asked again yet."""


@dataclass(slots=True)
class Rest:
    """A kind of question that is left alone until a time."""

    until: float
    seconds: float
    cause: str


@dataclass(frozen=True, slots=True)
class Answer:
    at: float
    rows: Cells


@dataclass(slots=True)
class OsqueryCounters:
    """Since the start of the agent."""

    questions: int = 0
    shared: int = 0
    rows: int = 0
    undecodable: int = 0
    last_error: str | None = None


class OsqueryClient:
    """osquery at a socket. Thread-safe: who comes second waits.

    `find` gives the socket's path each time a connection is made, and raises UnreachableError when there is none.
    `timeout` bounds one question, in seconds. `on_loss` is called when a connection was lost.
    """

    def __init__(
        self,
        find: Callable[[], str],
        timeout: float,
        *,
        on_loss: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = OsqueryCounters()
        self.path = ""
        """The socket that the connection was made to."""
        self.connections = 0
        """How many were made: another number says that osquery may be another one."""
        self._find = find
        self._timeout = timeout
        self._on_loss = on_loss
        self._clock = clock
        self._lock = threading.RLock()
        self._epoch = 0
        self._closed = False
        self._connection: ThriftConnection | None = None
        self._unreachable: tuple[float, float, UnreachableError] | None = None
        self._rests: dict[str, Rest] = {}
        self._answers: dict[str, Answer] = {}

    def shared_query(
        self, sql: str, kind: str, decode: Callable[[Sequence[OsqueryRow]], Cells], check: CancelCheck
    ) -> Cells:
        """The rows of a statement. Questions of one `kind` share their fate.

        Raises UnreachableError, GoneError, RefusedError, and what `check` raises.
        """
        with self._turn(check) as interruptible:
            answer = self._answers.get(sql)
            if answer is not None and self._clock() - answer.at < SHARED_FOR:
                self.counters.shared += 1
                return answer.rows
            rows = decode(self._query(sql, kind, interruptible))
            self.counters.rows += len(rows)
            self._keep(sql, rows)
            return rows

    def query(self, sql: str) -> Sequence[OsqueryRow]:
        """Rows of one of the bridge's own statements: small ones, never shared and never refused."""
        with self._turn() as interruptible:
            return self._query(sql, None, interruptible)

    @contextmanager
    def connected(self) -> Iterator[ThriftConnection]:
        """The connection, for other calls than queries."""
        with self._turn() as interruptible:
            connection = self._connect()
            connection.check = interruptible
            try:
                yield connection
            except GoneError as error:
                self._lose(error)
                raise

    def forget_old(self) -> None:
        """Let go of answers and rests whose time is over."""
        with self._lock:
            now = self._clock()
            self._answers = {sql: one for sql, one in self._answers.items() if now - one.at < SHARED_FOR}
            self._rests = {kind: rest for kind, rest in self._rests.items() if now < rest.until + rest.seconds}

    def forget_answers(self) -> None:
        """Share none of the answers so far with whoever asks next."""
        with self._lock:
            self._answers.clear()

    def interrupt(self) -> None:
        """End what is being asked now, and whoever waits for his turn."""
        self._epoch += 1

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()
            self._answers.clear()

    @contextmanager
    def _turn(self, check: CancelCheck = lambda: None) -> Iterator[CancelCheck]:
        """Wait for the connection; gives what has to be called while one waits for an answer."""
        epoch = self._epoch

        def interruptible() -> None:
            check()
            if self._epoch != epoch:
                raise GoneError("the agent has stopped waiting")

        while not self._lock.acquire(timeout=CHECK_INTERVAL):
            interruptible()
        try:
            yield interruptible
        finally:
            self._lock.release()

    def _query(self, sql: str, kind: str | None, check: CancelCheck) -> Sequence[OsqueryRow]:
        rest = self._rests.get(kind) if kind is not None else None
        if rest is not None and self._clock() < rest.until:
            seconds = rest.until - self._clock()
            raise RestingError(f"{rest.cause}; such a query will not be repeated for {seconds:.0f} s")
        connection = self._connect()
        self.counters.questions += 1
        connection.check = check
        began = self._clock()
        try:
            rows = connection.query(sql)
        except GoneError as error:
            self._rest(kind, f"osquery did not answer: {error}", rest)
            self._lose(error)
            raise
        except OsqueryRefusedError as error:
            self.counters.last_error = str(error)
            raise
        except BaseException as error:
            if self._clock() - began > LONG:
                self._rest(kind, f"osquery took too long: {error}", rest)
            self._drop()
            raise
        if rest is not None and kind is not None:
            del self._rests[kind]
        return rows

    def _connect(self) -> ThriftConnection:
        """The connection, made anew when osquery has ended it meanwhile."""
        if self._connection is not None and not self._connection.is_stale():
            return self._connection
        self._drop()
        if self._closed:
            raise UnreachableError("the agent is stopping")
        now = self._clock()
        if self._unreachable is not None and now < self._unreachable[0]:
            known = self._unreachable[2]
            raise type(known)(str(known))
        try:
            self.path = self._find()
            self._connection = ThriftConnection(self.path, self._timeout)
        except UnreachableError as error:
            pause = min(self._unreachable[1] * 2, RECONNECT_MAX) if self._unreachable else RECONNECT_MIN
            self._unreachable = (now + pause, pause, error.with_traceback(None))
            raise
        self._unreachable = None
        self.connections += 1
        return self._connection

    def _rest(self, kind: str | None, cause: str, before: Rest | None) -> None:
        if kind is None:
            return
        seconds = min(before.seconds * 2, REST_MAX) if before else REST_MIN
        self._rests[kind] = Rest(self._clock() + seconds, seconds, cause)

    def _lose(self, error: Exception) -> None:
        self.counters.last_error = str(error)
        log.warning("osquery: %s", error)
        self._drop()
        self._on_loss()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _keep(self, sql: str, rows: Cells) -> None:
        if len(rows) <= SHARED_ROWS_MAX:
            self._answers[sql] = Answer(self._clock(), rows)
            if len(self._answers) > 32:
                del self._answers[next(iter(self._answers))]
