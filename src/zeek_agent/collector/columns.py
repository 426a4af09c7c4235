"""Names, types and meanings of the columns of a pack's queries, from compiling them.

A pack declares a log once. Fields or types that it omits are those of the log's first query, compiled against the
declared tables; an expression is typed by its alias, as in any statement (`count(*) AS "processes:count"`).
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from zeek_agent.collector.pack_file import Audience, FieldEntry, PackFile, QueryEntry, check_names, columns_of
from zeek_agent.database.sql_connection import DIALECTS, Profile
from zeek_agent.errors import SqlError, UnknownTableError
from zeek_agent.schema import ZeekType
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.collector.statements import Statements
    from zeek_agent.database.results import Statement

BEHIND_STATEMENT: Final = f"{string.whitespace};"

_COLUMN_TYPES: Final = {"string": "text", "addr": "address", "double": "real"}
"""What columns call the types of fields."""


@dataclass(frozen=True, slots=True)
class Selected:
    """A column that a statement selects."""

    name: str
    type: ZeekType
    summary: str = ""
    is_declared_only: bool = False
    """Whether only the pack says so, because the statement reads a table that is not known here."""

    @property
    def log_type(self) -> str:
        """Its type in packs and logs; `record` for a record."""
        return _log_type(self.type)


class PackColumns:
    """Columns and fields of one pack. Statements are compiled on first use."""

    def __init__(self, file: PackFile) -> None:
        self._file = file
        self._statements: Statements | None = None

    def fields(self, path: str, audience: Audience) -> tuple[FieldEntry, ...]:
        """The log's fields, each with its type. Raises ValueError that names the place."""
        entry = self._file.logs[path]
        fields = entry.fields_for(audience)
        if entry.fields is not None and all(field.type for field in fields):
            return fields
        queries = self._file.queries_for(audience, path)
        if not queries:
            raise ValueError(f"logs.{path}: no query writes to it, so its fields are unknown")
        place, query = queries[0]
        selected = self.selected(place, query, batches=True) if audience == "zeek" else self.collected(place, query)
        return _typed(path, None if entry.fields is None else fields, selected)

    def collected(self, place: str, query: QueryEntry) -> list[Selected]:
        """The columns of the query for the collector, with all that any agent has. Raises ValueError as `selected`."""
        if query.batch_sql is not None and self._file.uses_batch_sql(query):
            return self.compiled(f"{place}.batch_sql", query.batch_sql, self.profile(query, Profile.STOCK))
        return self.selected(place, query, batches=False)

    def selected(self, place: str, query: QueryEntry, *, batches: bool) -> list[Selected]:
        """The columns of the query, for any agent or for one with batches. Raises ValueError that names `place`."""
        if batches and query.batch_sql is not None:
            return self.compiled(f"{place}.batch_sql", query.batch_sql, self.profile(query, Profile.FULL))
        try:
            profile = self.profile(query, Profile.FULL if batches else Profile.STOCK)
            return self.compiled(f"{place}.sql", query.sql, profile)
        except UndeclaredTableError as error:
            known = {table.lower() for table in query.requires_tables}
            selected = _declared(self._file.logs[query.log].fields_for("zeek"))
            if query.batch_sql is None and error.table.lower() in known and selected:
                return selected
            advice = "if agents have it, add it to requires_tables and declare the log's fields with their types"
            raise ValueError(f"{error} ({advice})") from None

    def profile(self, query: QueryEntry, otherwise: Profile) -> Profile:
        """How the query sees the tables; `otherwise` if it has the agent's own dialect."""
        dialect = self._file.dialect_of(query)
        return otherwise if dialect is None else DIALECTS[dialect]

    def statement_text(self, place: str, sql: str, profile: Profile = Profile.FULL) -> str:
        """The statement without what follows it: semicolons, comments. Raises ValueError that names `place`."""
        return self._compile(place, sql, profile).text.strip().rstrip(BEHIND_STATEMENT)

    def compiled(self, place: str, sql: str, profile: Profile) -> list[Selected]:
        """The columns of a statement. Raises ValueError that names `place`."""
        selected = []
        for heading in self._compile(place, sql, profile).headings:
            if heading.type is None:
                name = clipped(" ".join(heading.name.split()))
                raise ValueError(f'{place}: {name} has no type: select it AS "name:type", such as "name:count"')
            selected.append(Selected(heading.name, heading.type, heading.declared.summary if heading.declared else ""))
        return selected

    def headings(self, place: str, sql: str, profile: Profile) -> list[tuple[str, str | None]]:
        """The names and log types of a statement's columns; None for an expression without a type.

        Raises UndeclaredTableError, and ValueError that names `place`.
        """
        return [
            (heading.name, None if heading.type is None else _wire_type(heading.type))
            for heading in self._compile(place, sql, profile).headings
        ]

    def _compile(self, place: str, sql: str, profile: Profile) -> Statement:
        if self._statements is None:
            from zeek_agent.collector.statements import Statements

            self._statements = Statements()
        try:
            return self._statements.compile(sql, profile)
        except UnknownTableError as error:
            raise UndeclaredTableError(f"{place}: {error}", error.table) from None
        except SqlError as error:
            raise ValueError(f"{place}: {error}") from None


