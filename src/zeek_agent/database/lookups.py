"""Tables that are asked as SQLite virtual tables (`LookupTable`), with few questions per statement.

Constraints with known values are part of the question. In a join, the values come from rows of other tables: they are
collected while the statement runs, then fetched together, and the statement runs again (`StatementContext.defer`). A
table that answers only by value (`LookupTable.required`), or in part without one (`decisive`), is asked in batches of
values; any other one for a few values, or for all its rows when there are many. For a table of this process that
answers only by value, such as `hash`, the first values are looked up at once, so that a LIMIT spares the others.

The question also names the columns that are read, and has a LIMIT if nothing else restricts the rows. A question to a
`remote` table is a round trip, so its rows are kept for the statement; those of a local one are read as SQLite wants
them, until it asks the same again.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from functools import cached_property, lru_cache
from itertools import chain, islice
from typing import Any, Final, NamedTuple, TypeAlias

import apsw
import msgspec

from zeek_agent.database.cells import INT64_MAX, INT64_MIN
from zeek_agent.database.scans import INDEXED_ROWS_MAX, IndexedScan
from zeek_agent.database.virtual_tables import (
    ASSUMED_SCAN_ROWS,
    Layout,
    RowCursor,
    RunAgain,
    StatementContext,
    TableModule,
    TableReader,
    columns_used,
    comparable,
    is_misread_list,
    number_from,
)
from zeek_agent.errors import LimitError, SqlError
from zeek_agent.privileges import NO_PRIVILEGES
from zeek_agent.table import Bound, LookupTable

KEYS_PER_LOOKUP: Final = 100
"""Values in one question, to bound the length of its statement."""
COLLECTED_KEYS_MAX: Final = 20
"""Values of a join that are fetched by value; for more, fetching all rows is assumed to be faster."""
EAGER_KEYS_MAX: Final = 100
"""Values of a join for which a local table that requires one is asked at once, before others are collected."""
KEYED_ROUNDS_MAX: Final = 1
"""How often collected values are fetched by value before all rows are, since more values may follow."""

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
"""By column type, the operators that osquery, too, evaluates as SQLite does here. There, an unsigned number beyond 2⁶³
has another sign, reals are rounded in transit, and blobs are texts.
"""


class Term(NamedTuple):
    """A constraint whose value is passed to Filter; `known` if the value is a constant of the statement.

    The field `number` is -1 for LIMIT and OFFSET.
    """

    number: int
    operator: str
    known: bool


Operand: TypeAlias = Any
"""Operand of a term: the frozen set of equal cells, one number or text, or None if it cannot be pushed down."""

Values: TypeAlias = "tuple[tuple[Term, Operand], ...]"
"""Terms with their operands. The same term can occur twice, as in `size > 1 AND size > 5`."""


class LookupPlan(NamedTuple):
    """The plan that BestIndex passes to Filter."""

    terms: tuple[Term, ...]
    used: tuple[int, ...]


@lru_cache(maxsize=1024)
def _parse_plan(plan: str) -> LookupPlan:
    return msgspec.json.decode(plan, type=LookupPlan)


class LookupModule:
    """Module that creates the virtual table of such a table in one connection.

    Everything about the columns is found when a statement names the table, because there may be hundreds of tables.
    """

    def __init__(self, statement: StatementContext, make_layout: Callable[[], Layout], table: LookupTable) -> None:
        self.statement = statement
        self.remote = table.remote
        self.is_eager = bool(table.required) and not table.remote and table.privileges == NO_PRIVILEGES
        """Whether a question with one value costs little more than its rows."""
        self.opaque = table.opaque
        self._make_layout = make_layout
        self._table = table

    @cached_property
    def layout(self) -> Layout:
        return self._make_layout()

    @cached_property
    def reading(self) -> TableModule:
        return TableModule(self.statement, self.layout, self._table.rows if self.remote else None)

    @cached_property
    def required(self) -> frozenset[int]:
        return self._numbers(self._table.required)

    @cached_property
    def decisive(self) -> frozenset[int]:
        return self._numbers(self._table.decisive)

    @property
    def requirement(self) -> str:
        names = " or ".join(sorted(self._table.required))
        return f"table {self._table.name}: a value for {names} is required (=, IN, or LIKE a text)"

    def _numbers(self, columns: frozenset[str]) -> frozenset[int]:
        return frozenset(number for number, field in enumerate(self.layout.fields) if field.name in columns)

    def Create(  # noqa: N802 - apsw's name
        self, connection: apsw.Connection, module: str, database: str, name: str, *arguments: Any
    ) -> tuple[str, LookupVirtualTable]:
        return self.layout.sql, LookupVirtualTable(self)

    Connect = Create

    def lookup(self, plan: LookupPlan, known: Values) -> Lookup:
        """The lookup with these known values, shared by all its uses in the statement."""
        kept = self.statement.kept
        key = (self.layout, plan, known)
        if key not in kept:
            kept[key] = self._lookup(plan, known)
        lookup: Lookup = kept[key]
        return lookup

    def numbered(self, used: tuple[int, ...], rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
        """The rows of one scan, each with its number as the last cell.

        A table that cannot be read as a whole has no places for its rows, so the cells that the statement uses identify
        them, and equal ones are counted: a part of an OR has either all of these or none.
        """
        numbers: dict[tuple[Any, ...], int] = self.statement.kept.setdefault((self.layout, used), {})
        before: Counter[Sequence[Any]] = Counter()
        for row in rows:
            before[row] += 1
            number = numbers.setdefault((*row, before[row]), len(numbers))
            if number == INDEXED_ROWS_MAX:
                raise LimitError(
                    f"table {self.layout.table.name}: more than {INDEXED_ROWS_MAX} rows for this kind of statement"
                )
            yield *row, number

    def _lookup(self, plan: LookupPlan, known: Values) -> Lookup:
        """A new lookup of the kind that the constraints call for."""
        equal = [term for term in plan.terms if not term.known and term.operator in _EQUALITIES]
        given = {term.number for term, value in known if value is not None}
        needed = self.required or self.decisive
        if needed and not needed & given:
            key = next((term for term in equal if term.number in needed), None)
            if key is not None:
                return KeyedLookup(self, plan, known, key, optional=False)
            if any(term.number in needed and term.operator in _PATTERNS for term in plan.terms):
                return PatternLookup(self, plan, known)
            if self.required:
                raise SqlError(self.requirement)
        return KeyedLookup(self, plan, known, equal[0], optional=True) if equal else ScanLookup(self, plan, known)


class LookupVirtualTable:
    """One virtual table of a connection."""

    def __init__(self, module: LookupModule) -> None:
        self.module = module

    def BestIndexObject(self, info: apsw.IndexInfo) -> bool:  # noqa: N802
        """Push down what the table can evaluate, and LIMIT if nothing else restricts the rows."""
        self.module.statement.check_table(self.module.layout.table)
        terms: list[Term] = []
        limits: list[int] = []
        exact = info.nOrderBy == 0
        for which in range(info.nConstraint):
            if info.get_aConstraint_op(which) in _LIMITS:
                if info.get_aConstraint_usable(which):  # not while values of an IN come one by one
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
        plan = LookupPlan(tuple(terms), columns_used(info.colUsed, len(self.module.layout.fields)))
        info.idxStr = msgspec.json.encode(plan).decode()
        return True

    def _term(self, info: apsw.IndexInfo, which: int) -> Term | None:
        """The constraint to push down, or None if only SQLite can evaluate it."""
        operator = _OPERATORS.get(info.get_aConstraint_op(which))
        number = info.get_aConstraint_iColumn(which)
        if operator is None or number < 0 or not info.get_aConstraint_usable(which):
            return None
        column = self.module.layout.fields[number]
        passed_on = not column.withheld and column.name not in self.module.opaque
        if not passed_on or operator not in _UNDERSTOOD.get(column.type.name, ()):
            return None
        if operator not in _PATTERNS and info.get_aConstraint_collation(which) != "BINARY":
            return None
        lists = self.module.statement.run.lists_at_once
        if not lists and number not in self.module.required and is_misread_list(info, which, column.type):
            return None
        if operator == "=" and lists and info.get_aConstraintUsage_in(which):
            info.set_aConstraintUsage_in(which, True)
            return Term(number, _ALL_AT_ONCE, known=False)
        return Term(number, operator, known=info.get_aConstraint_rhs(which) is not None)

    def _is_answerable(self, terms: Iterable[Term]) -> bool:
        """Whether one of the required columns is given a value."""
        required = self.module.required
        if not required or any(
            term.number in required
            and (
                term.operator in _EQUALITIES or (term.operator in _PATTERNS and (term.known or not self.module.remote))
            )
            for term in terms
        ):
            return True
        self.module.statement.missing = self.module.requirement
        return False

    def Open(self) -> LookupCursor:  # noqa: N802
        return LookupCursor(self.module)

    def Disconnect(self) -> None:  # noqa: N802
        """Nothing to release."""

    Destroy = Disconnect


class LookupCursor(RowCursor):
    """One use of such a table in a running statement."""

    __slots__ = ("_module",)

    def __init__(self, module: LookupModule) -> None:
        super().__init__(module.statement)
        self._module = module

    def _rows_for(self, plan: str, values: Sequence[Any]) -> Iterator[Sequence[Any]]:
        parsed = _parse_plan(plan)
        known: list[tuple[Term, Operand]] = []
        varying: list[tuple[Term, Operand]] = []
        for term, given in zip(parsed.terms, values, strict=True):
            value = _value(self._module.layout, term, given)
            if value == frozenset() or (given is None and term.number >= 0):
                return iter(())
            (known if term.known else varying).append((term, value))
        if self._statement.run.numbered and not self._module.required:
            return TableReader(self._module.reading, ()).numbered().select(_equalities((*known, *varying)))
        rows = self._module.lookup(parsed, tuple(known)).select(tuple(varying))
        return self._module.numbered(parsed.used, rows) if self._statement.run.numbered else rows


def _value(layout: Layout, term: Term, given: Any) -> Operand:
    if term.number < 0:
        return given
    zeek_type = layout.fields[term.number].type
    if term.operator in _EQUALITIES:
        cells = comparable(zeek_type, given)
        if cells is None or any(isinstance(cell, str) and "\0" in cell for cell in cells):
            return None
        return frozenset(cell for cell in cells if not isinstance(cell, bytes))  # no blob equals a text
    if zeek_type.sqlite == "TEXT":
        plain = isinstance(given, str) and "\0" not in given and (given.isascii() or term.operator in _PATTERNS)
        return given if plain else None
    bound = number_from(given, None) if isinstance(given, str) else given
    if not isinstance(bound, int | float) or not math.isfinite(bound) or not INT64_MIN <= bound <= INT64_MAX:
        return None
    return bound


def _equalities(values: Values) -> dict[int, frozenset[Any]]:
    return {term.number: value for term, value in values if term.operator in _EQUALITIES and value is not None}


class Lookup(ABC):
    """What a statement reads of a table with the same known values."""

    def __init__(self, module: LookupModule, plan: LookupPlan, known: Values) -> None:
        self._module = module
        self._plan = plan
        self._known = known
        self._exact: tuple[Values, list[Sequence[Any]]] | None = None
        """The first values of the other terms that rows were fetched for, and these rows."""

    def select(self, values: Values) -> Iterator[Sequence[Any]]:
        """At least the rows with these values of the other terms; none if the statement will run again."""
        if self._exact is not None and self._exact[0] == values:
            return iter(self._exact[1])
        return self._find(values)

    @abstractmethod
    def _find(self, values: Values) -> Iterator[Sequence[Any]]:
        """`select` for values other than the first."""

    def _fetch_exactly(self, values: Values) -> list[Sequence[Any]]:
        rows = self._fetch(values, limited=True)
        self._exact = values, rows
        return rows

    def _fetch(self, values: Values, *, limited: bool) -> list[Sequence[Any]]:
        with self._module.statement.keeping():
            return list(self._read(values, limited=limited))

    def _read(self, values: Values, *, limited: bool) -> Iterator[Sequence[Any]]:
        """The rows with the known values and these; `limited` if SQLite's LIMIT applies to exactly them."""
        fields = self._module.layout.fields
        equal: dict[int, frozenset[Any]] = {}
        bounds: list[Bound] = []
        limits: dict[str, int] = {}
        exact = limited
        for (number, operator, _), value in (*self._known, *values):
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
            return iter(())
        return TableReader(self._module.reading, ()).rows(self._plan.used, equal, bounds, limit)


