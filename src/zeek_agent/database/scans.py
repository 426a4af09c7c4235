"""Scans of snapshot tables, shared by simultaneous statements or by all iterations of a join."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Final

from zeek_agent.schema import Row
from zeek_agent.table import Table

SHARED_ROWS_MAX: Final = 50_000
"""Rows of a shared scan, which stay in memory after their statement: more than a busy host has processes or sockets."""
INDEXED_ROWS_MAX: Final = 100_000
"""Rows of an indexed scan, which only its statement holds; a longer table is read again for each lookup."""


class SharedScans:
    """Full scans of tables, kept briefly so that statements of the same schedule share them. Thread-safe.

    `max_age_seconds` is the maximum age, when a statement is submitted, of a scan that it may share; an interactive
    statement shares only scans that began later. A scan of more than SHARED_ROWS_MAX rows is not shared.
    """

    def __init__(self, max_age_seconds: float = 0.1, clock: Callable[[], float] = time.monotonic) -> None:
        self.max_age_seconds = max_age_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._scans: dict[str, _Scan] = {}

    def rows(
        self,
        table: Table,
        columns: frozenset[str],
        since: float,
        scan: Callable[[], Iterator[Row]],
        check: Callable[[], None],
        *,
        is_complete: Callable[[], bool] = lambda: True,
    ) -> Iterator[Row]:
        """All rows of the table with at least these columns, from a scan that began at `since` or later.

        A scan that is not complete when it ends is not shared: each statement has to report what it omits.
        """
        with self._lock:
            entry = self._scans.get(table.name)
            leads = entry is None or entry.table is not table or entry.began < since or not columns <= entry.columns
            if entry is None or leads:
                entry = self._scans[table.name] = _Scan(table, columns, self._clock())
        if leads:
            return self._lead(entry, scan, is_complete)
        while not entry.done.wait(0.05):
            check()
        return scan() if entry.rows is None else iter(entry.rows)

    def expire(self) -> bool:
        """Discard expired scans. Returns whether any is left."""
        with self._lock:
            limit = self._clock() - self.max_age_seconds
            self._scans = {
                name: entry for name, entry in self._scans.items() if not entry.done.is_set() or entry.ended > limit
            }
            return bool(self._scans)

    def clear(self) -> None:
        """Discard all scans."""
        with self._lock:
            self._scans.clear()

    def _lead(self, entry: _Scan, scan: Callable[[], Iterator[Row]], is_complete: Callable[[], bool]) -> Iterator[Row]:
        try:
            rows = scan()
            first = list(islice(rows, SHARED_ROWS_MAX))
            if len(first) < SHARED_ROWS_MAX:
                entry.rows = first if is_complete() else None
                return iter(first)
            return chain(first, rows)
        finally:
            entry.ended = self._clock()
            entry.done.set()
            if entry.rows is None:
                self._forget(entry)

    def _forget(self, entry: _Scan) -> None:
        with self._lock:
            if self._scans.get(entry.table.name) is entry:
                del self._scans[entry.table.name]


class _Scan:
    """`rows` stays None if the scan failed, was too long or not complete; statements that waited for it then scan
    themselves.
    """

    __slots__ = ("began", "columns", "done", "ended", "rows", "table")

    def __init__(self, table: Table, columns: frozenset[str], began: float) -> None:
        self.table = table
        self.columns = columns
        self.began = began
        self.ended = began
        self.done = threading.Event()
        self.rows: list[Row] | None = None


class IndexedScan:
    """All rows of one scan, indexed by the value of any column."""

    def __init__(self, rows: list[Sequence[Any]]) -> None:
        self._rows = rows
        self._indexes: dict[int, dict[Any, list[Sequence[Any]]]] = {}

    def select(self, equalities: Mapping[int, frozenset[Any]]) -> Iterator[Sequence[Any]]:
        """At least the rows whose cells are among the given ones; keys are positions in the row."""
        if not equalities:
            return iter(self._rows)
        position, wanted = next(iter(equalities.items()))
        index = self._indexes.get(position)
        if index is None:
            index = self._indexes[position] = {}
            for row in self._rows:
                index.setdefault(row[position], []).append(row)
        if len(wanted) == 1:
            (value,) = wanted
            return iter(index.get(value, ()))
        return chain.from_iterable(index.get(value, ()) for value in wanted)
