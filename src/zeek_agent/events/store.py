"""The event store: recorded events, kept on disk until retention removes them, and their delivery state.

Any thread appends; one writer thread commits. Every lost row is counted by table and cause.
"""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, NamedTuple

import apsw
from msgspec import Struct

from zeek_agent.config.sections import EventSettings, LimitSettings
from zeek_agent.events import replacement
from zeek_agent.events.ages import STEP_SECONDS, AgeClock, BootTime, system_boot_time
from zeek_agent.events.delivery_states import STATES_MAX, Delivered, EndedIncarnation, RecentProgress
from zeek_agent.events.event_file import EventFile, Gap, SeqBounds, WriteBatch, disk_uri, gap_source, note_unsaved
from zeek_agent.events.migrations import NewerStoreError
from zeek_agent.events.reading import count_rows, read_delivery_state, read_rows
from zeek_agent.events.recording_position import RecordingPosition
from zeek_agent.schema import EventRow
from zeek_agent.table import Table

__all__ = ["Delivered", "EventStore", "Gap", "NewerStoreError", "TableCounters"]

log = logging.getLogger(__name__)

_COMMIT_ROWS: Final = 1_000
"""Queued rows that are committed without waiting; the cost of a transaction is then small next to its rows'."""
_COMMIT_ROWS_MAX: Final = 5_000
"""Rows per transaction, so that one commit of a long queue does not grow the write-ahead log beyond its bound."""
_HEARTBEAT_SECONDS: Final = 5.0
"""Interval of retention and of the store's time stamp, so that a gap after a crash starts at most that much early."""
_STALL_SECONDS: Final = 300.0
"""Time without progress after which the writer counts as hung; a copy of a large file on a slow disk takes less."""
_BUSY_WAIT_SECONDS: Final = 0.1
"""Pause while readers block the write-ahead log, so that waiting for them costs next to no CPU time."""
_MEMORY_STORE_BYTES: Final = 32 << 20
"""Maximum size of a store in memory: any host that runs an agent can spare it."""
_ROWS_CARRIED_OVER: Final = 20_000
"""Newest rows of each table that are copied to another file: those most likely to be undelivered yet."""
_NEWEST_ENTITIES: Final = 50_000
"""Rows that are searched for processes that were recorded shortly before a gap."""
_REFUSED_STATES_LOG_SECONDS: Final = 60.0
_BLOCKED_CHECK_SECONDS: Final = 1.0
"""Interval at which a reader that blocks the write-ahead log is looked for and reported."""
_NOT_STORED: Final = "the event store could not accept all rows"
"""The cause of the gap that they leave."""
_DAMAGED: Final = (apsw.CorruptError, apsw.NotADBError)
_UNUSABLE: Final = (apsw.Error, OSError, NewerStoreError)
_TRANSIENT: Final = (apsw.BusyError, apsw.LockedError)


@dataclass(slots=True)
class TableCounters:
    """Rows of one table since the start. `lost` by cause: `store` (queue full or closed), `decode` (did not fit);
    `expired` were removed by age, `evicted` for room. `nulled` are values, of any run, that a change of their column's
    type made NULL in this one."""

    received: int = 0
    stored: int = 0
    expired: int = 0
    evicted: int = 0
    nulled: int = 0
    lost: Counter[str] = field(default_factory=Counter)


class _QueuedRows(NamedTuple):
    table: str
    rows: Sequence[EventRow]
    position: str | None = None


class _GapEnd(NamedTuple):
    gap: Gap
    end: float


