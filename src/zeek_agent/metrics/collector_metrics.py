"""The metrics of a collector, which is part of an agent or a program of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zeek_agent.metrics.exposition import Exposition, Families

if TYPE_CHECKING:
    from zeek_agent.collector.stats import CollectorStats

FAMILIES: Final = Families()
"""Of a collector."""

_AGENTS = FAMILIES.gauge("zeek_agent_collector_agents", "agents that said hello and have not left")
_CONNECTIONS = FAMILIES.gauge("zeek_agent_collector_connections", "open connections of agents")
_CONNECTED = FAMILIES.gauge("zeek_agent_collector_connected_agents", "agents with an open connection")
_HOSTS = FAMILIES.gauge(
    "zeek_agent_collector_hosts", "remembered hosts: `connected`, `away`, `shutdown`, `offline`", ("state",)
)
_HOSTS_EVICTED = FAMILIES.counter(
    "zeek_agent_collector_hosts_evicted_total", "hosts forgotten because there were more than `collector.hosts_max`"
)
_HOSTS_UNREMEMBERED = FAMILIES.counter(
    "zeek_agent_collector_hosts_unremembered_total", "hellos of hosts without room, because all others are connected"
)
_HOSTS_ERRORS = FAMILIES.counter("zeek_agent_collector_hosts_errors_total", "failed writes of the hosts")
_CONFLICTS = FAMILIES.counter(
    "zeek_agent_collector_conflicts_total", "connections with an agent id in use, that were refused or replaced another"
)
_UNREAD = FAMILIES.gauge("zeek_agent_collector_unread_bytes", "unread bytes of connections beyond their allowance")
_MESSAGES = FAMILIES.counter("zeek_agent_collector_messages_total", "messages received")
_ROWS = FAMILIES.counter("zeek_agent_collector_rows_total", "rows received")
_REFUSED = FAMILIES.counter("zeek_agent_collector_refused_total", "connections refused")
_IGNORED = FAMILIES.counter("zeek_agent_collector_ignored_total", "messages ignored because they were invalid")
_AGENT_ERRORS = FAMILIES.counter("zeek_agent_collector_agent_errors_total", "errors that agents reported")
_DISK_ERRORS = FAMILIES.counter("zeek_agent_collector_disk_errors_total", "failed writes of logs")
_DISK_FAILING = FAMILIES.gauge("zeek_agent_collector_disk_failing", "1 while the logs cannot be written")
_LOG_ROWS = FAMILIES.counter("zeek_agent_collector_log_rows_total", "rows written to a log", ("log",))
_LOG_DROPPED = FAMILIES.counter(
    "zeek_agent_collector_log_dropped_total", "rows lost as the log was not writable", ("log",)
)
_STORED = FAMILIES.gauge("zeek_agent_collector_stored_bytes", "size of all logs, rotated ones included")
_STORED_LIMIT = FAMILIES.gauge("zeek_agent_collector_stored_limit_bytes", "their limit; 0: none")
_ROTATED = FAMILIES.gauge("zeek_agent_collector_rotated_logs", "rotated logs")
_COMPRESSED = FAMILIES.counter("zeek_agent_collector_compressed_logs_total", "rotated logs compressed")
_COMPRESSION_ERRORS = FAMILIES.counter(
    "zeek_agent_collector_compression_errors_total", "failed attempts to compress a rotated log"
)
_REMOVED = FAMILIES.counter(
    "zeek_agent_collector_removed_logs_total", "rotated logs removed, by cause: `age` or total `size`", ("cause",)
)
_REMOVED_BYTES = FAMILIES.counter("zeek_agent_collector_removed_logs_bytes_total", "size of the removed logs")


def collector_text(stats: CollectorStats) -> str:
    """The metrics of a collector that is a program of its own."""
    exposition = Exposition(FAMILIES)
    add_collector(exposition, stats)
    return exposition.text()


def add_collector(exposition: Exposition, stats: CollectorStats) -> None:
    """Add a collector's figures."""
    exposition.add(_CONNECTIONS, stats.connections)
    exposition.add(_CONNECTED, len(stats.connected))
    exposition.add(_AGENTS, sum(agent.state not in ("shutdown", "offline") for agent in stats.agents))
    for state, number in stats.hosts.items():
        exposition.add(_HOSTS, number, state)
    exposition.add(_HOSTS_EVICTED, stats.hosts_evicted)
    exposition.add(_HOSTS_UNREMEMBERED, stats.hosts_unremembered)
    exposition.add(_HOSTS_ERRORS, stats.hosts_errors)
    exposition.add(_CONFLICTS, stats.conflicts)
    exposition.add(_UNREAD, stats.unread_bytes)
    exposition.add(_MESSAGES, stats.messages)
    exposition.add(_ROWS, stats.rows)
    exposition.add(_REFUSED, stats.refused)
    exposition.add(_IGNORED, stats.ignored)
    exposition.add(_AGENT_ERRORS, stats.agent_errors)
    exposition.add(_DISK_ERRORS, stats.disk_errors)
    exposition.add(_DISK_FAILING, stats.disk_error is not None)
    for log in stats.logs:
        exposition.add(_LOG_ROWS, log.rows, log.path)
        exposition.add(_LOG_DROPPED, log.dropped, log.path)
    if archive := stats.archive:
        exposition.add(_STORED, archive.stored_bytes)
        exposition.add(_STORED_LIMIT, archive.limit_bytes)
        exposition.add(_ROTATED, archive.files)
        exposition.add(_COMPRESSED, archive.compressed)
        exposition.add(_COMPRESSION_ERRORS, archive.compression_errors)
        exposition.add(_REMOVED, archive.removed_by_age, "age")
        exposition.add(_REMOVED, archive.removed_by_size, "size")
        exposition.add(_REMOVED_BYTES, archive.removed_bytes)
