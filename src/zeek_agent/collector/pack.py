"""Query packs as the collector uses them: the queries that it installs, and the log of each result.

Every log begins with the fields `t hid host change`, as the logs of the Zeek Agent package do. How a pack is written:
`pack_file`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from zeek_agent.collector import pack_file
from zeek_agent.collector.columns import PackColumns
from zeek_agent.collector.log_formats import Field
from zeek_agent.collector.pack_file import FieldEntry, LogEntry, PackFile, QueryEntry
from zeek_agent.errors import UsageError
from zeek_agent.queries.subscriptions import SCHEDULE_MIN_SECONDS, Query, Subscription

log = logging.getLogger("zeek_agent.collector")


@dataclass(frozen=True, slots=True)
class Log:
    """A log and the event whose rows it holds."""

    path: str
    event: str
    columns: tuple[FieldEntry, ...]
    change: bool
    may_end_early: bool = False
    """Whether agents that do not support batches send only the first columns."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """All fields as the log's header has them."""
        leading = (Field("t", "time"), Field("hid", "string"), Field("host", "string"))
        change = (Field("change", "string"),) if self.change else ()
        return (*leading, *change, *(Field(column.name, column.type) for column in self.columns))


@dataclass(frozen=True, slots=True)
class PackQuery:
    """A query and its recipients: groups of agents, in lower case as Zeek sends them, or single hosts."""

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
    file, origin = pack_file.load(path)
    return _checked(file, origin, schedule)


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
        zeek_log = _log(path, entry, fields, may_end_early=is_split)
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
    return Pack(logs, tuple(replace(one, query=one.query.with_minimum_schedule()) for one in enabled))


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
    )
    groups = () if entry.hosts else tuple(group.lower() for group in entry.groups)
    return PackQuery(query, groups, entry.hosts)
