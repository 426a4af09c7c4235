"""Installed queries: what Zeek asked for, when it runs, what is sent, and what counts as delivered.

Each query is a task: run, compare, deliver, remember, wait for its next turn. A query never runs again before its last
rows were delivered, so that a slow Zeek bounds the agent's memory instead of filling it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakValueDictionary

from zeek_agent.errors import SqlError
from zeek_agent.host.files.reads import Omissions
from zeek_agent.queries.backlog import Backlog, Place
from zeek_agent.queries.differences import Snapshot, unread_rows
from zeek_agent.queries.subscriptions import Change, Query, Recipient, Report, Subscription
from zeek_agent.text import STATEMENT_SHOWN, clipped, size

if TYPE_CHECKING:
    from zeek_agent.database.database import Database, Result, ResultColumn
    from zeek_agent.events.file import Delivered
    from zeek_agent.events.store import EventStore
    from zeek_agent.schema import Row

log = logging.getLogger(__name__)

EVENT_SLICE = 10_000
"""Most events that one run of a query looks at; a backlog is worked off slice by slice."""
SNAPSHOT_BYTES_MAX = 64 * 1024 * 1024
"""Largest packed snapshot that is kept on disk."""
ERROR_INTERVAL = 60.0
"""Seconds after which a query's unchanged run-time error is reported again."""
PROGRESS_MAX = 2_000
"""Event queries whose last seconds are remembered, those that are not installed any more included."""
STEP = 1.0
"""Seconds between the steps that are remembered."""
REPLAY = 10.0
"""What a Zeek acknowledged in its last seconds is sent again to its successor, as it may not have been logged."""


class State(StrEnum):
    """Where an installed query stands."""

    RUNNING = "running"
    WAITING = "waiting"
    """Its `requires_tables` are not all there, or one of its `if_missing_tables` is."""
    FAILING = "failing"
    """Its last run ended with an error."""


@dataclass(slots=True)
class Installed:
    """A query with its recipient, progress and counters."""

    query_id: str
    query: Query
    recipient: Recipient
    key: str
    durable: bool
    """Whether its progress is kept on disk; never for a second, identical query at the same time."""
    size: int
    """Bytes of its texts."""
    state: State = State.RUNNING
    event_tables: frozenset[str] = frozenset()
    seen: dict[str, int] = field(default_factory=dict)
    """By event table: the last sequence number that was delivered."""
    under_way: dict[str, int] = field(default_factory=dict)
    """How far a report went that was sent in an earlier life and is not known to have arrived."""
    backlog: Backlog = field(default_factory=Backlog)
    snapshot: Snapshot | None = None
    reported: bool = False
    """Whether a first result was reported in this life of the query."""
    runs: int = 0
    rows: int = 0
    lost: int = 0
    """Events that retention removed before they could be delivered."""
    errors: int = 0
    last_run: float | None = None
    last_duration: float | None = None
    last_error: str | None = None
    last_error_reported: float = float("-inf")
    files: Omissions = field(default_factory=Omissions)
    """The files that the last run left out."""
    files_reported: frozenset[str] = frozenset()
    """The causes that its recipient was told."""

    def status(self) -> QueryStatus:
        query, files = self.query, self.files
        return QueryStatus(
            id=self.query_id,
            recipient=self.recipient.identity,
            sql=query.sql,
            event=query.event,
            subscription=None if query.subscription is None else query.subscription.value,
            schedule=query.schedule,
            cookie=query.cookie,
            state=self.state.value,
            runs=self.runs,
            rows=self.rows,
            lost=self.lost,
            errors=self.errors,
            last_run=self.last_run,
            last_duration=self.last_duration,
            last_error=self.last_error,
            files_refused=files.refused,
            files_skipped=files.skipped,
            files_truncated=files.truncated,
            files_causes=sorted(files.causes),
        )


class QueryStatus(NamedTuple):
    """A row of `zeek_agent_queries`, which describes the columns."""

    id: str
    recipient: str
    sql: str
    event: str
    subscription: str | None
    schedule: float | None
    cookie: str | None
    state: str
    runs: int
    rows: int
    lost: int
    errors: int
    last_run: float | None
    last_duration: float | None
    last_error: str | None
    files_refused: int
    files_skipped: int
    files_truncated: int
    files_causes: list[str]


