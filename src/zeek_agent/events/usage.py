"""Disk usage of the events by table, producer and minute, and the rows that eviction removes.

The writer keeps the figures in the tables `_usage` and `_accounts` of the store, so that eviction finds the producer
and the minutes to take from without reading events. Rows need to be counted before eviction only, so the writer starts
when the store is half full: most stores expire their rows long before, and counting costs a fifth of storing.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import apsw

from zeek_agent.events.layout import columns, last_sequence, quoted
from zeek_agent.events.references import MARK, length_of, references_in, shared_columns, text_of

_CELLS_PER_STEP: Final = 64
"""Minutes that one step may take from; more would rarely be needed for the rows of one transaction."""
_ROWS_EXAMINED: Final = 10_000
"""Oldest rows of a minute that are compared at once; bounds the memory of the sort."""
_FIRST_ROWS: Final = 3
"""Rows of each program, the first ones among those examined, that are removed last."""
_AGE_MINUTES_MAX: Final = 10_080
"""Bounds the weight of rows that have no time or a wrong one."""
_ROW_BYTES: Final = 24
"""Header of a row, its number and its share of the page's."""
_SHORT_BYTES: Final = 4
"""A number, or what most texts of bounded length have on average, nulls included."""
_LOGIN_UNSET: Final = 2**32 - 1
_PRODUCER_CHARACTERS: Final = 200
_UIDS_TOGETHER: Final = 65_536
"""Higher uids without a login count by ranges of this size, the usual one of subordinate ids (subuid(5))."""
_GROUPS: Final = frozenset({"container", "cgroup"})
_LONG: Final = frozenset({"TEXT", "BLOB"})
_SHORT: Final = frozenset(
    {
        *("name", "process", "parent_name", "priority", "state", "family", "direction", "level", "eventid"),
        *("local_addr", "remote_addr", "translated_local_addr", "translated_remote_addr"),
        *("community_id", "entity_id", "parent_entity_id", "container_id"),
    }
)
"""Columns of bounded length, which are not measured: half of the texts, and half of the cost of counting rows."""
_NUMBERS: Final = frozenset({"INTEGER", "REAL"})


class Total(NamedTuple):
    """What a producer has in a table."""

    bytes: int
    newest: int
    """Its last minute."""


class _TakenRow(NamedTuple):
    seq: int
    size: int
    time: float | None
    references: str | None


class Taken(NamedTuple):
    """Rows that one step of eviction removed."""

    rows: int
    bytes: int
    begin: float | None
    """Time of the oldest one; None if the table has no times."""
    end: float | None
    references: list[str]
    """To texts, as `Texts.release` takes them."""


@dataclass(frozen=True, slots=True)
class _Expressions:
    """What the figures of a table are calculated with, in SQL."""

    producer: str
    minute: str
    size: str
    program: str
    time: str
    references: str

    def definition(self) -> str:
        """Changes when figures that are on disk no longer describe the rows."""
        return "\n".join((self.producer, self.minute, self.size))


