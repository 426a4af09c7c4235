"""Virtual tables whose rows another program provides, with as few round trips per statement as possible.

Constraints with known values are part of the lookup. In a join, values from other tables are not known before the
statement runs: it runs once to collect them, then all of them are fetched at once, and it runs again on the result. A
table that needs a value (`Remote.required`, `decisive`) is queried in batches of values; any other one is queried for a
few values, or for all its rows when there are many.

The lookup also names the columns that are read, and has a LIMIT if nothing else restricts the rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, Final, NamedTuple, Protocol

import apsw
import msgspec

from zeek_agent.database.cells import INT64_MAX, INT64_MIN
from zeek_agent.database.scans import IndexedScan
from zeek_agent.database.virtual_tables import (
    ASSUMED_SCAN_ROWS,
    Layout,
    RowCursor,
    StatementContext,
    TableModule,
    TableReader,
    columns_used,
    comparable,
    number_from,
)
from zeek_agent.errors import SqlError
from zeek_agent.table import Bound, Remote

KEYS_PER_LOOKUP: Final = 100
"""Values of a required column in one lookup, to bound the length of its statement."""
FETCHED_KEYS_MAX: Final = 20
"""Values of a join that are fetched by value; for more, fetching all rows is assumed to be faster."""
KEYED_ROUNDS_MAX: Final = 2
"""How often a table is queried for collected values before all its rows are fetched, since more values may follow."""
COLLECTING_RUNS_MAX: Final = 6
"""How often a statement runs to collect values, enough for a chain of joins; later values are fetched one by one."""

_ALL_AT_ONCE: Final = "IN"
_EQUALITIES: Final = frozenset({"=", _ALL_AT_ONCE})
_PATTERNS: Final = frozenset({"LIKE", "GLOB"})
_OPERATORS: Final = {
    apsw.SQLITE_INDEX_CONSTRAINT_EQ: "=",
    apsw.SQLITE_INDEX_CONSTRAINT_GT: ">",
    apsw.SQLITE_INDEX_CONSTRAINT_GE: ">=",
    apsw.SQLITE_INDEX_CONSTRAINT_LT: "<",
    apsw.SQLITE_INDEX_CONSTRAINT_LE: "<=",
    apsw.SQLITE_INDEX_CONSTRAINT_LIKE: "LIKE",
    apsw.SQLITE_INDEX_CONSTRAINT_GLOB: "GLOB",
}
_LIMITS: Final = {apsw.SQLITE_INDEX_CONSTRAINT_LIMIT: "limit", apsw.SQLITE_INDEX_CONSTRAINT_OFFSET: "offset"}
_UNDERSTOOD: Final = {
    "text": frozenset({*_EQUALITIES, *_PATTERNS, "<", "<=", ">", ">="}),
    "int": frozenset({*_EQUALITIES, "<", "<=", ">", ">="}),
    "count": _EQUALITIES,
}
"""By column type, the operators that the other program evaluates as SQLite does here. There, an unsigned number beyond
2⁶³ has another sign, reals are rounded in transit, and blobs are texts.
"""


class Term(NamedTuple):
    """A constraint whose value is passed to Filter; `known` if the value is a constant of the statement.

    The field `number` is -1 for LIMIT and OFFSET.
    """

    number: int
    operator: str
    known: bool


class RemotePlan(NamedTuple):
    """The plan that BestIndex passes to Filter."""

    terms: tuple[Term, ...]
    used: tuple[int, ...]


@lru_cache(maxsize=1024)
def _parse_plan(plan: str) -> RemotePlan:
    return msgspec.json.decode(plan, type=RemotePlan)


class RemoteStatementContext(StatementContext, Protocol):
    """The part of an SQL connection that a remote table uses."""

    lookups: RemoteLookups


class RemoteModule:
    """Module that creates a remote table's virtual table in one connection."""

    def __init__(self, statement: RemoteStatementContext, layout: Layout) -> None:
        self.statement = statement
        self.layout = layout
        self.reading = TableModule(statement, layout, layout.table.rows)
        remote = layout.table.remote or Remote()
        self.opaque = remote.opaque
        self.required = {number for number, column in enumerate(layout.fields) if column.name in remote.required}
        self.decisive = {number for number, column in enumerate(layout.fields) if column.name in remote.decisive}
        names = " or ".join(sorted(remote.required))
        self.requirement = f"table {layout.table.name}: a value for {names} is required (=, IN, or LIKE a text)"

    def Create(  # noqa: N802 - apsw's name
        self, connection: apsw.Connection, module: str, database: str, name: str, *arguments: Any
    ) -> tuple[str, RemoteTable]:
        return self.layout.sql, RemoteTable(self)

    Connect = Create


