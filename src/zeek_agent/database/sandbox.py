"""The sandbox of a statement: it may only read, only what access rules allow, and within limits.

Time is checked between SQLite's instructions, and by tables between rows. A single function call is bounded by the
size of its arguments: see `functions` and `confine`. SQLite has one memory pool per process, so the bound is checked
here instead of being set in SQLite, where a greedy statement would starve the event store's writer.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final

import apsw

from zeek_agent.access import AccessPolicy
from zeek_agent.config.sections import LimitSettings
from zeek_agent.database.functions import BUILT_IN, FUNCTIONS
from zeek_agent.database.results import RowErrors
from zeek_agent.database.versions import COLLATIONS, Flavor, compare_versions
from zeek_agent.errors import AccessDeniedError, LimitError, UnknownTableError

STEPS_BETWEEN_CHECKS: Final = 200
"""Steps of SQLite's virtual machine between checks; a step may be a slow function call, so there are not many."""
PRAGMAS: Final = frozenset({"table_info", "table_xinfo"})
TABLE_FUNCTIONS: Final = frozenset({"json_each", "json_tree", *(f"pragma_{name}" for name in PRAGMAS)})
SCHEMA_TABLES: Final = frozenset({"sqlite_master", "sqlite_schema"})
"""The list of tables in `main`. The list of `temp` is not readable: it names objects that are only for views."""
TRIPWIRE: Final = "sqlite_source_id"
"""An SQLite function that no statement may call: a view that calls it is refused, by the view's name, when used."""

_ROW_BYTES_SHARE: Final = 4
"""A row may take this part of `limits.result_bytes`, so that one row cannot exceed the memory bound unchecked."""
_READING: Final = frozenset({apsw.SQLITE_SELECT, apsw.SQLITE_RECURSIVE})
_STRUCTURE_LIMITS: Final = {
    apsw.SQLITE_LIMIT_COLUMN: 1_000,
    apsw.SQLITE_LIMIT_EXPR_DEPTH: 500,
    apsw.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    apsw.SQLITE_LIMIT_VDBE_OP: 100_000,
    apsw.SQLITE_LIMIT_FUNCTION_ARG: 100,
    apsw.SQLITE_LIMIT_ATTACHED: 1,
    apsw.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 256,
    apsw.SQLITE_LIMIT_VARIABLE_NUMBER: 100,
    apsw.SQLITE_LIMIT_TRIGGER_DEPTH: 1,
    apsw.SQLITE_LIMIT_WORKER_THREADS: 0,
}
"""Lower than SQLite's defaults if the time or memory of a single instruction grows with the limit."""