class Usage:
    """The figures of one store, over the connection of its writer. Raises apsw.Error."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._expressions: dict[str, _Expressions] = {}

    def declare(self, table: str) -> None:
        """Begin with a table, or take note of its changed columns; then its rows are counted again."""
        self._expressions[table] = expressions = _expressions(columns(self._connection, table))
        definition = expressions.definition()
        execute = self._connection.execute
        if execute('SELECT definition FROM _accounts WHERE "table" = ?', (table,)).get == definition:
            return
        execute('DELETE FROM _usage WHERE "table" = ?', (table,))
        execute(
            'INSERT INTO _accounts ("table", definition, evicted, counted) VALUES (?, ?, 0, 0) '
            'ON CONFLICT ("table") DO UPDATE SET definition = excluded.definition, counted = 0',
            (table, definition),
        )

    def uncounted(self, last: Mapping[str, int]) -> dict[str, int]:
        """The highest number of rows that are still to be counted, by table; `last` is the highest `seq` of each."""
        counted = dict(self._select('SELECT "table", counted FROM _accounts'))
        return {table: seq - counted[table] for table, seq in last.items() if counted.get(table, seq) < seq}

    def count(self, table: str, rows_max: int) -> bool:
        """Count some of the rows that were added since the last call, within a transaction. False if none are left."""
        after = self._counted(table)
        sql = f"SELECT max(seq), count(*) FROM (SELECT seq FROM {quoted(table)} WHERE seq > ? ORDER BY seq LIMIT ?)"
        ((upto, rows),) = self._select(sql, (after, rows_max))
        if rows < rows_max:  # the rows with the last numbers may be gone already
            upto = last_sequence(self._connection, table)
        for cell in self._cells(table, "seq > ? AND seq <= ?", after, upto):
            self._connection.execute(
                "INSERT INTO _usage VALUES (?, ?, ?, ?, ?, ?, ?) "
                'ON CONFLICT ("table", producer, minute) DO UPDATE SET rows = rows + excluded.rows, '
                "bytes = bytes + excluded.bytes, low = min(low, excluded.low), high = max(high, excluded.high)",
                (table, *cell),
            )
        self._connection.execute('UPDATE _accounts SET counted = ? WHERE "table" = ?', (upto, table))
        return bool(rows == rows_max)

    def subtract(self, table: str, upto: int) -> None:
        """Discount the rows up to this `seq`, which are about to be removed."""
        for producer, minute, rows, size, _, _ in self._cells(table, "seq <= ?", min(upto, self._counted(table))):
            self._discount((table, producer, minute), rows, size)

    def _counted(self, table: str) -> int:
        ((seq,),) = self._select('SELECT counted FROM _accounts WHERE "table" = ?', (table,))
        return int(seq)

    def totals(self) -> dict[tuple[str, str], Total]:
        """Bytes by table and producer."""
        sql = 'SELECT "table", producer, sum(bytes), max(minute) FROM _usage GROUP BY 1, 2'
        return {(table, producer): Total(*total) for table, producer, *total in self._select(sql)}

    def take(self, table: str, producer: str, rows_max: int, bytes_wanted: int, keep: int) -> Taken:
        """Remove rows of a producer, within a transaction: half of each of its densest minutes.

        Old minutes count as denser, so that recent ones stay complete where possible. Within a minute the first rows
        of each program stay the longest. The row with the `seq` to `keep` is not removed.
        """
        cells = self._select(
            f"SELECT bytes * (1 + min(newest - minute, {_AGE_MINUTES_MAX})) AS weight, minute, rows, low, high "
            'FROM _usage, (SELECT max(minute) AS newest FROM _usage WHERE "table" = ?1 AND producer = ?2) '
            'WHERE "table" = ?1 AND producer = ?2 ORDER BY rows > 1 DESC, weight DESC, minute LIMIT ?3',
            (table, producer, _CELLS_PER_STEP),
        )
        taken: list[_TakenRow] = []
        size = 0
        for weight, minute, rows, low, high in cells:
            lighter = 2 * weight < cells[0][0] or (rows == 1 < cells[0][2])
            if len(taken) >= rows_max or size >= bytes_wanted or (taken and lighter):
                break
            wanted = min(max(rows // 2, 1), rows_max - len(taken))
            removed = self._take_from((table, producer, minute), (low, high), wanted, keep)
            taken += removed
            size += sum(row.size for row in removed)
        times = [row.time for row in taken if row.time is not None]
        references = [row.references for row in taken if row.references is not None]
        return Taken(len(taken), size, min(times, default=None), max(times, default=None), references)

    def note_holes(self, table: str, seq: int) -> None:
        """Take note that rows up to this `seq` may be missing between others."""
        self._connection.execute(
            'UPDATE _accounts SET evicted = max(evicted, ?) WHERE "table" = ?',
            (seq, table),
        )

    def holes(self) -> Mapping[str, int]:
        """The `seq` above which no row is missing between others, by table."""
        return dict(self._select('SELECT "table", evicted FROM _accounts'))

    def _take_from(
        self, cell: tuple[str, str, int], bounds: tuple[int, int], wanted: int, keep: int
    ) -> list[_TakenRow]:
        """Remove rows of a producer's minute."""
        table, producer, minute = cell
        sql, name = self._expressions[table], quoted(table)
        rows = self._select(
            "SELECT seq, size, time, refs FROM ("
            "SELECT *, row_number() OVER (PARTITION BY program ORDER BY seq) AS n FROM ("
            f"SELECT seq, {sql.size} AS size, {sql.time} AS time, {sql.program} AS program, "
            f"{sql.references} AS refs FROM {name} "
            f"WHERE seq BETWEEN ? AND ? AND seq <> ? AND {_narrowed(producer)} {sql.producer} = ? AND {sql.minute} = ? "
            f"ORDER BY seq LIMIT {_ROWS_EXAMINED})) "
            f"ORDER BY min(n, {_FIRST_ROWS + 1}) DESC, iif(n > {_FIRST_ROWS}, seq, -seq) LIMIT ?",
            (*bounds, keep, producer, minute, wanted),
        )
        if rows:
            self._connection.executemany(f"DELETE FROM {name} WHERE seq = ?", ((row[0],) for row in rows))
            self.note_holes(table, max(row[0] for row in rows))
            self._discount(cell, len(rows), sum(row[1] for row in rows))
        elif not bounds[0] <= keep <= bounds[1]:  # the figures are wrong, so correct them
            self._connection.execute('DELETE FROM _usage WHERE "table" = ? AND producer = ? AND minute = ?', cell)
        return [_TakenRow(*row) for row in rows]

    def _cells(self, table: str, where: str, *bindings: int) -> list[tuple[Any, ...]]:
        """Producer, minute, rows, bytes, first and last `seq` of the rows, by producer and minute.

        The limit keeps SQLite from merging the two statements, so that only the results of the expressions are sorted.
        """
        sql = self._expressions[table]
        return self._select(
            "SELECT producer, minute, count(*), sum(size), min(seq), max(seq) FROM ("
            f"SELECT {sql.producer} AS producer, {sql.minute} AS minute, {sql.size} AS size, seq "
            f"FROM {quoted(table)} WHERE {where} LIMIT -1) GROUP BY 1, 2",
            bindings,
        )

    def _discount(self, cell: tuple[str, str, int], rows: int, size: int) -> None:
        self._connection.execute(
            'UPDATE _usage SET rows = rows - ?, bytes = bytes - ? WHERE "table" = ? AND producer = ? AND minute = ?',
            (rows, size, *cell),
        )
        self._connection.execute(
            'DELETE FROM _usage WHERE "table" = ? AND producer = ? AND minute = ? AND rows <= 0', cell
        )

    def _select(self, sql: str, bindings: tuple[int | str, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, bindings).fetchall()


class Shares:
    """Who takes how much of the file, and whose turn it is to be evicted.

    Only tables that have more than an equal share of all bytes are considered. There the largest group of producers is
    next, and in it the largest producer. All containers are one group, and all of root's control groups are another, so
    that thousands of small ones do not count as thousands of equals of a user.
    """

    def __init__(self, totals: Mapping[tuple[str, str], Total], tables: int) -> None:
        self._tables = max(tables, 1)
        self._by_table: dict[str, int] = {}
        self._by_group: dict[tuple[str, str], int] = {}
        self._producers: dict[tuple[str, str], list[tuple[int, int, str]]] = {}
        for (table, producer), total in totals.items():
            group = (table, _group(producer))
            self._add(group, total.bytes)
            self._producers.setdefault(group, []).append((-total.bytes, total.newest, producer))
        for producers in self._producers.values():
            heapq.heapify(producers)

    def next(self) -> tuple[str, str] | None:
        """The table and the producer to take from; None when nothing is left."""
        share = sum(self._by_table.values()) // self._tables
        candidates = [(size, group) for group, size in self._by_group.items() if self._by_table[group[0]] >= share]
        if not candidates:
            return None
        _, group = max(candidates)
        return group[0], self._producers[group][0][2]

    def reduce(self, table: str, producer: str, size: int) -> None:
        """Note that the producer that is next has lost this many bytes; 0 if nothing could be taken from it."""
        group = (table, _group(producer))
        producers = self._producers[group]
        before, newest, _ = heapq.heappop(producers)
        left = -before - size if size else 0
        self._add(group, left + before)
        if left > 0:
            heapq.heappush(producers, (-left, newest, producer))
        if not producers:
            self._by_table[table] -= self._by_group.pop(group)

    def _add(self, group: tuple[str, str], size: int) -> None:
        self._by_group[group] = self._by_group.get(group, 0) + size
        self._by_table[group[0]] = self._by_table.get(group[0], 0) + size


def _group(producer: str) -> str:
    kind = producer.partition(" ")[0]
    return kind if kind in _GROUPS else producer


def _expressions(present: Mapping[str, str]) -> _Expressions:
    """The expressions for a table with these columns, of SQLite's types."""
    names = {name.lower(): kind for name, kind in present.items() if name.lower() != "seq"}
    timed = names.get("time") in _NUMBERS
    long = [name for name, kind in names.items() if kind in _LONG and name not in _SHORT]
    fixed = _ROW_BYTES + _SHORT_BYTES * (len(names) - len(long))
    shared = shared_columns(names)
    lengths = [length_of(name) if name in shared else f"ifnull(octet_length({quoted(name)}), 0)" for name in long]
    size = " + ".join([str(fixed), *lengths])
    minute = "CAST(ifnull(time, 0) / 60 AS INTEGER)" if timed else "0"
    programs = [quoted(name) for name in ("exe", "process", "name", "identifier") if name in names]
    program = f"coalesce({', '.join([*programs, repr('')])})" if programs else "''"
    time = "time" if timed else "NULL"
    return _Expressions(_producer(names), minute, size, program, time, references_in(names))


def _narrowed(producer: str) -> str:
    """SQL that precedes the comparison with a producer: most rows of others are ruled out at a fraction of its cost."""
    kind, _, number = producer.rpartition(" ")
    column, operator = {"loginuid": ("loginuid", "="), "uid": ("uid", "="), "uids from": ("uid", ">=")}.get(
        kind, ("", "")
    )
    return f"{column} {operator} {int(number)} AND" if column else ""


def _producer(names: Mapping[str, str]) -> str:
    """Who caused a row: its login, which setuid does not change, else its container, root's control group or its uid.

    A user can change neither its login nor, without one, the control group that a service runs in.
    """
    cases = []
    by_uid = names.get("uid") == "INTEGER"
    if names.get("loginuid") == "INTEGER":
        cases.append(f"WHEN loginuid < {_LOGIN_UNSET} THEN 'loginuid ' || loginuid")
    if "container_id" in names:
        cases.append(f"WHEN container_id <> '' THEN 'container ' || substr(container_id, 1, {_PRODUCER_CHARACTERS})")
    if "cgroup" in names and by_uid:
        shared = "cgroup" in shared_columns(names)
        name = f"CASE WHEN cgroup >= '{MARK}' THEN {text_of('cgroup')} ELSE cgroup END" if shared else "cgroup"
        cases.append(f"WHEN uid = 0 AND cgroup <> '' THEN 'cgroup ' || substr({name}, 1, {_PRODUCER_CHARACTERS})")
    if by_uid:
        cases.append(f"WHEN uid < {_UIDS_TOGETHER} THEN 'uid ' || uid")
        cases.append(f"WHEN uid >= {_UIDS_TOGETHER} THEN 'uids from ' || (uid / {_UIDS_TOGETHER} * {_UIDS_TOGETHER})")
    return f"CASE {' '.join(cases)} ELSE 'unknown' END" if cases else "'all'"
