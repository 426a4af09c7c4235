"""One SQLite connection with all tables, used by one thread for one profile."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import apsw
import msgspec

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.cells import restore_blobs
from zeek_agent.database.event_copies import (
    ALL_ROWS,
    MEMORY_SHARE,
    EventCopies,
    EventModule,
    stored_names,
    stored_table,
)
from zeek_agent.database.lookups import LookupModule
from zeek_agent.database.results import Heading, Result, RowErrors, Statement, convert_rows, headings
from zeek_agent.database.sandbox import (
    STEPS_BETWEEN_CHECKS,
    TABLE_FUNCTIONS,
    TRIPWIRE,
    Authorizer,
    HiddenNames,
    Run,
    confine,
    value_limit,
)
from zeek_agent.database.scans import IndexedScan, SharedScans
from zeek_agent.database.time_columns import check_comparisons
from zeek_agent.database.virtual_tables import (
    Layout,
    ListLost,
    NumbersNeeded,
    RunAgain,
    TableModule,
    quoted,
)
from zeek_agent.errors import AccessDeniedError, LimitError, SqlError, UnknownTableError
from zeek_agent.host.files.reads import FileReads, Omissions
from zeek_agent.schema import Row, Value
from zeek_agent.table import Constraints, EventView, LookupTable, Table, TableContext

ALIASES: Final = {"process_events": "processes_events", "socket_events": "sockets_events"}
"""Table names of the agent's version 1."""
OSQUERY_PREFIX: Final = "osquery_"
"""Before its name, this always means the table with osquery's columns."""

BUSY_MILLISECONDS: Final = 2_000
"""Maximum wait for the event store's writer, as between its own connections."""
PUSHED_DOWN_VALUES_MAX: Final = 40
"""Values of an IN list that are passed on to the store, within SQLite's limit on bound variables of this connection."""

CACHED_STATEMENTS_MAX: Final = 100
"""Statements that stay compiled: some hundred KB of memory, and more than a Zeek usually installs."""
CACHED_CHARACTERS_MAX: Final = 4_096
"""Longer statements are compiled each time, so that the cache has a bounded size."""

_NO_MESSAGE: Final = frozenset({"<NULL>", "SQL logic error"})
"""The text of an exception for which SQLite has no message."""

RERUNS_MAX: Final = 6
"""How often a statement runs again after deferred reads, enough for a chain of joins."""


class Profile(StrEnum):
    """How a client sees the tables. For a stock Zeek package, `*` omits columns that version 2 did not have. In
    osquery's dialect, the name of one of its tables means the table with osquery's columns."""

    FULL = "full"
    STOCK = "stock"
    OSQUERY = "osquery"


DIALECTS: Final[Mapping[str, Profile]] = {"osquery": Profile.OSQUERY}
"""The profiles of dialects, which a client names with a statement."""


class AttachedStore(Protocol):
    """The event store as seen by readers that attach it."""

    @property
    def uri(self) -> str:
        """Changes whenever the store changes its file."""
        ...


@dataclass(frozen=True, slots=True)
class Catalog:
    """The tables at one moment. `generation` changes with each table that is added or removed."""

    generation: int
    tables: Mapping[str, Table]
    gone: Mapping[str, str]
    """Why tables were removed, by name."""
    _layouts: dict[tuple[str, bool], Layout]
    _names: dict[str, frozenset[str]]
    _readable: dict[Profile, Mapping[str, str]]
    _withheld: dict[AccessPolicy, Mapping[str, frozenset[str]]]

    @classmethod
    def of(cls, generation: int, tables: Iterable[Table], gone: Mapping[str, str] | None = None) -> Catalog:
        return cls(generation, {table.name: table for table in tables}, gone or {}, {}, {}, {}, {})

    def layout(self, name: str, profile: Profile) -> Layout:
        """The layout of the table of that name, made when it is first needed: main runs no statements."""
        hide_added = profile is Profile.STOCK
        if (name, hide_added) not in self._layouts:
            self._layouts[name, hide_added] = Layout(self.tables[name], hide_added=hide_added)
        return self._layouts[name, hide_added]

    def readable(self, profile: Profile = Profile.FULL) -> Mapping[str, str]:
        """Every readable name, and the name of its table."""
        if profile not in self._readable:
            self._readable[profile] = self._find_readable(profile)
        return self._readable[profile]

    def _find_readable(self, profile: Profile) -> dict[str, str]:
        names = {name: name for name in self.tables}
        for name, table in self.tables.items():
            if table.kind == "events":
                names[f"{name}_history"] = name
        names.update({alias: name for alias, name in ALIASES.items() if name in self.tables})
        for table in self.tables.values():
            for name in table.osquery_names:
                names.setdefault(OSQUERY_PREFIX + name, table.name)
                names.setdefault(name, table.name)
                if profile is Profile.OSQUERY and not table.alias:
                    names[name] = table.name
        return names

    def names(self) -> Mapping[str, frozenset[str]]:
        """By table, all its names, whatever the profile: a rule for any of them holds for it.

        A table that osquery has, too, is denied by osquery's name in either form.
        """
        if not self._names:
            names = {name: {name} for name in self.tables}
            for name, of in self.readable().items():
                names[of].add(name)
            for name, table in self.tables.items():
                for other in table.osquery_names:
                    names[name] |= {other, OSQUERY_PREFIX + other}
            self._names.update((name, frozenset(found)) for name, found in names.items())
        return self._names

    def withheld(self, access: AccessPolicy) -> Mapping[str, frozenset[str]]:
        """By table, the columns that these rules leave unset; kept for the rules that were asked for last."""
        if access not in self._withheld:
            self._withheld.clear()
            self._withheld[access] = _WithheldColumns(self, access)
        return self._withheld[access]


