"""The logs of a pack for a Zeek script: names, records and statements, checked against the declared tables.

A script accepts two kinds of answers. Agents that support batches send rows as JSON objects, so a result column must
have its record field's name; if it does not, or a name is a Zeek keyword, the statement is wrapped in one that renames
it. Other agents send each row by position, where names do not matter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Final

from zeek_agent.collector import pack_file
from zeek_agent.collector.columns import BEHIND_STATEMENT, PackColumns, Selected, misfit
from zeek_agent.collector.log_formats import Field
from zeek_agent.collector.pack_file import FieldEntry, LogEntry, PackFile, QueryEntry
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import SCHEDULE_MIN_SECONDS, Subscription
from zeek_agent.schema import ZEEK_KEYWORDS, zeek_field

PACKAGE_PREFIX: Final = "zeek-agent-"
"""Prefix of the package's logs, left out of names in a script."""

MEMBER_TYPES: Final = frozenset({"string", "count", "int", "double", "bool"})
"""Members of a record have the types of JSON; agents have no others."""

_TAKEN_MODULES: Final = frozenset({"GLOBAL", "ZeekAgent", "ZeekAgentAPI"})
_SHARED_NAMES: Final = frozenset({"enabled", "query_interval", "subscription", "log_policy"})
_LOCAL_NAMES: Final = re.compile(r"(?:sql|batch_sql|query|query_interval|subscription)(?:_\d+)?|zeek_init")
"""Names that an event cannot have, because the module's `zeek_init` uses them."""


@dataclass(frozen=True, slots=True)
class RecordMember:
    """A field of a script's record, and its name in the log."""

    name: str
    log_name: str
    type: str
    summary: str
    key: str
    is_required: bool = False
    members: tuple[RecordMember, ...] = ()


@dataclass(frozen=True, slots=True)
class ScriptStatement:
    """A query installed by the script. `batch_sql` is set if agents that support batches get a different statement."""

    sql: str
    batch_sql: str | None
    timing: Timing
    requires_tables: tuple[str, ...]
    if_missing_tables: tuple[str, ...]
    groups: tuple[str, ...]
    hosts: tuple[str, ...]
    is_enabled: bool
    dialect: str | None = None


@dataclass(frozen=True, slots=True)
class Timing:
    """The options of a query; queries of a module with equal options share them."""

    seconds: float
    subscription: str


@dataclass(frozen=True, slots=True)
class ScriptLog:
    """A log written by the script. `basic` is the number of columns sent by agents that do not support batches."""

    path: str
    module: str
    event: str
    suffix: str
    summary: str
    has_change: bool
    columns: tuple[RecordMember, ...]
    basic: int
    statements: tuple[ScriptStatement, ...]

    @property
    def stem(self) -> str:
        return self.path.removeprefix(PACKAGE_PREFIX).replace("-", "_")

    def name(self, stem: str) -> str:
        """A name that the module defines once per log: `LOG`, `Columns`, `write_row`."""
        if not self.suffix:
            return stem
        if stem.isupper():
            return f"{stem}_{self.suffix.upper()}"
        return f"{stem}{camel(self.suffix)}" if stem[0].isupper() else f"{stem}_{self.suffix}"

    def record_type(self, column: RecordMember) -> str:
        """The name of a record column's type."""
        return f"{self.name('Columns')}{camel(column.name)}"

    @property
    def log_event(self) -> str:
        """The event that Zeek raises for each line, like for the logs of its own scripts."""
        return f"log_{self.stem}"

    @property
    def has_store(self) -> bool:
        """Whether a line identifies its event permanently."""
        names = {column.log_name for column in self.columns}
        return not self.has_change and "seq" in names and "store" not in names

    @property
    def required(self) -> list[tuple[str, ...]]:
        """The required fields, by their path in a row."""
        return [
            (column.name, member.name) if column.members else (column.name,)
            for column in self.columns
            for member in column.members or (column,)
            if member.is_required
        ]

    @property
    def renamed(self) -> dict[str, str]:
        """Fields whose name in the log differs from that in the record."""
        names = {}
        for column in self.columns:
            for member in column.members:
                names[f"{column.name}.{member.name}"] = member.log_name
            if not column.members and column.name != column.log_name:
                names[column.name] = column.log_name
        return names


def logs_of(file: PackFile, origin: str) -> list[ScriptLog]:
    """The pack's logs for Zeek. Raises UsageError that begins with `origin` and names the position."""
    try:
        columns = PackColumns(file)
        logs = [
            _log(file, path, entry, columns)
            for path, entry in file.logs.items()
            if file.queries_for("zeek", path) or not file.queries_for("collector", path)
        ]
        if not logs:
            raise ValueError("the pack has no log for Zeek")
        _check_names(logs)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None
    return logs


