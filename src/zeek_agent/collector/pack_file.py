"""The file format of query packs: a TOML file, its keys, and error messages.

`[logs.NAME]` declares a log's fields in the order in which its queries select them; `[[queries]]` are the statements
that fill it. The collector reads a pack (`pack`), and `zeek_script` generates a Zeek script from it.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from importlib import resources
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta, Struct

from zeek_agent.errors import UsageError

DEFAULT: Final = "the default pack"
RESERVED: Final = frozenset({"zeek-agent", "reporter"})
"""Logs that the collector writes itself."""

BATCHES_TABLE: Final = "zeek_agent_tables"
"""A table of every agent that supports batches, and of no other."""

Seconds = Annotated[float, Meta(ge=0, le=1e9)]
"""At most some 30 years: what Zeek can hold as an interval has an end."""
Dialect = Literal["agent", "osquery"]
SubscriptionName = Literal["Snapshots", "Differences", "SnapshotPlusDifferences", "Events"]
Audience: TypeAlias = Literal["collector", "zeek"]

_LOG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FIELD_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_EVENT_NAME = re.compile(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)+", re.ASCII)
_GROUP_NAME = re.compile(r"[^/\s]+")
_UNKNOWN_KEY = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<place>[^`]*)`)?")


class FieldEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A field; a row without a value is refused unless the field is `optional`.

    Consecutive fields `name.member` are the members of a record column `name`; `key` is a member's name in that record,
    or any other field's name in osquery's result format, if the log's name differs. The default `type` is that of the
    column that the query selects.
    """

    name: str
    type: str = ""
    optional: bool = True
    summary: str = ""
    key: str = ""
    only: Audience | None = None


class LogEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A log. `change` is false if rows are only added, in which case the field of that name is omitted.

    The default `fields` are the columns that the log's first query selects. `removed` is false if rows that are gone
    are not logged. `result_name` is the name of its results in osquery's format, by default the log's.
    """

    fields: tuple[FieldEntry, ...] | None = None
    event: str | None = None
    change: bool = True
    summary: str = ""
    removed: bool = True
    result_name: str = ""

    def fields_for(self, audience: Audience) -> tuple[FieldEntry, ...]:
        return tuple(field for field in self.fields or () if field.only in (None, audience))


class QueryEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A statement; missing keys have the pack's defaults. `hosts` are agent ids, for a query of only these.

    `batch_sql` is the statement for agents that support batches; other agents send the first of its columns. `shard` is
    the percentage of agents that run it.
    """

    sql: str
    log: str
    batch_sql: str | None = None
    schedule: Seconds | None = None
    subscription: SubscriptionName | None = None
    groups: tuple[str, ...] = ("all",)
    hosts: tuple[str, ...] = ()
    requires_tables: tuple[str, ...] = ()
    if_missing_tables: tuple[str, ...] = ()
    enabled: bool = True
    only: Audience | None = None
    dialect: Dialect | None = None
    shard: Annotated[int, Meta(ge=1, le=100)] | None = None


class DecoratorEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A statement whose only row is added to each line of all logs, in fields `decoration_NAME`, as text.

    Its columns have the type text. It runs when an agent connects, and then every `schedule` seconds unless that is 0.
    """

    sql: str
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    schedule: Seconds = 0.0


class PackFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The contents of the file."""

    logs: dict[str, LogEntry]
    queries: tuple[QueryEntry, ...]
    schedule: Seconds = 30.0
    subscription: SubscriptionName = "Differences"
    dialect: Dialect = "agent"
    decorators: tuple[DecoratorEntry, ...] = ()

    def dialect_of(self, query: QueryEntry) -> Literal["osquery"] | None:
        """The dialect of the query's statements, if it is not the agent's own."""
        return "osquery" if (query.dialect or self.dialect) == "osquery" else None

    def queries_for(self, audience: Audience, log: str | None = None) -> list[tuple[str, QueryEntry]]:
        """The queries for the collector or for Zeek, of all logs or one, each with its position in the file."""
        return [
            (f"queries[{number}]", entry)
            for number, entry in enumerate(self.queries)
            if entry.only in (None, audience) and log in (None, entry.log)
        ]

    def uses_batch_sql(self, query: QueryEntry) -> bool:
        """Whether the collector sends `batch_sql` to the agents that support batches, as Zeek does.

        A log with fields that only Zeek has takes the columns of `sql` alone.
        """
        return query.batch_sql is not None and not any(f.only == "zeek" for f in self.logs[query.log].fields or ())