class RemoteTable:
    """One virtual table of a connection."""

    def __init__(self, module: RemoteModule) -> None:
        self.module = module

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:  # noqa: N802
        """Push down what the other program can evaluate, and LIMIT if nothing else restricts the rows."""
        self.module.statement.check_table(self.module.layout.table)
        terms: list[Term] = []
        limits: list[int] = []
        exact = info.nOrderBy == 0
        for which in range(info.nConstraint):
            if info.get_aConstraint_op(which) in _LIMITS:
                limits.append(which)
                continue
            term = self._term(info, which)
            if term is None:
                exact = False
                continue
            exact = exact and term.operator != _ALL_AT_ONCE
            terms.append(term)
            info.set_aConstraintUsage_argvIndex(which, len(terms))
        if not self._is_answerable(terms):
            return False
        if exact:
            for which in limits:
                terms.append(Term(-1, _LIMITS[info.get_aConstraint_op(which)], known=True))
                info.set_aConstraintUsage_argvIndex(which, len(terms))
        narrowed = any(term.operator in _EQUALITIES for term in terms)
        info.estimatedRows = 1 if narrowed else ASSUMED_SCAN_ROWS
        info.estimatedCost = info.estimatedRows
        plan = RemotePlan(tuple(terms), columns_used(info.colUsed, len(self.module.layout.fields)))
        info.idxStr = msgspec.json.encode(plan).decode()
        return True

    def _term(self, info: apsw.IndexInfo, which: int) -> Term | None:
        """The constraint to push down, or None if only SQLite can evaluate it."""
        operator = _OPERATORS.get(info.get_aConstraint_op(which))
        number = info.get_aConstraint_iColumn(which)
        if operator is None or number < 0 or not info.get_aConstraint_usable(which):
            return None
        column = self.module.layout.fields[number]
        if operator not in _UNDERSTOOD.get(column.type.name, ()) or column.name in self.module.opaque:
            return None
        if operator not in _PATTERNS and info.get_aConstraint_collation(which) != "BINARY":
            return None
        if operator == "=" and info.get_aConstraintUsage_in(which):
            info.set_aConstraintUsage_in(which, True)
            return Term(number, _ALL_AT_ONCE, known=False)
        return Term(number, operator, known=info.get_aConstraint_rhs(which) is not None)

    def _is_answerable(self, terms: Iterable[Term]) -> bool:
        """Whether one of the required columns is given a value."""
        required = self.module.required
        if not required or any(
            term.number in required and (term.operator in _EQUALITIES or (term.operator in _PATTERNS and term.known))
            for term in terms
        ):
            return True
        self.module.statement.missing = self.module.requirement
        return False

    def Open(self) -> RemoteCursor:  # noqa: N802
        return RemoteCursor(self.module)

    def Disconnect(self) -> None:  # noqa: N802
        """Nothing to release."""

    Destroy = Disconnect