class Run:
    """A running statement: its limits on time and memory, and its omissions.

    Created in any thread when the statement is submitted; the clock starts with `start`. `cancel` may be called from
    any thread at any time.
    """

    def __init__(
        self, limits: LimitSettings, *, shared_seconds: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self.value_bytes = limits.value_bytes
        self.errors = RowErrors()
        self.numbered = False
        """Whether rows need numbers that stay the same in all scans of a table (`virtual_tables.NumbersNeeded`)."""
        self.lists_at_once = True
        """Whether tables receive all values of an IN at once, rather than one by one (`virtual_tables.ListLost`)."""
        self._clock = clock
        self.began = time.time()
        """When the statement was submitted, for `ago`: the same each time that the statement runs again."""
        self.scans_since = clock() - shared_seconds
        """The earliest begin of another statement's scan that this statement may share."""
        self._memory_ceiling = 0
        self._deadline = clock() + limits.time
        self._cancelled: str | None = None

    def start(self, memory_ceiling: int) -> None:
        """Start the clock. `memory_ceiling` bounds the memory that SQLite uses in the whole process."""
        self._deadline = self._clock() + self.limits.time
        self._memory_ceiling = memory_ceiling

    def cancel(self, reason: str = "the statement was cancelled") -> None:
        self._cancelled = reason

    def check(self) -> None:
        """Raises LimitError when the statement must end."""
        if self._cancelled is not None:
            raise LimitError(self._cancelled)
        if self._clock() > self._deadline:
            raise LimitError(f"the statement took longer than {self.limits.time:g} s (limits.time)")

    def progress(self) -> bool:
        """The same check as SQLite's progress handler, including memory."""
        self.check()
        if apsw.memory_used() > self._memory_ceiling:
            raise LimitError(
                f"the statement took more than {self.limits.memory_bytes} bytes of memory (limits.memory_bytes)"
            )
        return False


def confine(
    connection: apsw.Connection,
    limits: LimitSettings,
    now: Callable[[], float],
    store: str | None,
    check: Callable[[], None],
) -> None:
    """Set the connection's limits, disable everything that could reach outside it, and add the agent's functions.

    `now` returns the time at which the statement began; `store` is the event store's id, if there is one; `check`
    raises LimitError when the statement must end.
    """
    connection.limit(apsw.SQLITE_LIMIT_SQL_LENGTH, limits.statement_bytes)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, limits.value_bytes)
    for limit, value in _STRUCTURE_LIMITS.items():
        connection.limit(limit, value)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 1)
    for function in FUNCTIONS:
        call = function.call
        if function.reads_clock:
            call = partial(call, now)
        elif function.reads_store:
            call = partial(call, store)
        elif function.checks_limits:
            call = partial(call, check)
        for count in function.arguments:
            if function.aggregate:
                connection.create_aggregate_function(function.name, call, count)
            else:
                connection.create_scalar_function(function.name, call, count, deterministic=True)
    for name, flavor in COLLATIONS.items():
        connection.create_collation(name, _collation(flavor, check))


def _collation(flavor: Flavor, check: Callable[[], None]) -> Callable[[str, str], int]:
    """A collation that ends with the statement: SQLite sorts all rows in a single step, between its own checks."""

    def collate(left: str, right: str) -> int:
        check()
        return compare_versions(left, right, flavor)

    return collate