def _log(file: PackFile, path: str, entry: LogEntry, columns: PackColumns) -> ScriptLog:
    queries = file.queries_for("zeek", path)
    if not queries:
        raise ValueError(f"logs.{path}: no query writes to it")
    fields = columns.fields(path, "zeek")
    record = _members(path, fields)
    _check_fields(path, entry, record)
    module, event = _module_and_event(file, path, entry)
    basic = len(record)
    statements = []
    for place, query in queries:
        whole = columns.selected(place, query, batches=True)
        _check_selected(path, place, record, whole)
        record = _explained(record, whole)
        first = columns.selected(place, query, batches=False)
        _check_basic(path, place, record, first)
        if len(first) < len(record):
            if basic not in (len(first), len(record)):
                raise ValueError(f"{place}.sql: selects {len(first)} columns, another query of {path} selects {basic}")
            basic = len(first)
        statements.append(_statement(file, query, _batch_sql(place, query, record, whole, columns)))
    return ScriptLog(
        path=path,
        module=module,
        event=event,
        suffix=_suffix(file, path, module, event),
        summary=sentence(entry.summary) or f"The log {path}.",
        has_change=entry.change,
        columns=record,
        basic=basic,
        statements=tuple(statements),
    )


def _module_and_event(file: PackFile, path: str, entry: LogEntry) -> tuple[str, str]:
    module, _, event = (entry.event or "").rpartition("::")
    if not module:
        module, event = f"ZeekAgent_{camel(path.removeprefix(PACKAGE_PREFIX))}", "query_result"
        if not path.startswith(PACKAGE_PREFIX) and module in _package_modules():
            raise ValueError(f'logs.{path}: our Zeek package has a module {module}: set event = "Module::name"')
    parts = [*module.split("::"), event]
    if module in _TAKEN_MODULES or _LOCAL_NAMES.fullmatch(event) or not ZEEK_KEYWORDS.isdisjoint(parts):
        raise ValueError(f"logs.{path}: event: {module}::{event} is already used in Zeek, choose another Module::name")
    return module, event


@cache
def _package_modules() -> frozenset[str]:
    """The modules of the package's own logs."""
    file, _ = pack_file.load()
    return frozenset(_module_and_event(file, path, entry)[0] for path, entry in file.logs.items())


def _suffix(file: PackFile, path: str, module: str, event: str) -> str:
    """The suffix that distinguishes the log's names from those of the module's other logs; empty without others."""
    others = [
        other
        for other, entry in file.logs.items()
        if other != path and file.queries_for("zeek", other) and _module_and_event(file, other, entry)[0] == module
    ]
    return event.removeprefix("query_result").lstrip("_") if others else ""


def _members(path: str, fields: Sequence[FieldEntry]) -> tuple[RecordMember, ...]:
    members = []
    for record, entries in pack_file.columns_of(tuple(fields)):
        inner = tuple(_member(path, entry, in_record=bool(record)) for entry in entries)
        if record:
            name = zeek_field(record.rpartition(".")[2])
            members.append(RecordMember(name, record, "record", "", "", members=inner))
        else:
            members += inner
    return tuple(members)


def _member(path: str, entry: FieldEntry, *, in_record: bool) -> RecordMember:
    try:
        Field(entry.name, entry.type)
    except ValueError as error:
        raise ValueError(f"logs.{path}: {error}") from None
    if in_record and entry.type not in MEMBER_TYPES:
        known = ", ".join(sorted(MEMBER_TYPES))
        raise ValueError(f"logs.{path}: field {entry.name}: a record's member is one of {known}, not {entry.type}")
    stem = entry.name.rpartition(".")[2]
    return RecordMember(
        name=zeek_field(stem),
        log_name=entry.name,
        type=entry.type,
        summary=sentence(entry.summary),
        key=entry.key or stem,
        is_required=not entry.optional,
    )


def _check_fields(path: str, entry: LogEntry, columns: Sequence[RecordMember]) -> None:
    leading = {"t", "hid", "host", *(("change",) if entry.change else ())}
    for names in ([column.name for column in columns], *([one.name for one in each.members] for each in columns)):
        for name, times in Counter(names).items():
            if times > 1:
                raise ValueError(f"logs.{path}: field {name}: two fields would have this name in Zeek")
    for column in columns:
        if column.log_name in leading:
            raise ValueError(f"logs.{path}: field {column.log_name}: every log already has a field of that name")


def _check_selected(path: str, place: str, columns: Sequence[RecordMember], selected: Sequence[Selected]) -> None:
    if len(columns) != len(selected):
        raise ValueError(f"{place}: {misfit(path, len(columns), list(selected))}")
    for column, one in zip(columns, selected, strict=True):
        _check_type(path, place, column, one)


def _check_type(path: str, place: str, column: RecordMember, one: Selected) -> None:
    if one.type.name == "enum" or (one.type.element and one.type.element.name in {"enum", "record"}):
        raise ValueError(f"{place}: {one.name}: Zeek has no type for {one.type}: select it as text")
    if one.log_type != column.type:
        declared = f"logs.{path}: field {column.log_name} is of type {column.type}"
        raise ValueError(f"{place}: {declared}, but {one.name} is {one.log_type}")


