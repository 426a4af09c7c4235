"""osquery's packs as packs of the collector: each query becomes a log.

A column without a type becomes text, names become names of fields, and a pack's `discovery` and distributions become a
condition of its statements, so that agents evaluate them each time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zeek_agent.collector import osquery_pack
from zeek_agent.collector.columns import BEHIND_STATEMENT, Selected
from zeek_agent.collector.osquery_pack import DISTRIBUTIONS, OsqueryFile, OsqueryQuery
from zeek_agent.collector.pack_file import DecoratorEntry, FieldEntry, LogEntry, PackFile, QueryEntry, SubscriptionName
from zeek_agent.collector.statement_check import Verdict, verdict
from zeek_agent.collector.statements import Statements
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import SqlError, UsageError
from zeek_agent.schema import ZeekType, zeek_field
from zeek_agent.text import clipped

if TYPE_CHECKING:
    from zeek_agent.database.results import Heading, Statement

OSQUERY_VERSION: Final = "5.23.1"
"""The version of osquery whose tables and functions the agent has; queries for later versions are left out."""

_TAKEN: Final = frozenset({"t", "hid", "host", "change"})
"""Fields of every log."""
_TEXT: Final = ZeekType("text")
_DISTRIBUTION_NAMES: Final = frozenset(DISTRIBUTIONS)


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A query that is not run."""

    place: str
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Translated:
    """A pack of the collector, what is left out of it, and notices about what has no effect."""

    file: PackFile
    left_out: tuple[LeftOut, ...]
    notices: tuple[str, ...]


def load(path: Path) -> Translated:
    """The pack or configuration in the file. Raises UsageError that names the file, the key and the problem."""
    return translate(osquery_pack.read(path))


def for_zeek(path: Path) -> tuple[PackFile, list[str]]:
    """The same for a script of Zeek's, and what is left out. Raises UsageError, also if nothing remains."""
    found = load(path)
    texts = [*found.notices, *(f"left out: {one}" for one in found.left_out)]
    if found.file.decorators:
        texts.append("decorators are left out: scripts do not add columns to results")
    if any(query.shard for query in found.file.queries):
        texts.append("shard has no effect in scripts: all agents get the queries")
    if not found.file.queries:
        raise UsageError(f"{path}: none of its queries runs here; `zeek-agent pack check` says why")
    return found.file, texts


def translate(found: OsqueryFile) -> Translated:
    """Compile the queries of a file and make logs of them. Raises UsageError if two logs would have one name."""
    logs: dict[str, LogEntry] = {}
    names: dict[str, OsqueryQuery] = {}
    queries: list[QueryEntry] = []
    decorators: list[DecoratorEntry] = []
    left_out: list[LeftOut] = []
    with closing(Statements()) as statements:
        for query in found.queries:
            if (excluded := exclusion(query)) is not None:
                left_out.append(LeftOut(query.place, Verdict.PLATFORM, excluded))
                continue
            name = osquery_pack.log_name(query)
            if (other := names.setdefault(_word(name), query)) is not query:
                raise UsageError(f"{found.origin}: {query.place} and {other.place} have the same log, {name}")
            try:
                logs[name], entry = _entries(name, query, statements)
            except SqlError as error:
                left_out.append(LeftOut(query.place, verdict(error), str(error)))
            else:
                queries.append(entry)
        for decorator in found.decorators:
            try:
                decorators.append(_decorator(decorator, statements))
            except SqlError as error:
                left_out.append(LeftOut(decorator.place, verdict(error), str(error)))
    file = PackFile(logs, tuple(queries), dialect="osquery", decorators=tuple(decorators))
    return Translated(file, tuple(left_out), tuple(found.notices))


def exclusion(query: OsqueryQuery) -> str | None:
    """Why a query is not for Linux, or not for the version of osquery that the agent resembles."""
    if query.platforms and query.platforms.isdisjoint({"linux", "posix"} | _DISTRIBUTION_NAMES):
        return f"for {', '.join(sorted(query.platforms))}"
    if osquery_pack.version_number(query.version) > osquery_pack.version_number(OSQUERY_VERSION):
        return f"for osquery {clipped(query.version, 40)} and later"
    return None


