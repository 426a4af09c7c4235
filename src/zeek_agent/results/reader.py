"""Stored results, read by a worker process: read-only, and never in a transaction while other code runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final

import apsw

from zeek_agent.results.state import DamagedResultError, UnavailableError, row_hasher, unpack_unread

_BUSY_MILLISECONDS: Final = 2_000
_READ_ONLY: Final = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI


class ResultReader:
    """A connection to the file of stored results. It opens everything at once, so that a sandbox can follow.

    Its methods raise UnavailableError or DamagedResultError. Each reads in a transaction of its own and ends it: one
    that stays open keeps the write-ahead log from being reused.
    """

    def __init__(self, uri: str) -> None:
        self.uri: Final = uri
        try:
            self._connection = apsw.Connection(uri, flags=_READ_ONLY)
        except apsw.Error as error:
            raise UnavailableError(f"cannot open the stored results: {error}") from error
        try:
            self._connection.set_busy_timeout(_BUSY_MILLISECONDS)
            self._rows("SELECT count(*) FROM queries", ())
        except BaseException:
            self._connection.close()
            raise

    def unread(self, query: int) -> frozenset[str]:
        """Paths of files that were not read when the result was stored."""
        for (packed,) in self._rows("SELECT unread FROM queries WHERE q = ?", (query,)):
            return unpack_unread(packed)
        raise DamagedResultError("a stored result is missing")

    def hashes(self, query: int, low: bytes, high: bytes | None) -> tuple[bytes, dict[bytes, int]]:
        """Hashes of the rows with hashes from `low` up to but not including `high`, joined, in any order.

        Also the counts of rows that occur more than once.
        """
        where = "q = ? AND h >= ?" if high is None else "q = ? AND h >= ? AND h < ?"
        bindings = (query, low) if high is None else (query, low, high)
        # SQLite joins them in a third of the time that it takes to fetch them one by one.
        joined = f"SELECT CAST(group_concat(h, '') AS BLOB), count(*), sum(n) FROM rows WHERE {where}"
        ((hashes, number, times),) = self._rows(joined, bindings)
        if number == times:
            return hashes, {}
        more = dict(self._rows(f"SELECT h, n FROM rows WHERE {where} AND n > 1", bindings)) if hashes else {}
        return hashes or b"", more

    def lengths(self, query: int, hashes: Sequence[bytes]) -> list[int]:
        """The lengths of the packed rows with these hashes."""
        lengths = self._of_each("SELECT length(row) FROM rows WHERE q = ? AND h = ?", query, hashes)
        if None in lengths:
            raise DamagedResultError("a stored row is missing")
        return lengths

    def packed_rows(self, query: int, hashes: Sequence[bytes], hash_key: bytes) -> list[bytes]:
        """The packed rows with these hashes, in their order."""
        rows = self._of_each("SELECT row FROM rows WHERE q = ? AND h = ?", query, hashes)
        hasher = row_hasher(hash_key)
        for hash_, row in zip(hashes, rows, strict=True):
            of_row = hasher.copy()
            of_row.update(row or b"")
            if of_row.digest() != hash_:
                raise DamagedResultError("a stored row is missing or is not the one that was stored")
        return rows

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> ResultReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _of_each(self, sql: str, query: int, hashes: Sequence[bytes]) -> list[Any]:
        """The value that a statement has for each hash, None where it has no row, all in one transaction."""
        execute, values = self._connection.execute, []
        try:
            with self._connection:
                values += [execute(sql, (query, hash_)).get for hash_ in hashes]
        except apsw.Error as error:
            raise _failure(error) from error
        return values

    def _rows(self, sql: str, bindings: Sequence[int | bytes]) -> list[tuple[Any, ...]]:
        try:
            return self._connection.execute(sql, bindings).fetchall()
        except apsw.Error as error:
            raise _failure(error) from error


def _failure(error: apsw.Error) -> DamagedResultError | UnavailableError:
    if isinstance(error, (apsw.CorruptError, apsw.NotADBError)):
        return DamagedResultError(f"the stored results are damaged: {error}")
    return UnavailableError(f"cannot read the stored results: {error}")