def value_limit(limits: LimitSettings, columns: int) -> int:
    """Maximum size of one value in a result with that many columns, so that a row is bounded too."""
    return min(limits.value_bytes, limits.result_bytes // _ROW_BYTES_SHARE // max(columns, 1))


class HiddenNames:
    """Unguessable names of objects that views need but statements must not reach."""

    def __init__(self) -> None:
        self._suffix = f"_{secrets.token_hex(16)}"
        self.store = f"store{self._suffix}"
        """The schema of the event store."""
        self.window = f"event_window{self._suffix}"

    def redact(self, text: str) -> str:
        """Remove these names from a text, such as SQLite's plans and errors."""
        return text.replace(self._suffix, "")


class Authorizer:
    """SQLite's authorizer: called for each action of a statement while it is compiled.

    Only listed objects may be read: the agent's tables, `TABLE_FUNCTIONS` and `SCHEMA_TABLES`; anything else that
    SQLite has, or will have, is refused. `readable` maps each readable name to the name of its table; `all_names` has
    the names of each table by which rules may deny it. `tables` collects the tables that are read, from
    `start_statement` on; `views` are not among them, but what they read. Raises AccessDeniedError, which ends the
    compilation.

    For a table of which no column is read, SQLite passes the name as written in the statement, and a WITH may have
    given that name to its own rows. What such a name refers to is found elsewhere: the agent's tables call
    `check_table`, the store's own tables are hidden by views that call `TRIPWIRE`, SQLite's pragmas are authorized when
    they run, and rows of a WITH are compiled within their name, which `check_compiled` requires of any other name.
    """

    def __init__(
        self,
        policy: AccessPolicy,
        readable: Mapping[str, str],
        all_names: Mapping[str, Iterable[str]],
        views: Iterable[str],
        names: HiddenNames,
    ) -> None:
        self._policy = policy
        self._readable = {name.lower(): table for name, table in readable.items()}
        self._names = all_names
        self._views = frozenset(views)
        self._schemas = {"main", "temp", names.store}
        self._window = names.window
        self._texts = ("_texts", names.store)
        """Only views can read it there: nobody else knows the schema's name."""
        self._unsettled: set[str] = set()
        self._within: set[str] = set()
        self.trusted = True
        """True while the agent itself uses the connection."""
        self.tables: set[str] = set()

    def start_statement(self) -> None:
        """Reset for the compilation of another statement."""
        self.tables.clear()
        self._unsettled.clear()
        self._within.clear()

    def check_compiled(self) -> None:
        """Check a compiled statement. Raises AccessDeniedError if it reads an undeclared table."""
        for name in self._unsettled - self._within:
            raise _unreadable(name)

    def permits(self, table: str) -> bool:
        """Whether statements may read one of the agent's tables."""
        return self._policy.may_query(*self._names[table])

    def check_table(self, table: str) -> None:
        """Record that a statement reads one of the agent's tables. Raises AccessDeniedError if it may not."""
        denied_by = self._policy.denied_by(*self._names[table])
        if denied_by is not None:
            raise AccessDeniedError(f"table {table} may not be queried ({denied_by})")
        if table not in self._views:
            self.tables.add(table)

    def __call__(
        self, action: int, first: str | None, second: str | None, schema: str | None, within: str | None
    ) -> int:
        if self.trusted:
            return apsw.SQLITE_OK
        if within is not None:
            self._within.add(within.lower())
        if action in _READING:
            return apsw.SQLITE_OK
        if action == apsw.SQLITE_READ:
            self._read((first or "").lower(), second, schema and schema.lower())
        elif action == apsw.SQLITE_FUNCTION:
            self._call(second or "", within)
        elif action == apsw.SQLITE_PRAGMA:
            self._describe((first or "").lower(), second)
        else:
            name = apsw.mapping_authorizer_function.get(action, str(action))
            kind = str(name).removeprefix("SQLITE_").replace("_", " ")
            raise AccessDeniedError(f"statements may only read, not {kind}")
        return apsw.SQLITE_OK

    def _read(self, name: str, column: str | None, schema: str | None) -> None:
        table = self._readable.get(name)
        if not column and schema is None:
            if name.startswith("sqlite_") and name not in SCHEMA_TABLES:
                raise _unreadable(name)
            if table is None and name not in TABLE_FUNCTIONS | SCHEMA_TABLES:
                self._unsettled.add(name)
        elif table is not None and schema in self._schemas:
            self.check_table(table)
        elif (
            (name, schema) != self._texts
            and name != self._window
            and (schema != "main" or name not in TABLE_FUNCTIONS | SCHEMA_TABLES)
        ):
            raise _unreadable(name)

    def _call(self, function: str, within: str | None) -> None:
        if function == TRIPWIRE and within is not None:
            if within.lower() in self._readable:
                self.check_table(self._readable[within.lower()])
            if within.startswith("_"):
                raise _unreadable(within)
            raise UnknownTableError(f"no such table: {within}", table=within)  # what a former table has recorded
        if function not in _FUNCTION_NAMES:
            raise AccessDeniedError(f"function {function} may not be used")

    def _describe(self, pragma: str, table: str | None) -> None:
        if pragma not in PRAGMAS:
            instead = "; SELECT name FROM zeek_agent_tables lists the tables" if pragma == "table_list" else ""
            raise AccessDeniedError(f"pragma {pragma} may not be used{instead}")
        if table is not None and table.lower() not in self._readable.keys() | TABLE_FUNCTIONS:
            raise _unreadable(table)


def _unreadable(name: str) -> AccessDeniedError:
    return AccessDeniedError(f"table {name} may not be read")


_FUNCTION_NAMES: Final = BUILT_IN | {function.name for function in FUNCTIONS}
