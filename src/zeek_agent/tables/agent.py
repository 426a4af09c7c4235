"""The agent itself: who it is, and how it fares."""

from __future__ import annotations

import platform
import re
import socket
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from zeek_agent import version_number
from zeek_agent.schema import Column, Row
from zeek_agent.table import Constraints, Table
from zeek_agent.text import from_bytes

_EVERYWHERE = ("linux", "darwin", "win32")

zeek_agent = Table(
    "zeek_agent",
    "this agent and its host",
    description="One row. Towards Zeek it is the agent's greeting.",
    columns=[
        Column("id", "text", "the agent's id, the same over restarts"),
        Column("instance", "text", "id of this run of the agent"),
        Column("hostname", "text", "the host's name"),
        Column("addresses", "set[address]", "the host's addresses, without loopback and link-local ones"),
        Column("platform", "text", "`Linux`, `Darwin` or `Windows`"),
        Column("os_name", "text", "name and version of the operating system"),
        Column("kernel_name", "text", "name of the kernel"),
        Column("kernel_version", "text", "the kernel's release"),
        Column("kernel_arch", "text", "the machine's architecture"),
        Column("agent_version", "count", "the agent's version: major·10⁸ + minor·10⁶ + patch·10⁴"),
        Column("uptime", "interval", "time since the agent started"),
        Column("tables", "set[text]", "names of the tables that can be queried now"),
    ],
    examples=["SELECT id, hostname, addresses, os_name FROM zeek_agent"],
    platforms=_EVERYWHERE,
)

zeek_agent_tables = Table(
    "zeek_agent_tables",
    "the tables that can be queried now",
    description="A row a table, those of plug-ins and bridges included.",
    columns=[
        Column("name", "text", "table's name"),
        Column("kind", "text", "`snapshot`: how things are now; `events`: what happened"),
        Column("summary", "text", "what a row is"),
        Column("columns", "vector[text]", "columns in order, as `name:type`"),
        Column("parameters", "vector[text]", "arguments in order, as `name:type`, with `=default` when optional"),
    ],
    examples=["SELECT name, summary FROM zeek_agent_tables ORDER BY name"],
    platforms=_EVERYWHERE,
)

zeek_agent_queries = Table(
    "zeek_agent_queries",
    "queries that are installed",
    description="A row for each query that a Zeek or a shell has installed, with what it did so far.",
    columns=[
        Column("id", "text", "id that its owner gave to the query"),
        Column("recipient", "text", "who gets the rows"),
        Column("sql", "text", "the statement"),
        Column("event", "text", "Zeek event that takes the rows"),
        Column("subscription", "text", "`Snapshots`, `Differences`, `SnapshotPlusDifferences`, `Events`; null: once"),
        Column("schedule", "interval", "time between runs, 50 ms at least; null: once"),
        Column("cookie", "text", "text that goes back with each row"),
        Column("state", "text", "`running`, `waiting` for tables that it requires, or `failing`"),
        Column("runs", "count", "how often it ran"),
        Column("rows", "count", "rows delivered"),
        Column("lost", "count", "events that were removed from the store before they could be delivered"),
        Column("errors", "count", "runs that ended in an error"),
        Column("last_run", "time", "when it last ran"),
        Column("last_duration", "interval", "how long the last run took"),
        Column("last_error", "text", "the last error"),
        Column("files_refused", "count", "files that the rules forbade to read in the last run"),
        Column("files_skipped", "count", "files that could not be read in the last run, or whose file system may hang"),
        Column("files_truncated", "count", "files of which only the beginning was read in the last run"),
        Column("files_causes", "vector[text]", "why files were left out in the last run"),
    ],
    examples=["SELECT id, state, runs, rows, last_duration, last_error FROM zeek_agent_queries"],
    platforms=_EVERYWHERE,
)

zeek_agent_sources = Table(
    "zeek_agent_sources",
    "sources of events and how they fare",
    description="A row for each backend of each source, also those that are not at work, with the reason.",
    columns=[
        Column("source", "text", "what is recorded: `processes`, `sockets`, …"),
        Column("backend", "text", "how: `ebpf`, `audit`, `proc_connector`, `inet_diag`, `snapshots`, …"),
        Column("active", "bool", "whether this backend is at work"),
        Column("reason", "text", "why it is not at work"),
        Column("received", "count", "events received since the agent started"),
        Column("lost_overrun", "count", "events lost because the kernel's buffer was full"),
        Column("lost_decode", "count", "events lost because they could not be understood"),
        Column("lost_store", "count", "events lost because the event store could not take them"),
        Column("last_error", "text", "the last error"),
    ],
    examples=["SELECT source, backend, reason FROM zeek_agent_sources WHERE NOT active"],
    platforms=_EVERYWHERE,
)

