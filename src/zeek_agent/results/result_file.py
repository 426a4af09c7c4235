"""The SQLite file of stored results. Used by one thread at a time; `store.ResultStore` owns it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import apsw

from zeek_agent import platforms
from zeek_agent.errors import ZeekAgentError
from zeek_agent.results.delta import Addition, DeltaFile, Removal
from zeek_agent.results.state import (
    HASH_BYTES,
    HASH_MODULUS,
    KEY_BYTES,
    ROW_OVERHEAD,
    ROWS_MAX,
    ColumnTypes,
    InvalidDeltaError,
    ResultState,
    pack,
    row_hasher,
    unpack_columns,
)

VERSION: Final = 2
_READ_AND_WRITE: Final = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
_BUSY_MILLISECONDS: Final = 2_000
_PAGE_BYTES: Final = 4_096
_WAL_PAGES: Final = 1_000
WAL_BYTES_MAX: Final = 64 * 1024 * 1024
_VACUUM_PAGES: Final = 1_000
_RENEWED: Final = ".new"
_SCHEMA: Final = """
CREATE TABLE file (hash_key BLOB NOT NULL, took_snapshots INTEGER NOT NULL) STRICT;
CREATE TABLE queries (
    q INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, columns BLOB NOT NULL, sum BLOB NOT NULL,
    count INTEGER NOT NULL, bytes INTEGER NOT NULL, unread BLOB NOT NULL, sequence BLOB NOT NULL,
    updated REAL NOT NULL, durable INTEGER NOT NULL, owner TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE rows (
    q INTEGER NOT NULL, h BLOB NOT NULL, n INTEGER NOT NULL, row BLOB NOT NULL, PRIMARY KEY (q, h)
) STRICT, WITHOUT ROWID;
"""


class NewerResultsError(ZeekAgentError):
    """The file of stored results was written by a later version of the agent."""


class ResultFile:
    """An open file of stored results. Opening and all methods raise apsw.Error, or OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        platforms.HERE.make_private_directory(path.parent)
        _finish_renewal(path)
        platforms.HERE.make_private_file(path)
        self._connection = apsw.Connection(str(path.absolute()), flags=_READ_AND_WRITE)
        try:
            self._open()
        except BaseException:
            self._connection.close()
            raise
        self.uri: Final = f"file:{quote(str(path.absolute()))}?mode=ro&readonly_shm=1&opened={secrets.token_hex(4)}"

    def _open(self) -> None:
        connection = self._connection
        connection.set_busy_timeout(_BUSY_MILLISECONDS)
        version = int(connection.pragma("user_version"))
        if version > VERSION:
            raise NewerResultsError(
                f"the stored results {self.path} were written by a later version of zeek-agent and were left as they "
                "are: run that version or a later one, or move the file away to start over"
            )
        connection.execute(f"PRAGMA page_size={_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_PAGES * _PAGE_BYTES}")
        if version == 0:
            with self.transaction():
                connection.execute(_SCHEMA)
                connection.execute("INSERT INTO file VALUES (?, 0)", (secrets.token_bytes(KEY_BYTES),))
                connection.execute(f"PRAGMA user_version = {VERSION}")
        elif version == 1:
            with self.transaction():
                connection.execute("ALTER TABLE queries ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
                connection.execute(f"PRAGMA user_version = {VERSION}")
        ((self.hash_key, took),) = self._rows("SELECT hash_key, took_snapshots FROM file")
        self.took_snapshots = bool(took)
        with self.transaction():
            connection.execute("DELETE FROM rows WHERE q IN (SELECT q FROM queries WHERE NOT durable)")
            connection.execute("DELETE FROM queries WHERE NOT durable")

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:  # SQLite ends it itself after some errors
                self._connection.execute("ROLLBACK")
            raise

    def states(self) -> dict[str, ResultState]:
        """All stored results, by key. Raises DamagedResultError."""
        return {key: _state(*rest) for key, *rest in self._rows(f"SELECT key, {_STATE} FROM queries")}

    def owners(self) -> dict[str, str]:
        """The recipients of all stored results, by key; empty for those that an earlier agent stored."""
        return dict(self._rows("SELECT key, owner FROM queries"))

    def state(self, query: int) -> ResultState:
        ((_, *rest),) = self._rows(f"SELECT key, {_STATE} FROM queries WHERE q = ?", (query,))
        return _state(*rest)

    def create(self, key: str, columns: ColumnTypes, durable: bool) -> int:
        """Begin an empty result; its number. Any earlier one with this key must be gone."""
        self._connection.execute(
            "INSERT INTO queries (key, columns, sum, count, bytes, unread, sequence, updated, durable) "
            "VALUES (?, ?, zeroblob(16), 0, 0, x'90', x'', 0, ?)",
            (key, pack(columns), int(durable)),
        )
        return self._connection.last_insert_rowid()

    def remove(self, query: int) -> None:
        self._connection.execute("DELETE FROM rows WHERE q = ?", (query,))
        self._connection.execute("DELETE FROM queries WHERE q = ?", (query,))

    def rename(self, query: int, key: str) -> None:
        self._connection.execute("UPDATE queries SET key = ? WHERE q = ?", (key, query))

    def touch(self, queries: Iterable[int], now: float) -> None:
        self._connection.executemany("UPDATE queries SET updated = ? WHERE q = ?", [(now, query) for query in queries])

    def last_use(self) -> dict[str, float]:
        return dict(self._rows("SELECT key, updated FROM queries"))

    def update(self, query: int, delta: DeltaFile, now: float, owner: str) -> None:
        """Change a result, within a transaction, to the one that a delta describes. Raises InvalidDeltaError."""
        trailer, unread = delta.trailer, delta.unread()
        ((total, rows, size),) = self._rows("SELECT sum, count, bytes FROM queries WHERE q = ?", (query,))
        change = _Change(self._connection, query, int.from_bytes(total), rows, size)
        change.remove(delta.removals())
        change.add(delta.additions(self.hash_key, trailer.row_bytes), is_empty=rows == 0)
        described = (int.from_bytes(trailer.total), trailer.rows, trailer.row_bytes)
        if (change.total % HASH_MODULUS, change.rows, change.row_bytes) != described:
            raise InvalidDeltaError("a delta file does not lead to the result that it describes")
        self._connection.execute(
            "UPDATE queries SET sum = ?, count = ?, bytes = ?, unread = ?, sequence = ?, updated = ?, owner = ? "
            "WHERE q = ?",
            (trailer.total, trailer.rows, trailer.row_bytes, unread, trailer.sequence, now, owner, query),
        )

    def set_took_snapshots(self) -> None:
        """Remember, on the disk itself, that the event store's snapshots were taken over."""
        self._connection.execute("UPDATE file SET took_snapshots = 1")
        self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_FULL)
        self.took_snapshots = True

    def is_intact(self, state: ResultState | None) -> bool:
        """Whether the file is not damaged, and the rows of a stored result are those that its digest describes.

        Read from the disk, not from this connection's cache. Raises apsw.CorruptError for a damaged file.
        """
        connection = apsw.Connection(self.uri, flags=apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI)
        try:
            connection.set_busy_timeout(_BUSY_MILLISECONDS)
            if (found := connection.execute("PRAGMA quick_check(1)").get) != "ok":
                raise apsw.CorruptError(str(found))
            return state is None or self._matches(connection, state)
        finally:
            connection.close()

    def _matches(self, connection: apsw.Connection, state: ResultState) -> bool:
        hasher = row_hasher(self.hash_key)
        total = rows = 0
        for hash_, times, row in connection.execute("SELECT h, n, row FROM rows WHERE q = ?", (state.query,)):
            of_row = hasher.copy()
            of_row.update(row)
            if of_row.digest() != hash_:
                return False
            total += int.from_bytes(hash_) * times
            rows += times
        return (total % HASH_MODULUS).to_bytes(HASH_BYTES) == state.total and rows == state.rows

    def shrink(self) -> None:
        """Give much unused room back to the file system."""
        free, pages = (int(self._connection.pragma(name)) for name in ("freelist_count", "page_count"))
        if free > _VACUUM_PAGES and free > pages // 4:
            self._connection.execute("PRAGMA incremental_vacuum").fetchall()

    def disk_bytes(self) -> int:
        """Size of the file and of its write-ahead log."""
        return sum(_size(Path(f"{self.path}{suffix}")) for suffix in ("", "-wal"))

    def may_write(self) -> bool:
        """False if the write-ahead log is too large and readers keep it from being reused."""
        if _size(Path(f"{self.path}-wal")) <= WAL_BYTES_MAX:
            return True
        try:
            self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        except (apsw.BusyError, apsw.LockedError):
            return False
        return True

    def renewed(self) -> ResultFile:
        """A copy in place of this file, which is closed: readers of the old one no longer matter.

        The copy is complete before it gets the name that `_finish_renewal` looks for, so a crash leaves one of both.
        """
        making, ready = Path(f"{self.path}.part"), Path(f"{self.path}{_RENEWED}")
        making.unlink(missing_ok=True)
        try:
            self._connection.execute("VACUUM INTO ?", (str(making.absolute()),))
            platforms.HERE.protect_file(making)
            _sync(making)
        except BaseException:
            making.unlink(missing_ok=True)
            raise
        making.replace(ready)
        platforms.HERE.sync_directory(ready.parent)
        self.close()
        return ResultFile(self.path)

    def close(self) -> None:
        self._connection.close()

    def _rows(self, sql: str, bindings: tuple[int | str | bytes, ...] = ()) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, bindings).fetchall()