class RowSink(Protocol):
    """Takes the rows of a statement."""

    def begin(self) -> Callable[[tuple[Any, ...], bytes], None]:
        """Discard all rows: the statement starts, or starts again. The function takes a row, plain and as msgpack."""
        ...


class RowList:
    """The rows in a list."""

    def __init__(self) -> None:
        self.rows: list[tuple[Any, ...]] = []

    def begin(self) -> Callable[[tuple[Any, ...], bytes], None]:
        self.rows = rows = []
        return lambda row, packed: rows.append(row)


class StreamedStatement(NamedTuple):
    """What is known once all rows were handed over; `size` is that of the packed rows in bytes."""

    headings: tuple[Heading, ...]
    size: int
    files: Omissions
    rules: frozenset[str]
    """The access rules that change values of the rows: columns that stay unset, as `table.column`, and masking unless
    the statement reads only events, which were masked when they were recorded."""


class _WithheldColumns(dict[str, frozenset[str]]):
    """By table, the columns that stay unset, found when the table is first used."""

    def __init__(self, catalog: Catalog, access: AccessPolicy) -> None:
        super().__init__()
        self._catalog = catalog
        self._access = access

    def __missing__(self, name: str) -> frozenset[str]:
        columns = (column.name for column in self._catalog.tables[name].columns)
        found = self[name] = self._access.withheld(columns, *self._catalog.names()[name])
        return found


def _store_id(uri: str | None) -> str | None:
    """The id of the event store that its URI contains, for SQLite to ignore."""
    found = re.search(r"[?&]store=([^&]+)", uri or "")
    return found and found[1]


