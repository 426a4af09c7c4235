"""The event store's SQLite file: tables, transactions and retention.

Used by one thread at a time. `events.EventStore` owns it and handles errors of the disk.
"""

from __future__ import annotations

import itertools
import logging
import math
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import quote

import apsw
from msgspec import Struct
from msgspec.structs import astuple

from zeek_agent import __version__, platforms
from zeek_agent.events import replacement
from zeek_agent.events.ages import AgeClock, Ages
from zeek_agent.events.delivery_states import Delivered, DeliveryStates, EndedIncarnation
from zeek_agent.events.layout import Conversion, columns, declare, last_sequence, quoted, set_sequence
from zeek_agent.events.migrations import MIGRATIONS, Migration, migrate, refuse_newer
from zeek_agent.events.reading import BUSY_MILLISECONDS
from zeek_agent.events.stored_rows import RowInsert, converter, values_of, without_surrogates
from zeek_agent.events.texts import Texts, adopted
from zeek_agent.events.usage import Shares, Usage
from zeek_agent.schema import EventRow, Row
from zeek_agent.table import Table

if TYPE_CHECKING:
    from zeek_agent.events.scratch import ScratchDirectory

log = logging.getLogger(__name__)

MISFITS: Final = (
    apsw.BindingsError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.TooBigError,
    LookupError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
)
"""Exceptions for a row that does not fit its table; UnicodeEncodeError is a ValueError."""

_READ_AND_WRITE: Final = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
_CHECKPOINT_MILLISECONDS: Final = 200
"""Maximum wait for readers to end, once the write-ahead log is full; then others get their turn before the next try."""
_PAGE_BYTES: Final = 4_096
"""SQLite's default, stated because the bounds are calculated from it."""
_DELETE_ROWS: Final = 5_000
"""Rows per deleting transaction, as many as one commit adds, to keep the write-ahead log short."""
_COUNT_ROWS: Final = 10_000
"""Rows counted per transaction, more than one commit adds, so that counting catches up with storing."""
_GAPS_KEPT: Final = 1_000
"""Bounds the file of an agent that is restarted again and again."""
_RETENTION_GAPS_KEPT: Final = 200
"""Gaps for rows that were evicted, so that many producers cannot push out the gaps with other causes."""
_GAP_TOLERANCE_SECONDS: Final = 600.0
"""Evicted rows closer to each other than this share a gap."""
_LOSS_TOLERANCE_SECONDS: Final = 3.0
"""Rows that could not be stored and are closer to each other than this share a gap."""
RETENTION: Final = "retention"
"""Begins the cause of gaps that retention left."""
_GAPS: Final = '_gaps (source, "from", until, cause)'


class Gap(NamedTuple):
    """A period without recording, in seconds since the epoch; a row of `zeek_agent_gaps`."""

    source: str
    begin: float
    end: float
    cause: str


_opened: Final = itertools.count()
"""Makes the URI of each file differ from that of the one it replaces, although the path and the id are the same."""


@dataclass(slots=True)
class WriteBatch:
    """The contents of one transaction."""

    rows: dict[str, list[EventRow]] = field(default_factory=dict)
    positions: dict[str, str] = field(default_factory=dict)
    """By table, where its source continues after these rows."""
    delivered: dict[str, Delivered] = field(default_factory=dict)
    ended: list[EndedIncarnation] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    losses: list[Gap] = field(default_factory=list)
    """Periods of rows that could not be stored; those that are close to each other become one gap."""
    gap_ends: list[tuple[Gap, float]] = field(default_factory=list)
    """Gaps that are there already, with their ends, which are known now."""
    recorded_until: float | None = None
    """Until when all events are stored with this batch; None: until now, minus infinity: not known."""
    tables: list[Table] = field(default_factory=list)
    """Tables to create, or to change to these columns, before rows are written."""

    def add_rows(self, table: str, rows: Sequence[EventRow], position: str | None) -> None:
        """Add rows of a table and, if it has one, the position of its source after them."""
        if rows:
            self.rows.setdefault(table, []).extend(rows)
        if position is not None:
            self.positions[table] = position


class SeqBounds(NamedTuple):
    """The lowest retained `seq` of a table, 0 if it is empty, and the highest, whose row may be gone."""

    first: int
    last: int


