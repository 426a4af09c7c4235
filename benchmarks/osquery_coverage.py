"""The share of public osquery queries for Linux that run on this agent, by collection and by reason.

Run as `python benchmarks/osquery_coverage.py [--schema FILE] [--list] [--markdown FILE] [--detail FILE] PATH…`.
Each path is a collection: a file, or a directory with osquery packs and configurations (.conf, .json), Fleet's YAML
(.yml, .yaml), SQL files (.sql) and Markdown (.md). FILE describes the tables of osquery on Linux, as
`tests/tables/osquery/linux_tables.json` does.

A query counts if osquery itself could run it on Linux: its platform allows Linux, and it compiles with osquery's
tables. Queries that differ only in blanks, comments and case are one. It runs if it compiles with the agent's tables in
osquery's dialect. Of those that run, the ones that read a column without a value in any row, on Linux or with this
agent, are also counted apart. `with osquery` is the share if an osquery on the host offers the tables that the agent
lacks.
"""

from __future__ import annotations

import argparse
import json
import re
import sqlite3
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import yaml

from zeek_agent.collector.osquery_pack import DISTRIBUTIONS
from zeek_agent.collector.relaxed_json import JsonError, parse
from zeek_agent.collector.statement_check import Verdict, verdict
from zeek_agent.config.sections import LimitSettings, OsquerySettings
from zeek_agent.database.functions import FUNCTIONS
from zeek_agent.database.sandbox import Run
from zeek_agent.database.scans import SharedScans
from zeek_agent.database.sql_connection import Catalog, Profile, SqlConnection
from zeek_agent.database.versions import COLLATIONS
from zeek_agent.errors import SqlError
from zeek_agent.schema import Column
from zeek_agent.table import LookupTable, Table, TableContext
from zeek_agent.tables import builtin_tables

