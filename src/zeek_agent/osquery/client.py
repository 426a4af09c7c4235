"""One connection to osquery for the whole agent, which shares results and does not repeat harmful queries.

osquery's watchdog kills a worker that uses too much memory or processor time, and repeating the query would kill the
next worker too: after an unanswered query, similar ones are refused for some time.
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
    CHECK_INTERVAL_SECONDS,
    CancelCheck,
    ConnectionLostError,
    Dial,
    OsqueryRefusedError,
    OsqueryRow,
    ThriftConnection,
    UnreachableError,
)

log = logging.getLogger(__name__)

RECONNECT_SECONDS_MIN: Final = 1.0
RECONNECT_SECONDS_MAX: Final = 15.0
"""Bounds of the delay between connection attempts, which doubles with each failure."""
COOLDOWN_SECONDS_MIN: Final = 60.0
"""How long a kind of query that osquery did not answer, or survive, is refused at first; each failure doubles it."""
COOLDOWN_SECONDS_MAX: Final = 3_600.0
"""Maximum of that time."""
UNANSWERED_SECONDS: Final = 2.0
"""A query that was cancelled after this time counts as unanswered."""
SHARED_SECONDS: Final = 0.5
"""How long identical statements share a result."""
SHARED_ROWS_MAX: Final = 50_000
"""Rows of a shared result, as for scans of the agent's own tables."""

DecodedRows: TypeAlias = "Sequence[tuple[Any, ...]]"


class CooldownError(OsqueryRefusedError):
    """Such a query was not answered recently, and is not repeated yet."""


@dataclass(slots=True)
class Cooldown:
    """A kind of query that is refused until a time."""

    until: float
    seconds: float
    cause: str


@dataclass(frozen=True, slots=True)
class SharedAnswer:
    at: float
    rows: DecodedRows


@dataclass(slots=True)
class OsqueryCounters:
    """Counts since the agent started."""

    sql: int = 0
    shared: int = 0
    rows: int = 0
    undecodable: int = 0
    last_error: str | None = None