class EventFile:
    """An open event store, at `path` or, if that is None, in temporary files, in memory if possible.

    `seq_bounds` are the committed bounds of `seq` by table, for readers in any thread. Rows take at most about
    `bytes_max` on disk, including the write-ahead log, unless a reader holds a transaction open; delivery states take
    at most about `state_bytes` more. The time since the last run is recorded as a gap unless the file is `resumed`
    within one run; unless this `is_recording` already, its end follows (`gap_ends` of a batch). Ages are measured on
    `age_clock`, which this starts if it is the first store that uses it, or else on the clock of the `now` that methods
    are given. Opening raises apsw.Error or OSError when the file cannot be used, NewerStoreError when a later agent
    wrote it.
    """

    def __init__(
        self,
        path: Path | None,
        tables: Iterable[Table],
        bytes_max: int,
        now: float,
        *,
        state_bytes: int = 2**28,
        age_clock: AgeClock | None = None,
        resumed: bool = False,
        is_recording: bool = True,
        copy_of: EventFile | None = None,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        self.path = path
        self.conversions: list[Conversion] = []
        """Columns whose stored values were converted; the owner reports and clears them."""
        self._wal_pages = max(16, min(2_000, bytes_max // 8 // _PAGE_BYTES))
        self._limit_rows(bytes_max)
        self._tables = {table.name: table for table in tables}
        self._inserts: dict[str, RowInsert] = {}
        self._converters: dict[str, Callable[[Row], Row] | None] = {}
        self._sharers: dict[str, Callable[[list[Any]], list[Any]] | None] = {}
        self._state_bytes = state_bytes
        self._age_clock = age_clock
        self._is_recording = is_recording
        self.restart_gap: Gap | None = None
        """The time between the last run and this one, whose end may not be known yet."""
        self.last_recorded: float | None = None
        """Until when the last run recorded, by the time of day as it is now."""
        self.states_refused: list[str] = []
        """Keys of the last batch whose delivery state was not stored, or without its snapshot."""
        self._eviction_logged = -math.inf
        self.seq_bounds: dict[str, SeqBounds] = {}
        self._scratch: ScratchDirectory | None = None
        if path is None:
            from zeek_agent.events.scratch import ScratchDirectory

            self._scratch = ScratchDirectory()
            path = self._scratch.path / "events.db"
        self._file = path
        try:
            if copy_of is not None:
                copy_of.copy_into(path)
            elif self.path is not None:
                replacement.finish(path)
            self._connection = apsw.Connection(_prepare(path), flags=_READ_AND_WRITE)
        except BaseException:
            self._remove_scratch()
            raise
        try:
            self._open(now, resumed, migrations)
        except BaseException:
            self._connection.close()
            self._remove_scratch()
            raise
        if self.path is not None:
            _unsaved(self.path).unlink(missing_ok=True)
        self.uri: Final = f"{disk_uri(path)}&store={self.id}&opened={next(_opened)}"

    def set_limits(self, bytes_max: int, state_bytes: int) -> None:
        """Use other limits from now on; `evict` brings the rows within them."""
        self._limit_rows(bytes_max)
        self._state_bytes = state_bytes
        self._states.set_limit(state_bytes)

    def _limit_rows(self, bytes_max: int) -> None:
        self._rows_bytes_max = bytes_max - 2 * self._wal_pages * _PAGE_BYTES
        self._wal_bytes_max = max(bytes_max // 4, 4 * self._wal_pages * _PAGE_BYTES)

    def _open(self, now: float, resumed: bool, migrations: Sequence[Migration]) -> None:
        connection = self._connection
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        refuse_newer(connection, self._file, len(migrations))
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={self._wal_pages}")
        connection.execute(f"PRAGMA journal_size_limit={self._wal_pages * _PAGE_BYTES}")
        migrate(connection, self._file, migrations)
        self._usage = Usage(connection)
        self._texts = Texts(connection)
        self._states = DeliveryStates(connection, self._state_bytes)
        self._ages = Ages(connection)
        for table in self._tables.values():
            with connection:
                self._declare(table)
        connection.execute("PRAGMA synchronous=FULL")  # a power failure must not make this run's rows look unwritten
        with connection:
            is_other_boot = self._start_age_clock(now)
            self.id = self._begin_run(now, resumed, is_other_boot=is_other_boot)
            self.gaps = self._read_gaps()
        connection.execute("PRAGMA synchronous=NORMAL")
        names = self._select(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '_*' AND name NOT GLOB 'sqlite_*'"
        )
        self._stored = {name: self._has_time(name) for (name,) in names}
        for name in self._stored:
            with connection:
                self._usage.declare(name)
            self._read_seq_bounds(name)
        if self.conversions:
            with connection:
                self._texts.recount(self._stored)
        self._holes = dict(self._usage.holes())

    def _declare(self, table: Table) -> None:
        """Create the table, or adapt it to its declaration."""
        self._inserts[table.name] = RowInsert.into(table)
        self._converters[table.name] = converter(table)
        self._sharers[table.name] = self._texts.sharer({c.name: c.zeek_type.sqlite for c in table.recorded})
        self.conversions += declare(self._connection, table)

    def _has_time(self, table: str) -> bool:
        """Whether rows of the table have a time; a hidden column that was once declared does not count."""
        if (declared := self._tables.get(table)) is not None:
            return any(column.name == "time" for column in declared.recorded)
        return "time" in columns(self._connection, table)

    def _start_age_clock(self, now: float) -> bool:
        """Start or continue the clock. Returns whether the last run was in another boot."""
        if self._age_clock is None:
            return False
        latest = max(now, self._scalar("SELECT alive FROM _store") or now)
        stored = self._ages.stored_clock()
        self._age_clock.resume(stored, latest)
        if stored is None:
            self._ages.save_clock(self._age_clock)
        return stored is not None and stored.boot_id != self._age_clock.stored().boot_id

    def _age_now(self, now: float) -> float:
        return now if self._age_clock is None else self._age_clock()

    def _ahead(self) -> float:
        """How far the time of day is ahead of the clock that ages are measured on."""
        return 0.0 if self._age_clock is None else self._age_clock.ahead()

    def _begin_run(self, now: float, resumed: bool, *, is_other_boot: bool) -> str:
        """Mark the store as in use and record the time since its last use as a gap. Returns its id.

        After a power failure rows may be missing that were delivered, and `seq` continues before them: it is another
        series then, so that a recipient does not take new rows for those.
        """
        execute = self._connection.execute
        for store_id, alive, clean in self._select("SELECT id, alive, clean FROM _store"):
            if not resumed and (alive != now or not self._is_recording):
                cause = "stopped" if clean else "crashed"
                if not clean and self._had_unsaved_rows():
                    cause = "stopped; the disk was full or failed"
                step = self._clock_step()
                recorded = alive + step
                if is_other_boot and self._age_clock is not None:
                    recorded = min(alive, now - self._age_clock.since_boot())
                self.last_recorded = min(recorded, now)
                if alive > now or step < 0:
                    cause += "; the clock was set back"
                self.restart_gap = Gap("agent", min(alive, self.last_recorded), now, cause)
                gaps = [self.restart_gap]
                if step < 0:  # what happened before that has times of the former clock
                    gaps.append(Gap("agent", alive, now - step, cause))
                for gap in gaps:
                    execute("DELETE FROM _gaps WHERE source = 'agent' AND \"from\" = ?", (gap.begin,))
                    execute(f"INSERT INTO {_GAPS} VALUES (?, ?, ?, ?)", gap)
            if is_other_boot and not clean:
                log.warning("event store: the host ended without a shutdown; its last events may be missing")
                store_id = secrets.token_hex(8)
            if self._is_recording and not resumed:
                execute("UPDATE _store SET alive = ?", (now,))
            execute("UPDATE _store SET id = ?, clean = 0, written_by = ?", (store_id, __version__))
            return str(store_id)
        store_id = secrets.token_hex(8)
        execute("INSERT INTO _store (id, alive, clean, written_by) VALUES (?, ?, 0, ?)", (store_id, now, __version__))
        return store_id

    def _clock_step(self) -> float:
        """By how many seconds the time of day was set since the last run; 0 if it was not, or if unknown."""
        stored = self._ages.stored_clock()
        return 0.0 if self._age_clock is None or stored is None else self._age_clock.step_since(stored)

    def _had_unsaved_rows(self) -> bool:
        """Whether the last run ended in order but could not write to the file."""
        return self.path is not None and _unsaved(self.path).exists()

    def _read_gaps(self) -> list[Gap]:
        return [Gap(*row) for row in self._select('SELECT source, "from", until, cause FROM _gaps ORDER BY "from"')]

    def _select(self, sql: str, bindings: tuple[int | float | str, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, bindings).fetchall()

    def _scalar(self, sql: str, bindings: tuple[int | float | str, ...] = ()) -> Any:
        """The first row's first column; None when there is no row."""
        return next((row[0] for row in self._select(sql, bindings)), None)

    def _read_seq_bounds(self, table: str) -> None:
        first = self._scalar(f"SELECT min(seq) FROM {quoted(table)}") or 0
        self.seq_bounds[table] = SeqBounds(first, last_sequence(self._connection, table))

    @property
    def last_seq(self) -> dict[str, int]:
        """The highest committed `seq` by table."""
        return {table: bounds.last for table, bounds in self.seq_bounds.items()}

    def continue_from(self, last: Mapping[str, int]) -> None:
        """Number new rows after these, so that cursors of a store that this one replaces stay valid."""
        with self._connection:
            self._set_sequences(last)
        for table in self._tables:
            self._read_seq_bounds(table)

    def _set_sequences(self, last: Mapping[str, int]) -> None:
        for table in self._tables.keys() & last.keys():
            set_sequence(self._connection, table, max(last[table], last_sequence(self._connection, table)))

    def adopt(self, uri: str, last: Mapping[str, int], rows_max: int) -> None:
        """Take over from the store at `uri`, which this one replaces: delivery state, gaps, the newest rows by `last`.

        New rows are numbered after `last`. All or nothing: raises apsw.Error when something cannot be read or there is
        no room.
        """
        self._connection.execute("ATTACH ? AS other", (uri,))
        try:
            with self._connection:
                offset = self._texts.adopt()
                for name, table in self._tables.items():
                    stored = ("seq", *(column.name for column in table.recorded))
                    names = ", ".join(map(quoted, stored))
                    values = ", ".join(adopted(column, offset) for column in stored)
                    own_last = self.seq_bounds[name].last
                    after = max(own_last, last.get(name, 0) - rows_max)
                    self._connection.execute(
                        f"INSERT INTO main.{quoted(name)} ({names}) "
                        f"SELECT {values} FROM other.{quoted(name)} WHERE seq > ?",
                        (after,),
                    )
                    self._usage.note_holes(name, last.get(name, 0))
                    if self.path is not None and after > own_last:
                        self._note_rows_left_behind(name, own_last, after)
                self._texts.recount(self._stored)
                if left := self._states.adopt():
                    log.error("event store: the delivery states of %d queries are too large for %s", left, self._file)
                self._ages.adopt()
                self._connection.execute("INSERT OR REPLACE INTO main._positions SELECT * FROM other._positions")
                self._connection.execute(
                    f'INSERT INTO main.{_GAPS} SELECT source, "from", until, cause FROM other._gaps '
                    'EXCEPT SELECT source, "from", until, cause FROM main._gaps'
                )
                self._set_sequences(last)
        except BaseException:
            self._states.recount()
            self._texts.forget()
            raise
        finally:
            self._connection.execute("DETACH other")
        self.gaps = self._read_gaps()
        self._holes = dict(self._usage.holes())
        for name in self._tables:
            self._read_seq_bounds(name)

    def _note_rows_left_behind(self, table: str, after: int, upto: int) -> None:
        """Record a gap for the rows of `other` that are too many to be carried over."""
        if self._stored[table]:
            self._connection.execute(
                f"INSERT INTO main.{_GAPS} SELECT ?, min(time), max(time), ? "
                f"FROM other.{quoted(table)} WHERE seq > ? AND seq <= ? HAVING count(time) > 0",
                (gap_source(table), f"{RETENTION}: only the newest rows were copied to another file", after, upto),
            )

    def write(self, batch: WriteBatch, now: float) -> Counter[str]:
        """Commit the batch and the heartbeat. Returns the rows that did not fit, by table; raises apsw.Error."""
        misfits: Counter[str] = Counter()
        self.conversions.clear()  # left by a failed attempt
        self.states_refused.clear()
        execute = self._connection.execute
        with self._connection, self._states.unchanged_on_error(), self._texts.forgotten_on_error():
            for new in batch.tables:
                self._tables[new.name] = new
                self._declare(new)
                self._usage.declare(new.name)
                self._stored[new.name] = self._has_time(new.name)
            if self.conversions:
                self._texts.recount(self._stored)
            for table, rows in batch.rows.items():
                misfits[table] = self._insert(table, rows)
            self._connection.executemany("INSERT OR REPLACE INTO _positions VALUES (?, ?)", batch.positions.items())
            self.states_refused += self._states.save_all(batch.delivered, batch.ended, self._age_now(now))
            for gap in batch.gaps:
                execute(f"INSERT INTO {_GAPS} VALUES (?, ?, ?, ?)", gap)
            for source, begin, end, cause in batch.losses:
                if not self._extend_gap(source, cause, begin, end, within_seconds=_LOSS_TOLERANCE_SECONDS):
                    execute(f"INSERT INTO {_GAPS} VALUES (?, ?, ?, ?)", (source, begin, end, cause))
            self._move_gap_ends(batch.gap_ends)
            self._note_recorded_until(now if batch.recorded_until is None else batch.recorded_until)
        for table in {*batch.rows, *(new.name for new in batch.tables)}:
            self._read_seq_bounds(table)
        is_changed = batch.losses or batch.gap_ends
        self.gaps = self._read_gaps() if is_changed else [*self.gaps, *batch.gaps]
        return misfits

    def _move_gap_ends(self, ends: Iterable[tuple[Gap, float]]) -> None:
        """Replace the ends of gaps, within a transaction."""
        for (source, begin, _, cause), end in ends:
            self._connection.execute(
                'UPDATE _gaps SET until = ? WHERE source = ? AND "from" = ? AND cause = ?',
                (max(begin, end), source, begin, cause),
            )

    def _note_recorded_until(self, until: float) -> None:
        if until != -math.inf:
            self._connection.execute("UPDATE _store SET alive = ?", (until,))

    def _insert(self, table: str, rows: Sequence[EventRow]) -> int:
        """Insert the rows that fit; returns how many did not."""
        insert, convert, share = self._inserts[table], self._converters[table], self._sharers[table]
        try:
            with self._connection:
                values = list(values_of(rows) if convert is None else map(convert, values_of(rows)))
                insert.execute(self._connection, values if share is None else share(values))
                self._texts.use()
        except MISFITS:
            self._texts.forget()
            return sum(not self._insert_one(table, row) for row in rows)
        return 0

    def _insert_one(self, table: str, row: EventRow) -> bool:
        values = astuple(row) if isinstance(row, Struct) else row
        convert, share = self._converters[table], self._sharers[table]
        try:
            with self._connection:
                values = without_surrogates(values if convert is None else convert(values))
                self._connection.execute(self._inserts[table].one, values if share is None else share([values])[0])
                self._texts.use()
        except MISFITS:
            self._texts.forget()
            return False
        return True

    def may_write(self) -> bool:
        """False while the write-ahead log is too large and readers prevent its reuse."""
        if _size(f"{self._file}-wal") <= self._wal_bytes_max:
            return True
        self._connection.set_busy_timeout(_CHECKPOINT_MILLISECONDS)
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except (apsw.BusyError, apsw.LockedError):
            return False
        finally:
            self._connection.set_busy_timeout(BUSY_MILLISECONDS)
        return True

    def is_held_by_reader(self) -> bool:
        """Whether a reader's transaction keeps the write-ahead log, which is half full or more, from being reused."""
        if _size(f"{self._file}-wal") <= self._wal_bytes_max // 2:
            return False
        frames, done = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        return done < frames

    def copy_into(self, path: Path) -> None:
        """Write a copy of everything that is committed. Raises apsw.Error or OSError."""
        self._connection.execute("VACUUM INTO ?", (_prepare(path),))

    def expire(self, now: float, age_seconds: float) -> Counter[str]:
        """Remove rows older than `age_seconds`, oldest first. Returns the number of rows, by table.

        Rows without a time are removed together with the next row that has one. The time of day says how old a row is
        only as long as the clock was not set since; the time of its recording says it always.
        """
        removed: Counter[str] = Counter()
        at, ahead = self._age_now(now), self._ahead()
        self._note_ages(at, ahead, age_seconds)
        for table, timed in self._stored.items():
            if timed and self.seq_bounds[table].first:
                removed[table] += self._delete_through(table, self._ages.recorded_before(table, at - age_seconds))
            first, last = self.seq_bounds[table]
            if timed and first > self._ages.last_before_step(table, ahead):
                rows, oldest = f"SELECT seq FROM {quoted(table)} WHERE", now - age_seconds
                young = self._scalar(f"{rows} time >= ? ORDER BY seq LIMIT 1", (oldest,)) or last + 1
                old = self._scalar(f"{rows} time < ? AND seq < ? ORDER BY seq DESC LIMIT 1", (oldest, young))
                removed[table] += self._delete_through(table, old or 0)
        with self._connection:
            first = self._scalar("SELECT min(rowid) FROM _gaps") or 0
            certain = first > self._ages.last_before_step("_gaps", ahead)
            self._connection.execute(
                "DELETE FROM _gaps WHERE until < ? OR rowid <= ? OR rowid IN "
                "(SELECT rowid FROM _gaps ORDER BY rowid DESC LIMIT -1 OFFSET ?)",
                (
                    now - age_seconds if certain else -math.inf,
                    self._ages.recorded_before("_gaps", at - age_seconds),
                    _GAPS_KEPT,
                ),
            )
            self._ages.forget(at - age_seconds)
            self._states.expire(at)
        self.gaps = self._read_gaps()
        return removed

    def _note_ages(self, at: float, ahead: float, age_seconds: float) -> None:
        with self._connection:
            last = {**self.last_seq, "_gaps": self._scalar("SELECT max(rowid) FROM _gaps") or 0}
            self._ages.note(last, at, ahead, age_seconds)
            if self._age_clock is not None:
                self._ages.save_clock(self._age_clock)

    def evict(self, now: float, age_seconds: float) -> Counter[str]:
        """Remove rows when the file is too large, and record gaps for those that may be younger than `age_seconds`.

        Rows are taken from the producers with the most bytes, in tables that have more than an equal share of the
        file, so that no table, producer or minute displaces the others. Returns the number of rows, by table.
        """
        removed: Counter[str] = Counter()
        if (used := self._used_bytes()) <= self._rows_bytes_max // 2:
            return removed
        is_full = used > self._rows_bytes_max
        self.update_usage(None if is_full else _COUNT_ROWS)
        if not is_full:
            return removed
        shares, goal = Shares(self._usage.totals(), len(self._stored)), int(self._rows_bytes_max * 0.95)
        while (excess := self._used_bytes() - goal) > 0 and shares.next() is not None:
            with self._connection:
                removed += self._evict_some(shares, excess, self._oldest(now, age_seconds))
        if removed:
            self._holes = dict(self._usage.holes())
            self.gaps = self._read_gaps()
            for table in removed:
                self._read_seq_bounds(table)
        limit = self._rows_bytes_max + self._states.disk_bytes
        if (pages := self._scalar("PRAGMA page_count") - limit // _PAGE_BYTES) > 0:  # the rest is soon used again
            self._connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
        return removed

    def _oldest(self, now: float, age_seconds: float) -> dict[str, float]:
        """By table, the time before which rows have expired; none if the clock was set since they were recorded."""
        ahead = self._ahead()
        return {
            table: now - age_seconds if bounds.first > self._ages.last_before_step(table, ahead) else -math.inf
            for table, bounds in self.seq_bounds.items()
        }

    def update_usage(self, rows_max: int | None = None) -> None:
        """Count new rows by producer and minute: all, or the first `rows_max` of each table that has as many."""
        for table, rows in self._usage.uncounted(self.last_seq).items():
            if rows_max is None or rows >= rows_max:
                more = True
                while more:
                    with self._connection:
                        more = self._usage.count(table, _COUNT_ROWS) and rows_max is None

    def _evict_some(self, shares: Shares, bytes_wanted: int, oldest: Mapping[str, float]) -> Counter[str]:
        """Evict rows for one transaction. Returns the number of rows, by table."""
        removed: Counter[str] = Counter()
        while (left := _DELETE_ROWS - removed.total()) > 0 and bytes_wanted > 0 and (turn := shares.next()) is not None:
            table, producer = turn
            taken = self._usage.take(table, producer, left, bytes_wanted, self.seq_bounds[table].last)
            if taken.end is not None and taken.begin is not None and taken.end >= oldest[table]:
                self._note_eviction(table, producer, max(taken.begin, oldest[table]), taken.end)
            self._texts.release(taken.references)
            shares.reduce(table, producer, taken.bytes)
            removed[table] += taken.rows
            bytes_wanted -= taken.bytes
        return removed

    def _note_eviction(self, table: str, producer: str, begin: float, end: float) -> None:
        """Record that rows of a period are gone, in one gap for all that are close to each other."""
        source, cause = gap_source(table), f"{RETENTION}: the store is full ({producer})"
        if self._extend_gap(source, cause, begin, end):
            return
        kept = self._scalar("SELECT count(*) FROM _gaps WHERE cause GLOB ?", (f"{RETENTION}: *",))
        if kept >= _RETENTION_GAPS_KEPT:
            cause = f"{RETENTION}: the store is full (several producers)"
            if self._extend_gap(source, cause, begin, end, within_seconds=math.inf):
                return
        if begin >= self._eviction_logged + _GAP_TOLERANCE_SECONDS:
            self._eviction_logged = begin
            log.warning("event store: full: rows of %s are being removed (%s); see zeek_agent_gaps", source, producer)
        self._connection.execute(f"INSERT INTO {_GAPS} VALUES (?, ?, ?, ?)", (source, begin, end, cause))

    def _extend_gap(
        self, source: str, cause: str, begin: float, end: float, within_seconds: float = _GAP_TOLERANCE_SECONDS
    ) -> bool:
        """Extend the gaps with the same cause that are near, to one; False if there are none."""
        near = self._select(
            'SELECT rowid, "from", until FROM _gaps WHERE source = ? AND cause = ? AND "from" <= ? AND until >= ?',
            (source, cause, end + within_seconds, begin - within_seconds),
        )
        if not near:
            return False
        begin, end = min(begin, *(row[1] for row in near)), max(end, *(row[2] for row in near))
        self._connection.executemany("DELETE FROM _gaps WHERE rowid = ?", ((row[0],) for row in near))
        self._connection.execute(f"INSERT INTO {_GAPS} VALUES (?, ?, ?, ?)", (source, begin, end, cause))
        return True

    def _used_bytes(self) -> int:
        """Bytes of the events and what goes with them, without delivery states."""
        pages = self._scalar("PRAGMA page_count") - self._scalar("PRAGMA freelist_count")
        return int(pages) * _PAGE_BYTES - self._states.disk_bytes

    def _delete_through(self, table: str, upto: int) -> int:
        """Delete the rows up to and including that `seq`, in steps that keep the log short. Returns how many."""
        removed = 0
        while 0 < (first := self.seq_bounds[table].first) <= upto:
            step = min(upto, first + _DELETE_ROWS)
            with self._connection:
                self._usage.subtract(table, step)
                self._texts.release_through(table, step)
                self._connection.execute(f"DELETE FROM {quoted(table)} WHERE seq <= ?", (step,))
                removed += self._connection.changes()
            self._read_seq_bounds(table)
        return removed

    @property
    def states(self) -> int:
        """Number of queries whose delivery state is stored."""
        return self._states.count

    @property
    def states_bytes(self) -> int:
        """About the bytes on disk of all delivery states."""
        return self._states.disk_bytes

    def may_have_holes(self, table: str, after: int) -> bool:
        """Whether rows after this `seq` may be missing between others."""
        return self._holes.get(table, 0) > after

    def close(self, now: float, *, clean: bool) -> None:
        """Close the file; `clean` marks an orderly end of the run, in which events were recorded until `now`."""
        try:
            if clean:
                with self._connection:
                    self._note_recorded_until(now)
                    self._connection.execute("UPDATE _store SET clean = 1")
        finally:
            self._connection.close()
            self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.close()


def gap_source(table: str) -> str:
    """The kind of events in a table, as in `zeek_agent_gaps`."""
    return table.removesuffix("_events")


def disk_uri(path: Path) -> str:
    """The URI that a reader attaches for the store at `path`."""
    return f"file:{quote(str(path.absolute()))}?mode=ro"


def note_unsaved(path: Path) -> None:
    """Leave a sign for the next run that this one ended in order, although the store at `path` cannot be written.

    An empty file needs no room on most file systems; without it the next run takes this one's end for a crash.
    """
    try:
        _unsaved(path).touch(0o600)
    except OSError as error:
        log.debug("event store: %s", error)


def _unsaved(path: Path) -> Path:
    return path.with_name(f"{path.name}.unsaved")


def _prepare(path: Path) -> str:
    """Create the directory and an empty file, private because it holds command lines. Returns the file's name."""
    platforms.HERE.make_private_directory(path.parent)
    platforms.HERE.make_private_file(path)
    return str(path.absolute())


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except FileNotFoundError:
        return 0