zeek_agent_gaps = Table(
    "zeek_agent_gaps",
    "times in which events were not recorded, or not all",
    description="A row for each known gap in the event tables: the agent did not run, a source failed or lost events.",
    columns=[
        Column("source", "text", "what was not recorded: `processes`, `sockets`, …"),
        Column("from", "time", "begin of the gap"),
        Column("until", "time", "end of the gap"),
        Column("cause", "text", "why"),
    ],
    examples=['SELECT source, "from", until, cause FROM zeek_agent_gaps'],
    platforms=_EVERYWHERE,
)

zeek_agent_connections = Table(
    "zeek_agent_connections",
    "connections to Zeek and how they fare",
    description="A row for each configured destination, connected or not. Counters run since the agent started.",
    columns=[
        Column("destination", "text", "URL, or `embedded` for the embedded collector"),
        Column("state", "text", "`connecting`, `connected`, `waiting` to try again after a failure, or `stopped`"),
        Column("since", "time", "since when it is in that state"),
        Column("endpoint", "text", "what Zeek calls its end of the connection"),
        Column("zeek_version", "text", "Zeek's version; Broker's over Broker's own server (packages up to 2.3)"),
        Column("instances", "count", "Zeek instances that were heard behind the connection"),
        Column("queries", "count", "queries that they have installed"),
        Column("queued_rows", "count", "rows that wait to be sent"),
        Column("unacknowledged_bytes", "count", "bytes that were sent and not yet acknowledged by a pong"),
        Column("window_bytes", "count", "bytes that may be sent without a pong"),
        Column("sent_rows", "count", "rows sent"),
        Column("sent_bytes", "count", "bytes sent"),
        Column("dropped_rows", "count", "rows that were given up"),
        Column("reconnects", "count", "how often the agent tried again"),
        Column("last_error", "text", "the last error"),
    ],
    examples=["SELECT destination, state, queued_rows, dropped_rows, last_error FROM zeek_agent_connections"],
    platforms=_EVERYWHERE,
)

zeek_agent_log = Table(
    "zeek_agent_log",
    "the agent's own log",
    description="The last entries, as many as `log.entries` says. A message of more than 4 KB is cut in the middle.",
    columns=[
        Column("time", "time", "when it was logged"),
        Column("level", "text", "`debug`, `info`, `warning`, `error` or `critical`"),
        Column("component", "text", "the agent's part that logged it"),
        Column("message", "text", "what it has to say"),
    ],
    examples=["SELECT time, component, message FROM zeek_agent_log WHERE level <> 'info'"],
    platforms=_EVERYWHERE,
)

zeek_agent_config = Table(
    "zeek_agent_config",
    "the agent's settings",
    description="A row a setting, with where its value comes from.",
    columns=[
        Column("name", "text", "setting's name, such as `zeek.destinations`"),
        Column("value", "text", "its value: text as it is, anything else as in TOML; null when not set"),
        Column("origin", "text", "`default`, or the file, environment variable or flag that sets it"),
        Column("default_value", "text", "value that it has when nothing sets it"),
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
        _addresses() if wanted.needs("addresses") else (),
        platform.system(),
        _os_name(),
        platform.system(),
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


def _addresses() -> list[str]:
    if hasattr(socket, "AF_NETLINK"):
        from zeek_agent.host.linux.interfaces import global_addresses

        return global_addresses()
    return _resolved_addresses()


def _resolved_addresses() -> list[str]:
    """The addresses that the host's own name resolves to, where no kernel interface is at hand."""
    import ipaddress

    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        return []
    addresses = [ipaddress.ip_address(text.partition("%")[0]) for text in found]
    return sorted(str(address) for address in addresses if not (address.is_loopback or address.is_link_local))


@cache
def _os_name() -> str:
    """The distribution's name for itself (os-release(5)), else what the platform says."""
    for file in ("/etc/os-release", "/usr/lib/os-release"):
        try:
            content = from_bytes(Path(file).read_bytes())
        except OSError:
            continue
        if name := re.search(r"^PRETTY_NAME=(.*)$", content, re.MULTILINE):
            return name[1].strip().strip("\"'")
    return platform.platform(terse=True)


TABLES = (
    zeek_agent,
    zeek_agent_tables,
    zeek_agent_queries,
    zeek_agent_sources,
    zeek_agent_gaps,
    zeek_agent_connections,
    zeek_agent_log,
    zeek_agent_config,
)