class OsqueryClient:
    """osquery at a socket. Thread-safe: one call at a time.

    `find` returns the socket's path for each connection, and raises UnreachableError if there is none. `on_loss` is
    called when a connection was lost. `timeout_seconds` bounds one query. `dial` connects to the path within a timeout.
    """

    def __init__(
        self,
        find: Callable[[], str],
        timeout_seconds: float,
        *,
        on_loss: Callable[[], None] = lambda: None,
        dial: Dial | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = OsqueryCounters()
        self.path = ""
        """The socket of the connection."""
        self.connections = 0
        """Number of connections made: if it changed, osquery may have been restarted."""
        self._find = find
        self._timeout = timeout_seconds
        self._on_loss = on_loss
        self._dial = dial
        self._clock = clock
        self._lock = threading.RLock()
        self._epoch = 0
        self._closed = False
        self._connection: ThriftConnection | None = None
        self._unreachable: tuple[float, float, UnreachableError] | None = None
        self._cooldowns: dict[str, Cooldown] = {}
        self._answers: dict[str, SharedAnswer] = {}

    def shared_query(
        self, sql: str, kind: str, decode: Callable[[Sequence[OsqueryRow]], DecodedRows], check: CancelCheck
    ) -> DecodedRows:
        """The rows of a statement. After an unanswered query, all of its `kind` are refused for some time.

        Raises UnreachableError, ConnectionLostError, OsqueryRefusedError, and whatever `check` raises.
        """
        with self._turn(check) as interruptible:
            answer = self._answers.get(sql)
            if answer is not None and self._clock() - answer.at < SHARED_SECONDS:
                self.counters.shared += 1
                return answer.rows
            rows = decode(self._query(sql, kind, interruptible))
            self.counters.rows += len(rows)
            self._keep(sql, rows)
            return rows

    def query(self, sql: str) -> Sequence[OsqueryRow]:
        """Rows of one of the bridge's own statements, which are small, never shared and never refused."""
        with self._turn() as interruptible:
            return self._query(sql, None, interruptible)

    @contextmanager
    def connected(self) -> Iterator[ThriftConnection]:
        """The connection, for calls other than queries."""
        with self._turn() as interruptible:
            connection = self._connect()
            connection.check = interruptible
            try:
                yield connection
            except ConnectionLostError as error:
                self._lose(error)
                raise

    def forget_old(self) -> None:
        """Discard expired results and cooldowns."""
        with self._lock:
            now = self._clock()
            self._answers = {sql: one for sql, one in self._answers.items() if now - one.at < SHARED_SECONDS}
            self._cooldowns = {kind: rest for kind, rest in self._cooldowns.items() if now < rest.until + rest.seconds}

    def forget_answers(self) -> None:
        """Stop sharing the results so far."""
        with self._lock:
            self._answers.clear()

    def interrupt(self) -> None:
        """Abort the current call and those waiting for the connection."""
        self._epoch += 1

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._drop()
            self._answers.clear()

    @contextmanager
    def _turn(self, check: CancelCheck = lambda: None) -> Iterator[CancelCheck]:
        """Wait for the connection. Yields the function to call while waiting for a reply."""
        epoch = self._epoch

        def interruptible() -> None:
            check()
            if self._epoch != epoch:
                raise ConnectionLostError("the agent has stopped waiting")

        while not self._lock.acquire(timeout=CHECK_INTERVAL_SECONDS):
            interruptible()
        try:
            yield interruptible
        finally:
            self._lock.release()

    def _query(self, sql: str, kind: str | None, check: CancelCheck) -> Sequence[OsqueryRow]:
        rest = self._cooldowns.get(kind) if kind is not None else None
        if rest is not None and self._clock() < rest.until:
            seconds = rest.until - self._clock()
            raise CooldownError(f"{rest.cause}; such a query will not be repeated for {seconds:.0f} s")
        connection = self._connect()
        self.counters.sql += 1
        connection.check = check
        began = self._clock()
        try:
            rows = connection.query(sql)
        except ConnectionLostError as error:
            self._start_cooldown(kind, f"osquery did not answer: {error}", rest)
            self._lose(error)
            raise
        except OsqueryRefusedError as error:
            self.counters.last_error = str(error)
            raise
        except BaseException as error:
            if self._clock() - began > UNANSWERED_SECONDS:
                self._start_cooldown(kind, f"osquery took too long: {error}", rest)
            self._drop()
            raise
        if rest is not None and kind is not None:
            del self._cooldowns[kind]
        return rows

    def _connect(self) -> ThriftConnection:
        """The connection, reopened if osquery has closed it meanwhile."""
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
            self._connection = ThriftConnection(self.path, self._timeout, self._dial)
        except UnreachableError as error:
            pause = min(self._unreachable[1] * 2, RECONNECT_SECONDS_MAX) if self._unreachable else RECONNECT_SECONDS_MIN
            self._unreachable = (now + pause, pause, error.with_traceback(None))
            raise
        self._unreachable = None
        self.connections += 1
        return self._connection

    def _start_cooldown(self, kind: str | None, cause: str, before: Cooldown | None) -> None:
        if kind is None:
            return
        seconds = min(before.seconds * 2, COOLDOWN_SECONDS_MAX) if before else COOLDOWN_SECONDS_MIN
        self._cooldowns[kind] = Cooldown(self._clock() + seconds, seconds, cause)

    def _lose(self, error: Exception) -> None:
        self.counters.last_error = str(error)
        log.warning("osquery: %s", error)
        self._drop()
        self._on_loss()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _keep(self, sql: str, rows: DecodedRows) -> None:
        if len(rows) <= SHARED_ROWS_MAX:
            self._answers[sql] = SharedAnswer(self._clock(), rows)
            if len(self._answers) > 32:
                del self._answers[next(iter(self._answers))]
