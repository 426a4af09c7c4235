"""Query packs as the collector uses them: the queries that it installs, and the log of each result.

Every log begins with the fields `t hid host change`, as the logs of the Zeek Agent package do. How a pack is written:
`pack_file`.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from zeek_agent.collector import osquery_pack, osquery_queries, pack_file
from zeek_agent.collector.columns import PackColumns
from zeek_agent.collector.log_formats import Field, ResultNames
from zeek_agent.collector.pack_file import DecoratorEntry, FieldEntry, LogEntry, PackFile, QueryEntry
from zeek_agent.collector.statement_check import Verdict
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import SCHEDULE_MIN_SECONDS, Query, Subscription

DEFAULT_NAME: Final = "default"
"""Names the default pack among others."""
DECORATION: Final = "decoration_"
"""Before the names of fields that decorators add."""
NOTICES_MAX: Final = 20
"""Queries that the log names as left out of a pack."""

_NO_NAME: Final = re.compile(r"\W", re.ASCII)
_DECORATION_EVENT: Final = "Collector::decorations_"

log = logging.getLogger("zeek_agent.collector")


def decoration_field(name: str) -> str:
    """The field for what a decorator calls `name`."""
    return f"{DECORATION}{_NO_NAME.sub('_', name)}"


@dataclass(frozen=True, slots=True)
class Log:
    """A log and the event whose rows it holds."""

    path: str
    event: str
    columns: tuple[FieldEntry, ...]
    change: bool
    may_end_early: bool = False
    """Whether agents that do not support batches send only the first columns."""
    removed: bool = True
    """Whether rows that are gone are logged."""
    result_name: str = ""
    """The name of its results in osquery's format."""
    is_snapshot: bool = False
    """Whether all of its queries report snapshots."""
    decorations: tuple[str, ...] = ()
    """The names of what decorators add to each line."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields as the log's header has them."""
        leading = (Field("t", "time"), Field("hid", "string"), Field("host", "string"))
        change = (Field("change", "string"),) if self.change else ()
        decorations = (Field(decoration_field(name), "string") for name in self.decorations)
        return (*leading, *change, *(Field(column.name, column.type) for column in self.columns), *decorations)

    @property
    def results(self) -> ResultNames:
        """Its names in osquery's format."""
        columns = tuple(column.key or column.name for column in self.columns)
        return ResultNames(self.result_name or self.path, columns, self.decorations, self.change, self.is_snapshot)


@dataclass(frozen=True, slots=True)
class Decorator:
    """A query whose only row is added to each line, and the event that carries the row."""

    event: str
    names: tuple[str, ...]
    query: Query


@dataclass(frozen=True, slots=True)
class PackQuery:
    """A query and its recipients: groups of agents, in lower case as Zeek sends them, or single hosts."""

    query: Query
    groups: tuple[str, ...]
    hosts: tuple[str, ...]
    shard: int | None = None
    """The percentage of agents that run it; None for all."""

    def is_for(self, agent_id: str) -> bool:
        """Whether the agent is one of the percentage that runs it."""
        return self.shard is None or int(hashlib.sha1(agent_id.encode()).hexdigest()[:8], 16) % 100 < self.shard


@dataclass(frozen=True, slots=True)
class Pack:
    """Logs by event name, the enabled queries, and decorators."""

    logs: Mapping[str, Log]
    queries: tuple[PackQuery, ...]
    decorators: tuple[Decorator, ...] = ()


def load_all(names: Sequence[str], *, schedule: float | None = None, is_logged: bool = True) -> Pack:
    """The packs in all files that these paths and patterns name, as one; without any, the default pack.

    `default` is the default pack, too. What is left out of osquery's packs is logged, if `is_logged`. Raises
    UsageError as `load`, and for two logs of one name.
    """
    if not names:
        return load(schedule=schedule)
    packs: dict[str, Pack] = {}
    for name in names:
        for path in [None] if name == DEFAULT_NAME else osquery_pack.expanded([name]):
            loaded = load(path, schedule=schedule, is_logged=is_logged)
            packs.setdefault(pack_file.DEFAULT if path is None else str(path), loaded)
    return _merged(packs)


