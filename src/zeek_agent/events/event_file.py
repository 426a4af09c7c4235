"""The event store's SQLite file: tables, transactions and retention.

Used by one thread at a time. `events.EventStore` owns it and handles errors of the disk.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast
from urllib.parse import quote

import apsw
from msgspec import Struct
from msgspec.structs import astuple

from zeek_agent import __version__, text
from zeek_agent.events import replacement
from zeek_agent.events.ages import AgeClock, Ages
from zeek_agent.events.delivery_states import Delivered, DeliveryStates
from zeek_agent.events.layout import Conversion, columns, declare, last_sequence, quoted, set_sequence
from zeek_agent.events.migrations import MIGRATIONS, Migration, migrate, refuse_newer
from zeek_agent.events.references import shared_columns, value_of
from zeek_agent.events.texts import Texts, adopted
from zeek_agent.events.usage import Shares, Usage
from zeek_agent.schema import EventRow, Row, Value
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
_BUSY_MILLISECONDS: Final = 2_000
"""Maximum wait for the lock of another connection, well above the duration of one transaction."""
_CHECKPOINT_MILLISECONDS: Final = 200
"""Maximum wait for readers to end, once the write-ahead log is full; then others get their turn before the next try."""
_STEPS_BETWEEN_CHECKS: Final = 100_000
"""Steps of SQLite's virtual machine between calls of `check`: some milliseconds."""
_PAGE_BYTES: Final = 4_096
"""SQLite's default, stated because the bounds are calculated from it."""
_DELETE_ROWS: Final = 5_000
"""Rows per deleting transaction, as many as one commit adds, to keep the write-ahead log short."""
_INSERTED_TOGETHER: Final = 10
_COUNT_ROWS: Final = 10_000
"""Rows counted per transaction, more than one commit adds, so that counting catches up with storing."""
_GAPS_KEPT: Final = 1_000
"""Bounds the file of an agent that is restarted again and again."""
_RETENTION_GAPS_KEPT: Final = 200
"""Gaps for rows that were evicted, so that many producers cannot push out the gaps with other causes."""
_GAP_TOLERANCE_SECONDS: Final = 600.0
"""Evicted rows closer to each other than this share a gap."""
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


@dataclass(frozen=True, slots=True)
class _Insert:
    """The statements that insert one row, and several at once, which costs an eighth less for each."""

    one: str
    several: str
    columns: int

    @classmethod
    def into(cls, table: Table) -> _Insert:
        names = [quoted(column.name) for column in table.recorded]
        row = f"({', '.join('?' * len(names))})"
        insert = f"INSERT INTO {quoted(table.name)} ({', '.join(names)}) VALUES"
        return cls(f"{insert} {row}", f"{insert} {', '.join([row] * _INSERTED_TOGETHER)}", len(names))

    def execute(self, connection: apsw.Connection, rows: Sequence[Row]) -> None:
        """Insert the rows. Raises apsw.BindingsError when one has too many or too few values."""
        if set(map(len, rows)) - {self.columns}:  # otherwise the next row's values would be taken for the missing ones
            raise apsw.BindingsError(f"a row does not have {self.columns} values")
        together = len(rows) // _INSERTED_TOGETHER * _INSERTED_TOGETHER
        if together:
            groups = zip(*[iter(rows[:together])] * _INSERTED_TOGETHER, strict=True)
            connection.executemany(self.several, map(tuple, map(itertools.chain.from_iterable, groups)))
        if together < len(rows):
            connection.executemany(self.one, rows[together:])


@dataclass(slots=True)
class WriteBatch:
    """The contents of one transaction."""

    rows: dict[str, list[EventRow]] = field(default_factory=dict)
    delivered: dict[str, Delivered] = field(default_factory=dict)
    gaps: list[Gap] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    """Tables to create, or to change to these columns, before rows are written."""


