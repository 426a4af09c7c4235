"""Migrations of the event store: numbered, forward-only changes of its file, each in its own transaction.

`PRAGMA user_version` is the number of the last migration applied to the file; 0 means that the store was written
before migrations were numbered. An agent refuses a store whose number is higher than the last it knows.

Adding or removing a column, or changing its type, needs no migration: `layout` derives that from the declaration and
keeps the rows. A migration is needed to rename a column (`renamed_column`), for values whose meaning changes, and for
the bookkeeping tables. Add it at the end of `MIGRATIONS`, never change one that was released, and add a dump of the
store as it was before (tests/events/stores/dump.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import apsw

from zeek_agent import __version__
from zeek_agent.errors import ZeekAgentError
from zeek_agent.events.layout import columns, quoted, store_marked_texts
from zeek_agent.events.references import shared_columns

log = logging.getLogger(__name__)


class NewerStoreError(ZeekAgentError):
    """The event store was written by a later version of the agent."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from a version of the store to the next."""

    summary: str
    apply: Callable[[apsw.Connection], None]


def _number_the_store(connection: apsw.Connection) -> None:
    """Bring the bookkeeping tables, if any, to the state in which stores were first numbered."""
    execute = connection.execute
    execute("CREATE TABLE IF NOT EXISTS _store (id TEXT NOT NULL, alive REAL NOT NULL, clean INTEGER NOT NULL) STRICT")
    execute("ALTER TABLE _store ADD COLUMN written_by TEXT")
    execute('CREATE TABLE IF NOT EXISTS _gaps (source TEXT, "from" REAL, until REAL, cause TEXT) STRICT')
    execute(
        "CREATE TABLE _delivered_now ("
        "key TEXT PRIMARY KEY, seqs TEXT NOT NULL, snapshot BLOB, under_way TEXT NOT NULL, time REAL NOT NULL"
        ") STRICT, WITHOUT ROWID"
    )
    if delivered := columns(connection, "_delivered"):
        under_way = "under_way" if "under_way" in delivered else "'{}'"  # the first stores did not have it
        execute(
            "INSERT INTO _delivered_now (key, seqs, snapshot, under_way, time) "
            f"SELECT key, seqs, snapshot, {under_way}, time FROM _delivered"
        )
        execute("DROP TABLE _delivered")
    execute("ALTER TABLE _delivered_now RENAME TO _delivered")
    execute(
        'CREATE TABLE _columns ("table" TEXT, name TEXT, type TEXT NOT NULL, PRIMARY KEY ("table", name)) '
        "STRICT, WITHOUT ROWID"
    )
    for table in ("processes_events", "sockets_events", "system_logs_events"):
        for name in columns(connection, table).keys() - {"seq"}:
            execute("INSERT INTO _columns VALUES (?, ?, ?)", (table, name, _FIRST_TYPES.get(name, "text")))


_FIRST_TYPES: Final = {
    "time": "time",
    "exit_code": "int",
    "listener_stands_in": "bool",
    **dict.fromkeys(("duration", "utime", "stime"), "interval"),
    **dict.fromkeys(("local_addr", "remote_addr", "translated_local_addr", "translated_remote_addr"), "address"),
    **dict.fromkeys(("pid", "ppid", "uid", "gid", "ruid", "rgid", "loginuid", "session", "netns"), "count"),
    **dict.fromkeys(("vsize", "rsize", "protocol", "cookie", "facility"), "count"),
    **dict.fromkeys(("local_port", "remote_port", "translated_local_port", "translated_remote_port"), "count"),
}
"""Zeek's types of the built-in tables' columns in unnumbered stores, which did not record them."""


def _account_for_rows(connection: apsw.Connection) -> None:
    """Add the figures that eviction needs; opening the store fills them in."""
    connection.execute(
        'CREATE TABLE _usage ("table" TEXT, producer TEXT, minute INTEGER, rows INTEGER NOT NULL, '
        "bytes INTEGER NOT NULL, low INTEGER NOT NULL, high INTEGER NOT NULL, "
        'PRIMARY KEY ("table", producer, minute)) STRICT, WITHOUT ROWID'
    )
    connection.execute(
        'CREATE TABLE _accounts ("table" TEXT PRIMARY KEY, definition TEXT NOT NULL, evicted INTEGER NOT NULL) '
        "STRICT, WITHOUT ROWID"
    )


def _share_texts(connection: apsw.Connection) -> None:
    """Add the table of texts that are stored once; rows that are there keep theirs, except what looks like a reference.

    Any user could have named a program like that.
    """
    connection.execute("CREATE TABLE _texts (id INTEGER PRIMARY KEY AUTOINCREMENT, text TEXT NOT NULL) STRICT")
    connection.execute("CREATE TABLE _text_uses (id INTEGER PRIMARY KEY, refs INTEGER NOT NULL) STRICT")
    tables = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT GLOB '_*' AND name NOT GLOB 'sqlite_*'"
    for (table,) in connection.execute(tables).fetchall():
        name = str(table)
        store_marked_texts(connection, name, shared_columns(columns(connection, name)))