def load(path: Path | None = None, *, schedule: float | None = None, is_logged: bool = True) -> Pack:
    """The pack in `path`, one of ours or of osquery, or the default one.

    `schedule` replaces that of all queries but event queries. Raises UsageError that names the file, the place in it
    and what is wrong.
    """
    if path is None or not osquery_pack.is_osquery(path):
        file, origin = pack_file.load(path)
    else:
        found = osquery_queries.load(path)
        file, origin = found.file, str(path)
        if is_logged:
            _log_omissions(path, found)
    return _checked(file, origin, schedule)


def _log_omissions(path: Path, found: osquery_queries.Translated) -> None:
    """Log what is left out of a pack of osquery, and what has no effect."""
    for notice in found.notices[:NOTICES_MAX]:
        log.warning("query pack %s: %s", path, notice)
    failed = [one for one in found.left_out if one.verdict is not Verdict.PLATFORM]
    for one in failed[:NOTICES_MAX]:
        log.warning("query pack %s: left out: %s", path, one)
    if found.left_out:
        notice = "query pack %s: %d queries, %d left out; `zeek-agent pack check` lists them"
        log.info(notice, path, len(found.file.queries), len(found.left_out))


def _merged(packs: Mapping[str, Pack]) -> Pack:
    """Several packs, by their names in errors, as one. Raises UsageError for two logs of one name or event."""
    logs: dict[str, Log] = {}
    owners: dict[str, str] = {}
    for origin, pack in packs.items():
        for event, zeek_log in pack.logs.items():
            for name in (zeek_log.path, event):
                if (other := owners.setdefault(name, origin)) != origin:
                    raise UsageError(f"{origin}: {other} has a log {zeek_log.path}, too")
            logs[event] = zeek_log
    queries = tuple(query for pack in packs.values() for query in pack.queries)
    decorators = tuple(decorator for pack in packs.values() for decorator in pack.decorators)
    try:
        return _decorated(logs, queries, decorators)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _decorated(logs: Mapping[str, Log], queries: tuple[PackQuery, ...], decorators: Iterable[Decorator]) -> Pack:
    """The pack, in which each decorator has an event of its own. The later of two values of one name is used.

    Raises ValueError if a log has a field of that name already.
    """
    numbered = tuple(
        replace(
            one, event=f"{_DECORATION_EVENT}{number}", query=replace(one.query, event=f"{_DECORATION_EVENT}{number}")
        )
        for number, one in enumerate(decorators)
    )
    names = tuple(dict.fromkeys(name for one in numbered for name in one.names))
    fields = [decoration_field(name) for name in names]
    for zeek_log in logs.values():
        taken = {column.name for column in zeek_log.columns}
        if clash := next((one for one in fields if one in taken or fields.count(one) > 1), None):
            raise ValueError(f"log {zeek_log.path}: decorators add a field {clash}, which there is already")
    return Pack({event: replace(one, decorations=names) for event, one in logs.items()}, queries, numbered)


def parse(text: str, origin: str, *, schedule: float | None = None) -> Pack:
    """Read a pack's text. Raises UsageError that begins with `origin`."""
    return _checked(pack_file.parse(text, origin), origin, schedule)


def check(file: PackFile) -> None:
    """Raises ValueError for the first thing that keeps the collector from using the pack."""
    _pack(file, pack_file.DEFAULT, None)


def _checked(file: PackFile, origin: str, schedule: float | None) -> Pack:
    try:
        return _pack(file, origin, schedule)
    except ValueError as error:
        raise UsageError(f"{origin}: {error}") from None