class EventFile:
    """An open event store, at `path` or, if that is None, in temporary files, in memory if possible.

    `first_seq` and `last_seq` are the committed bounds of `seq` by table; `last_seq` never decreases, even when
    retention has emptied the table. Rows take at most about `bytes_max` on disk, including the write-ahead log, unless
    a reader holds a transaction open; delivery states take at most about `state_bytes` more. The time since the last
    run is recorded as a gap unless the file is `resumed` within one run. Ages are measured on `age_clock`, which this
    starts if it is the first store that uses it, or else on the clock of the `now` that methods are given. Opening
    raises apsw.Error or OSError when the file cannot be used, NewerStoreError when a later agent wrote it.
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
        copy_of: EventFile | None = None,
        migrations: Sequence[Migration] = MIGRATIONS,
    ) -> None:
        self.path = path
        self.conversions: list[Conversion] = []
        """Columns whose stored values were converted; the owner reports and clears them."""
        self._wal_pages = max(16, min(2_000, bytes_max // 8 // _PAGE_BYTES))
        self._rows_bytes_max = bytes_max - 2 * self._wal_pages * _PAGE_BYTES
        self._wal_bytes_max = max(bytes_max // 4, 4 * self._wal_pages * _PAGE_BYTES)
        self._tables = {table.name: table for table in tables}
        self._inserts: dict[str, _Insert] = {}
        self._converters: dict[str, Callable[[Row], Row] | None] = {}
        self._sharers: dict[str, Callable[[list[Any]], list[Any]] | None] = {}
        self._state_bytes = state_bytes
        self._age_clock = age_clock
        self.states_refused: list[str] = []
        """Keys of the last batch whose delivery state was not stored, or without its snapshot."""
        self._eviction_logged = -math.inf
        self.first_seq: dict[str, int] = {}
        self.last_seq: dict[str, int] = {}
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

    def _open(self, now: float, resumed: bool, migrations: Sequence[Migration]) -> None:
        connection = self._connection
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
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
        with connection:
            self._start_age_clock(now)
            self.id = self._begin_run(now, resumed)
            self.gaps = self._read_gaps()
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
        self._inserts[table.name] = _Insert.into(table)
        self._converters[table.name] = _converter(table)
        self._sharers[table.name] = self._texts.sharer({c.name: c.zeek_type.sqlite for c in table.recorded})
        self.conversions += declare(self._connection, table)

    def _has_time(self, table: str) -> bool:
        """Whether rows of the table have a time; a hidden column that was once declared does not count."""
        if (declared := self._tables.get(table)) is not None:
            return any(column.name == "time" for column in declared.recorded)
        return "time" in columns(self._connection, table)

    def _start_age_clock(self, now: float) -> None:
        if self._age_clock is not None:
            latest = max(now, self._scalar("SELECT alive FROM _store") or now)
            stored = self._ages.stored_clock()
            self._age_clock.resume(stored, latest)
            if stored is None:
                self._ages.save_clock(self._age_clock, now)

    def _age_now(self, now: float) -> float:
        return now if self._age_clock is None else self._age_clock()

    def _begin_run(self, now: float, resumed: bool) -> str:
        """Mark the store as in use and record the time since its last use as a gap. Returns its id."""
        execute = self._connection.execute
        for store_id, alive, clean in self._select("SELECT id, alive, clean FROM _store"):
            if alive != now and not resumed:
                cause = "stopped" if clean else "crashed"
                if not clean and self._had_unsaved_rows():
                    cause = "stopped; the disk was full or failed"
                if alive > now:
                    cause += "; the clock was set back"
                execute(f"INSERT INTO {_GAPS} VALUES ('agent', ?, ?, ?)", (min(alive, now), now, cause))
            execute("UPDATE _store SET alive = ?, clean = 0, written_by = ?", (now, __version__))
            return str(store_id)
        store_id = secrets.token_hex(8)
        execute("INSERT INTO _store (id, alive, clean, written_by) VALUES (?, ?, 0, ?)", (store_id, now, __version__))
        return store_id

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
        self.first_seq[table] = self._scalar(f"SELECT min(seq) FROM {quoted(table)}") or 0
        self.last_seq[table] = last_sequence(self._connection, table)

    def continue_from(self, last: Mapping[str, int]) -> None:
        """Number new rows after these, so that cursors of a store that this one replaces stay valid."""
        with self._connection:
            for table in self._tables.keys() & last.keys():
                set_sequence(self._connection, table, max(last[table], self.last_seq[table]))
                self._read_seq_bounds(table)

    def adopt(self, uri: str, last: Mapping[str, int], rows_max: int) -> None:
        """Take over from the store at `uri`, which this one replaces: delivery state, gaps, the newest rows by `last`.

        All or nothing: raises apsw.Error when something cannot be read or there is no room.
        """
        self._connection.execute("ATTACH ? AS other", (uri,))
        try:
            with self._connection:
                offset = self._texts.adopt()
                for name, table in self._tables.items():
                    stored = ("seq", *(column.name for column in table.recorded))
                    names = ", ".join(map(quoted, stored))
                    values = ", ".join(adopted(column, offset) for column in stored)
                    after = max(self.last_seq[name], last.get(name, 0) - rows_max)
                    self._connection.execute(
                        f"INSERT INTO main.{quoted(name)} ({names}) "
                        f"SELECT {values} FROM other.{quoted(name)} WHERE seq > ?",
                        (after,),
                    )
                    self._usage.note_holes(name, last.get(name, 0))
                    if self.path is not None and after > self.last_seq[name]:
                        self._note_rows_left_behind(name, self.last_seq[name], after)
                self._texts.recount(self._stored)
                if left := self._states.adopt():
                    log.error("event store: the delivery states of %d queries are too large for %s", left, self._file)
                self._ages.adopt()
                self._connection.execute(
                    f'INSERT INTO main.{_GAPS} SELECT source, "from", until, cause FROM other._gaps '
                    'EXCEPT SELECT source, "from", until, cause FROM main._gaps'
                )
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
            for key, delivered in batch.delivered.items():
                if not self._states.save(key, delivered, self._age_now(now)):
                    self.states_refused.append(key)
            for gap in batch.gaps:
                execute(f"INSERT INTO {_GAPS} VALUES (?, ?, ?, ?)", gap)
            execute("UPDATE _store SET alive = ?", (now,))
        for new in batch.tables:
            self._read_seq_bounds(new.name)
        for table in batch.rows:
            self.last_seq[table] = last_sequence(self._connection, table)
            if self.first_seq[table] == 0:
                self._read_seq_bounds(table)
        self.gaps += batch.gaps
        return misfits

    def _insert(self, table: str, rows: Sequence[EventRow]) -> int:
        """Insert the rows that fit; returns how many did not."""
        insert, convert, share = self._inserts[table], self._converters[table], self._sharers[table]
        try:
            with self._connection:
                values = list(_values(rows) if convert is None else map(convert, _values(rows)))
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
                values = _without_surrogates(values if convert is None else convert(values))
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
            self._connection.set_busy_timeout(_BUSY_MILLISECONDS)
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
        at = self._age_now(now)
        self._note_ages(at, now, age_seconds)
        for table, timed in self._stored.items():
            if timed and self.first_seq[table]:
                removed[table] += self._delete_through(table, self._ages.recorded_before(table, at - age_seconds))
            if timed and self.first_seq[table] > self._ages.last_before_step(table, at, now):
                rows, oldest = f"SELECT seq FROM {quoted(table)} WHERE", now - age_seconds
                young = self._scalar(f"{rows} time >= ? ORDER BY seq LIMIT 1", (oldest,)) or self.last_seq[table] + 1
                old = self._scalar(f"{rows} time < ? AND seq < ? ORDER BY seq DESC LIMIT 1", (oldest, young))
                removed[table] += self._delete_through(table, old or 0)
        with self._connection:
            first = self._scalar("SELECT min(rowid) FROM _gaps") or 0
            certain = first > self._ages.last_before_step("_gaps", at, now)
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

    def _note_ages(self, at: float, now: float, age_seconds: float) -> None:
        with self._connection:
            last = {**self.last_seq, "_gaps": self._scalar("SELECT max(rowid) FROM _gaps") or 0}
            self._ages.note(last, at, now, age_seconds)
            if self._age_clock is not None:
                self._ages.save_clock(self._age_clock, now)

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
        at = self._age_now(now)
        return {
            table: now - age_seconds if first > self._ages.last_before_step(table, at, now) else -math.inf
            for table, first in self.first_seq.items()
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
            taken = self._usage.take(table, producer, left, bytes_wanted, self.last_seq[table])
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
        while self.first_seq[table] and self.first_seq[table] <= upto:
            step = min(upto, self.first_seq[table] + _DELETE_ROWS)
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
        """Close the file; `clean` marks an orderly end of the run."""
        try:
            if clean:
                self._connection.execute("UPDATE _store SET alive = ?, clean = 1", (now,))
        finally:
            self._connection.close()
            self._remove_scratch()

    def _remove_scratch(self) -> None:
        if self._scratch is not None:
            self._scratch.close()


def read_delivery_state(uri: str, key: str) -> Delivered | None:
    """The committed delivery state of a key, read over a separate connection."""
    sql = "SELECT seqs, snapshot, under_way, owner FROM _delivered WHERE key = ?"
    for seqs, snapshot, under_way, owner in read_rows(uri, sql, (key,)):
        return Delivered(json.loads(seqs), snapshot, json.loads(under_way), owner)
    return None


def read_rows(
    uri: str,
    sql: str,
    bindings: Sequence[int | float | str | None] = (),
    check: Callable[[], None] = lambda: None,
    *,
    prepare: Callable[[apsw.Connection], None] = lambda connection: None,
) -> list[tuple[Any, ...]]:
    """The rows of a statement on the store at `uri`, read over a separate connection.

    `check` is called regularly and ends the statement by raising.
    """
    return list(iterate_rows(uri, sql, bindings, check, prepare=prepare))


def iterate_rows(
    uri: str,
    sql: str,
    bindings: Sequence[int | float | str | None] = (),
    check: Callable[[], None] = lambda: None,
    *,
    prepare: Callable[[apsw.Connection], None] = lambda connection: None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """The same one by one. A transaction is open until the last row, or until the iterator is closed.

    The statement can also call `functions`.
    """

    def progress() -> bool:
        check()
        return False

    connection = apsw.Connection(uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
    try:
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        connection.set_progress_handler(progress, _STEPS_BETWEEN_CHECKS)
        connection.execute("PRAGMA temp_store=MEMORY")  # workers create no files
        prepare(connection)
        for name, function in (functions or {}).items():
            connection.create_scalar_function(name, function)
        yield from connection.execute(sql, bindings)
    finally:
        connection.close(force=True)


def read_events(
    uri: str, sql: str, bindings: Sequence[int | float | str | None] = (), check: Callable[[], None] = lambda: None
) -> list[tuple[Any, ...]]:
    """As `read_rows`, with event tables as their readers know them."""
    return list(iterate_events(uri, sql, bindings, check))


def iterate_events(
    uri: str,
    sql: str,
    bindings: Sequence[int | float | str | None] = (),
    check: Callable[[], None] = lambda: None,
    functions: Mapping[str, Callable[..., Any]] | None = None,
) -> Iterator[tuple[Any, ...]]:
    """As `iterate_rows`, with event tables as their readers know them."""
    return iterate_rows(uri, sql, bindings, check, prepare=_show_texts, functions=functions)


def _show_texts(connection: apsw.Connection) -> None:
    """Put views in front of the tables whose rows refer to texts."""
    tables = {str(name) for (name,) in connection.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'")}
    if "_texts" not in tables:  # no agent has migrated the store yet
        return
    for table in tables:
        present = columns(connection, table)
        if not table.startswith("_") and shared_columns(present):
            shown = ", ".join(f"{value_of(name, present)} AS {quoted(name)}" for name in present)
            connection.execute(f"CREATE TEMP VIEW {quoted(table)} AS SELECT {shown} FROM main.{quoted(table)}")


def count_rows(uri: str, table: str, low: int, high: int) -> int:
    """The number of rows with low < seq <= high, read over a separate connection."""
    ((rows,),) = read_rows(uri, f"SELECT count(*) FROM {quoted(table)} WHERE seq > ? AND seq <= ?", (low, high))
    return int(rows)


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
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    return str(path.absolute())


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except FileNotFoundError:
        return 0


def _values(rows: Sequence[EventRow]) -> Iterable[Row]:
    """The values of rows of the first one's type. Binding a row of the other type raises TypeError, like any misfit."""
    if isinstance(rows[0], Struct):
        return map(astuple, cast("Sequence[Struct]", rows))
    return cast("Sequence[Row]", rows)


