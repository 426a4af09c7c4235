"""osquery's tables about itself, answered about this agent."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from zeek_agent.errors import AccessDeniedError
from zeek_agent.host.linux.machine import host_uuid
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, LookupTable, Table
from zeek_agent.tables.agent import zeek_agent_config, zeek_agent_queries, zeek_agent_sources
from zeek_agent.tables.osquery._declaration import osquery_table

DIALECT: Final = "5.23.1"
"""The release of osquery whose tables these are."""

_NEVER: Final = "always empty: the agent has none"
_UNKNOWN: Final = "always null: the agent does not measure it"
_POSIX_AND_LINUX: Final = 9
_NO_WATCHER: Final = -1

osquery_info = osquery_table(
    "osquery_info",
    "this agent, as osquery describes itself",
    description="One row. `version` is the release of osquery whose tables the agent has; its own is in `zeek_agent`.",
    columns=[
        Column("pid", "int", "the agent's main process"),
        Column("uuid", "text", "as in `system_info`", collation="nocase"),
        Column("instance_id", "text", "id of this run of the agent"),
        Column("version", "text", f"always `{DIALECT}`", collation="version"),
        Column("config_hash", "text", "always empty", collation="nocase"),
        Column("config_valid", "int", "always 1: the agent does not start with an invalid configuration"),
        Column("extensions", "text", "always `inactive`"),
        Column("build_platform", "text", "always `linux`"),
        Column("build_distro", "text", "always empty"),
        Column("start_time", "int", "when the agent started, in seconds since the epoch"),
        Column("watcher", "int", "always -1"),
        Column("platform_mask", "int", "always 9: POSIX and Linux"),
    ],
    examples=["SELECT pid, uuid, version, start_time FROM osquery_info"],
)

osquery_flags = osquery_table(
    "osquery_flags",
    "the agent's settings",
    description="One row per setting of this agent, as in `zeek_agent_config`. It has none of osquery's flags.",
    columns=[
        Column("name", "text", "name of the setting, such as `limits.time`"),
        Column("type", "text", "`bool`, `string`, or null for others"),
        Column("description", "text", "always empty"),
        Column("default_value", "text", "default value"),
        Column("value", "text", "value"),
        Column("shell_only", "int", "always 0"),
    ],
    examples=["SELECT name, value FROM osquery_flags WHERE value <> default_value"],
)

osquery_schedule = osquery_table(
    "osquery_schedule",
    "the agent's scheduled queries",
    description="One row per query with a schedule, as in `zeek_agent_queries`.",
    columns=[
        Column("name", "text", "id that the owner assigned to the query"),
        Column("query", "text", "the statement"),
        Column("interval", "int", "seconds between runs, rounded up"),
        Column("executions", "int", "number of runs"),
        Column("last_executed", "int", "time of the last run; 0 before the first"),
        Column("denylisted", "int", "1 if it is not run for now because it ended its worker process"),
        Column("output_size", "int", _UNKNOWN),
        Column("wall_time", "int", _UNKNOWN),
        Column("wall_time_ms", "int", _UNKNOWN),
        Column("last_wall_time_ms", "int", "duration of the last run in milliseconds"),
        Column("user_time", "int", "CPU time of all runs in milliseconds, including that in the kernel"),
        Column("last_user_time", "int", _UNKNOWN),
        Column("system_time", "int", _UNKNOWN),
        Column("last_system_time", "int", _UNKNOWN),
        Column("average_memory", "int", _UNKNOWN),
        Column("last_memory", "int", _UNKNOWN),
        Column("blacklisted", "int", "the same as `denylisted`", hidden=True),
    ],
    examples=["SELECT name, interval, executions, denylisted FROM osquery_schedule"],
)

osquery_packs = osquery_table(
    "osquery_packs",
    "packs of osquery that the agent runs",
    description="Always empty: queries that come from a pack are in `osquery_schedule`.",
    columns=[
        *(Column(name, "text", _NEVER) for name in ("name", "platform")),
        Column("version", "text", _NEVER, collation="version"),
        *(Column(name, "int", _NEVER) for name in ("shard", "discovery_cache_hits", "discovery_executions", "active")),
    ],
    examples=["SELECT name, active FROM osquery_packs"],
)

osquery_events = osquery_table(
    "osquery_events",
    "event sources and event tables",
    description=(
        "One row per backend of an event source, with the type `publisher`, and one per event table of an active one, "
        "with the type `subscriber`. `zeek_agent_sources` has more."
    ),
    columns=[
        Column("name", "text", "backend with its source, such as `processes.ebpf`; or the event table"),
        Column("publisher", "text", "backend with its source"),
        Column("type", "text", "`publisher` or `subscriber`"),
        Column("subscriptions", "int", "1 if it is active, else 0"),
        Column("events", "int", "events received since the agent started"),
        Column("refreshes", "int", "always 0"),
        Column("active", "int", "1 if it is active, else 0"),
    ],
    examples=["SELECT name, events FROM osquery_events WHERE type = 'subscriber'"],
)

osquery_extensions = osquery_table(
    "osquery_extensions",
    "extensions of osquery that the agent has loaded",
    description="Always empty.",
    columns=[
        Column("uuid", "int", _NEVER),
        Column("name", "text", _NEVER),
        *(Column(name, "text", _NEVER, collation="version") for name in ("version", "sdk_version")),
        *(Column(name, "text", _NEVER) for name in ("path", "type")),
    ],
    examples=["SELECT name FROM osquery_extensions"],
)

osquery_registry = osquery_table(
    "osquery_registry",
    "tables of osquery that can be asked",
    description="One row per table of osquery, whether it is the agent's or that of an osquery on the host.",
    columns=[
        Column("registry", "text", "always `table`"),
        Column("name", "text", "osquery's name of the table"),
        Column("owner_uuid", "int", "always 0"),
        Column("internal", "int", "always 0"),
        Column("active", "int", "always 1"),
    ],
    examples=["SELECT name FROM osquery_registry WHERE registry = 'table'"],
)


@osquery_info.snapshot
def this_agent(wanted: Constraints) -> Iterator[Row]:
    context = wanted.context
    agent = context.agent
    started = int(context.clock() - agent.uptime())
    uuid = host_uuid(agent.id)
    yield (
        agent.pid,
        uuid,
        agent.instance,
        DIALECT,
        "",
        1,
        "inactive",
        "linux",
        "",
        started,
        _NO_WATCHER,
        _POSIX_AND_LINUX,
    )


@osquery_flags.snapshot
def flags(wanted: Constraints) -> Iterator[Row]:
    for setting in _rows(zeek_agent_config, wanted, "name", "value", "default_value"):
        value = setting["value"]
        kind = "bool" if value in {"true", "false"} else None if value is None else "string"
        yield setting["name"], kind, "", setting["default_value"], value, 0


@osquery_schedule.snapshot
def schedule(wanted: Constraints) -> Iterator[Row]:
    shown = ("id", "schedule", "sql", "runs", "last_run", "last_duration", "cpu", "resting_until")
    for query in _rows(zeek_agent_queries, wanted, *shown):
        if query["schedule"] is None:
            continue
        duration, cpu = query["last_duration"], query["cpu"]
        is_resting = int((query["resting_until"] or 0) > time.time())
        yield (
            query["id"],
            query["sql"],
            -int(-query["schedule"] // 1),
            query["runs"],
            int(query["last_run"] or 0),
            is_resting,
            *(None,) * 3,
            None if duration is None else round(duration * 1_000),
            None if cpu is None else round(cpu * 1_000),
            *(None,) * 5,
            is_resting,
        )


@osquery_packs.snapshot
@osquery_extensions.snapshot
def nothing(wanted: Constraints) -> Iterator[Row]:
    return iter(())


@osquery_events.snapshot
def events(wanted: Constraints) -> Iterator[Row]:
    tables = {table.name for table in wanted.context.agent.tables() if table.kind == "events"}
    for source in _rows(zeek_agent_sources, wanted, "source", "backend", "active", "received"):
        publisher, table, active = (
            f"{source['source']}.{source['backend']}",
            f"{source['source']}_events",
            source["active"],
        )
        received = source["received"] or 0
        yield publisher, publisher, "publisher", int(active), received, 0, int(active)
        if active and table in tables:
            yield table, publisher, "subscriber", 1, received, 0, 1


@osquery_registry.snapshot
def registry(wanted: Constraints) -> Iterator[Row]:
    tables = (table for table in wanted.context.agent.tables() if isinstance(table, LookupTable))
    for name in sorted({table.osquery_name for table in tables if table.osquery_name is not None}):
        yield "table", name, 0, 0, 1


def _rows(table: Table, wanted: Constraints, *shown: str) -> Iterator[Mapping[str, Any]]:
    """The rows of the agent's table whose columns `shown` a table of osquery shows.

    Raises AccessDeniedError if rules deny that table or one of these columns.
    """
    access = wanted.context.access
    denied_by = access.denied_by(table.name)
    if denied_by is not None:
        raise AccessDeniedError(f"table {table.name}, whose rows these are, may not be queried ({denied_by})")
    withheld = access.withheld(shown, table.name)
    if withheld:
        denied = f"{table.name}.{min(withheld)}"
        raise AccessDeniedError(f"column {denied}, which these rows show, may not be queried (access.columns_deny)")
    names = [column.name for column in table.columns]
    return (dict(zip(names, row, strict=True)) for row in table.rows(wanted))


TABLES = (
    osquery_info,
    osquery_flags,
    osquery_schedule,
    osquery_packs,
    osquery_events,
    osquery_extensions,
    osquery_registry,
)