OTHER_SYSTEMS = re.compile(r"(?<![a-z])(?:windows|win|macos|osx|darwin|mac|freebsd|chromeos)(?![a-z])")
LINUX = frozenset({"linux", "posix", "all", "any", "null", *DISTRIBUTIONS})
QUERY = re.compile(r"\s*(?:SELECT|WITH)\b", re.IGNORECASE)
TYPES = {"INTEGER": "int", "BIGINT": "int", "UNSIGNED_BIGINT": "count", "DOUBLE": "real"}
SQL_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/|\s+|;|[^\s'\"/;-]+|.", re.DOTALL)
FENCE = re.compile(r"^(?P<fence>```+|~~~+)[^\n]*\n(?P<body>.*?)^(?P=fence)", re.DOTALL | re.MULTILINE)
ALIASES = {
    "hosts": "etc_hosts",
    "syslog": "syslog_events",
    "cb_info": "carbon_black_info",
    "configurations": "augeas",
    "yara": "yara_file",
}
FUNCTIONS_OF_OSQUERY = {"carve": -1, "sleep": 1, "find_file_path_in_cmd": 2, "is_path_deterministic": 1, "concat": -1}


@dataclass
class Found:
    """A query, where it was found, and what became of it."""

    sql: str
    places: dict[str, str]
    """By collection, the file and name."""
    verdict: Verdict
    message: str
    with_osquery: bool
    empty: frozenset[str]
    """Columns that it reads and that have no value in any row."""
    missing: frozenset[str]
    """The tables and columns that it reads and the agent lacks."""


def queries(path: Path) -> Iterator[tuple[str, str]]:
    """The queries in the collection that are not for other systems, each with its place."""
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        name = file.name if file == path else str(file.relative_to(path))
        reader = READERS.get(file.suffix.lower())
        if reader is None or file.stat().st_size > 10_000_000:
            continue
        text = file.read_bytes().decode(errors="replace").removeprefix("\ufeff")
        skip = bool(OTHER_SYSTEMS.search(name.lower()))
        for where, sql, platform in reader(text, name):
            if allows_linux(platform) if platform else not skip:
                yield f"{name} {where}".strip(), sql


def allows_linux(platform: str) -> bool:
    return not LINUX.isdisjoint(re.split(r"[\s,;]+", platform.lower().strip()))


def from_json(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    try:
        yield from from_document(parse(text), "", "")
    except JsonError as error:
        print(f"{name}: {error}", file=sys.stderr)


def from_yaml(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    try:
        for document in yaml.safe_load_all(text):
            yield from from_document(document, "", "")
    except yaml.YAMLError as error:
        print(f"{name}: {' '.join(str(error).split())[:150]}", file=sys.stderr)


def from_document(value: Any, where: str, platform: str) -> Iterator[tuple[str, str, str]]:
    """Every text under the key `query`, and those under `discovery` and `decorators`."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            named = item.get("name") if isinstance(item, dict) else None
            yield from from_document(item, f"{where}.{named or number}", platform)
    elif isinstance(value, dict):
        own = value.get("platform") or value.get("platforms") or ""
        platform = ",".join(own) if isinstance(own, list) else str(own) or platform
        for key, item in value.items():
            if isinstance(item, str) and key in {"query", "sql"} and QUERY.match(item):
                yield where, item, platform
            elif key in {"discovery", "load", "always"} and isinstance(item, list):
                yield from ((f"{where}.{key}", sql, platform) for sql in item if isinstance(sql, str))
            elif isinstance(item, dict | list):
                yield from from_document(item, f"{where}.{key}".strip("."), platform)
            elif isinstance(item, str) and key == "data" and "select" in item.lower():
                yield where, item, platform


def from_sql(text: str, _: str) -> Iterator[tuple[str, str, str]]:
    platform = re.search(r"^--\s*platforms?:\s*(.*)$", text, re.MULTILINE | re.IGNORECASE)
    for number, sql in enumerate(statements(text)):
        yield f"#{number}", sql, platform[1] if platform else ""


def from_markdown(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    for number, block in enumerate(FENCE.finditer(text)):
        body = block["body"]
        if body.lstrip().startswith("{") and '"query"' in body:
            yield from from_json(body, f"{name} block {number}")
        else:
            yield from ((f"block {number}", sql, "") for sql in statements(re.sub(r"(?m)^osquery> ?", "", body)))


READERS = {
    ".conf": from_json,
    ".json": from_json,
    ".yml": from_yaml,
    ".yaml": from_yaml,
    ".sql": from_sql,
    ".md": from_markdown,
}


def statements(text: str) -> Iterator[str]:
    """The SELECT statements among those of the text."""
    pending = ""
    for piece in re.split(r"(?<=;)", text):
        pending += piece
        if sqlite3.complete_statement(pending):
            if QUERY.match(normalized(pending)):
                yield pending.strip()
            pending = ""
    if QUERY.match(normalized(pending)):
        yield pending.strip()


def normalized(sql: str) -> str:
    """The statement without comments, with single blanks, and in lower case outside quotes."""
    pieces: list[str] = []
    for token in SQL_TOKEN.findall(sql):
        if (token.startswith(("--", "/*")) and len(token) > 1) or token.isspace():
            pieces.append(" ")
        else:
            pieces.append(token if token[0] in "'\"" else token.lower())
    text = re.sub(r" +", " ", "".join(pieces)).strip(" ;")
    return re.sub(r" ?([(),=<>]) ?", r"\1", text)


class Reference:
    """osquery's tables on Linux, to find out whether osquery could run a query, and which columns it reads."""

    def __init__(self, schema: Mapping[str, Mapping[str, str]]) -> None:
        self._connection = connection = apsw.Connection(":memory:")
        self._read: set[tuple[str, str]] = set()
        for name, columns in schema.items():
            alias = [alias for alias, of in ALIASES.items() if of == name]
            for called in (name, *alias):
                connection.create_module(
                    called,
                    _Module(columns),  # type: ignore[arg-type]
                    eponymous=True,
                    eponymous_only=True,
                    read_only=True,
                    use_bestindex_object=True,
                )
        counts = {name: count for function in FUNCTIONS for name in (function.name,) for count in function.arguments}
        for name, count in {**counts, **FUNCTIONS_OF_OSQUERY}.items():
            connection.create_scalar_function(name, lambda *_: None, count)
        for name in COLLATIONS:
            connection.create_collation(name, lambda left, right: (left > right) - (left < right))
        connection.authorizer = self._authorize

    def reads(self, sql: str) -> set[tuple[str, str]]:
        """The tables and columns that the query reads. Raises apsw.Error if osquery could not run it."""
        self._read.clear()
        cursor = self._connection.cursor()
        cursor.exec_trace = lambda *_: False
        with suppress(apsw.ExecTraceAbort):
            cursor.execute(sql)
        return set(self._read)

    def _authorize(self, action: int, first: str | None, second: str | None, schema: str | None, _: str | None) -> int:
        if action == apsw.SQLITE_READ and schema == "main" and first:
            self._read.add((ALIASES.get(first.lower(), first.lower()), (second or "").lower()))
        return apsw.SQLITE_OK


class _Module:
    def __init__(self, columns: Mapping[str, str]) -> None:
        hidden = [f'"{name}"{" HIDDEN" if "hidden" in flags.split() else ""}' for name, flags in columns.items()]
        self._sql = f"CREATE TABLE t({', '.join(hidden)})"

    def Connect(self, *_: Any) -> tuple[str, _Nothing]:  # noqa: N802
        return self._sql, _Nothing()

    Create = Connect


class _Nothing:
    def BestIndexObject(self, _: apsw.IndexInfo) -> bool:  # noqa: N802
        return True

    def Disconnect(self) -> None:  # noqa: N802
        pass

    Destroy = Disconnect


def compiler(tables: Iterable[Table]) -> SqlConnection:
    limits = LimitSettings()
    nobody: Any = None
    return SqlConnection(
        Catalog.of(1, tables), Profile.OSQUERY, context=TableContext(nobody), limits=limits, scans=SharedScans()
    )


def failure(connection: SqlConnection, sql: str) -> tuple[Verdict, str]:
    try:
        connection.compile(sql, Run(LimitSettings()))
    except SqlError as error:
        return verdict(error), str(error)
    return Verdict.RUNS, ""


def offered(schema: Mapping[str, Mapping[str, str]], own: frozenset[str]) -> list[Table]:
    """The tables that a running osquery would add to those of the agent."""
    left_out = set(OsquerySettings().tables_exclude)
    tables: list[Table] = []
    for name, columns in schema.items():
        if name in own or name in left_out or name.endswith("_events"):
            continue
        declared = [
            Column(column, TYPES.get(flags.split()[0], "text"), column)  # type: ignore[arg-type]
            for column, flags in columns.items()
            if "hidden" not in flags.split()
        ]
        required = [column for column, flags in columns.items() if "required" in flags.split()]
        tables.append(LookupTable(name, name, description=name, columns=declared, osquery_name=name, required=required))
    return tables


def always_empty(column: Column) -> bool:
    return column.summary.startswith(("always null", "always empty", "always `NULL`"))


class Check:
    """Whether queries run, on this agent alone and next to an osquery."""

    def __init__(self, schema: Mapping[str, Mapping[str, str]]) -> None:
        tables = builtin_tables("linux")
        self._own = {table.osquery_name: table for table in tables if table.osquery_name is not None}
        self._agent = compiler(tables)
        self._both = compiler([*tables, *offered(schema, frozenset(self._own))])
        self._reference = Reference(schema)

    def found(self, sql: str, collection: str, place: str) -> Found:
        """What becomes of the query. Raises apsw.Error if osquery could not run it on Linux."""
        reads = self._reference.reads(sql)
        verdict_, message = failure(self._agent, sql)
        missing = frozenset(filter(None, (self._missing(table, column) for table, column in reads)))
        if verdict_ is Verdict.RUNS and missing:
            verdict_, message = Verdict.NO_TABLE, "the agent's own table of that name has other columns"
        return Found(
            sql,
            {collection: place},
            verdict_,
            message,
            failure(self._both, sql)[0] is Verdict.RUNS,
            frozenset(f"{table}.{column}" for table, column in reads if self._is_empty(table, column)),
            missing,
        )

    def _missing(self, table: str, column: str) -> str | None:
        """The table or column, if the agent does not have it."""
        if table not in self._own:
            return table
        known = {one.name for one in self._own[table].columns}
        return f"{table}.{column}" if column and column not in known else None

    def _is_empty(self, table: str, column: str) -> bool:
        columns = self._own[table].columns if table in self._own else ()
        return any(one.name == column and always_empty(one) for one in columns)


def kind_of(error: str) -> str:
    """An error of SQLite without the names in it."""
    return re.sub(r'"[^"]*"', "…", error.partition(": ")[0]) if ": " in error else error


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    arguments.add_argument("paths", nargs="+", type=Path)
    arguments.add_argument("--schema", type=Path, default=Path("tests/tables/osquery/linux_tables.json"))
    arguments.add_argument("--detail", type=Path, help="write one line of JSON per query to this file")
    arguments.add_argument("--markdown", type=Path, help="write the shares as a table to this file")
    arguments.add_argument("--list", action="store_true", help="list the queries that do not run")
    given = arguments.parse_args()
    schema: dict[str, dict[str, str]] = json.loads(given.schema.read_text())

    check = Check(schema)
    found: dict[str, Found] = {}
    refused: dict[str, tuple[str, str]] = {}
    for path in given.paths:
        for place, sql in queries(path):
            key = normalized(sql)
            if key in found:
                found[key].places.setdefault(path.name, place)
            elif key not in refused:
                try:
                    found[key] = check.found(sql, path.name, place)
                except apsw.Error as error:
                    refused[key] = str(error), f"{path.name}: {place}"
    report(given.paths, found, Counter(kind_of(error) for error, _ in refused.values()))
    if given.markdown:
        given.markdown.write_text(markdown(given.paths, found))
    if given.list:
        print_failures(found, refused)
    if given.detail:
        given.detail.write_text("".join(json.dumps(details(one)) + "\n" for one in found.values()))


def print_failures(found: Mapping[str, Found], refused: Mapping[str, tuple[str, str]]) -> None:
    for one in found.values():
        if one.verdict is not Verdict.RUNS:
            print(f"\n{one.verdict}: {one.message}\n  {one.places}\n  {' '.join(one.sql.split())[:300]}")
    for message, place in refused.values():
        print(f"\nnot for osquery on Linux: {message}: {place}")


def details(one: Found) -> dict[str, Any]:
    return {
        "sql": one.sql,
        "places": one.places,
        "verdict": one.verdict,
        "message": one.message,
        "with_osquery": one.with_osquery,
        "missing": sorted(one.missing),
        "always_empty": sorted(one.empty),
    }


def report(paths: list[Path], found: Mapping[str, Found], refused: Counter[str]) -> None:
    print(f"{'Collection':<52} {'queries':>7} {'run':>5} {'share':>7} {'always empty':>13} {'with osquery':>13}")
    for path in paths:
        row(path.name, [one for one in found.values() if path.name in one.places])
    row("all, each once", list(found.values()))
    print("\nReasons")
    for reason, count in Counter(one.verdict for one in found.values()).most_common():
        print(f"{count:6} {reason}")
    print("\nNot counted, because osquery could not run them on Linux")
    for text, count in refused.most_common(12):
        print(f"{count:6} {text}")
    needed: dict[str, int] = defaultdict(int)
    alone: dict[str, int] = defaultdict(int)
    for one in found.values():
        for name in one.missing:
            needed[name] += 1
        if len(one.missing) == 1:
            alone[next(iter(one.missing))] += 1
    print("\nMissing tables and columns: queries that read them, and queries that lack nothing else")
    for name, count in sorted(needed.items(), key=lambda item: (-item[1], item[0])):
        print(f"{count:6} {alone[name]:6}  {name}")
    empty: Counter[str] = Counter(column for one in found.values() for column in one.empty)
    if empty:
        print("\nColumns without a value in any row")
        for name, count in empty.most_common():
            print(f"{count:6} {name}")


def row(name: str, of: list[Found]) -> None:
    total, run, share, empty, together = shares(of)
    print(f"{name:<52} {total:7} {run:5} {share:>7} {empty:13} {together:>13}")


def shares(of: list[Found]) -> tuple[int, int, str, int, str]:
    """Queries, those that run, their share, those of them that read an empty column, and the share with osquery."""
    run = [one for one in of if one.verdict is Verdict.RUNS]
    share = f"{100 * len(run) / len(of):.1f} %" if of else "-"
    together = f"{100 * sum(one.with_osquery for one in of) / len(of):.1f} %" if of else "-"
    return len(of), len(run), share, sum(bool(one.empty) for one in run), together


def markdown(paths: list[Path], found: Mapping[str, Found]) -> str:
    """The shares as a table. A collection's file `.commit` names its commit."""
    lines = [
        "| Collection | Commit | Queries | Run | Share | Always empty | With osquery |",
        "|---|---|---|---|---|---|---|",
    ]
    for path in paths:
        of = [one for one in found.values() if path.name in one.places]
        commit = path / ".commit"
        version = commit.read_text().strip()[:12] if commit.is_file() else ""
        lines.append(f"| {' | '.join(map(str, (path.name.replace('+', '/'), version, *shares(of))))} |")
    lines.append(f"| {' | '.join(map(str, ('all, each once', '', *shares(list(found.values())))))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
