"""Runs installed queries: schedule, delivery, and progress.

Each query is a task: run, compare, deliver, save state, wait for the next run. A query never runs again before its last
rows were delivered, so that a slow Zeek cannot make the agent's memory grow.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from zeek_agent.containment.usage import recipient_of
from zeek_agent.errors import RevokedError, SqlError, WorkerUnavailableError
from zeek_agent.queries.delivery import Delivery
from zeek_agent.queries.difference_strategy import DifferenceStrategy
from zeek_agent.queries.event_strategy import EventStrategy
from zeek_agent.queries.installed import Installed, QueryState, clipped_statement, query_key
from zeek_agent.queries.result_backlog import Backlog
from zeek_agent.queries.snapshot_strategy import SnapshotStrategy
from zeek_agent.queries.subscriptions import Query, Recipient, Subscription
from zeek_agent.text import byte_length, clipped

if TYPE_CHECKING:
    from zeek_agent.database.database import SqlDatabase
    from zeek_agent.database.results import Statement
    from zeek_agent.events.delivery_states import Delivered
    from zeek_agent.events.store import EventStore
    from zeek_agent.results.store import ResultStore

log = logging.getLogger(__name__)


class QueryRunner:
    """Runs installed queries on a database and delivers their rows to their recipients.

    `drain` brings the event store up to date with the kernel; it is awaited before an event query reads. `formerly`
    maps a recipient's identity to earlier ones: rows delivered under one of those are not delivered again.
    """

    def __init__(
        self,
        database: SqlDatabase,
        store: EventStore | None = None,
        *,
        results: ResultStore | None = None,
        drain: Callable[[], Awaitable[None]] | None = None,
        formerly: Mapping[str, Sequence[str]] | None = None,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._store = store
        self._formerly = formerly or {}
        self._clock = clock
        self._monotonic = monotonic
        self._installed: dict[str, Installed] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._backlogs: WeakValueDictionary[str, Backlog] = WeakValueDictionary()
        self._discards: set[asyncio.Future[None]] = set()
        self._tables_changed = asyncio.Event()
        self._delivery = Delivery(database, store, monotonic)
        self._snapshots: SnapshotStrategy | DifferenceStrategy = SnapshotStrategy(self._delivery)
        if results is not None and database.compares_results:
            self._snapshots = DifferenceStrategy(self._delivery, results, self._known_as)
        self._events = None if store is None else EventStrategy(self._delivery, store, drain)
        database.on_change(self._on_tables_changed)

    @property
    def installed(self) -> Sequence[Installed]:
        """The queries that are installed now."""
        return tuple(self._installed.values())

    @property
    def lost(self) -> Mapping[str, int]:
        """Events removed from the store before they were delivered, by destination, since the agent started."""
        return {} if self._events is None else self._events.lost

    async def install(self, recipient: Recipient, query_id: str, query: Query) -> None:
        """Start a query, unless its id is already installed. Too short a schedule is raised to the minimum.

        A statement that does not compile is reported to the recipient and not installed.
        """
        if query_id in self._installed:
            log.debug("query %s is already installed", query_id)
            return
        key = query_key(recipient.identity, query)
        is_duplicate = any(other.key == key and other.durable for other in self._installed.values())
        durable = recipient.durable and not is_duplicate
        size_of_texts = byte_length(query_id) + query.size_bytes
        installed = Installed(query_id, query.with_minimum_schedule(), recipient, key, durable, size_of_texts)
        self._installed[query_id] = installed
        task = asyncio.create_task(self._run_on_schedule(installed, query.schedule), name=f"query {query_id}")
        self._tasks[query_id] = task
        task.add_done_callback(lambda done: self._on_task_done(installed, done))

    def cancel(self, query_id: str) -> None:
        """Cancel a query; an unknown id is ignored."""
        if task := self._tasks.get(query_id):
            self._installed.pop(query_id, None)
            task.cancel()

    def drop(self, recipient: Recipient, *, in_order: bool = False) -> None:
        """Cancel all queries of a recipient that is gone; `in_order` if it shut down cleanly and lost nothing."""
        for installed in self.installed:
            if installed.recipient is recipient:
                self.cancel(installed.query_id)
        if in_order:
            self.ended_in_order(recipient.identity, recipient.incarnation)

    def ended_in_order(self, identity: str, incarnation: str) -> None:
        """Note that a recipient whose queries were dropped ended in order, and so lost nothing."""
        if self._events is not None:
            self._events.end_incarnation(recipient_of(identity), incarnation)

    async def close(self) -> None:
        """Cancel all queries."""
        tasks = list(self._tasks.values())
        for query_id in list(self._tasks):
            self.cancel(query_id)
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._discards, return_exceptions=True)

    def _on_task_done(self, installed: Installed, task: asyncio.Task[None]) -> None:
        query_id = installed.query_id
        if self._tasks.get(query_id) is task:
            del self._tasks[query_id]
            self._installed.pop(query_id, None)
        if isinstance(self._snapshots, DifferenceStrategy) and not installed.durable:
            self._discards.add(discard := asyncio.ensure_future(self._snapshots.discard(installed)))
            discard.add_done_callback(self._discards.discard)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("query %s ended: %s", query_id, error, exc_info=error)

    def _on_tables_changed(self) -> None:
        """Called in the event loop's thread when tables were added or removed."""
        self._tables_changed.set()
        self._tables_changed = asyncio.Event()

    async def _run_on_schedule(self, installed: Installed, wanted: float | None) -> None:
        """Run a query on its schedule until it is cancelled or its recipient is gone."""
        with suppress(ConnectionError):
            if installed.query.schedule != wanted:
                await self._report_raised_schedule(installed, wanted)
            await self._wait_for_tables(installed)
            if not await self._prepare(installed):
                return
            start = self._monotonic()
            while True:
                await self._run_once(installed)
                if installed.query.runs_once:
                    return
                await self._wait_for_next_run(start, installed.query.schedule or 0.0)
                await self._wait_for_tables(installed)

    async def _report_raised_schedule(self, installed: Installed, wanted: float | None) -> None:
        """Report the raised schedule, once per query. A stock package gets no report: it would log it as an error."""
        from zeek_agent.database.database import Profile

        recipient, query = installed.recipient, installed.query
        notice = f"runs every {query.schedule:g} s, the shortest possible schedule, instead of every {wanted:g} s"
        log.warning("query %s of %s %s: %s", installed.query_id, recipient.identity, notice, clipped_statement(query))
        if recipient.profile is not Profile.STOCK:
            await recipient.report_error(
                installed.query_id, query, f"query {notice} (statement: {clipped_statement(query)})"
            )

    async def _wait_for_tables(self, installed: Installed) -> None:
        query = installed.query
        while not (
            query.requires_tables <= self._database.tables.keys()
            and query.if_missing_tables.isdisjoint(self._database.tables.keys())
        ):
            if installed.state is not QueryState.WAITING:
                log.info("query %s is waiting for its tables: %s", installed.query_id, clipped_statement(query))
            installed.state = QueryState.WAITING
            await self._tables_changed.wait()
        if installed.state is QueryState.WAITING:
            installed.state = QueryState.RUNNING

    async def _wait_for_next_run(self, start: float, schedule: float) -> None:
        """Wait for the next multiple of the schedule, so that queries installed together also run together."""
        now = self._monotonic()
        turns = int((now - start) / schedule) + 1
        await asyncio.sleep(start + turns * schedule - now)

    async def _prepare(self, installed: Installed) -> bool:
        query = installed.query
        try:
            statement = await self._compile(installed)
        except SqlError as error:
            message = f"could not compile query (failed to compile SQL statement: {clipped_statement(query)} ({error}))"
            log.warning("query %s of %s: %s", installed.query_id, installed.recipient.identity, message)
            await installed.recipient.report_error(installed.query_id, query, message)
            return False
        if query.subscription is Subscription.EVENTS and self._store is not None:
            tables = self._database.tables
            installed.event_tables = frozenset(
                name for name in statement.tables if name in tables and tables[name].kind == "events"
            )
        kind = "events" if installed.event_tables else "snapshots"
        installed.backlog = self._backlogs.setdefault(f"{kind} {installed.recipient.identity}", installed.backlog)
        if self._store is not None:
            delivered = self._saved_state(installed, self._store) if installed.durable else None
            self._strategy_for(installed).restore(installed, delivered)
        return True

    async def _compile(self, installed: Installed) -> Statement:
        """Compile the statement. Raises SqlError, also for a dialect that this agent does not know.

        A scheduled query waits for a worker process that cannot be started now.
        """
        try:
            profile = installed.profile
        except KeyError:
            from zeek_agent.database.sql_connection import DIALECTS

            named, known = clipped(str(installed.query.dialect)), ", ".join(DIALECTS)
            raise SqlError(f"unknown dialect {named!r}; this agent has {known}") from None
        query, start = installed.query, self._monotonic()
        while True:
            try:
                return await self._database.prepare(query.sql, profile=profile, origin=installed.recipient.identity)
            except WorkerUnavailableError as error:
                if query.runs_once:
                    raise
                await self._delivery.report_error(installed, str(error))
            await self._wait_for_next_run(start, query.schedule or 0.0)

    def _strategy_for(self, installed: Installed) -> EventStrategy | SnapshotStrategy | DifferenceStrategy:
        return self._events if installed.event_tables and self._events is not None else self._snapshots

    def _known_as(self, installed: Installed) -> list[str]:
        """The query's keys under earlier identities of its recipient."""
        earlier = self._formerly.get(installed.recipient.identity, ())
        return [query_key(identity, installed.query) for identity in earlier]

    def _saved_state(self, installed: Installed, store: EventStore) -> Delivered | None:
        """The delivery state of the query under its recipient's identity, or else under an earlier one."""
        identity = installed.recipient.identity
        for known_as in (identity, *self._formerly.get(identity, ())):
            if delivered := store.delivered(query_key(known_as, installed.query)):
                return delivered
        return None

    async def _run_once(self, installed: Installed) -> None:
        """Run the query once. An error of the statement is reported, and the query runs again as scheduled."""
        installed.last_run = self._clock()
        started = self._monotonic()
        try:
            await self._strategy_for(installed).run(installed)
        except SqlError as error:
            if isinstance(error, RevokedError) and not installed.query.runs_once:
                log.info("query %s of %s is run again: %s", installed.query_id, installed.recipient.identity, error)
            else:
                await self._delivery.report_error(installed, str(error))
        else:
            installed.state = QueryState.RUNNING
        installed.runs += 1
        installed.last_duration = self._monotonic() - started