class EventStore:
    """Event tables in an SQLite file at `path`; in memory when `path` is None or the file cannot be used.

    In the latter case, or when a damaged file was moved aside, `notice` describes it in one line and is logged. A disk
    that fails in the middle of a run (because it is full, say) is retried every `retry_seconds`. `id` and `uri` change
    with the file: a reader compares `uri` with what it has attached. `seq` continues across files, so that a cursor
    stays valid.

    `on_blocked_reader` is called, about once a second and in the writer's thread, while a reader keeps the write-ahead
    log from being reused, with the seconds since that was noticed. If the log is full and the reader does not end
    within `blocked_seconds`, the store continues in a copy of the file. Ages are measured by `boot_time`, so that
    setting the clock removes nothing; `recorded_until` returns until when all events were appended, None while that is
    not known, and is called with a lock held. A `clock` other than the system's also measures ages unless `boot_time`
    is given. Raises NewerStoreError, and leaves the file as it is, when a later agent wrote it.
    """

    def __init__(
        self,
        path: Path | None,
        tables: Sequence[Table],
        settings: EventSettings | None = None,
        clock: Callable[[], float] = time.time,
        retry_seconds: float = 60.0,
        *,
        state_bytes: int = LimitSettings().state_bytes,
        on_blocked_reader: Callable[[float], None] | None = None,
        blocked_seconds: float = 5.0,
        boot_time: BootTime | None = None,
        recorded_until: Callable[[], float | None] | None = None,
    ) -> None:
        self._recorded_until = recorded_until
        self._on_blocked_reader = on_blocked_reader
        self._blocked_seconds = blocked_seconds
        self._blocked_since: float | None = None
        self._blocked_checked = 0.0
        self.files_left = 0
        """Files that were replaced by a copy, because a reader did not end."""
        self._state_bytes = state_bytes
        self.states_refused = 0
        """Delivery states that were not stored, or without their snapshot, because of their limits."""
        self._states_refused_logged = -math.inf
        self._settings = settings or EventSettings()
        self._are_limits_new = False
        self._tables = [table for table in tables if table.kind == "events"]
        self._clock = clock
        if boot_time is None:
            boot_time = system_boot_time() if clock is time.time else BootTime("of this clock", clock)
        self._age_clock = AgeClock(boot_time, clock)
        self._clock_ahead: float | None = None
        self.counters = {table.name: TableCounters() for table in self._tables}
        self.notice: str | None = None
        self._changed = threading.Condition()
        self._queue: deque[_QueuedRows | Gap | Table | EndedIncarnation | _GapEnd | str] = deque()
        self._queued_rows = 0
        self._losses: dict[str, tuple[float, float]] = {}
        """By source, the period of rows that could not be stored and that no gap contains yet."""
        self._unsaved: dict[str, Delivered] = {}
        self._writing = WriteBatch()
        self._submitted = 0
        self._committed = 0
        self._commit_requested = False
        self._closed = False
        self._housekeeping_due = 0.0
        self._retry_seconds = retry_seconds
        self._retry_due = 0.0
        self._path_to_retry: Path | None = None
        self._seq_on_disk: Mapping[str, int] = {}
        """The highest `seq` of each table in the file that is to be used again."""
        self._was_damaged = False
        self._file = self._open(path)
        self._restart_gap = self._file.restart_gap
        self.last_recorded: float | None = self._file.last_recorded
        """Until when the last run recorded, by the time of day as it is now; None if there was none."""
        self.age_clock: Callable[[], float] = self._age_clock
        """A clock in seconds that is not set, and that goes on across restarts."""
        self._progressed = time.monotonic()
        self._writer = threading.Thread(target=self._run, name="event-store", daemon=True)
        self._writer.start()

    @property
    def id(self) -> str:
        """Name of this series of sequence numbers, created once per file."""
        return self._file.id

    @property
    def uri(self) -> str:
        """The URI under which a reader in this process attaches the store, read-only."""
        return self._file.uri

    def seq_bounds(self, table: str) -> SeqBounds:
        """Both bounds as of one commit; what is read by `first_seq` and `last_seq` may be of different ones."""
        return self._file.seq_bounds.get(table, SeqBounds(0, 0))

    def first_seq(self, table: str) -> int:
        """Lowest retained `seq`; 0 when the table is empty."""
        return self.seq_bounds(table).first

    def last_seq(self, table: str) -> int:
        """Highest committed `seq`, whether or not the row is still there; 0 when no row was ever committed."""
        return self.seq_bounds(table).last

    def has_holes(self, table: str, after: int) -> bool:
        """Whether retention may have removed rows after this `seq` although older ones are still there."""
        return self._file.may_have_holes(table, after)

    def missing(self, table: str, low: int, high: int) -> int:
        """How many rows with low < seq <= high retention has removed; reads the file."""
        try:
            return max(0, high - low - count_rows(self.uri, table, low, high))
        except apsw.Error as error:
            log.error("event store: cannot count the rows of %s that are missing: %s", table, error)
            return 0

    def end_restart_gap(self, end: float) -> None:
        """Note that events have been recorded since this time, which ends the gap since the last run."""
        if self._restart_gap is None:
            return
        with self._changed:
            self._queue.append(_GapEnd(self._restart_gap, end))
            self._submitted += 1
            self._changed.notify_all()

    def gaps(self) -> list[Gap]:
        return list(self._file.gaps)

    def recording_position(self, table: str, rows: int = 1) -> RecordingPosition:
        """The recording position of a table with the columns `time` and `cursor`, including queued rows.

        It has the cursors of up to that many rows. If none of its rows is left, it was recorded until shortly before
        the last run ended; no event of that time can be recorded twice.
        """
        self.flush()
        now = self._clock()
        oldest = now - self._settings.retention_age
        try:
            sql = f'SELECT cursor, time FROM "{table}" ORDER BY seq DESC LIMIT ?'
            newest = read_rows(self.uri, sql, (rows,))
        except apsw.Error as error:
            log.error("event store: cannot read the recording position of %s: %s", table, error)
            return RecordingPosition()
        for cursor, time_ in newest[:1]:
            if time_ >= oldest:
                return RecordingPosition(cursor, min(time_, now), [one for one, _ in newest])
        ended = [gap.begin - 2 * _HEARTBEAT_SECONDS for gap in self._file.gaps if gap.source == "agent"]
        return RecordingPosition(until=min(max(*ended, oldest), now)) if ended else RecordingPosition()

    def position(self, table: str) -> str | None:
        """Where the source of the table's rows continues; None if it has never stored a position, or in a new file.

        Raises apsw.Error if the store cannot be read.
        """
        self.flush()
        found = read_rows(self.uri, 'SELECT position FROM _positions WHERE "table" = ?', (table,))
        return str(found[0][0]) if found else None

    def entities_since(self, table: str, begin: float) -> frozenset[str]:
        """The `entity_id` of the last events since about this time, of a table that has that column."""
        self.flush()
        if self._restart_gap is not None:  # earlier, if the clock was set in between
            begin = min(begin, self._restart_gap.begin)
        newest = f'SELECT entity_id, time FROM "{table}" ORDER BY seq DESC LIMIT {_NEWEST_ENTITIES}'
        try:
            rows = read_rows(self.uri, f"SELECT DISTINCT entity_id FROM ({newest}) WHERE time >= ?", (begin - 1.0,))
        except apsw.Error as error:
            log.error("event store: cannot read the last events of %s: %s", table, error)
            return frozenset()
        return frozenset(entity for (entity,) in rows if entity is not None)

    def append(self, table: str, rows: Sequence[EventRow], position: str | None = None) -> None:
        """Queue rows with one value per column; never blocks. KeyError for a table that the store does not have.

        `position` is where the source continues after these rows; it is stored in the same transaction.
        """
        counters = self.counters[table]
        if not rows and position is None:
            return
        with self._changed:
            counters.received += len(rows)
            room = 0 if self._closed else self._settings.queue_rows - self._queued_rows
            if room < len(rows):
                counters.lost["store"] += len(rows) - room
                self._note_loss(table, rows[room:])
                rows = rows[:room]
                if not rows and position is None:
                    return
            self._queue.append(_QueuedRows(table, rows, position))
            self._submitted += 1
            was_empty = self._queued_rows == 0
            self._queued_rows += len(rows)
            if was_empty or self._queued_rows >= _COMMIT_ROWS:
                self._changed.notify_all()

    def declare(self, table: Table, timeout_seconds: float = 10.0) -> bool:
        """Add an event table, or update one whose columns have changed. Waits until its rows can be read.

        Rows that were stored or appended before are kept. Returns False on timeout.
        """
        with self._changed:
            self._tables = [*(one for one in self._tables if one.name != table.name), table]
            self.counters.setdefault(table.name, TableCounters())
            self._queue.append(table)
            self._submitted += 1
            self._changed.notify_all()
        return self.flush(timeout_seconds)

    def record_gap(self, source: str, begin: float, end: float, cause: str) -> None:
        """Record that `source` missed some or all events from `begin` until `end` (seconds since the epoch).

        If the clock was set back in between, the gap has the present time only.
        """
        with self._changed:
            self._queue.append(Gap(source, min(begin, end), end, cause))
            self._submitted += 1
            self._changed.notify_all()

    def acknowledge(
        self,
        key: str,
        seqs: Mapping[str, int],
        snapshot: bytes | None,
        under_way: Mapping[str, int] | None = None,
        *,
        owner: str = "",
        recent: RecentProgress | None = None,
        shape: str = "",
    ) -> None:
        """Replace the delivery state of the query `key` of a recipient; it is on disk with the next commit."""
        with self._changed:
            if key not in self._unsaved:
                self._queue.append(key)
                self._submitted += 1
                self._changed.notify_all()
            self._unsaved[key] = Delivered(dict(seqs), snapshot, dict(under_way or {}), owner, recent, shape)

    def end_incarnation(self, owner: str, incarnation: str) -> None:
        """Note that a recipient's incarnation ended in order: it lost nothing of what it had acknowledged."""
        with self._changed:
            self._queue.append(EndedIncarnation(owner, incarnation))
            self._submitted += 1
            self._changed.notify_all()

    def delivered(self, key: str) -> Delivered | None:
        """The delivery state of the query `key`, also from before the last start."""
        with self._changed:
            queued = [entry for entry in self._queue if isinstance(entry, EndedIncarnation)]
            ended = [*self._writing.ended, *queued]
            state = self._unsaved.get(key) or self._writing.delivered.get(key)
        if state is None:
            try:
                state = read_delivery_state(self.uri, key)
            except apsw.Error as error:
                log.error("event store: cannot read the delivery state (%s): rows are sent again", error)
        if state is not None and any(one.had(state) for one in ended):
            return replace(state, recent=None)
        return state

    def reconfigure(self, settings: EventSettings, state_bytes: int) -> None:
        """Use other limits from now on; the file is brought within them at the next retention."""
        with self._changed:
            self._settings, self._state_bytes = settings, state_bytes
            self._are_limits_new = True

    def disk_bytes(self) -> int:
        """The size of the file and its write-ahead log; 0 in memory."""
        path = self._file.path
        if path is None:
            return 0
        sizes = 0
        for file in (path, path.with_name(f"{path.name}-wal")):
            with contextlib.suppress(OSError):
                sizes += file.stat().st_size
        return sizes

    def delivery_states(self) -> dict[str, int]:
        """Figures of the stored delivery states, and how often one was refused since the start."""
        return {"queries": self._file.states, "bytes": self._file.states_bytes, "refused": self.states_refused}

    def problem(self, now: float | None = None) -> str | None:
        """Why the writer no longer writes events, given a time on the monotonic clock; None if it does."""
        if not self._writer.is_alive():
            return "the event store's writer has ended"
        stalled = (time.monotonic() if now is None else now) - self._progressed
        return f"the event store's writer has hung for {stalled:.0f} s" if stalled > _STALL_SECONDS else None

    def flush(self, timeout_seconds: float = 10.0) -> bool:
        """Wait until everything appended so far is committed. Returns False on timeout."""
        with self._changed:
            target = self._submitted
            self._commit_requested = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: self._committed >= target, timeout_seconds)

    def close(self, timeout_seconds: float = 10.0) -> None:
        """Commit the queue and close the file cleanly. Later rows are counted as lost."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._writer.join(timeout_seconds)

    def _run(self) -> None:
        last = False
        while not last:
            self._progressed = time.monotonic()
            self._enforce_retention()
            batch, operations, last = self._next_batch()
            self._commit(batch)
            with self._changed:
                self._writing = WriteBatch()
                self._committed += operations
                self._commit_requested = self._commit_requested and self._committed < self._submitted
                self._changed.notify_all()
        self._finish()

    def _finish(self) -> None:
        """Close the file at the end of a run. What is in memory because the disk failed has one more chance."""
        if (path := self._path_to_retry) is not None:
            self._retry_due = 0.0
            self._return_to_disk()
            if self._path_to_retry is not None:
                lost = sum(max(0, last - self._seq_on_disk.get(name, 0)) for name, last in self._file.last_seq.items())
                log.error("event store: %s still cannot be written: the last %d events are lost", path, lost)
                note_unsaved(path)
        try:
            until = self._all_recorded_until()
            self._file.close(self._clock() if until is None else until, clean=True)
        except apsw.Error as error:
            log.error("event store: cannot close %s in order: %s", self._file.path, error)

    def _next_batch(self) -> tuple[WriteBatch, int, bool]:
        """The next transaction, the number of queue entries in it, and whether it is the last one before the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, min(_HEARTBEAT_SECONDS, self._retry_seconds))
            if self._queue:
                self._changed.wait_for(self._is_due, self._settings.commit_interval)
            batch, operations, rows = WriteBatch(recorded_until=self._all_recorded_until()), 0, 0
            while self._queue and rows < _COMMIT_ROWS_MAX:
                if isinstance(first := self._queue[0], Table) and first.name in batch.rows:
                    break  # rows queued before it have the columns of the previous declaration
                match self._queue.popleft():
                    case _QueuedRows(table, added, position):
                        batch.add_rows(table, added, position)
                        rows += len(added)
                    case Gap() as gap:
                        batch.gaps.append(gap)
                    case Table() as table:
                        batch.tables.append(table)
                    case EndedIncarnation() as ended:
                        batch.ended.append(ended)
                    case _GapEnd(gap, end):
                        batch.gap_ends.append((gap, end))
                    case key:
                        batch.delivered[key] = self._unsaved.pop(key)
                operations += 1
            losses, self._losses = self._losses, {}
            batch.losses += [Gap(source, *period, _NOT_STORED) for source, period in losses.items()]
            if self._queue:
                batch.recorded_until = -math.inf
            self._queued_rows -= rows
            self._writing = batch
            return batch, operations, self._closed and not self._queue

    def _all_recorded_until(self) -> float | None:
        """Until when all events are in the queue or the file, for `WriteBatch.recorded_until`."""
        if self._recorded_until is None:
            return None
        until = self._recorded_until()
        return -math.inf if until is None else until

    def _is_due(self) -> bool:
        return self._commit_requested or self._closed or self._queued_rows >= _COMMIT_ROWS

    def _commit(self, batch: WriteBatch) -> None:
        """Write the batch, to memory if necessary; rows that cannot be stored at all are counted as lost."""
        while True:
            try:
                if self._may_write():
                    self._count_rows(batch, self._file.write(batch, self._clock()))
                    self._report_conversions(self._file)
                    self._report_refused_states(self._file)
                    return
            except _TRANSIENT as error:
                log.debug("event store: %s", error)
            except (apsw.Error, OSError) as error:
                if self._file.path is None or not self._replace_file(error):
                    self._discard(batch, error)
                    return
                continue
            time.sleep(_BUSY_WAIT_SECONDS)

    def _may_write(self) -> bool:
        """Whether the write-ahead log has room. If readers keep it from being reused for too long, go on in a copy."""
        may_write, now = self._file.may_write(), time.monotonic()
        if may_write and now < self._blocked_checked + _BLOCKED_CHECK_SECONDS:
            return True
        self._blocked_checked = now
        if may_write and not self._file.is_held_by_reader():
            self._blocked_since = None
            return True
        if self._blocked_since is None:
            self._blocked_since = now
        blocked = now - self._blocked_since
        self._report_blocked_reader(blocked)
        if may_write or self._closed:  # at the end, what is queued may exceed the limit
            return True
        if blocked < self._blocked_seconds:
            return False
        self._leave_file(blocked)
        return True

    def _report_blocked_reader(self, blocked: float) -> None:
        if self._on_blocked_reader is None:
            return
        try:
            self._on_blocked_reader(blocked)
        except Exception:
            log.exception("event store: cannot end the reader that blocks the write-ahead log")

    def _leave_file(self, blocked: float) -> None:
        """Go on in a copy of the file, because a reader that does not end keeps its log from being reused.

        Raises apsw.Error or OSError, for example when there is no room for a copy.
        """
        old, started = self._file, time.monotonic()
        if old.path is None:
            self._file = self._open_in_memory(copy_of=old)
            self._close_file(old)
        else:
            copy = replacement.unfinished(old.path)
            try:
                old.copy_into(copy)
            except BaseException:
                copy.unlink(missing_ok=True)
                raise
            self._close_file(old)
            replacement.replace(old.path)
            self._file = self._open_file(old.path, resumed=True)
        self._blocked_since = None
        self.files_left += 1
        log.warning(
            "event store: a reader has blocked the write-ahead log for %.1f s: continuing in a copy of the file, which "
            "took %.1f s; the old one is gone when the reader ends",
            *(blocked, time.monotonic() - started),
        )

    def _count_rows(self, batch: WriteBatch, misfits: Counter[str]) -> None:
        for table, rows in batch.rows.items():
            self.counters[table].stored += len(rows)
        for table, number in (+misfits).items():
            self.counters[table].stored -= number
            self.counters[table].lost["decode"] += number

    def _report_conversions(self, file: EventFile) -> None:
        for one in file.conversions:
            self._counters_of(one.table).nulled += one.nulled
            log.log(
                logging.WARNING if one.nulled else logging.INFO,
                "event store: %s.%s: values were converted from %s to %s; %d could not be converted and are now null",
                *(one.table, one.column, one.old, one.new, one.nulled),
            )
        file.conversions.clear()

    def _report_refused_states(self, file: EventFile) -> None:
        """Count them, and log them at most once a minute: a query's state changes with each delivery."""
        self.states_refused += len(file.states_refused)
        if file.states_refused and time.monotonic() >= self._states_refused_logged + _REFUSED_STATES_LOG_SECONDS:
            self._states_refused_logged = time.monotonic()
            log.error(
                "event store: no room for the delivery states of %d queries: %d queries (at most %d) take %d bytes "
                "(limits.state_bytes: %d). After a restart of the agent these queries begin like new ones",
                *(len(file.states_refused), file.states, STATES_MAX, file.states_bytes, self._state_bytes),
            )

    def _discard(self, batch: WriteBatch, error: Exception) -> None:
        log.error("event store: rows are lost: %s", error)
        with self._changed:
            for table, rows in batch.rows.items():
                self.counters[table].lost["store"] += len(rows)
                self._note_loss(table, rows)
            for gap in (*batch.gaps, *batch.losses):
                self._add_loss(gap.source, gap.begin, gap.end)

    def _note_loss(self, table: str, rows: Sequence[EventRow]) -> None:
        """Record, with the lock held, the period of rows that are not stored, for a gap."""
        times = self._times(table, rows)
        self._add_loss(gap_source(table), min(times), max(times))

    def _add_loss(self, source: str, begin: float, end: float) -> None:
        known = self._losses.get(source, (begin, end))
        self._losses[source] = min(begin, known[0]), max(end, known[1])

    def _times(self, table: str, rows: Sequence[EventRow]) -> list[float]:
        """The rows' times; the present if they have none."""
        declared = next((one for one in self._tables if one.name == table), None)
        names = [column.name for column in declared.recorded] if declared is not None else []
        if "time" not in names:
            return [self._clock()]
        at = names.index("time")
        values = [row.time if isinstance(row, Struct) else row[at] for row in rows]  # type: ignore[attr-defined]
        return [value for value in values if isinstance(value, int | float)] or [self._clock()]

    def _enforce_retention(self) -> None:
        """Enforce the limits on age and size."""
        self._return_to_disk()
        if self._are_limits_new:
            self._are_limits_new = False
            self._file.set_limits(*self._limits(in_memory=self._file.path is None))
        try:
            for table, number in self._file.evict(self._clock(), self._settings.retention_age).items():
                self._counters_of(table).evicted += number
            if (now := time.monotonic()) >= self._housekeeping_due:
                self._housekeeping_due = now + _HEARTBEAT_SECONDS
                self._note_clock_step()
                for table, number in self._file.expire(self._clock(), self._settings.retention_age).items():
                    self._counters_of(table).expired += number
        except _TRANSIENT as error:
            log.debug("event store: %s", error)
        except (apsw.Error, OSError) as error:
            if self._file.path is not None:
                self._replace_file(error)
            else:
                log.error("event store: cannot remove old events from memory: %s", error)

    def _note_clock_step(self) -> None:
        ahead, before = self._age_clock.ahead(), self._clock_ahead
        if before is not None and abs(ahead - before) > STEP_SECONDS:
            log.warning(
                "event store: the clock was set %s by %.0f s; events are removed by the time since their recording",
                *("forward" if ahead > before else "back", abs(ahead - before)),
            )
        self._clock_ahead = ahead

    def _counters_of(self, table: str) -> TableCounters:
        """The counters of a table that has rows in the file, even if this run has not declared it (yet)."""
        return self.counters.setdefault(table, TableCounters())

    def _open(self, path: Path | None) -> EventFile:
        """The store at `path`, else a fresh one in place of a damaged file, else one in memory."""
        if path is not None:
            try:
                try:
                    opened = self._open_file(path)
                except _DAMAGED as error:
                    self._move_aside(path, error)
                    opened = self._open_file(path)
            except (apsw.Error, OSError) as error:
                self._log_notice(f"event store: cannot use {path} ({error}): events are kept in memory only")
            else:
                self._report_conversions(opened)
                return opened
        return self._open_in_memory()

    def _open_file(self, path: Path, *, resumed: bool = False) -> EventFile:
        limit, state_bytes = self._limits(in_memory=False)
        return EventFile(
            *(path, self._tables, limit, self._clock()),
            state_bytes=state_bytes,
            age_clock=self._age_clock,
            resumed=resumed,
            is_recording=self._recorded_until is None,
        )

    def _limits(self, *, in_memory: bool) -> tuple[int, int]:
        """Bytes of rows and of delivery states, at most."""
        limits = self._settings.retention_bytes, self._state_bytes
        return (min(limits[0], _MEMORY_STORE_BYTES), min(limits[1], _MEMORY_STORE_BYTES)) if in_memory else limits

    def _open_in_memory(self, copy_of: EventFile | None = None) -> EventFile:
        limit, state_bytes = self._limits(in_memory=True)
        return EventFile(
            None,
            self._tables,
            limit,
            self._clock(),
            state_bytes=state_bytes,
            age_clock=self._age_clock,
            resumed=copy_of is not None,
            copy_of=copy_of,
        )

    def _replace_file(self, error: Exception) -> bool:
        """Continue with another file, because `error` makes this one unusable. Returns False if that fails too."""
        try:
            if isinstance(error, _DAMAGED) and not self._was_damaged:
                self._was_damaged = True
                self._replace_damaged(error)
            else:
                self._fall_back_to_memory(error)
        except _UNUSABLE as failure:
            log.error("event store: cannot store events: %s", failure)
            return False
        return True

    def _replace_damaged(self, error: Exception) -> None:
        """Replace a damaged file with a new one that has the rows that are still readable."""
        old, path = self._file, self._file.path
        assert path is not None
        self._close_file(old)
        try:
            aside = self._move_aside(path, error)
        except OSError as failure:
            self._fall_back_to_memory(failure)
        else:
            self._switch_file(old, self._open(path), disk_uri(aside))

    def _fall_back_to_memory(self, error: Exception) -> None:
        """Continue in memory, and retry the file later."""
        old, path = self._file, self._file.path
        new = self._open(None)
        self._log_notice(f"event store: cannot write {path} ({error}): events are kept in memory only")
        self._path_to_retry, self._retry_due = path, time.monotonic() + self._retry_seconds
        self._seq_on_disk = dict(old.last_seq)
        self._switch_file(old, new, old.uri)
        self._close_file(old)

    def _return_to_disk(self) -> None:
        """Leave memory when the disk, which failed in the middle of this run, can be written again.

        If there is no room for all rows, the oldest are left behind, which is recorded as a gap.
        """
        if self._path_to_retry is None or time.monotonic() < self._retry_due:
            return
        self._retry_due = time.monotonic() + self._retry_seconds
        try:
            new = self._open_file(self._path_to_retry, resumed=True)
            try:
                carried = _carry_over(self._file, new)
            except BaseException:
                self._close_file(new)
                raise
        except _UNUSABLE as error:
            log.debug("event store: still cannot use %s: %s", self._path_to_retry, error)
            return
        self._report_conversions(new)
        self.notice, self._path_to_retry = None, None
        log.warning("event store: events are kept in %s again", new.path)
        if carried < _ROWS_CARRIED_OVER:
            log.error(
                "event store: no room for more than the last %d events of each table; see zeek_agent_gaps", carried
            )
        old, self._file = self._file, new
        self._close_file(old)

    def _switch_file(self, old: EventFile, new: EventFile, uri: str) -> None:
        try:
            new.adopt(uri, old.last_seq, _ROWS_CARRIED_OVER)
        except apsw.Error as error:
            log.error("event store: undelivered rows are lost, others are sent again: %s", error)
            new.continue_from(old.last_seq)
        self._file = new

    def _close_file(self, file: EventFile) -> None:
        try:
            file.close(self._clock(), clean=False)
        except apsw.Error as error:
            log.debug("event store: %s", error)

    def _move_aside(self, path: Path, error: Exception) -> Path:
        aside = path.with_name(f"{path.name}.damaged")
        for suffix in ("", "-wal", "-shm"):
            damaged = Path(f"{path}{suffix}")
            if damaged.exists():
                damaged.replace(f"{aside}{suffix}")
        self._log_notice(f"event store: {path} is damaged ({error}): moved to {aside}, a new one was created")
        return aside

    def _log_notice(self, notice: str) -> None:
        self.notice = notice
        log.error(notice)


def _carry_over(old: EventFile, new: EventFile) -> int:
    """Move to another file with as many of the newest rows as there is room for; returns their number, by table.

    Raises apsw.Error when not even the gap that says so can be stored.
    """
    rows = _ROWS_CARRIED_OVER
    while True:
        try:
            new.adopt(old.uri, old.last_seq, rows)
        except apsw.FullError:
            if rows == 0:
                raise
            rows //= 4
        else:
            return rows