class RemoteCursor(RowCursor):
    """One use of a remote table in a running statement."""

    __slots__ = ("_module",)

    def __init__(self, module: RemoteModule) -> None:
        super().__init__(module.statement)
        self._module = module

    def _rows_for(self, plan: str, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
        parsed = _parse_plan(plan)
        layout, lookups = self._module.layout, self._module.statement.lookups
        known: list[tuple[Term, Operand]] = []
        unknown: list[tuple[Term, Operand]] = []
        for term, given in zip(parsed.terms, values, strict=True):
            value = _value(layout, term, given)
            if value == frozenset() or (given is None and term.number >= 0):
                return iter(())
            (known if term.known else unknown).append((term, value))
        if self._statement.run.numbered:
            return self._numbered(dict(known + unknown))
        lookup = lookups.lookup(self._module, parsed, tuple(known))
        return lookup.select(tuple(value for _, value in unknown))

    def _numbered(self, values: Mapping[Term, Operand]) -> Iterator[Sequence[Any]]:
        """Fetch all rows, so that a row has the same number whichever constraint finds it."""
        if self._module.required:
            raise SqlError(f"{self._module.requirement}; a value in each part of an OR is not enough: use UNION")
        equal = {term.number: value for term, value in values.items() if term.operator in _EQUALITIES and value}
        return TableReader(self._module.reading, ()).numbered().select(equal)


Operand = Any
"""Operand of a term: the frozen set of equal cells, one number or text, or None if it cannot be pushed down."""


def _value(layout: Layout, term: Term, given: Any) -> Operand:
    if term.number < 0:
        return given
    zeek_type = layout.fields[term.number].type
    if term.operator in _EQUALITIES:
        cells = comparable(zeek_type, given)
        return None if cells is None or any(isinstance(cell, str) and "\0" in cell for cell in cells) else cells
    if zeek_type.sqlite == "TEXT":
        plain = isinstance(given, str) and "\0" not in given and (given.isascii() or term.operator in _PATTERNS)
        return given if plain else None
    bound = number_from(given, None) if isinstance(given, str) else given
    if not isinstance(bound, int | float) or not math.isfinite(bound) or not INT64_MIN <= bound <= INT64_MAX:
        return None
    return bound


@dataclass(slots=True)
class RemoteLookup:
    """One lookup of a statement in a remote table, with the values known from the start."""

    module: RemoteModule
    plan: RemotePlan
    known: tuple[tuple[Term, Operand], ...]
    seen: dict[tuple[Operand, ...], int] = field(default_factory=dict)
    """Values of the unknown terms, numbered in order of appearance."""
    answered: int = 0
    """How many of the values in `seen`, from the first, the answer covers."""
    complete: bool = False
    """Whether the answer also covers all other values."""
    answer: IndexedScan | None = None
    direct: bool = False
    """Whether a new value is fetched immediately instead of being collected."""
    rounds: int = 0
    rows: list[Sequence[Any]] = field(default_factory=list)
    fetched_by: tuple[Term, Mapping[Term, Operand]] | None = None
    fetched: frozenset[Any] = frozenset()

    def select(self, values: tuple[Operand, ...]) -> Iterator[Sequence[Any]]:
        """Rows for these values of the unknown terms; empty until they have been fetched."""
        if not self.complete and values not in self.seen:
            self.seen[values] = len(self.seen)
            if self.direct or not self._unknown:
                self.fetch()
        if self.answer is None or not (self.complete or self.seen[values] < self.answered):
            return iter(())
        equal = {
            term.number: value
            for term, value in zip(self._unknown, values, strict=True)
            if term.operator in _EQUALITIES and value is not None
        }
        return self.answer.select(equal)

    def fetch(self) -> None:
        """Fetch the rows of all collected values and replace the answer."""
        pushed = dict(self.known)
        varying: dict[Term, frozenset[Any]] = {}
        for index, term in enumerate(self._unknown):
            values = {values[index] for values in self.seen}
            among = term.operator in _EQUALITIES and None not in values
            keys = frozenset().union(*values) if among else frozenset()
            if len(values) == 1 and len(keys) <= KEYS_PER_LOOKUP:
                pushed[term] = values.pop()
            elif among:
                varying[term] = keys
        keyed = self._keys(varying, pushed)
        if keyed is None:
            self.rows = self._fetch(pushed, limited=not varying and len(self.seen) == 1)
        else:
            self._fetch_keys(pushed, keyed, varying[keyed])
        self.rounds += 1
        self.answered = len(self.seen)
        self.complete = keyed is None and all(pushed.get(one) is None for one in self._unknown)
        self.answer = IndexedScan(self.rows)

    @property
    def has_unfetched(self) -> bool:
        """Whether some values have not been fetched yet."""
        return not self.complete and self.answered < len(self.seen)

    @property
    def _unknown(self) -> list[Term]:
        return [term for term in self.plan.terms if not term.known]

    def _keys(self, varying: Mapping[Term, frozenset[Any]], pushed: Mapping[Term, Operand]) -> Term | None:
        """The term whose values are fetched, or None to fetch all rows."""
        required = self.module.required
        if required and not any(
            term.number in required and value is not None and term.operator in _EQUALITIES | _PATTERNS
            for term, value in pushed.items()
        ):
            found = next((term for term in varying if term.number in required), None)
            if found is None:
                raise SqlError(self.module.requirement)
            return found
        decisive = next((term for term in varying if term.number in self.module.decisive), None)
        if decisive is not None or self.rounds >= KEYED_ROUNDS_MAX:
            return decisive
        few = [term for term, values in varying.items() if len(values) <= FETCHED_KEYS_MAX]
        return min(few, key=lambda term: len(varying[term]), default=None)

    def _fetch_keys(self, pushed: Mapping[Term, Operand], term: Term, keys: frozenset[Any]) -> None:
        """Fetch the keys that have not been fetched yet, in batches."""
        if self.fetched_by != (term, pushed):
            self.fetched_by, self.fetched, self.rows = (term, pushed), frozenset(), []
        for batch in _batches(keys - self.fetched):
            rows = self._fetch({**pushed, term: batch}, limited=False)
            self.rows += [row for row in rows if row[term.number] in batch]
        self.fetched = keys

    def _fetch(self, terms: Mapping[Term, Operand], *, limited: bool) -> list[Sequence[Any]]:
        fields = self.module.layout.fields
        equal: dict[int, frozenset[Any]] = {}
        bounds: list[Bound] = []
        limits: dict[str, int] = {}
        exact = limited
        for (number, operator, _), value in terms.items():
            if number < 0:
                limits[operator] = value
            elif value is None:
                exact = False
            elif operator in _EQUALITIES:
                equal[number] = equal[number] & value if number in equal else value
            else:
                bounds.append(Bound(fields[number].name, operator, value))  # type: ignore[arg-type]
        limit = limits["limit"] + max(limits.get("offset", 0), 0) if exact and limits.get("limit", -1) >= 0 else None
        if not all(equal.values()):
            return []
        return list(TableReader(self.module.reading, ()).rows(self.plan.used, equal, bounds, limit))


def _batches(values: frozenset[Any]) -> Iterator[frozenset[Any]]:
    remaining = iter(sorted(values))
    while batch := frozenset(islice(remaining, KEYS_PER_LOOKUP)):
        yield batch


class RemoteLookups:
    """The lookups of one statement in remote tables. Cleared after each statement."""

    def __init__(self) -> None:
        self._lookups: dict[tuple[Layout, RemotePlan, tuple[Any, ...]], RemoteLookup] = {}
        self._direct = False

    def lookup(self, module: RemoteModule, plan: RemotePlan, known: tuple[tuple[Term, Operand], ...]) -> RemoteLookup:
        """The lookup in that table with these known values, shared by all its uses in the statement."""
        key = (module.layout, plan, known)
        lookup = self._lookups.get(key)
        if lookup is None:
            lookup = self._lookups[key] = RemoteLookup(module, plan, known)
        lookup.direct = self._direct
        return lookup

    def fetch(self, *, last: bool) -> bool:
        """Fetch the values collected while the statement ran. Returns whether it has to run again.

        After the `last` time, further values are fetched immediately.
        """
        waiting = [lookup for lookup in self._lookups.values() if lookup.has_unfetched]
        for lookup in waiting:
            lookup.fetch()
        self._direct = last
        return bool(waiting)

    def clear(self) -> None:
        self._lookups.clear()
        self._direct = False
