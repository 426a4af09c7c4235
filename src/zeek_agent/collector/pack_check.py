"""All problems of a query pack at once, for `zeek-agent config check`.

`pack_file` and `pack` report the first problem and do not compile statements whose log declares its fields. Here each
log and query is checked by itself, and its statement is compiled and compared with the log's fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from zeek_agent.collector import osquery_pack, osquery_queries, pack, pack_file
from zeek_agent.collector.columns import PackColumns, UndeclaredTableError
from zeek_agent.collector.log_formats import Field
from zeek_agent.collector.pack_file import FieldEntry, LogEntry, PackFile, QueryEntry
from zeek_agent.collector.statement_check import Verdict
from zeek_agent.collector.statements import declared_tables
from zeek_agent.database.sql_connection import Profile
from zeek_agent.errors import UsageError

_Entry = TypeVar("_Entry", LogEntry, QueryEntry)


@dataclass(frozen=True, slots=True)
class PackProblem:
    """What is wrong; a warning if the collector can use the pack all the same."""

    text: str
    is_warning: bool = False


def all_problems(names: Sequence[str]) -> Iterator[PackProblem]:
    """The problems of all packs that these paths and patterns name; without any, of the default pack."""
    found = 0
    for name in names or [pack.DEFAULT_NAME]:
        try:
            paths = [None] if name == pack.DEFAULT_NAME else osquery_pack.expanded([name])
        except UsageError as error:
            found += 1
            yield PackProblem(str(error))
            continue
        for path in paths:
            for problem in problems(path):
                found += not problem.is_warning
                yield problem
    if not found and len(names) > 1:
        try:
            pack.load_all(names, is_logged=False)
        except UsageError as error:
            yield PackProblem(str(error))


def problems(path: Path | None) -> Iterator[PackProblem]:
    """The problems of the pack in the file, or of the default pack; each text begins with the file's name."""
    origin = pack_file.DEFAULT if path is None else str(path)
    if path is not None and osquery_pack.is_osquery(path):
        yield from _osquery_problems(path)
        return
    try:
        document = pack_file.read(path)
    except UsageError as error:
        yield PackProblem(str(error))
        return
    for problem in _problems(document):
        yield PackProblem(f"{origin}: {problem.text}", problem.is_warning)


def _osquery_problems(path: Path) -> Iterator[PackProblem]:
    """An error if the file cannot be used; a warning for each query that is left out, and for what has no effect."""
    try:
        found = osquery_queries.load(path)
        pack.check(found.file)
    except (UsageError, ValueError) as error:
        yield PackProblem(str(error) if isinstance(error, UsageError) else f"{path}: {error}")
        return
    for notice in found.notices:
        yield PackProblem(f"{path}: {notice}", is_warning=True)
    for one in found.left_out:
        if one.verdict is not Verdict.PLATFORM:
            yield PackProblem(f"{path}: left out: {one}", is_warning=True)


def _problems(document: dict[str, Any]) -> Iterator[PackProblem]:
    found: list[PackProblem] = []
    file, places = _parsed(document, found)
    columns = PackColumns(file)
    for place, query in zip(places, file.queries, strict=True):
        if query.only in (None, "collector"):
            found += _statements(file, place, query, columns)
    yield from found
    if all(problem.is_warning for problem in found):
        # What remains are names of events and fields that collide.
        yield from _refused(partial(pack.check, file))