def _entries(name: str, query: OsqueryQuery, statements: Statements) -> tuple[LogEntry, QueryEntry]:
    """The log and the query. Raises SqlError, also for one of its discovery queries."""
    statement = statements.compile(query.sql, Profile.OSQUERY)
    subscription: SubscriptionName = "SnapshotPlusDifferences"
    if any(statements.is_events(table) for table in statement.tables):
        subscription = "Events"
    elif query.snapshot:
        subscription = "Snapshots"
    fields = _fields(statement.headings)
    log = LogEntry(
        fields=tuple(fields),
        event=f"ZeekAgent_Osquery_{_word(name)}::query_result",
        change=subscription == "SnapshotPlusDifferences",
        summary=query.summary,
        removed=query.removed,
        result_name=query.full_name,
    )
    conditions = [_exists(statements, sql) for sql in query.discovery] + _distributions(query, statements)
    entry = QueryEntry(
        sql=_adapted(statement, fields, conditions),
        log=name,
        schedule=query.interval,
        subscription=subscription,
        groups=_groups(query.platforms),
        shard=query.shard or None,
    )
    if entry.sql != _text(statement):
        statements.compile(entry.sql, Profile.OSQUERY)
    return log, entry


def _decorator(decorator: osquery_pack.Decorator, statements: Statements) -> DecoratorEntry:
    statement = statements.compile(decorator.sql, Profile.OSQUERY)
    names = [heading.name for heading in statement.headings]
    inner, columns = _within(statement)
    results = ", ".join(
        f'CAST({column} AS TEXT) AS "{_quoted(name)}:text"' for column, name in zip(columns, names, strict=True)
    )
    return DecoratorEntry(
        sql=f"WITH r({', '.join(columns)}) AS ({inner}) SELECT {results} FROM r LIMIT 1",
        names=tuple(names),
        schedule=decorator.interval,
    )


def _fields(headings: Iterable[Heading]) -> list[FieldEntry]:
    """The log's fields, one per column; `key` is the column's name for osquery."""
    fields: list[FieldEntry] = []
    taken = set(_TAKEN)
    for heading in headings:
        stem = re.sub(r"\W+", "_", heading.name, flags=re.ASCII).strip("_") or "column"
        stem = zeek_field(f"c_{stem}" if stem[0].isdigit() else stem)
        name, number = stem, 1
        while name.lower() in taken:
            number += 1
            name = f"{stem}_{number}" if stem not in _TAKEN else f"{stem}_{number if number > 2 else ''}"
        taken.add(name.lower())
        kind = Selected(heading.name, heading.type or _TEXT).log_type
        summary = heading.declared.summary if heading.declared else ""
        fields.append(FieldEntry(name, kind, summary=summary, key=heading.name))
    return fields


def _adapted(statement: Statement, fields: Sequence[FieldEntry], conditions: Sequence[str]) -> str:
    """The statement with a type for each column and the conditions."""
    is_typed = all(heading.type is not None for heading in statement.headings)
    if is_typed and not conditions:
        return _text(statement)
    inner, columns = _within(statement)
    results = ", ".join(
        f'CAST({column} AS TEXT) AS "{field.name}:text"'
        if heading.type is None
        else f'{column} AS "{field.name}:{heading.type}"'
        for column, field, heading in zip(columns, fields, statement.headings, strict=True)
    )
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"WITH r({', '.join(columns)}) AS ({inner}) SELECT {results} FROM r{where}"


def _within(statement: Statement) -> tuple[str, list[str]]:
    """The statement for brackets, and names for its columns."""
    return _bracketed(_text(statement)), [f"c{number}" for number in range(1, len(statement.headings) + 1)]


def _exists(statements: Statements, sql: str) -> str:
    try:
        return f"EXISTS ({_bracketed(_text(statements.compile(sql, Profile.OSQUERY)))})"
    except SqlError as error:
        raise type(error)(f"discovery {clipped(sql, 100)}: {error}") from None


def _distributions(query: OsqueryQuery, statements: Statements) -> list[str]:
    """The condition that the host has one of the distributions that the query is for."""
    if query.platforms.isdisjoint(_DISTRIBUTION_NAMES) or not query.platforms.isdisjoint({"linux", "posix"}):
        return []
    names = sorted({DISTRIBUTIONS[one] for one in query.platforms & _DISTRIBUTION_NAMES})
    tests = " OR ".join(f"of LIKE '% {name} %'" for name in names)
    given = "SELECT ' ' || ifnull(platform, '') || ' ' || ifnull(platform_like, '') || ' ' AS of FROM os_version"
    return [_exists(statements, f"SELECT 1 FROM ({given}) WHERE {tests}")]


def _word(name: str) -> str:
    """The name of a log within that of its event and, for Zeek, its module."""
    return name.replace("-", "_")


def _groups(platforms: frozenset[str]) -> tuple[str, ...]:
    if not platforms:
        return ("all",)
    return ("linux", "darwin") if "posix" in platforms else ("linux",)


def _text(statement: Statement) -> str:
    return statement.text.strip().rstrip(BEHIND_STATEMENT)


def _bracketed(sql: str) -> str:
    return f"{sql}\n" if "--" in sql else sql  # so that a comment does not take the bracket


def _quoted(name: str) -> str:
    return name.replace('"', '""')