class UndeclaredTableError(ValueError):
    """A statement of the pack reads a table that is not declared here."""

    def __init__(self, message: str, table: str) -> None:
        super().__init__(message)
        self.table = table


def _declared(fields: tuple[FieldEntry, ...]) -> list[Selected] | None:
    """The columns as the log's fields declare them; None if they do not declare all."""
    if not fields or not all(field.type for field in fields):
        return None
    try:
        return [
            Selected(
                record or members[0].name, _zeek_type("record" if record else members[0].type), is_declared_only=True
            )
            for record, members in columns_of(fields)
        ]
    except ValueError:
        return None


def _zeek_type(log_type: str) -> ZeekType:
    """The type of a column for a field of this type. Raises ValueError if there is none."""
    return ZeekType.parse(re.sub(r"\w+", lambda word: _COLUMN_TYPES.get(word[0], word[0]), log_type))


def _typed(path: str, fields: tuple[FieldEntry, ...] | None, selected: list[Selected]) -> tuple[FieldEntry, ...]:
    """The fields with the types of the columns; without fields, one per column."""
    if fields is None:
        for column in selected:
            if column.type.name == "record":
                name = column.name
                raise ValueError(f"logs.{path}: {name} is a record: declare its members as fields {name}.member")
        derived = tuple(FieldEntry(column.name, column.log_type) for column in selected)
        check_names(path, derived)
        return derived
    columns = list(columns_of(fields))
    if len(columns) != len(selected):
        raise ValueError(misfit(path, len(columns), selected))
    typed: list[FieldEntry] = []
    for (record, members), column in zip(columns, selected, strict=True):
        for field in members:
            if record and not field.type:
                raise ValueError(f"logs.{path}: field {field.name}: a member of a record needs a type")
            typed.append(field if field.type else replace(field, type=column.log_type))
    return tuple(typed)


def misfit(path: str, fields: int, selected: list[Selected]) -> str:
    """The error text for a query that selects more or fewer columns than its log has."""
    names = ", ".join(column.name for column in selected)
    return f"logs.{path}: its fields take {fields} columns, but the query selects {len(selected)}: {names}"


def _wire_type(zeek_type: ZeekType) -> str:
    """The type of a field that accepts the column's values as agents send them, which for an enum is not text."""
    if zeek_type.element is not None:
        return f"{zeek_type.name}[{_wire_type(zeek_type.element)}]"
    return "enum" if zeek_type.name == "enum" else _log_type(zeek_type)


def _log_type(zeek_type: ZeekType) -> str:
    if zeek_type.element is not None:
        return f"{zeek_type.name}[{_log_type(zeek_type.element)}]"
    return "record" if zeek_type.name == "record" else zeek_type.script