def _parsed(document: dict[str, Any], found: list[PackProblem]) -> tuple[PackFile, list[str]]:
    """The valid parts of the file, with the places of its queries. Adds to `found` what is wrong with the others."""
    logs, queries = document.get("logs"), document.get("queries")
    parts: dict[str, object] = {}  # without the entries, which are checked one by one
    if isinstance(logs, dict):
        parts["logs"] = {}
    if isinstance(queries, list):
        parts["queries"] = []
    try:
        outline = msgspec.convert({**document, **parts}, PackFile)
    except msgspec.ValidationError as error:
        found.append(PackProblem(pack_file.explained(str(error))))
        outline = PackFile({}, ())
    names = logs if isinstance(logs, dict) else {}
    entries: dict[str, LogEntry] = {}
    for name, value in names.items():
        log = _entry(LogEntry, f"logs.{name}", value, found)
        if log is not None:
            entries[name] = log
            found += _refused(partial(pack_file.check_log, name, log))
            for field in log.fields or ():
                found += _refused(partial(_check_type, name, field))
    usable: dict[str, QueryEntry] = {}
    for number, value in enumerate(queries if isinstance(queries, list) else ()):
        place = f"queries[{number}]"
        query = _entry(QueryEntry, place, value, found)
        if query is not None:
            refused = list(_refused(partial(pack_file.check_query, query, names)))
            found += refused
            if not refused and query.log in entries:
                usable[place] = query
    return msgspec.structs.replace(outline, logs=entries, queries=tuple(usable.values())), list(usable)


def _entry(kind: type[_Entry], place: str, value: object, found: list[PackProblem]) -> _Entry | None:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        found.append(PackProblem(pack_file.explained(str(error), place)))
        return None


def _refused(check: Callable[[], None]) -> Iterator[PackProblem]:
    try:
        check()
    except ValueError as error:
        yield PackProblem(str(error))


def _statements(file: PackFile, place: str, query: QueryEntry, columns: PackColumns) -> Iterator[PackProblem]:
    """Check the statements that the collector sends for the query."""
    if query.batch_sql is None or not file.uses_batch_sql(query):
        yield from _statement(place, "sql", query, query.sql, columns)
        return
    yield from _statement(place, "batch_sql", query, query.batch_sql, columns)
    yield from _statement(place, "sql", query, query.sql, columns, may_end_early=True)


def _statement(
    place: str, key: str, query: QueryEntry, sql: str, columns: PackColumns, *, may_end_early: bool = False
) -> Iterator[PackProblem]:
    """Compile a statement of the query, and compare what it selects with the log's fields."""
    try:
        selected = columns.headings(f"{place}.{key}", sql, columns.profile(query, Profile.STOCK))
    except UndeclaredTableError as error:
        if error.table.lower() not in {table.lower() for table in query.requires_tables}:
            yield _unknown_table(error)
        return
    except ValueError as error:
        yield PackProblem(str(error))
        return
    try:
        fields = columns.fields(query.log, "collector")
    except ValueError as error:
        yield PackProblem(str(error))
        return
    wanted = list(pack_file.columns_of(fields))
    if len(wanted) != len(selected) and not (may_end_early and len(selected) < len(wanted)):
        names = ", ".join(name for name, _ in selected)
        text = f"{place}: log {query.log} has fields for {len(wanted)} columns, but the query selects {len(selected)}"
        yield PackProblem(f"{text}: {names}", is_warning=len(selected) > len(wanted))
    for (record, members), (name, found) in zip(wanted, selected, strict=False):
        expected = "record" if record else members[0].type
        if found is not None and found != expected and (record or _has_type(members[0])):
            field = _field(record, members)
            text = f"field {field} of log {query.log} is of type {expected}, but {name} is {found}"
            yield PackProblem(f"{place}: {text}")


def _unknown_table(error: UndeclaredTableError) -> PackProblem:
    """An error if the name is nearly that of a table; otherwise it may be osquery's, or a plug-in's of other agents."""
    near = get_close_matches(error.table.lower(), [table.name for table in declared_tables()], n=1)
    if near:
        return PackProblem(f"{error}; did you mean {near[0]}?")
    advice = "if agents have it, for instance from osquery, add it to requires_tables"
    return PackProblem(f"{error} ({advice})", is_warning=True)


def _check_type(path: str, field: FieldEntry) -> None:
    if field.type and not _has_type(field):
        raise ValueError(f"logs.{path}: field {field.name}: unknown type {field.type!r}")


def _has_type(field: FieldEntry) -> bool:
    try:
        Field(field.name, field.type)
    except ValueError:
        return False
    return True


def _field(record: str, members: tuple[FieldEntry, ...]) -> str:
    return record or members[0].name
