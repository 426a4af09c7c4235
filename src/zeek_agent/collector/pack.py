"""Query packs: which queries agents are asked to run, and the log that each result becomes.

A pack is a TOML file. `[logs.NAME]` declares a log's fields in the order in which its queries select them;
`[[queries]]` are the statements that fill it. Every log begins with the fields `t hid host change`, as the logs of
the Zeek Agent package do.
"""

from __future__ import annotations

import difflib
import logging
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from zeek_agent.collector.logs import Field
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import SCHEDULE_MIN, Query, Subscription

logger = logging.getLogger("zeek_agent.collector")

Seconds = Annotated[float, Meta(ge=0)]
SubscriptionName = Literal["Snapshots", "Differences", "SnapshotPlusDifferences", "Events"]

RESERVED: Final = frozenset({"zeek-agent", "reporter"})
"""Logs that the collector writes itself."""

_LOG_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_FIELD_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_EVENT_NAME = re.compile(r"[A-Za-z_]\w*(::[A-Za-z_]\w*)+", re.ASCII)
_GROUP_NAME = re.compile(r"[^/\s]+")
_UNKNOWN_KEY = re.compile(r"unknown field `(?P<key>[^`]*)`(?: - at `\$(?P<place>[^`]*)`)?")


class FieldEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A field; a row without a value for one that is not `optional` is refused.

    Consecutive fields `name.member` are the members of one record column `name`.
    """

    name: str
    type: str
    optional: bool = True


class LogEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A log. `change` is false where rows only ever appear, so that the field of that name is left out."""

    fields: tuple[FieldEntry, ...]
    event: str | None = None
    change: bool = True


class QueryEntry(Struct, frozen=True, forbid_unknown_fields=True):
    """A statement; what is not said is the pack's own default. `hosts` are agent ids, for a query to these only."""

    sql: str
    log: str
    schedule: Seconds | None = None
    subscription: SubscriptionName | None = None
    groups: tuple[str, ...] = ("all",)
    hosts: tuple[str, ...] = ()
    requires_tables: tuple[str, ...] = ()
    if_missing_tables: tuple[str, ...] = ()
    enabled: bool = True


class PackFile(Struct, frozen=True, forbid_unknown_fields=True):
    """The file as it is written."""

    logs: dict[str, LogEntry]
    queries: tuple[QueryEntry, ...]
    schedule: Seconds = 30.0
    subscription: SubscriptionName = "Differences"


@dataclass(frozen=True, slots=True)
class Log:
    """A log and the event whose rows it holds."""

    path: str
    event: str
    columns: tuple[FieldEntry, ...]
    change: bool

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields as the log's header has them."""
        leading = (Field("t", "time"), Field("hid", "string"), Field("host", "string"))
        change = (Field("change", "string"),) if self.change else ()
        return (*leading, *change, *(Field(column.name, column.type) for column in self.columns))


@dataclass(frozen=True, slots=True)
class PackQuery:
    """A query and whom it goes to: groups of agents, in lower case as Zeek sends them, or single hosts."""

    query: Query
    groups: tuple[str, ...]
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pack:
    """Logs by event name, and the enabled queries."""

    logs: Mapping[str, Log]
    queries: tuple[PackQuery, ...]


def load(path: Path | None = None, *, schedule: float | None = None) -> Pack:
    """The pack in `path`, or the default one; `schedule` replaces that of all queries but event queries.

    Raises UsageError that names the file, the place in it and what is wrong.
    """
    if path is None:
        text = resources.files(__package__).joinpath("default.toml").read_text("utf-8")
        return parse(text, "the default pack", schedule=schedule)
    try:
        return parse(path.read_bytes().decode(), str(path), schedule=schedule)
    except OSError as error:
        raise UsageError(f"cannot read the query pack {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not valid TOML: {error}") from None


def parse(text: str, origin: str, *, schedule: float | None = None) -> Pack:
    """Read a pack's text. Raises UsageError that begins with `origin`."""
    try:
        file = msgspec.convert(tomllib.loads(text), PackFile)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{origin}: not valid TOML: {error}") from None
    except msgspec.ValidationError as error:
        raise UsageError(f"{origin}: {_explained(str(error))}") from None
    try:
        return _pack(file, origin, schedule)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None


def _pack(file: PackFile, origin: str, schedule: float | None) -> Pack:
    logs: dict[str, Log] = {}
    for path, entry in file.logs.items():
        log = _log(path, entry)
        if log.event in logs:
            raise ValueError(f"logs {logs[log.event].path} and {path} use the same event {log.event}")
        logs[log.event] = log
    by_path = {log.path: log for log in logs.values()}
    wanted = tuple(_query(file, entry, by_path, schedule) for entry in file.queries)
    enabled = [query for query, entry in zip(wanted, file.queries, strict=True) if entry.enabled]
    if too_frequent := sum(one.query.is_too_frequent for one in enabled):
        notice = "%s: queries with a schedule below %g s will run every %g s: %d"
        logger.warning(notice, origin, SCHEDULE_MIN, SCHEDULE_MIN, too_frequent)
    return Pack(logs, tuple(replace(one, query=one.query.slowed()) for one in enabled))


def _log(path: str, entry: LogEntry) -> Log:
    if not _LOG_NAME.fullmatch(path) or path in RESERVED:
        raise ValueError(f"logs.{path}: not a valid log name (letters, digits, - and _; not {' or '.join(RESERVED)})")
    event = entry.event or f"Collector::{path.replace('-', '_')}"
    if not _EVENT_NAME.fullmatch(event) or event.startswith("ZeekAgentAPI::"):
        raise ValueError(f"logs.{path}: event: expected Module::name, got {event}")
    names = [field.name for field in entry.fields]
    for field in entry.fields:
        if not _FIELD_NAME.fullmatch(field.name) or names.count(field.name) > 1:
            raise ValueError(f"logs.{path}: field {field.name}: not a valid name, or a duplicate")
    log = Log(path, event, entry.fields, entry.change)
    try:
        given_twice = {field.name for field in log.fields[: -len(names) or None]}.intersection(names)
    except ValueError as error:
        raise ValueError(f"logs.{path}: {error}") from None
    if given_twice:
        raise ValueError(f"logs.{path}: field {min(given_twice)}: every log already has a field of that name")
    return log


def _query(file: PackFile, entry: QueryEntry, logs: Mapping[str, Log], schedule: float | None) -> PackQuery:
    log = logs.get(entry.log)
    if log is None:
        raise ValueError(f"query {entry.sql!r}: there is no log {entry.log}{_nearest(entry.log, logs)}")
    for group in entry.groups:
        if not _GROUP_NAME.fullmatch(group):
            raise ValueError(f"query {entry.sql!r}: not a group: {group!r}")
    subscription = Subscription(entry.subscription or file.subscription)
    own = file.schedule if entry.schedule is None else entry.schedule
    query = Query(
        sql=entry.sql,
        event=log.event,
        schedule=own if schedule is None or subscription is Subscription.EVENTS else schedule,
        subscription=subscription,
        requires_tables=frozenset(entry.requires_tables),
        if_missing_tables=frozenset(entry.if_missing_tables),
    )
    groups = () if entry.hosts else tuple(group.lower() for group in entry.groups)
    return PackQuery(query, groups, entry.hosts)


def _explained(message: str) -> str:
    """msgspec's message in the file's terms, with the nearest key for an unknown one."""
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