class SqlConnection:
    """An SQLite connection. Any thread may use it, but only one at a time.

    With `copies`, statements read copies of recorded events, and no transaction on the store is open while they read
    anything else (`event_copies`); otherwise the store is attached.
    """

    def __init__(
        self,
        catalog: Catalog,
        profile: Profile,
        *,
        context: TableContext,
        limits: LimitSettings,
        scans: SharedScans,
        store: AttachedStore | None = None,
        copies: bool = False,
    ) -> None:
        self.catalog = catalog
        self.context = context
        self.scans = scans
        self.run = Run(limits)
        self.held: dict[tuple[TableModule, tuple[Value, ...]], IndexedScan] = {}
        self.kept: dict[Any, Any] = {}
        self._kept_reads = FileReads(limits)
        self._kept_errors = RowErrors()
        self._deferred: list[Callable[[], None]] = []
        self._reruns_left = 0
        self.missing: str | None = None
        self._limits = limits
        self._window: dict[str, tuple[int, int]] = {}
        self._store_uri = store.uri if store else None
        self._copies = copies and store is not None
        self._views = profile is not Profile.STOCK and store is not None and not copies
        self._headings: list[Heading] = []
        self._text = ""
        self._explains = False
        self._cacheable: dict[str, frozenset[str]] = {}
        """The tables that each statement reads: SQLite names them only to the authorizer, when it compiles."""
        self._encode = msgspec.msgpack.Encoder().encode
        self._readable = catalog.readable(profile)
        self._names = {name: catalog.tables[table] for name, table in self._readable.items()}
        self._names_of: dict[str, list[str]] = {name: [] for name in catalog.tables}
        for name, of in self._readable.items():
            self._names_of[of].append(name)
        names = catalog.names()
        self._withheld = catalog.withheld(context.access)
        events = [table for table in catalog.tables.values() if table.kind == "events"]
        copies_max = limits.memory_bytes // MEMORY_SHARE
        self.event_copies = EventCopies(self._store_uri or "", events, copies_max, self._withheld)
        self._hidden = HiddenNames()
        views = [name for name, table in catalog.tables.items() if table.kind == "view"]
        self._authorizer = Authorizer(context.access, self._readable, names, views, self._hidden)
        self._connection = apsw.Connection(
            ":memory:", apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE | apsw.SQLITE_OPEN_URI
        )
        try:
            self._prepare(profile, store)
        except BaseException:
            self.close()
            raise

    def query(self, sql: str, run: Run, window: Mapping[str, tuple[int, int]] | None = None) -> Result:
        """Run one statement. Raises SqlError and its kinds."""
        rows = RowList()
        statement = self.stream(sql, run, rows, window)
        columns = convert_rows(statement.headings, rows.rows, run.errors)
        return Result(columns, rows.rows, run.errors.texts(), statement.size, statement.files)

    def stream(
        self, sql: str, run: Run, rows: RowSink, window: Mapping[str, tuple[int, int]] | None = None
    ) -> StreamedStatement:
        """Run one statement and hand its rows, as SQLite gives them, to `rows`. Raises SqlError and its kinds."""
        self.run = run
        self._kept_reads, self._kept_errors = FileReads(self._limits), RowErrors()
        self._set_window(window or {})
        self.event_copies.begin(run, self._window)
        try:
            while True:
                try:
                    return self._answer(sql, rows)
                except NumbersNeeded:
                    run.numbered = True
                except ListLost:
                    run.lists_at_once = False
        finally:
            self.held.clear()
            self.kept.clear()
            self._deferred.clear()
            self.event_copies.clear()

    def compile(self, sql: str, run: Run) -> Statement:
        """Compile one statement without running it. Raises SqlError or a subclass."""
        self.run = run
        with suppress(apsw.ExecTraceAbort), self._statement(sql, compile_only=True):
            pass
        heads = tuple(self._headings)
        return Statement(tuple(head.column() for head in heads), frozenset(self._authorizer.tables), heads, self._text)

    def is_current(self, catalog: Catalog, store: AttachedStore | None) -> bool:
        """Whether the connection still has these tables and this store."""
        return self.catalog is catalog and self._store_uri == (store.uri if store else None)

    def check_table(self, table: Table) -> None:
        """Check that the statement being compiled may read the table. Raises AccessDeniedError."""
        self._authorizer.check_table(table.name)

    def defer(self, read: Callable[[], None]) -> bool:
        """Have `read` called when this run of the statement ends, and run the statement again afterwards.

        False if the statement has run too often for that.
        """
        if self._reruns_left:
            self._deferred.append(read)
        return self._reruns_left > 0

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """For reading rows that further runs of the statement use again: the omissions are then theirs, too."""
        context, errors = self.context, self.run.errors
        self.context, self.run.errors = replace(context, reads=self._kept_reads), self._kept_errors
        try:
            yield
        finally:
            self.context, self.run.errors = context, errors

    def close(self) -> None:
        self._connection.close(force=True)

    def _answer(self, sql: str, rows: RowSink) -> StreamedStatement:
        """The result of the statement's last run, after which no reads are deferred."""
        self._read_deferred()  # of a run that is repeated with other lists or numbers: lookups rely on them
        for self._reruns_left in reversed(range(RERUNS_MAX + 1)):
            with suppress(RunAgain):
                statement = self._query(sql, rows)
                if not self._deferred:
                    break
            self._read_deferred()
        return statement

    def _read_deferred(self) -> None:
        due, self._deferred = self._deferred, []
        for read in due:
            read()

    def _query(self, sql: str, rows: RowSink) -> StreamedStatement:
        limits = self._limits
        self.run.errors = RowErrors()
        self.context = replace(self.context, reads=FileReads(limits))
        left = limits.result_bytes
        count = 0
        add = rows.begin()
        with self._statement(sql) as cursor:
            for row in self._rows(cursor):
                packed = self._encode(row)
                left -= len(packed)
                if left < 0:
                    raise LimitError(f"the result is larger than {limits.result_bytes} bytes (limits.result_bytes)")
                count += 1
                if count > limits.rows:
                    raise LimitError(f"the result has more than {limits.rows} rows (limits.rows)")
                add(row, packed)
        self.context.reads.include(self._kept_reads)
        self.run.errors.include(self._kept_errors)
        files = self.context.reads.omissions()
        return StreamedStatement(tuple(self._headings), limits.result_bytes - left, files, self._rules_of(sql))

    def _rules_of(self, sql: str) -> frozenset[str]:
        tables = self._tables_of(sql)
        withheld = frozenset(f"{table}.{column}" for table in tables for column in self._withheld[table])
        reads_host = any(self.catalog.tables[table].kind != "events" for table in tables)
        return withheld | self.context.access.masking if reads_host else withheld

    def _tables_of(self, sql: str) -> frozenset[str]:
        """The tables that the statement that ran last reads."""
        return frozenset(self._authorizer.tables) | self._cacheable.get(sql, frozenset())

    def _rows(self, cursor: apsw.Cursor) -> Iterable[tuple[Any, ...]]:
        if self._explains:
            return map(self._hide_names, cursor)
        blobs = [index for index, heading in enumerate(self._headings) if heading.is_blob]
        return (restore_blobs(row, blobs) for row in cursor) if blobs else cursor

    @contextmanager
    def _statement(self, sql: str, *, compile_only: bool = False) -> Iterator[apsw.Cursor]:
        """A cursor over the statement's rows; sets `_headings`. Errors, also those of the body, become SqlError."""
        self._headings.clear()
        self._authorizer.start_statement()
        self.missing = None
        cursor = self._connection.cursor()
        cursor.exec_trace = self._stop_after_compile if compile_only else self._on_compiled
        try:
            # A statement that was refused after its compilation must not come from the cache, which skips the checks.
            cacheable = not compile_only and self.run.lists_at_once and sql in self._cacheable
            cursor.execute(sql, can_cache=cacheable)
            if not self._headings:
                raise SqlError("there is no statement")
            self._note_cacheable(sql)
            yield cursor
        except UnknownTableError as error:
            raise self._unknown_table(str(error), error.table) from error
        except (apsw.Error, ValueError, OverflowError, MemoryError, RecursionError) as error:
            if isinstance(error, apsw.ExecTraceAbort):
                raise
            if isinstance(error, apsw.SQLError) and str(error) in _NO_MESSAGE and self.run.lists_at_once:
                raise ListLost from error
            raise self._sql_error(error) from error
        finally:
            cursor.close(force=True)
            self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, self._limits.value_bytes)

    def _note_cacheable(self, sql: str) -> None:
        if len(sql) <= CACHED_CHARACTERS_MAX:
            self._cacheable[sql] = self._tables_of(sql)
            if len(self._cacheable) > CACHED_STATEMENTS_MAX:
                del self._cacheable[next(iter(self._cacheable))]

    def _on_compiled(self, cursor: apsw.Cursor, sql: str, bindings: apsw.Bindings | None) -> bool:
        """Called by apsw with each statement of the text, before it runs."""
        if not cursor.has_vdbe:
            return True
        if self._headings:
            raise SqlError("only one statement at a time")
        if not cursor.is_readonly or not cursor.description_full:
            raise AccessDeniedError("statements may only read")
        self._authorizer.check_compiled()
        if self._authorizer.tables:
            check_comparisons(sql, self._names)
        self._explains = bool(cursor.is_explain)
        self._text = sql
        self._headings += headings(cursor.description_full, self._names)
        self.run.value_bytes = value_limit(self._limits, len(self._headings))
        self._connection.limit(apsw.SQLITE_LIMIT_LENGTH, self.run.value_bytes)
        return True

    def _stop_after_compile(self, cursor: apsw.Cursor, sql: str, bindings: apsw.Bindings | None) -> bool:
        return self._on_compiled(cursor, sql, bindings) and not cursor.has_vdbe

    def _sql_error(self, error: BaseException) -> SqlError:
        """SQLite's error in terms of the user's statement."""
        if isinstance(error, apsw.TooBigError):
            most = self.run.value_bytes
            setting = "value_bytes" if most == self._limits.value_bytes else "result_bytes"
            return LimitError(f"a value is longer than {most} bytes (limits.{setting})")
        if isinstance(error, apsw.NoMemError | MemoryError):
            return LimitError("the statement needs more memory than there is")
        if isinstance(error, apsw.SQLError) and self.missing and "no query solution" in str(error):
            return SqlError(self.missing)
        if isinstance(error, UnicodeDecodeError):
            return SqlError("the statement makes a text that is not valid UTF-8")
        message = self._hidden.redact(str(error)) or type(error).__name__
        _, missing, name = message.rpartition("no such table: ")
        if not missing:
            return SqlError(message)
        return self._unknown_table(message, name.rpartition(".")[2])

    def _unknown_table(self, message: str, table: str) -> UnknownTableError:
        why = self.catalog.gone.get(table) or self.catalog.gone.get(table.removesuffix("_history"))
        return UnknownTableError(f"{message} any more: {why}" if why else message, table)

    def _prepare(self, profile: Profile, store: AttachedStore | None) -> None:
        """Set up everything that the connection needs before it accepts statements."""
        connection = self._connection
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.set_busy_timeout(BUSY_MILLISECONDS)
        connection.drop_modules(TABLE_FUNCTIONS)
        self._add_host_tables(profile)
        events = [self._layout(name, profile) for name, table in self.catalog.tables.items() if table.kind == "events"]
        stored: list[str] = []
        if self._copies and events:
            stored = self.event_copies.stored_names()
        elif store is not None and events:
            connection.execute(f"ATTACH ? AS {self._hidden.store}", (self._store_uri,))
            stored = stored_names(connection, self._hidden.store)
        if self._copies:
            self._add_copied_event_tables(events)
        elif store is None or profile is Profile.STOCK:
            self._add_event_tables(events, stored=store is not None)
        else:
            self._add_event_views([layout.table for layout in events])
        for table in self.catalog.tables.values():
            if isinstance(table, EventView) and table.of in self.catalog.tables:
                self._add_view(table)
        self._add_tripwires(stored)
        confine(connection, self._limits, lambda: self.run.began, _store_id(self._store_uri), self._check)
        connection.authorizer = self._authorizer
        connection.set_progress_handler(self._progress, STEPS_BETWEEN_CHECKS)
        self._authorizer.trusted = False

    def _layout(self, name: str, profile: Profile) -> Layout:
        return self.catalog.layout(name, profile).withholding(self._withheld[name])

    def _add_host_tables(self, profile: Profile) -> None:
        for name, table in self.catalog.tables.items():
            names = self._names_of[name]
            if isinstance(table, LookupTable):
                self._add_lookup_table(names, LookupModule(self, partial(self._layout, name, profile), table))
            elif table.kind == "snapshot" and names:
                self._add_table(name, TableModule(self, self._layout(name, profile)))

    def _progress(self) -> bool:
        return self.run.progress()

    def _check(self) -> None:
        self.run.check()

    def _add_table(self, name: str, module: TableModule | EventModule) -> None:
        self._connection.create_module(name, module, use_bestindex_object=True, read_only=True)  # type: ignore[arg-type]
        self._connection.execute(f"CREATE VIRTUAL TABLE main.{quoted(name)} USING {quoted(name)}")

    def _add_lookup_table(self, names: Iterable[str], module: LookupModule) -> None:
        """Add an eponymous virtual table, created only when a statement names it, because there may be hundreds."""
        for name in names:
            self._connection.create_module(
                name,
                module,  # type: ignore[arg-type]
                use_bestindex_object=True,
                eponymous=True,
                eponymous_only=True,
                read_only=True,
            )

    def _add_event_views(self, tables: Iterable[Table]) -> None:
        """Add event tables as views of the store, bounded by the window."""
        connection, window = self._connection, self._hidden.window
        connection.execute(f"CREATE TEMP TABLE {window}(name TEXT PRIMARY KEY, low INTEGER, high INTEGER)")
        for table in tables:
            connection.execute(f"INSERT INTO temp.{window} VALUES (?, ?, ?)", (table.name, *ALL_ROWS))
            columns = ", ".join(quoted(column.name) for column in table.columns)
            select = f"SELECT {columns} FROM {self._stored(table)}"
            bound = f"(SELECT {{}} FROM temp.{window} WHERE name = '{table.name}')"
            windowed = f"{select} WHERE seq > {bound.format('low')} AND seq <= {bound.format('high')}"
            connection.execute(f"CREATE TEMP VIEW {quoted(table.name)} AS {windowed}")
            connection.execute(f"CREATE TEMP VIEW {quoted(table.name + '_history')} AS {select}")
            for alias in self._aliases(table):
                connection.execute(f"CREATE TEMP VIEW {quoted(alias)} AS {windowed}")

    def _add_view(self, table: EventView) -> None:
        """Add a view of recorded events; where it may not be queried, one that refuses to be.

        SQLite does not tell the authorizer about a view of which no column is read.
        """
        refused = not self._authorizer.permits(table.name)
        select = f"SELECT {TRIPWIRE}()" if refused else table.select(self._withheld[table.name])
        for name in self._names_of[table.name]:
            self._connection.execute(f"CREATE TEMP VIEW {quoted(name)} AS {select}")

    def _add_tripwires(self, stored: Iterable[str]) -> None:
        """Refuse the store's own tables, which SQLite would find under their plain names, by views of these names."""
        known = {name.lower() for name in self._names}
        for name in stored:
            if name.lower() not in known and not name.startswith("sqlite_"):  # a prefix that views cannot have
                self._connection.execute(f"CREATE TEMP VIEW {quoted(name)} AS SELECT {TRIPWIRE}()")

    def _add_event_tables(self, layouts: Iterable[Layout], *, stored: bool) -> None:
        """Add event tables as virtual tables, which, unlike views, can have hidden columns."""
        for layout in layouts:
            name = layout.table.name
            for alias in (name, f"{name}_history", *self._aliases(layout.table)):
                rows = self._stored_rows(layout, windowed=not alias.endswith("_history")) if stored else _no_rows
                self._add_table(alias, TableModule(self, layout, rows, stored=True))

    def _add_copied_event_tables(self, layouts: Iterable[Layout]) -> None:
        for layout in layouts:
            name = layout.table.name
            for alias in (name, f"{name}_history", *self._aliases(layout.table)):
                self._add_table(alias, EventModule(self, layout, windowed=not alias.endswith("_history")))

    def _stored_rows(self, layout: Layout, *, windowed: bool) -> Callable[[Constraints], Iterable[Row]]:
        columns = ", ".join(quoted(field.name) for field in layout.fields)
        name = layout.table.name
        select = f"SELECT {columns} FROM {self._stored(layout.table)} WHERE seq > ? AND seq <= ?"

        def rows(wanted: Constraints) -> Iterable[Row]:
            sql = select
            bindings: list[Any] = list(self._window.get(name, ALL_ROWS) if windowed else ALL_ROWS)
            for column, values in wanted.equalities.items():
                if len(values) <= PUSHED_DOWN_VALUES_MAX:
                    sql += f" AND {quoted(column)} IN ({', '.join('?' * len(values))})"
                    bindings += values
            with self._trusted():
                return self._connection.execute(sql, bindings)

        return rows

    def _stored(self, table: Table) -> str:
        """The store's table with the texts that its rows refer to.

        Columns missing from a store that an earlier agent wrote last are null.
        """
        return stored_table(self._connection, self._hidden.store, table, self._withheld[table.name])

    def _set_window(self, window: Mapping[str, tuple[int, int]]) -> None:
        """Limit the event tables to rows with low < seq <= high."""
        unknown = window.keys() - self.catalog.tables.keys()
        if unknown:
            raise SqlError(f"there is no event table {', '.join(sorted(unknown))}")
        if self._views and window != self._window:
            bounds = [(*window.get(name, ALL_ROWS), name) for name in window.keys() | self._window.keys()]
            update = f"UPDATE temp.{self._hidden.window} SET low = ?, high = ? WHERE name = ?"
            with self._trusted():
                self._connection.executemany(update, bounds)
        self._window = dict(window)

    @contextmanager
    def _trusted(self) -> Iterator[None]:
        """Allow everything while the agent compiles its own statements."""
        self._authorizer.trusted = True
        try:
            yield
        finally:
            self._authorizer.trusted = False

    def _aliases(self, table: Table) -> list[str]:
        own = {table.name, f"{table.name}_history"}
        return [name for name in self._names_of[table.name] if name not in own]

    def _hide_names(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._hidden.redact(cell) if isinstance(cell, str) else cell for cell in row)


def _no_rows(wanted: Constraints) -> Iterable[Row]:
    return ()
