"""What keeps a statement from doing harm: it may only read, only what it is allowed to, and not for ever.

Time is checked between SQLite's instructions, and by tables between rows. One single call of a function is bounded by
the sizes that it can be given: see `functions` and `confine`. SQLite's memory is one pool of the whole process, so the
bound on it is checked, not set: a set one would let a greedy statement starve the event store's writer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

import apsw

from zeek_agent.access import AccessPolicy
from zeek_agent.config import LimitSettings
from zeek_agent.database.functions import BUILT_IN, FUNCTIONS
from zeek_agent.database.results import Errors
from zeek_agent.errors import AccessDeniedError, LimitError

STEPS_BETWEEN_CHECKS: Final = 200
PRAGMAS: Final = frozenset({"table_info", "table_list", "table_xinfo"})
TABLE_FUNCTIONS: Final = frozenset({"json_each", "json_tree", *(f"pragma_{name}" for name in PRAGMAS)})
OWN_SCHEMAS: Final = frozenset({"main", "temp", None})
WINDOW_TABLE: Final = "event_window"
SCHEMA_TABLES: Final = frozenset({"sqlite_master", "sqlite_schema", "sqlite_temp_master", "sqlite_temp_schema"})

_ROW_BYTES_SHARE: Final = 4
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
"""Lower than SQLite's defaults where one instruction's time or memory grows with it."""


class Run:
    """One statement while it runs: how long it may, how much it may take, what it had to leave out.

    Made in any thread when the statement is asked for; the clock starts with `start`. `cancel` may be called from any
    thread at any time.
    """

    def __init__(
        self, limits: LimitSettings, *, shared_for: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits
        self.value_bytes = limits.value_bytes
        self.errors = Errors()
        self.numbered = False
        """Whether rows need numbers that stay the same in all scans of a table (`virtual_tables.NumbersNeeded`)."""
        self._clock = clock
        self.scans_since = clock() - shared_for
        """When a scan of another statement may have begun at the earliest to serve this one too."""
        self._memory_ceiling = 0
        self._deadline = clock() + limits.time
        self._cancelled: str | None = None

    def start(self, memory_ceiling: int) -> None:
        """From now on time counts. `memory_ceiling` is what all of SQLite in this process may have in use."""
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
        """The same from within SQLite, memory included."""
        self.check()
        if apsw.memory_used() > self._memory_ceiling:
            raise LimitError(
                f"the statement took more than {self.limits.memory_bytes} bytes of memory (limits.memory_bytes)"
            )
        return False


def confine(connection: apsw.Connection, limits: LimitSettings) -> None:
    """Set the connection's limits, switch off what could reach outside, and add the agent's functions."""
    connection.limit(apsw.SQLITE_LIMIT_SQL_LENGTH, limits.statement_bytes)
    connection.limit(apsw.SQLITE_LIMIT_LENGTH, limits.value_bytes)
    for limit, value in _STRUCTURE_LIMITS.items():
        connection.limit(limit, value)
    connection.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 1)
    connection.config(apsw.SQLITE_DBCONFIG_TRUSTED_SCHEMA, 0)
    connection.config(apsw.SQLITE_DBCONFIG_ENABLE_LOAD_EXTENSION, 0)
    connection.config(apsw.SQLITE_DBCONFIG_DQS_DML, 1)
    for function in FUNCTIONS:
        for count in function.arguments:
            connection.create_scalar_function(function.name, function.call, count, deterministic=True)


def value_limit(limits: LimitSettings, columns: int) -> int:
    """Bytes that one value of a result of so many columns may have, so that a row stays bounded too."""
    return min(limits.value_bytes, limits.result_bytes // _ROW_BYTES_SHARE // max(columns, 1))


class Authorizer:
    """SQLite's authorizer: asked for each thing that a statement would do, while it is compiled.

    `readable` maps each name that can be read to the name of its table. `tables` collects the tables that were read
    since it was last cleared. Raises AccessDeniedError, which ends the compilation.
    """

    def __init__(self, policy: AccessPolicy, readable: Mapping[str, str]) -> None:
        self._policy = policy
        self._readable = {name.lower(): table for name, table in readable.items()}
        self._names = {table: [name for name, of in readable.items() if of == table] for table in readable.values()}
        self.private: frozenset[str] = frozenset()
        """Tables of the connection that are not for statements, in lower case."""
        self.trusted = True
        """True while the agent itself prepares the connection."""
        self.tables: set[str] = set()

    def __call__(
        self, action: int, first: str | None, second: str | None, schema: str | None, within: str | None
    ) -> int:
        if self.trusted or action in _READING:
            return apsw.SQLITE_OK
        if action == apsw.SQLITE_READ:
            self._read(first or "", second, schema, within)
        elif action == apsw.SQLITE_FUNCTION:
            if second not in _FUNCTION_NAMES:
                raise AccessDeniedError(f"function {second} may not be used")
        elif action == apsw.SQLITE_PRAGMA:
            if (first or "").lower() not in PRAGMAS:
                raise AccessDeniedError(f"pragma {first} may not be used")
        else:
            name = apsw.mapping_authorizer_function.get(action, str(action))
            kind = str(name).removeprefix("SQLITE_").replace("_", " ")
            raise AccessDeniedError(f"statements may only read, not {kind}")
        return apsw.SQLITE_OK

    def _read(self, name: str, column: str | None, schema: str | None, within: str | None) -> None:
        name = name.lower()
        table = self._readable.get(name)
        if table is not None:
            if not self._policy.may_query(*self._names[table]):
                raise AccessDeniedError(f"table {table} may not be queried (access.tables_deny, access.tables_allow)")
            self.tables.add(table)
        elif name == WINDOW_TABLE:
            if (within or "").lower() not in self._readable:
                raise AccessDeniedError(f"table {name} may not be read")
        elif name in SCHEMA_TABLES:
            if schema not in OWN_SCHEMAS:
                raise AccessDeniedError(f"{schema}.{name} may not be read")
        elif name in self.private or (name not in TABLE_FUNCTIONS and (column or schema)):
            raise AccessDeniedError(f"table {name} may not be read")
        # A name that is left is a WITH's, whose rows are counted: SQLite asks for those without column and schema.


_FUNCTION_NAMES: Final = BUILT_IN | {function.name for function in FUNCTIONS}