def _pack(file: PackFile, origin: str, schedule: float | None) -> Pack:
    logs: dict[str, Log] = {}
    columns = PackColumns(file)
    for path, entry in file.logs.items():
        if file.queries_for("zeek", path) and not file.queries_for("collector", path):
            continue
        fields = columns.fields(path, "collector")
        is_split = any(file.uses_batch_sql(query) for _, query in file.queries_for("collector", path))
        subscriptions = {query.subscription or file.subscription for _, query in file.queries_for("collector", path)}
        zeek_log = replace(
            _log(path, entry, fields, may_end_early=is_split),
            removed=entry.removed,
            result_name=entry.result_name,
            is_snapshot=subscriptions == {Subscription.SNAPSHOTS.value},
        )
        if zeek_log.event in logs:
            raise ValueError(f"logs {logs[zeek_log.event].path} and {path} use the same event {zeek_log.event}")
        logs[zeek_log.event] = zeek_log
    by_path = {zeek_log.path: zeek_log for zeek_log in logs.values()}
    enabled = [
        query
        for _, entry in file.queries_for("collector")
        if entry.enabled
        for query in _queries(file, entry, by_path[entry.log], schedule)
    ]
    if too_frequent := sum(one.query.is_too_frequent for one in enabled):
        notice = "%s: queries with a schedule below %g s will run every %g s: %d"
        log.warning(notice, origin, SCHEDULE_MIN_SECONDS, SCHEDULE_MIN_SECONDS, too_frequent)
    queries = tuple(replace(one, query=one.query.with_minimum_schedule()) for one in enabled)
    return _decorated(logs, queries, [_decorator(entry, file) for entry in file.decorators])


def _decorator(entry: DecoratorEntry, file: PackFile) -> Decorator:
    query = Query(entry.sql, "", dialect="osquery" if file.dialect == "osquery" else None)
    if entry.schedule:
        query = replace(query, schedule=entry.schedule, subscription=Subscription.SNAPSHOT_PLUS_DIFFERENCES)
    return Decorator("", entry.names, query.with_minimum_schedule())


def _log(path: str, entry: LogEntry, fields: tuple[FieldEntry, ...], *, may_end_early: bool) -> Log:
    event = entry.event or f"Collector::{path.replace('-', '_')}"
    zeek_log = Log(path, event, fields, entry.change, may_end_early)
    names = [field.name for field in fields]
    try:
        given_twice = {field.name for field in zeek_log.fields[: -len(names) or None]}.intersection(names)
    except ValueError as error:
        raise ValueError(f"logs.{path}: {error}") from None
    if given_twice:
        raise ValueError(f"logs.{path}: field {min(given_twice)}: every log already has a field of that name")
    return zeek_log


def _queries(file: PackFile, entry: QueryEntry, zeek_log: Log, schedule: float | None) -> list[PackQuery]:
    """The query as installed: one for all agents, or one for ours and one for those without batches."""
    basic = _query(file, entry, zeek_log, schedule)
    if entry.batch_sql is None or not file.uses_batch_sql(entry):
        return [basic]
    ours = replace(
        basic.query, sql=entry.batch_sql, requires_tables=basic.query.requires_tables | {pack_file.BATCHES_TABLE}
    )
    others = replace(basic.query, if_missing_tables=basic.query.if_missing_tables | {pack_file.BATCHES_TABLE})
    return [replace(basic, query=ours), replace(basic, query=others)]


def _query(file: PackFile, entry: QueryEntry, zeek_log: Log, schedule: float | None) -> PackQuery:
    subscription = Subscription(entry.subscription or file.subscription)
    own = file.schedule if entry.schedule is None else entry.schedule
    query = Query(
        sql=entry.sql,
        event=zeek_log.event,
        schedule=own if schedule is None or subscription is Subscription.EVENTS else schedule,
        subscription=subscription,
        requires_tables=frozenset(entry.requires_tables),
        if_missing_tables=frozenset(entry.if_missing_tables),
        dialect=file.dialect_of(entry),
    )
    groups = () if entry.hosts else tuple(group.lower() for group in entry.groups)
    return PackQuery(query, groups, entry.hosts, entry.shard)