def _converter(table: Table) -> Callable[[Row], Row] | None:
    """A function that turns a row into SQLite's values; None when no column needs conversion."""
    steps: list[tuple[int, Callable[[Value], Value]]] = []
    for index, column in enumerate(table.recorded):
        if column.zeek_type.name in {"set", "vector", "record", "port"}:
            steps.append((index, _json))
        elif column.zeek_type.name == "blob":
            steps.append((index, _bytes))
    if not steps:
        return None

    def convert(row: Row) -> Row:
        values: list[Value] | None = None
        for index, step in steps:
            value = row[index]
            if (stored := step(value)) is not value:
                values = list(row) if values is None else values
                values[index] = stored
        return row if values is None else values

    return convert


def _json(value: Value) -> Value:
    """Compact JSON; a `str` is assumed to be JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain)


def _plain(value: object) -> object:
    """JSON form of a type that JSON lacks."""
    if isinstance(value, bytes):
        return text.from_bytes(value)
    if isinstance(value, Set):
        return sorted(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} is not a valid value for a row")


def _bytes(value: Value) -> Value:
    return text.to_bytes(value) if isinstance(value, str) else value


def _without_surrogates(row: Row) -> Row:
    return [_storable(value) if isinstance(value, str) and not value.isascii() else value for value in row]


def _storable(value: str) -> str:
    """The text with lone surrogates, which SQLite cannot store, replaced by raw bytes."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return text.from_bytes(value.encode(errors="surrogatepass"))
    return value