class _Change:
    """Rows removed from and added to one result, and what that makes of its figures."""

    def __init__(self, connection: apsw.Connection, query: int, total: int, rows: int, row_bytes: int) -> None:
        self._execute = connection.execute
        self._executemany = connection.executemany
        self._query = query
        self.total = total
        self.rows = rows
        self.row_bytes = row_bytes

    def remove(self, removals: Iterable[Removal]) -> None:
        for hash_, times in removals:
            key = (self._query, hash_)
            found = self._execute("SELECT n, length(row) FROM rows WHERE q = ? AND h = ?", key).get
            if found is None or found[0] < times:
                raise InvalidDeltaError("a delta file removes a row that is not there")
            if found[0] == times:
                self._execute("DELETE FROM rows WHERE q = ? AND h = ?", key)
                self.row_bytes -= found[1] + ROW_OVERHEAD
            else:
                self._execute("UPDATE rows SET n = n - ? WHERE q = ? AND h = ?", (times, *key))
            self.total -= int.from_bytes(hash_) * times
            self.rows -= times

    def add(self, additions: Iterable[Addition], *, is_empty: bool) -> None:
        self._executemany("INSERT INTO rows VALUES (?, ?, ?, ?)", self._new(additions, is_empty))

    def _new(self, additions: Iterable[Addition], is_empty: bool) -> Iterator[tuple[int, bytes, int, bytes]]:
        """The rows that are not there yet; others are counted up."""
        for hash_, row, times in additions:
            self.total += int.from_bytes(hash_) * times
            self.rows += times
            if self.rows > ROWS_MAX:
                raise InvalidDeltaError("a delta file has too many rows")
            if not is_empty and self._is_counted_up(hash_, times):
                continue
            self.row_bytes += len(row) + ROW_OVERHEAD
            yield self._query, hash_, times, row

    def _is_counted_up(self, hash_: bytes, times: int) -> bool:
        sql = "UPDATE rows SET n = n + ? WHERE q = ? AND h = ? RETURNING n"
        return self._execute(sql, (times, self._query, hash_)).get is not None


_STATE: Final = "q, columns, length(unread), sum, count, bytes, sequence"


def _state(query: int, columns: bytes, unread_bytes: int, *figures: Any) -> ResultState:
    total, rows, row_bytes, sequence = figures
    extra = len(columns) + unread_bytes
    return ResultState(query, unpack_columns(columns), total, rows, row_bytes, extra, sequence)


def _finish_renewal(path: Path) -> None:
    """Replace the file by a complete copy; the write-ahead log of the old file does not apply to the copy."""
    ready = Path(f"{path}{_RENEWED}")
    if not ready.exists():
        return
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    platforms.HERE.sync_directory(path.parent)
    ready.replace(path)
    platforms.HERE.sync_directory(path.parent)


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