def _count_rows_later(connection: apsw.Connection) -> None:
    """Add the `seq` up to which rows are accounted for; so far each row was when it was added."""
    connection.execute("ALTER TABLE _accounts ADD COLUMN counted INTEGER NOT NULL DEFAULT 0")
    connection.execute(
        'UPDATE _accounts SET counted = seq FROM sqlite_sequence WHERE sqlite_sequence.name = _accounts."table"'
    )


def _record_owners(connection: apsw.Connection) -> None:
    """Add the recipients of delivery states; those of present ones are unknown until they are saved again."""
    connection.execute("ALTER TABLE _delivered ADD COLUMN owner TEXT NOT NULL DEFAULT ''")


def _measure_ages(connection: apsw.Connection) -> None:
    """Add the store's own clock, and until when rows were recorded by it; the first rows are noted when it runs."""
    connection.execute(
        "CREATE TABLE _age_clock ("
        "boot_id TEXT NOT NULL, base REAL NOT NULL, at REAL NOT NULL, ahead REAL NOT NULL) STRICT"
    )
    connection.execute(
        'CREATE TABLE _ages ("table" TEXT, seq INTEGER, since REAL NOT NULL, at REAL NOT NULL, ahead REAL NOT NULL, '
        'PRIMARY KEY ("table", seq)) STRICT, WITHOUT ROWID'
    )


def _record_recent_progress(connection: apsw.Connection) -> None:
    """Add the last seconds of progress, which a killed recipient may have lost; of present states they are unknown."""
    connection.execute("ALTER TABLE _delivered ADD COLUMN incarnation TEXT NOT NULL DEFAULT ''")
    connection.execute("ALTER TABLE _delivered ADD COLUMN steps TEXT NOT NULL DEFAULT '[]'")


def _record_shapes(connection: apsw.Connection) -> None:
    """Add the shape of unacknowledged reports; that of present ones is unknown."""
    connection.execute("ALTER TABLE _delivered ADD COLUMN shape TEXT NOT NULL DEFAULT ''")


def _record_positions(connection: apsw.Connection) -> None:
    """Add the positions up to which followed files are recorded."""
    connection.execute(
        'CREATE TABLE _positions ("table" TEXT PRIMARY KEY, position TEXT NOT NULL) STRICT, WITHOUT ROWID'
    )


MIGRATIONS: Final[Sequence[Migration]] = (
    Migration("store version and column types are recorded", _number_the_store),
    Migration("disk usage is recorded by table, producer and minute", _account_for_rows),
    Migration("long command lines and paths are stored once", _share_texts),
    Migration("rows are accounted for when the store fills up", _count_rows_later),
    Migration("delivery states have the recipient whose share they count towards", _record_owners),
    Migration("the age of rows is measured on a clock that nobody sets", _measure_ages),
    Migration("delivery states have the last seconds of progress", _record_recent_progress),
    Migration("delivery states have the shape of an unacknowledged report", _record_shapes),
    Migration("positions in followed files are stored together with their rows", _record_positions),
)
VERSION: Final = len(MIGRATIONS)


def refuse_newer(connection: apsw.Connection, path: Path, known: int = VERSION) -> None:
    """Raises NewerStoreError when a later agent has changed the store; reads only its number and writer."""
    if (version := _version(connection)) <= known:
        return
    raise NewerStoreError(
        f"the event store {path} was written by {_writer(connection)} (store version {version}, zeek-agent "
        f"{__version__} knows up to {known}) and was left as it is: run that version or a later one, or move the file "
        "away to start with an empty store"
    )


def migrate(connection: apsw.Connection, path: Path, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Apply the missing migrations one by one, so that a crash leaves a valid version. Raises apsw.Error."""
    existing = bool(columns(connection, "_store"))
    for number, migration in enumerate(migrations, 1):
        if _version(connection) >= number:
            continue
        with _transaction(connection):
            if _version(connection) >= number:  # another process was here first
                continue
            migration.apply(connection)
            connection.execute(f"PRAGMA user_version = {number}")
        if existing:
            log.info("event store %s: now version %d: %s", path, number, migration.summary)


def renamed_column(table: str, old: str, new: str) -> Migration:
    """Rename a column of an event table, which not every store has to have; its values are kept."""

    def apply(connection: apsw.Connection) -> None:
        present = columns(connection, table)
        if old in present and new not in present:
            connection.execute(f"ALTER TABLE {quoted(table)} RENAME COLUMN {quoted(old)} TO {quoted(new)}")
            connection.execute('UPDATE _columns SET name = ? WHERE "table" = ? AND name = ?', (new, table, old))

    return Migration(f"{table}.{old} is renamed to {new}", apply)


def _version(connection: apsw.Connection) -> int:
    return int(connection.pragma("user_version"))


def _writer(connection: apsw.Connection) -> str:
    """The version of the agent that last wrote the store, if it is readable."""
    try:
        version = connection.execute("SELECT written_by FROM _store").get
    except apsw.Error:
        version = None
    return f"zeek-agent {version}" if isinstance(version, str) else "a later version of zeek-agent"


@contextmanager
def _transaction(connection: apsw.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