@dataclass(slots=True)
class Progress:
    """How an event query went on in the last seconds of one life of its recipient."""

    life: str
    steps: deque[tuple[float, dict[str, int]]] = field(default_factory=deque)

    def note(self, now: float, seen: Mapping[str, int]) -> None:
        """Remember a step; of those older than `REPLAY` seconds only the last is kept."""
        if self.steps and now - self.steps[-1][0] < STEP:
            return
        self.steps.append((now, dict(seen)))
        while len(self.steps) > 1 and self.steps[1][0] <= now - REPLAY:
            self.steps.popleft()


class QueryRunner:
    """Runs installed queries on a database and hands their rows to whoever installed them.

    `drain` brings the event store up to date with the kernel; it is awaited before an event query looks. `formerly`
    has earlier identities by a recipient's identity: what was delivered under one of them is not delivered again.
    """

    def __init__(
        self,
        database: Database,
        store: EventStore | None = None,
        *,
        drain: Callable[[], Awaitable[None]] | None = None,
        formerly: Mapping[str, Sequence[str]] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._store = store
        self._drain = drain
        self._formerly = formerly or {}
        self._clock = clock
        self._monotonic = monotonic
        self._installed: dict[str, Installed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._progress: dict[str, Progress] = {}
        self._backlogs: WeakValueDictionary[str, Backlog] = WeakValueDictionary()
        self._run = secrets.token_hex(4)
        self._reports = 0
        self._tables_changed = asyncio.Event()
        database.on_change(self._notice_tables)

    @property
    def installed(self) -> Sequence[Installed]:
        """The queries that are installed now."""
        return tuple(self._installed.values())

    async def install(self, recipient: Recipient, query_id: str, query: Query) -> None:
        """Start a query; an id that is known already is ignored. A schedule that is too short is raised.

        A statement that does not compile is reported to the recipient and not installed.
        """
        if query_id in self._installed:
            log.debug("query %s is already installed", query_id)
            return
        key = _key(recipient.identity, query)
        taken = any(other.key == key and other.durable for other in self._installed.values())
        durable = recipient.durable and not taken
        size_of_texts = size(query_id) + query.size
        installed = Installed(query_id, query.slowed(), recipient, key, durable, size_of_texts)
        self._installed[query_id] = installed
        task = asyncio.create_task(self._live(installed, query.schedule), name=f"query {query_id}")
        self._tasks[query_id] = task
        task.add_done_callback(lambda done: self._forget(query_id, done))

    def cancel(self, query_id: str) -> None:
        """End a query; an unknown id is ignored."""
        if task := self._tasks.get(query_id):
            self._installed.pop(query_id, None)
            task.cancel()

    def drop(self, recipient: Recipient, *, in_order: bool = False) -> None:
        """End all queries of a recipient that is gone; `in_order` when it has ended well and nothing is in doubt."""
        for installed in self.installed:
            if installed.recipient is recipient:
                self.cancel(installed.query_id)
                if in_order:
                    self._progress.pop(installed.key, None)

    async def close(self) -> None:
        """End all queries."""
        tasks = list(self._tasks.values())
        for query_id in list(self._tasks):
            self.cancel(query_id)
        await asyncio.gather(*tasks, return_exceptions=True)

    def _forget(self, query_id: str, task: asyncio.Task[None]) -> None:
        if self._tasks.get(query_id) is task:
            del self._tasks[query_id]
            self._installed.pop(query_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("query %s ended: %s", query_id, error, exc_info=error)

    def _notice_tables(self) -> None:
        """Called when tables come or go, in the event loop's thread."""
        self._tables_changed.set()
        self._tables_changed = asyncio.Event()

    # A query's life

    async def _live(self, installed: Installed, wanted: float | None) -> None:
        """Run a query at its schedule until it is cancelled or its recipient is gone."""
        with suppress(ConnectionError):
            if installed.query.schedule != wanted:
                await self._report_raised_schedule(installed, wanted)
            await self._wait_for_tables(installed)
            if not await self._prepare(installed):
                return
            start = self._monotonic()
            while True:
                await self._turn(installed)
                if installed.query.once:
                    return
                await self._sleep(start, installed.query.schedule or 0.0)
                await self._wait_for_tables(installed)

    async def _report_raised_schedule(self, installed: Installed, wanted: float | None) -> None:
        """Once for the query. A stock package is not told: it logs as an error whatever an agent tells it."""
        from zeek_agent.database.database import Profile

        recipient, query = installed.recipient, installed.query
        notice = f"runs every {query.schedule:g} s, the shortest possible schedule, instead of every {wanted:g} s"
        log.warning("query %s of %s %s: %s", installed.query_id, recipient.identity, notice, _shown(query))
        if recipient.profile is Profile.FULL:
            await recipient.fail(installed.query_id, query, f"query {notice} (statement: {_shown(query)})")

    async def _wait_for_tables(self, installed: Installed) -> None:
        query = installed.query
        while not (
            query.requires_tables <= self._database.tables.keys()
            and query.if_missing_tables.isdisjoint(self._database.tables.keys())
        ):
            if installed.state is not State.WAITING:
                log.info("query %s is waiting for its tables: %s", installed.query_id, _shown(query))
            installed.state = State.WAITING
            await self._tables_changed.wait()
        if installed.state is State.WAITING:
            installed.state = State.RUNNING

    async def _sleep(self, start: float, schedule: float) -> None:
        """Wait for the next multiple of the schedule, so that queries installed together also run together."""
        now = self._monotonic()
        turns = int((now - start) / schedule) + 1
        await asyncio.sleep(start + turns * schedule - now)

    async def _prepare(self, installed: Installed) -> bool:
        query = installed.query
        try:
            statement = await self._database.prepare(
                query.sql, profile=installed.recipient.profile, origin=installed.recipient.identity
            )
        except SqlError as error:
            message = f"could not compile query (failed to compile SQL statement: {_shown(query)} ({error}))"
            log.warning("query %s of %s: %s", installed.query_id, installed.recipient.identity, message)
            await installed.recipient.fail(installed.query_id, query, message)
            return False
        if query.subscription is Subscription.EVENTS and self._store is not None:
            tables = self._database.tables
            installed.event_tables = frozenset(
                name for name in statement.tables if name in tables and tables[name].kind == "events"
            )
        kind = "events" if installed.event_tables else "snapshots"
        installed.backlog = self._backlogs.setdefault(f"{kind} {installed.recipient.identity}", installed.backlog)
        self._restore(installed)
        return True

    def _restore(self, installed: Installed) -> None:
        """Take up what was delivered to this recipient in an earlier life; a new query starts with now."""
        store = self._store
        if store is None:
            return
        delivered = self._delivered(installed, store) if installed.durable else None
        for table in installed.event_tables:
            installed.seen[table] = delivered.seqs.get(table, store.last(table)) if delivered else store.last(table)
        if installed.event_tables and delivered is None:
            self._remember(installed)
        progress = self._progress.get(installed.key)
        if progress and progress.life != installed.recipient.life and installed.durable:
            installed.seen.update(progress.steps[0][1])
        elif delivered and delivered.under_way.keys() == installed.event_tables:
            installed.under_way = dict(delivered.under_way)
        if installed.event_tables:
            self._note_progress(installed)
        if delivered and delivered.snapshot is not None and not installed.event_tables:
            try:
                installed.snapshot = Snapshot.unpack(delivered.snapshot)
            except ValueError as error:
                log.warning("query %s starts over: %s", installed.query_id, error)

    def _delivered(self, installed: Installed, store: EventStore) -> Delivered | None:
        """What the query has delivered, under its recipient's identity or else under an earlier one."""
        identity = installed.recipient.identity
        for known_as in (identity, *self._formerly.get(identity, ())):
            if delivered := store.delivered(_key(known_as, installed.query)):
                return delivered
        return None

    async def _turn(self, installed: Installed) -> None:
        """One run. An error of the statement is reported, and the query goes on at its next turn."""
        installed.last_run = self._clock()
        started = self._monotonic()
        try:
            await (self._run_events(installed) if installed.event_tables else self._run_snapshot(installed))
        except SqlError as error:
            await self._report_error(installed, str(error))
        else:
            installed.state = State.RUNNING
        installed.runs += 1
        installed.last_duration = self._monotonic() - started

    async def _report_error(self, installed: Installed, message: str) -> None:
        installed.errors += 1
        installed.state = State.FAILING
        now = self._monotonic()
        if message == installed.last_error and now - installed.last_error_reported < ERROR_INTERVAL:
            return
        installed.last_error, installed.last_error_reported = message, now
        log.warning("query %s of %s failed: %s", installed.query_id, installed.recipient.identity, message)
        text = f"could not run query (statement: {_shown(installed.query)} ({message}))"
        await installed.recipient.fail(installed.query_id, installed.query, text)

    async def _query(self, installed: Installed, window: Mapping[str, tuple[int, int]] | None = None) -> Result:
        from zeek_agent.database.database import Lane

        result = await self._database.query(
            installed.query.sql,
            profile=installed.recipient.profile,
            lane=Lane.EVENTS if window else Lane.SNAPSHOTS,
            window=window,
            origin=installed.recipient.identity,
        )
        if result.errors:
            await self._report_error(installed, f"rows omitted: {'; '.join(result.errors)}")
        await self._report_files(installed, result.files)
        return result

    async def _report_files(self, installed: Installed, files: Omissions) -> None:
        """Tell the recipient of files that were left out: once, and again when there is another cause.

        A stock package is told once, since it takes each error for a failure of the query.
        """
        from zeek_agent.database.database import Profile

        installed.files = files
        new = files.causes - installed.files_reported
        if not new or (installed.files_reported and installed.recipient.profile is Profile.STOCK):
            return
        installed.files_reported |= files.causes
        log.warning("query %s of %s: %s", installed.query_id, installed.recipient.identity, files.summary())
        text = f"could not read all files (statement: {installed.query.sql} ({files.summary()}))"
        await installed.recipient.fail(installed.query_id, installed.query, text)

    async def _deliver(
        self,
        installed: Installed,
        columns: tuple[ResultColumn, ...],
        rows: Sequence[tuple[Change | None, Row]],
        window: tuple[int, int] | None = None,
    ) -> None:
        if not rows and not (installed.query.once and installed.recipient.tells_replays):
            return  # only the end of a query that runs once is worth a report of its own
        store = self._store.id if self._store else ""
        if window is None:
            self._reports += 1
            store, window = f"{store}/{self._run}", (self._reports - 1, self._reports)
        report = Report(
            installed.query_id,
            installed.query,
            columns,
            rows,
            stream=installed.key,
            store=store,
            window=window,
        )
        await installed.recipient.deliver(report)
        installed.rows += len(rows)

    # Event queries

    async def _run_events(self, installed: Installed) -> None:
        """Deliver what was recorded since the last delivery, a slice at a time."""
        assert self._store is not None
        if self._drain is not None:
            await self._drain()
        while window := self._window(installed, self._store):
            installed.under_way = {table: high for table, (_, high) in window.items()}
            async with installed.backlog.place() as place:
                result = await self._query(installed, window)
                place.fill(result.size)
                if result.rows and installed.recipient.tells_replays:
                    self._remember(installed)
                    await asyncio.to_thread(self._store.flush)
                added = [(Change.ADD, row) for row in result.rows]
                await self._deliver(installed, result.columns, added, window[min(window)])
            installed.seen.update(installed.under_way)
            installed.under_way = {}
            self._remember(installed)
            self._note_progress(installed)

    def _note_progress(self, installed: Installed) -> None:
        if not installed.durable:
            return
        progress = self._progress.get(installed.key)
        if progress is None or progress.life != installed.recipient.life:
            self._progress.pop(installed.key, None)
            progress = self._progress[installed.key] = Progress(installed.recipient.life)
            self._forget_old_progress()
        progress.note(self._monotonic(), installed.seen)

    def _forget_old_progress(self) -> None:
        """Whoever installs ever new queries must not fill the memory."""
        if len(self._progress) <= PROGRESS_MAX:
            return
        in_use = {installed.key for installed in self._installed.values()}
        for key in list(self._progress):
            if key not in in_use:
                del self._progress[key]
                log.info(
                    "more than %d event queries: if Zeek is killed, the oldest ones are not replayed", PROGRESS_MAX
                )
                return

    def _window(self, installed: Installed, store: EventStore) -> dict[str, tuple[int, int]] | None:
        """The sequence numbers to look at, by table: after the first and up to the second; None for nothing new."""
        window: dict[str, tuple[int, int]] = {}
        for table, seen in installed.seen.items():
            last = installed.under_way.get(table, store.last(table))
            first = store.first(table) or store.last(table) + 1
            if first > seen + 1:
                installed.lost += first - seen - 1
                log.warning("query %s: %d rows of %s expired undelivered", installed.query_id, first - seen - 1, table)
                seen = installed.seen[table] = first - 1
            window[table] = (seen, max(seen, last))
        if len(window) == 1:
            window = {table: (low, min(high, low + EVENT_SLICE)) for table, (low, high) in window.items()}
        return window if any(high > low for low, high in window.values()) else None

    # Snapshot queries

    async def _run_snapshot(self, installed: Installed) -> None:
        async with installed.backlog.place() as place:
            await self._report_snapshot(installed, place)

    async def _report_snapshot(self, installed: Installed, place: Place) -> None:
        """Deliver a result, or how it differs from the last one that was delivered."""
        result = await self._query(installed)
        place.fill(result.size)
        if installed.query.once or installed.query.subscription is Subscription.SNAPSHOTS:
            await self._deliver(installed, result.columns, [(None, row) for row in result.rows])
            return
        columns = result.columns
        files = result.files
        snapshot = Snapshot(tuple((column.name, str(column.type)) for column in columns), result.rows, files.unread)
        del result  # however long delivering takes, its rows are not needed any more
        before = installed.snapshot if installed.snapshot and installed.snapshot.columns == snapshot.columns else None
        if before is not None and not _reports_all(installed):
            _hold_unread(before, snapshot, files)
        if before == snapshot and installed.reported:
            return
        await self._deliver(installed, columns, _changes(installed, before, snapshot))
        installed.snapshot, installed.reported = snapshot, True
        if before != snapshot:
            self._remember(installed)

    def _remember(self, installed: Installed) -> None:
        """Keep on disk what the recipient has, so that changes while it is away are reported later."""
        if self._store is None or not installed.durable or installed.query.once:
            return
        packed = installed.snapshot.pack() if installed.snapshot is not None else None
        if packed is not None and len(packed) > SNAPSHOT_BYTES_MAX:
            log.warning("query %s: its snapshot of %d bytes is too large to store", installed.query_id, len(packed))
            packed = None
        self._store.acknowledge(installed.key, installed.seen, packed, installed.under_way)


def _reports_all(installed: Installed) -> bool:
    """Whether the next report is the whole result."""
    return installed.query.subscription is Subscription.SNAPSHOT_PLUS_DIFFERENCES and not installed.reported


def _hold_unread(before: Snapshot, now: Snapshot, files: Omissions) -> None:
    """Keep rows of files that could be read before and cannot now: nobody knows that they have gone."""
    newly = not files.unread <= before.unread
    if files.unread:
        now.hold(before, unread_rows(files.unread, newly, files.all_paths))
    now.unread = files.unread & before.unread


def _changes(installed: Installed, before: Snapshot | None, now: Snapshot) -> list[tuple[Change | None, Row]]:
    subscription = installed.query.subscription
    if _reports_all(installed):
        return [(None, row) for row in now.all()]
    if before is None:
        return []
    new: list[tuple[Change | None, Row]] = [(Change.ADD, row) for row in before.new(now)]
    if subscription is Subscription.EVENTS:
        return new
    return [*((Change.DELETE, row) for row in before.gone(now)), *new]


def _shown(query: Query) -> str:
    return clipped(query.sql, STATEMENT_SHOWN)


def _key(identity: str, query: Query) -> str:
    """What a query is, whatever its id: who asked, what, and how it is to be reported."""
    parts = (identity, query.sql, query.event, query.cookie or "", query.subscription or "")
    return hashlib.sha256("\0".join(parts).encode(errors="surrogatepass")).hexdigest()
