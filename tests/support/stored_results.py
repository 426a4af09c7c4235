"""Comparing results and applying their deltas in one process, as worker and main process do together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zeek_agent.host.files.reads import Omissions
from zeek_agent.results.comparison import Difference, Reporting, RowChange, compare
from zeek_agent.results.reader import ResultReader
from zeek_agent.results.state import ROW_OVERHEAD, ColumnTypes
from zeek_agent.results.store import ResultStore

COLUMNS: ColumnTypes = (("name", "text"), ("pid", "count"))
BUDGET = 256 * 1024 * 1024


def omitted(*paths: str, all_paths: bool = True) -> Omissions:
    """Files that could not be read."""
    return Omissions(
        skipped=len(paths), causes=frozenset(["skipped"] * bool(paths)), unread=frozenset(paths), all_paths=all_paths
    )


class Delta:
    """A delta file, and what it was made from."""

    def __init__(self, store: ResultStore, key: str = "query") -> None:
        with tempfile.TemporaryFile(buffering=0) as file:
            self.descriptor = os.dup(file.fileno())
        self.key = key
        self.store = store
        self.basis = store.basis(key)
        self.difference: Difference | None = None

    @property
    def length(self) -> int:
        assert self.difference is not None
        return self.difference.delta_bytes

    @property
    def expected(self) -> bytes | None:
        return self.basis.state.digest if self.basis.state else None

    def compare(
        self,
        rows: Iterable[Any],
        columns: ColumnTypes = COLUMNS,
        *,
        reporting: Reporting = Reporting.CHANGES,
        reported: bool = True,
        files: Omissions | None = None,
    ) -> list[tuple[RowChange | None, Any]]:
        """What the recipient gets."""
        with ResultReader(self.basis.uri) as reader:
            self.difference = compare(
                self.basis,
                columns,
                rows,
                self.descriptor,
                reporting=reporting,
                reported=reported,
                omissions=lambda: files or Omissions(),
                reader=lambda: reader,
            )
            return list(self.difference.changes())

    def apply(self) -> None:
        """What the main process does once the recipient has the rows."""
        if self.length:
            self.store.admit(self.key, self.descriptor, self.length, self.expected)
            self.store.apply(self.key, self.descriptor, self.length, self.expected)

    def close(self) -> None:
        os.close(self.descriptor)

    def __enter__(self) -> Delta:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def run(store: ResultStore, rows: Iterable[Any], columns: ColumnTypes = COLUMNS, **options: Any) -> list[Any]:
    """One complete run of a query: its changes."""
    key = options.pop("key", "query")
    with Delta(store, key) as delta:
        changes = delta.compare(rows, columns, **options)
        delta.apply()
        return changes


def stored_bytes(path: Path) -> int:
    """Bytes of all stored rows, counted in the file."""
    import apsw

    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READONLY)
    try:
        return connection.execute(f"SELECT coalesce(sum(length(row) + {ROW_OVERHEAD}), 0) FROM rows").get
    finally:
        connection.close()
