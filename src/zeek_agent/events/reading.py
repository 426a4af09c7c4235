"""Reads a store of events over a connection of its own, which can change nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import apsw

from zeek_agent.events.delivery_states import Delivered, unpacked_steps
from zeek_agent.events.layout import columns, quoted
from zeek_agent.events.references import shared_columns, value_of

BUSY_MILLISECONDS: Final = 2_000
"""Maximum wait for the lock of another connection, well above the duration of one transaction."""
_STEPS_BETWEEN_CHECKS: Final = 100_000
"""Steps of SQLite's virtual machine between calls of `check`: some milliseconds."""


def read_delivery_state(uri: str, key: str) -> Delivered | None:
    """The committed delivery state of a key, read over a separate connection."""
    sql = "SELECT seqs, snapshot, under_way, owner, incarnation, steps, shape FROM _delivered WHERE key = ?"
    for seqs, snapshot, under_way, owner, incarnation, steps, shape in read_rows(uri, sql, (key,)):
        recent = unpacked_steps(incarnation, steps)
        return Delivered(json.loads(seqs), snapshot, json.loads(under_way), owner, recent, shape)
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
        connection.set_busy_timeout(BUSY_MILLISECONDS)
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