def load(path: Path | None = None) -> tuple[PackFile, str]:
    """The pack in the file `path`, or the default pack, and its name in errors.

    Raises UsageError that names the file, the position and the problem.
    """
    origin = DEFAULT if path is None else str(path)
    return _parsed(read(path), origin), origin


def parse(text: str, origin: str) -> PackFile:
    """Parse a pack. Raises UsageError that begins with `origin`."""
    return _parsed(_document(text, origin), origin)


def read(path: Path | None = None) -> dict[str, Any]:
    """The TOML document of the pack in the file `path`, or of the default pack. Raises UsageError."""
    if path is None:
        return _document(resources.files(__package__).joinpath("default.toml").read_text("utf-8"), DEFAULT)
    try:
        return _document(path.read_bytes().decode(), str(path))
    except OSError as error:
        raise UsageError(f"cannot read the query pack {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def _document(text: str, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin}: not valid TOML: {error}") from None


def _parsed(document: dict[str, Any], origin: str) -> PackFile:
    try:
        file = msgspec.convert(document, PackFile)
    except msgspec.ValidationError as error:
        raise UsageError(f"{origin}: {explained(str(error))}") from None
    try:
        for path, log in file.logs.items():
            check_log(path, log)
        for query in file.queries:
            check_query(query, file.logs)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None
    return file


def columns_of(fields: tuple[FieldEntry, ...]) -> Iterator[tuple[str, tuple[FieldEntry, ...]]]:
    """The fields by their column: a record's name with its members, or an empty name with one field."""
    for record, members in groupby(fields, key=lambda field: field.name.rpartition(".")[0]):
        if record:
            yield record, tuple(members)
        else:
            yield from (("", (field,)) for field in members)


def check_log(path: str, entry: LogEntry) -> None:
    """Check what types cannot express. Raises ValueError."""
    if not _LOG_NAME.fullmatch(path) or path in RESERVED:
        raise ValueError(
            f"logs.{path}: not a valid log name (letters, digits, - and _; not {' or '.join(sorted(RESERVED))})"
        )
    event = entry.event
    if event is not None and (not _EVENT_NAME.fullmatch(event) or event.startswith("ZeekAgentAPI::")):
        raise ValueError(f"logs.{path}: event: expected Module::name, got {event}")
    check_names(path, entry.fields or ())


def check_names(path: str, fields: tuple[FieldEntry, ...]) -> None:
    """Raises ValueError for an invalid or duplicate field name."""
    names = [field.name for field in fields]
    for field in fields:
        if not _FIELD_NAME.fullmatch(field.name) or names.count(field.name) > 1:
            raise ValueError(f"logs.{path}: field {field.name}: not a valid name, or a duplicate")


def check_query(entry: QueryEntry, logs: Mapping[str, object]) -> None:
    """Check what types cannot express; `logs` are the pack's, by name. Raises ValueError."""
    if entry.log not in logs:
        raise ValueError(f"query {entry.sql!r}: there is no log {entry.log}{_nearest(entry.log, logs)}")
    for group in entry.groups:
        if not _GROUP_NAME.fullmatch(group):
            raise ValueError(f"query {entry.sql!r}: not a group: {group!r}")


def explained(message: str, entry: str = "") -> str:
    """msgspec's message in terms of the file, with the nearest key for an unknown one.

    `entry` is the place of the part of the file that the message is about, if not the whole file.
    """
    if entry:
        message = message.replace("`$", f"`$.{entry}") if "`$" in message else f"{message} - at `$.{entry}`"
    unknown = _UNKNOWN_KEY.search(message)
    if unknown is None:
        return re.sub(r" - at `\$\.?([^`]*)`", r" (at \1)", message)
    place = (unknown["place"] or "").lstrip(".")
    known = _keys(place)
    return f"unknown key {f'{place}.' if place else ''}{unknown['key']}{_nearest(unknown['key'], known)}"


def _keys(place: str) -> tuple[str, ...]:
    section: type[Any] = PackFile
    if place.startswith("logs"):
        section = FieldEntry if ".fields[" in place else LogEntry
    elif place.startswith("queries"):
        section = QueryEntry
    return tuple(field.name for field in msgspec.structs.fields(section))


def _nearest(name: str, known: Mapping[str, object] | tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