def _check_basic(path: str, place: str, columns: Sequence[RecordMember], first: Sequence[Selected]) -> None:
    """Check that agents that do not support batches send the first columns."""
    if len(first) > len(columns):
        raise ValueError(f"{place}.sql: {misfit(path, len(columns), list(first))}")
    for column, one in zip(columns, first, strict=False):
        _check_type(path, f"{place}.sql", column, one)


def _explained(columns: Sequence[RecordMember], selected: Sequence[Selected]) -> tuple[RecordMember, ...]:
    """The columns with descriptions from the tables' declarations, unless the pack has its own."""
    return tuple(
        replace(
            column,
            summary=column.summary or sentence(one.summary) or f"The column ``{one.name}``.",
            members=tuple(replace(each, summary=each.summary or f"Its ``{each.key}``.") for each in column.members),
        )
        for column, one in zip(columns, selected, strict=True)
    )


def _batch_sql(
    place: str, query: QueryEntry, record: Sequence[RecordMember], whole: Sequence[Selected], columns: PackColumns
) -> str | None:
    """The statement for batches, whose result columns have the names of the record's fields; None if unchanged."""
    given = query.sql if query.batch_sql is None else query.batch_sql
    is_unknown = any(one.is_declared_only for one in whole)
    if not is_unknown and all(_is_named(column, one) for column, one in zip(record, whole, strict=True)):
        return None if query.batch_sql is None else given.strip()
    profile = columns.profile(query, Profile.FULL)
    inner = given.strip().rstrip(BEHIND_STATEMENT) if is_unknown else columns.statement_text(place, given, profile)
    end = "\n" if "--" in inner else ""  # so that a comment does not take the bracket
    names = [f"c{number}" for number in range(1, len(record) + 1)]
    results = ", ".join(map(_result, names, record, whole))
    wrapped = f"WITH r({', '.join(names)}) AS ({inner}{end}) SELECT {results} FROM r"
    if not is_unknown:
        place = f"{place}, with the columns renamed as the fields"
        _check_selected("", place, record, columns.compiled(place, wrapped, profile))
    return wrapped


def _is_named(column: RecordMember, one: Selected) -> bool:
    return column.name == one.name and all(member.name == member.key for member in column.members)


def _result(name: str, column: RecordMember, one: Selected) -> str:
    if all(member.name == member.key for member in column.members):
        return f'{name} AS "{column.name}:{one.type}"'
    pairs = (f"'{member.name}', {name} -> {_sql_text(member.key)}" for member in column.members)
    return f'iif({name} IS NULL, NULL, json_object({", ".join(pairs)})) AS "{column.name}:record"'


def _statement(file: PackFile, query: QueryEntry, batch_sql: str | None) -> ScriptStatement:
    seconds = file.schedule if query.schedule is None else query.schedule
    subscription = Subscription(query.subscription or file.subscription)
    return ScriptStatement(
        sql=query.sql.strip(),
        batch_sql=batch_sql,
        timing=Timing(max(seconds, SCHEDULE_MIN_SECONDS) if seconds else 0.0, subscription.value),
        requires_tables=query.requires_tables,
        if_missing_tables=query.if_missing_tables,
        groups=() if query.hosts else _groups(query),
        hosts=query.hosts,
        is_enabled=query.enabled,
        dialect=file.dialect_of(query),
    )


def _groups(query: QueryEntry) -> tuple[str, ...]:
    """The groups to query, each once. Every agent is in `all`, and would run the query once more for another group."""
    lower = tuple(dict.fromkeys(group.lower() for group in query.groups))
    return ("all",) if "all" in lower else tuple(dict.fromkeys(query.groups))


def _check_names(logs: Sequence[ScriptLog]) -> None:
    """Raises ValueError if two definitions in a module would have the same name."""
    for module in {log.module for log in logs}:
        taken: set[str] = set(_SHARED_NAMES)
        for log in (log for log in logs if log.module == module):
            names = [name for name in _defined(log) if name not in _SHARED_NAMES or name in (log.event, log.log_event)]
            for name in names:
                if name in taken:
                    raise ValueError(f"logs.{log.path}: {module}::{name} would be defined twice, rename the log")
                taken.add(name)


def _defined(log: ScriptLog) -> list[str]:
    """The names that a log has in its module."""
    stems = ("LOG", "Basic", "Columns", "Info", "Rows", "log_policy", "write_row", "write_rows", "is_complete")
    records = [log.record_type(column) for column in log.columns if column.members]
    return [log.event, log.log_event, *map(log.name, stems), *records]


def _sql_text(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def sentence(text: str) -> str:
    """A pack's text as a comment: one line of printable characters."""
    text = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def camel(name: str) -> str:
    return "".join(part[:1].upper() + part[1:] for part in re.split(r"[-_]+", name))
