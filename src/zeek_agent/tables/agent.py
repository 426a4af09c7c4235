"""The agent's own tables: identity, status and settings."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator

from zeek_agent import platforms, version_number
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table

_EVERYWHERE = ("linux", "darwin", "win32")

zeek_agent = Table(
    "zeek_agent",
    "this agent and its host",
    description=(
        "One row. The agent's hello message to Zeek contains it, and is sent again within two seconds when the host "
        "name, the addresses or the tables change."
    ),
    columns=[
        Column("id", "text", "the agent's id, unchanged by restarts"),
        Column("instance", "text", "id of this run of the agent"),
        Column("hostname", "text", "the host's name at this moment, or the one set as `agent.hostname`"),
        Column("addresses", "set[address]", "the host's addresses, except loopback and link-local ones"),
        Column("platform", "text", "`Linux`, `Darwin` or `Windows`"),
        Column("os_name", "text", "name and version of the operating system"),
        Column("kernel_name", "text", "name of the kernel"),
        Column("kernel_version", "text", "kernel release"),
        Column("kernel_arch", "text", "machine architecture"),
        Column("agent_version", "count", "the agent's version: major·10⁸ + minor·10⁶ + patch·10⁴"),
        Column("uptime", "interval", "time since the agent started"),
        Column("tables", "set[text]", "names of the tables available for queries"),
    ],
    examples=["SELECT id, hostname, addresses, os_name FROM zeek_agent"],
    platforms=_EVERYWHERE,
)

zeek_agent_tables = Table(
    "zeek_agent_tables",
    "tables available for queries",
    description="One row per table, including tables of plug-ins and bridges.",
    columns=[
        Column("name", "text", "name of the table"),
        Column("kind", "text", "`snapshot`: current state; `events`: recorded events; `view`: made of recorded events"),
        Column("summary", "text", "meaning of a row"),
        Column("columns", "vector[text]", "columns in order, as `name:type`"),
        Column("parameters", "vector[text]", "arguments in order, as `name:type`, with `=default` when optional"),
    ],
    examples=["SELECT name, summary FROM zeek_agent_tables ORDER BY name"],
    platforms=_EVERYWHERE,
)

zeek_agent_queries = Table(
    "zeek_agent_queries",
    "installed queries",
    description="One row per query that a Zeek or a shell has installed, with its counters.",
    columns=[
        Column("id", "text", "id that the owner assigned to the query"),
        Column("recipient", "text", "recipient of the rows"),
        Column("sql", "text", "the statement"),
        Column("event", "text", "Zeek event that receives the rows"),
        Column(
            "subscription",
            "text",
            "`Snapshots`, `Differences`, `SnapshotPlusDifferences` or `Events`; null for a one-time query",
        ),
        Column("schedule", "interval", "time between runs, at least 50 ms; null for a one-time query"),
        Column("cookie", "text", "text that is returned with each row"),
        Column("state", "text", "`running`, `waiting` for tables that it requires, or `failing`"),
        Column("runs", "count", "number of runs"),
        Column("rows", "count", "rows delivered"),
        Column("lost", "count", "events that were removed from the store before they could be delivered"),
        Column("errors", "count", "runs that failed"),
        Column("last_run", "time", "time of the last run"),
        Column("last_duration", "interval", "duration of the last run"),
        Column("last_error", "text", "the last error"),
        Column("files_refused", "count", "files that the access rules denied in the last run"),
        Column(
            "files_skipped", "count", "files skipped in the last run: unreadable, or on a file system that may hang"
        ),
        Column("files_truncated", "count", "files truncated in the last run"),
        Column("files_causes", "vector[text]", "why files were refused, skipped or truncated in the last run"),
        Column("killed", "count", "runs that ended with the death of their worker process", added=True),
        Column(
            "resting_until",
            "time",
            "time before which the query is not run because it ended its worker process; null if it may run",
            added=True,
        ),
        Column("cpu", "interval", "processor time of its runs in worker processes", added=True),
        Column(
            "peak_bytes",
            "count",
            "maximum memory of a worker process up to the end of one of its runs; an earlier statement of the same "
            "recipient may have used it",
            added=True,
        ),
        Column("dialect", "text", "dialect of the statement, such as `osquery`; null for the agent's own", added=True),
    ],
    examples=["SELECT id, state, runs, rows, last_duration, last_error FROM zeek_agent_queries"],
    platforms=_EVERYWHERE,
)

zeek_agent_workers = Table(
    "zeek_agent_workers",
    "worker processes, in which statements and the embedded collector run",
    description="One row per worker process, with the protections that hold in it. An idle worker ends after 20 "
    "seconds. The embedded collector is always busy.",
    columns=[
        Column("recipient", "text", "destination or local user whose statements it runs"),
        Column("class", "text", "`events`, `snapshots`, `collector` or `helper`"),
        Column("pid", "count", "process id"),
        Column(
            "state",
            "text",
            "`starting`, `idle`, `busy`, or `abandoned`: it was killed, and waits in the kernel for a file system",
        ),
        Column("since", "time", "when it entered that state"),
        Column("statements", "count", "statements that it has compiled or run"),
        Column("cpu", "interval", "processor time"),
        Column("resident_bytes", "count", "resident memory"),
        Column("peak_bytes", "count", "maximum of its resident memory"),
        Column("uid", "count", "user that it runs as; this and the rest are null until it has started"),
        Column("capabilities", "vector[text]", "its capabilities"),
        Column("seccomp", "count", "mode of its system call filter: 2, or 0 if the kernel has none"),
        Column("landlock_abi", "count", "version of Landlock that restricts it; 0 if none does"),
        Column("missing", "vector[text]", "protections that this host cannot give it, with the reason"),
    ],
    examples=["SELECT recipient, class, state, statements, cpu, resident_bytes, missing FROM zeek_agent_workers"],
    platforms=("linux",),
)

zeek_agent_sources = Table(
    "zeek_agent_sources",
    "event sources and their status",
    description="One row per backend of each source. For inactive backends it gives the reason.",
    columns=[
        Column("source", "text", "kind of events: `processes`, `sockets`, …"),
        Column("backend", "text", "recording method: `ebpf`, `audit`, `proc_connector`, `inet_diag`, `snapshots`, …"),
        Column("active", "bool", "whether this backend is active"),
        Column("reason", "text", "why it is inactive; `experimental` and what that means if it is active all the same"),
        Column("received", "count", "events received since the agent started"),
        Column(
            "lost_overrun",
            "count",
            "events lost because the kernel's buffer was full; on Windows, how often records were overwritten",
        ),
        Column("lost_decode", "count", "events lost because they could not be decoded"),
        Column("lost_store", "count", "events lost because the event store could not accept them"),
        Column(
            "evicted",
            "count",
            "events removed from the store before `events.retention_age` because it was full; see `zeek_agent_gaps`",
        ),
        Column("last_error", "text", "the last error"),
    ],
    examples=["SELECT source, backend, reason FROM zeek_agent_sources WHERE NOT active"],
    platforms=_EVERYWHERE,
)

zeek_agent_gaps = Table(
    "zeek_agent_gaps",
    "periods with missing events",
    description=(
        "One row per known gap in the event tables: the agent was down (`source` is `agent`), a source failed or lost "
        "events, or the store was full. A gap covers everything that can be missing, so some events of the period may "
        "be there. In the last case the cause begins with `retention` and names the producer of the removed events, "
        "and other events of the period are still there."
    ),
    columns=[
        Column("source", "text", "kind of events that are missing: `processes`, `sockets`, …"),
        Column("from", "time", "start of the gap"),
        Column("until", "time", "end of the gap"),
        Column("cause", "text", "cause of the gap"),
    ],
    examples=['SELECT source, "from", until, cause FROM zeek_agent_gaps'],
    platforms=_EVERYWHERE,
)

zeek_agent_connections = Table(
    "zeek_agent_connections",
    "connections to Zeek and their status",
    description=(
        "One row per configured destination, connected or not. A bus has one row per Zeek cluster with which the agent "
        "has had a session, and one for itself while there is no session. Counters start when the agent starts."
    ),
    columns=[
        Column("destination", "text", "URL, `embedded` for the embedded collector, or `nats:CLUSTER`"),
        Column(
            "state",
            "text",
            "`connecting`, `connected`, `waiting` after a failure or while a gateway has no Zeek, or `stopped`",
        ),
        Column("since", "time", "when it entered that state"),
        Column("endpoint", "text", "Zeek's name for its side of the connection"),
        Column(
            "zeek_version",
            "text",
            "Zeek's version; Broker's version if connected to Broker's own server (packages up to 2.3); null if "
            "connected to a collector",
        ),
        Column("instances", "count", "Zeek instances reached through the connection"),
        Column("queries", "count", "queries installed by these instances"),
        Column("queued_rows", "count", "rows waiting to be sent"),
        Column("unacknowledged_bytes", "count", "bytes sent but not yet acknowledged by a pong or a gateway"),
        Column("window_bytes", "count", "limit on unacknowledged bytes; on the bus, on what is sent without a grant"),
        Column("sent_rows", "count", "rows sent"),
        Column("sent_bytes", "count", "bytes sent"),
        Column("dropped_rows", "count", "rows discarded"),
        Column("reconnects", "count", "number of reconnection attempts"),
        Column("last_error", "text", "the last error"),
    ],
    examples=["SELECT destination, state, queued_rows, dropped_rows, last_error FROM zeek_agent_connections"],
    platforms=_EVERYWHERE,
)

zeek_agent_log = Table(
    "zeek_agent_log",
    "the agent's own log",
    description="The most recent entries, up to `log.entries`. A message of more than 4 KB is truncated in the middle.",
    columns=[
        Column("time", "time", "time of the entry"),
        Column("level", "text", "`debug`, `info`, `warning`, `error` or `critical`"),
        Column("component", "text", "component of the agent that logged it"),
        Column("message", "text", "the message"),
    ],
    examples=["SELECT time, component, message FROM zeek_agent_log WHERE level <> 'info'"],
    platforms=_EVERYWHERE,
)

zeek_agent_config = Table(
    "zeek_agent_config",
    "the agent's settings",
    description="One row per setting, with the origin of its value.",
    columns=[
        Column("name", "text", "name of the setting, such as `zeek.destinations`"),
        Column("value", "text", "its value: text verbatim, anything else as TOML; null if not set"),
        Column("origin", "text", "`default`, or the file, environment variable or flag that sets it"),
        Column("default_value", "text", "default value"),
    ],
    examples=["SELECT name, value, origin FROM zeek_agent_config WHERE origin <> 'default'"],
    platforms=_EVERYWHERE,
)


@zeek_agent.snapshot
def this_agent(wanted: Constraints) -> Iterator[Row]:
    agent = wanted.context.agent
    yield (
        agent.id,
        agent.instance,
        agent.hostname,
        _addresses(wanted.context.platform.group) if wanted.needs("addresses") else (),
        platforms.HERE.name,
        platforms.HERE.os_name(),
        platforms.HERE.kernel_name,
        platform.release(),
        platform.machine(),
        version_number(),
        agent.uptime(),
        sorted(table.name for table in agent.tables()),
    )


@zeek_agent_tables.snapshot
def tables(wanted: Constraints) -> Iterator[Row]:
    for table in wanted.context.agent.tables():
        yield (
            table.name,
            table.kind,
            table.summary,
            [f"{column.name}:{column.type}" for column in table.columns],
            [
                f"{parameter.name}:{parameter.type}" + ("" if parameter.default is None else f"={parameter.default}")
                for parameter in table.parameters
            ],
        )


@zeek_agent_queries.snapshot
def queries(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.queries()


@zeek_agent_workers.snapshot
def workers(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.workers()


@zeek_agent_sources.snapshot
def sources(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.sources()


@zeek_agent_gaps.snapshot
def gaps(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.gaps()


@zeek_agent_connections.snapshot
def connections(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.connections()


@zeek_agent_log.snapshot
def log(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.log()


@zeek_agent_config.snapshot
def config(wanted: Constraints) -> Iterable[Row]:
    return wanted.context.agent.config()


def _addresses(group: str) -> list[str]:
    if group == "linux":
        from zeek_agent.host.linux.interfaces import global_addresses

        return global_addresses()
    from zeek_agent.host.portable import network_interfaces

    return network_interfaces.global_addresses()


TABLES = (
    zeek_agent,
    zeek_agent_tables,
    zeek_agent_queries,
    zeek_agent_workers,
    zeek_agent_sources,
    zeek_agent_gaps,
    zeek_agent_connections,
    zeek_agent_log,
    zeek_agent_config,
)