class ScanLookup(Lookup):
    """A lookup without equality to values of other tables: a question with its first values, then one for all rows."""

    def __init__(self, module: LookupModule, plan: LookupPlan, known: Values) -> None:
        super().__init__(module, plan, known)
        self._all: list[Sequence[Any]] | None = None
        self._is_read = False

    def _find(self, values: Values) -> Iterator[Sequence[Any]]:
        if not self._module.remote and not self._is_read:
            self._is_read = True
            return self._read(values, limited=True)
        if self._exact is None:
            return iter(self._fetch_exactly(values))
        if self._all is None:
            self._all = self._fetch((), limited=False)
        return iter(self._all)


class PatternLookup(Lookup):
    """A lookup in a local table by patterns that come from other tables, such as `path LIKE directory || '/%'`."""

    def _find(self, values: Values) -> Iterator[Sequence[Any]]:
        given = any(
            term.number in self._module.required and term.operator in _PATTERNS and value is not None
            for term, value in values
        )
        return self._read(values, limited=False) if given else iter(())


class KeyedLookup(Lookup):
    """A lookup by values of the term `key`; if `optional`, for all rows rather than those of many values."""

    def __init__(self, module: LookupModule, plan: LookupPlan, known: Values, key: Term, *, optional: bool) -> None:
        super().__init__(module, plan, known)
        self._key = key
        self._optional = optional
        self._rows: dict[Any, list[Sequence[Any]]] = {}
        self._wanted: set[Any] = set()
        self._wanted_for: set[Values] = set()
        self._rounds = 0
        self._all: IndexedScan | None = None

    def _find(self, values: Values) -> Iterator[Sequence[Any]]:
        keys = next(value for term, value in values if term == self._key)
        if keys is None and not self._optional:
            if self._module.required:
                raise SqlError(self._module.requirement)
            return iter(self._fetch((), limited=False))
        if self._all is None and keys is None:
            self._fetch_all()
        if self._all is None and not keys <= self._rows.keys():
            if self._is_first_list():
                if len(keys) <= KEYS_PER_LOOKUP:
                    return iter(self._fetch_exactly(values))
            elif not self._is_early() and (self._wanted or self._module.statement.defer(self._fetch_wanted)):
                self._want(keys, values)
                return iter(())
            self._fetch_keys(keys)
        if self._all is not None:
            return self._all.select(_equalities(values))
        return chain.from_iterable(self._rows[key] for key in keys)

    def _is_first_list(self) -> bool:
        """Whether these are the first values of an IN, whose list is probably the same for the whole statement."""
        return self._key.operator == _ALL_AT_ONCE and self._exact is None and not self._rows

    def _is_early(self) -> bool:
        """Whether the rows of these values are fetched at once, because the statement may need no others."""
        return self._module.is_eager and len(self._rows) < EAGER_KEYS_MAX

    def _want(self, keys: frozenset[Any], values: Values) -> None:
        """Collect values, until there are so many that all rows will be fetched."""
        self._wanted |= keys
        self._wanted_for.add(values)
        if self._optional and len(self._wanted) > COLLECTED_KEYS_MAX:
            raise RunAgain

    def _fetch_wanted(self) -> None:
        keys, values = self._wanted, self._wanted_for
        self._wanted, self._wanted_for = set(), set()
        if len(values) == 1 and self._exact is None and len(keys) <= KEYS_PER_LOOKUP:
            self._fetch_exactly(values.pop())
        else:
            self._fetch_keys(keys)

    def _fetch_keys(self, keys: AbstractSet[Any]) -> None:
        """Fetch the rows of keys that have not been fetched yet."""
        missing = sorted(key for key in keys if key not in self._rows)
        self._rounds += 1
        if self._optional and (len(missing) > COLLECTED_KEYS_MAX or self._rounds > KEYED_ROUNDS_MAX):
            self._fetch_all()
            return
        remaining = iter(missing)
        while batch := frozenset(islice(remaining, KEYS_PER_LOOKUP)):
            found: dict[Any, list[Sequence[Any]]] = {key: [] for key in batch}
            for row in self._fetch(((self._key, batch),), limited=False):
                if row[self._key.number] in found:
                    found[row[self._key.number]].append(row)
            self._rows |= found

    def _fetch_all(self) -> None:
        self._all = IndexedScan(self._fetch((), limited=False))
        self._rows.clear()
