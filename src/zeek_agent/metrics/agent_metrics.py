"""The metrics of a running agent: what the tables `zeek_agent_*` and `zeek-agent status` show, as numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zeek_agent.metrics import collector_metrics
from zeek_agent.metrics.exposition import Exposition, Families, Sums

if TYPE_CHECKING:
    from zeek_agent.collector.stats import CollectorStats
    from zeek_agent.containment.pool import WorkerStatus
    from zeek_agent.events.event_file import Gap
    from zeek_agent.events.store import TableCounters
    from zeek_agent.queries.installed import QueryStatus
    from zeek_agent.recording.status import SourceStatus
    from zeek_agent.zeek.lasting_connection import ConnectionStatus

FAMILIES: Final = Families()
"""Of an agent; an embedded collector adds its own."""

_INFO = FAMILIES.gauge("zeek_agent_info", "always 1; the labels describe the agent", ("version", "id", "hostname"))
_UPTIME = FAMILIES.gauge("zeek_agent_uptime_seconds", "time since the agent started")
_START = FAMILIES.gauge("zeek_agent_start_timestamp_seconds", "when the agent started")
_CPU = FAMILIES.counter("zeek_agent_cpu_seconds_total", "processor time of the main process")
_RESIDENT = FAMILIES.gauge("zeek_agent_resident_bytes", "resident memory of the main process")

_SOURCE_ACTIVE = FAMILIES.gauge(
    "zeek_agent_source_active", "1 if events are recorded with this backend", ("source", "backend")
)
_SOURCE_EVENTS = FAMILIES.counter("zeek_agent_source_events_total", "events received", ("source", "backend"))
_SOURCE_LOST = FAMILIES.counter(
    "zeek_agent_source_lost_total",
    "events lost, by cause: `overrun` of the kernel's buffer, `decode`, `store`",
    ("source", "backend", "cause"),
)
_GAPS = FAMILIES.gauge("zeek_agent_gaps", "periods with missing events that are remembered", ("source",))
_GAP_END = FAMILIES.gauge("zeek_agent_last_gap_end_timestamp_seconds", "when the newest of them ended", ("source",))

_CONNECTION_UP = FAMILIES.gauge("zeek_agent_connection_up", "1 while connected", ("destination",))
_CONNECTION_SINCE = FAMILIES.gauge(
    "zeek_agent_connection_since_timestamp_seconds", "when that changed last", ("destination",)
)
_INSTANCES = FAMILIES.gauge(
    "zeek_agent_connection_instances", "Zeek instances reached through the connection", ("destination",)
)
_CONNECTION_QUERIES = FAMILIES.gauge(
    "zeek_agent_connection_queries", "queries installed over the connection", ("destination",)
)
_QUEUED_ROWS = FAMILIES.gauge("zeek_agent_connection_queued_rows", "rows waiting to be sent", ("destination",))
_UNACKNOWLEDGED = FAMILIES.gauge(
    "zeek_agent_connection_unacknowledged_bytes", "bytes sent but not acknowledged", ("destination",)
)
_WINDOW = FAMILIES.gauge("zeek_agent_connection_window_bytes", "limit on unacknowledged bytes", ("destination",))
_SENT_ROWS = FAMILIES.counter("zeek_agent_connection_sent_rows_total", "rows sent", ("destination",))
_SENT_BYTES = FAMILIES.counter("zeek_agent_connection_sent_bytes_total", "bytes sent", ("destination",))
_DROPPED_ROWS = FAMILIES.counter("zeek_agent_connection_dropped_rows_total", "rows discarded", ("destination",))
_NOT_DELIVERED = FAMILIES.counter(
    "zeek_agent_connection_lost_events_total",
    "events removed from the store before they were delivered to a query of the destination",
    ("destination",),
)
_RECONNECTS = FAMILIES.counter("zeek_agent_connection_reconnects_total", "attempts to reconnect", ("destination",))

QUERIES_MAX: Final = 1_000
"""Queries with metrics of their own; bounds the answer's size, and what it costs Prometheus."""
_QUERIES_OMITTED = FAMILIES.gauge(
    "zeek_agent_queries_omitted", f"queries without metrics of their own: those beyond the first {QUERIES_MAX:,}"
)
_QUERY: Final = ("recipient", "event", "query")
_QUERY_STATE = FAMILIES.gauge("zeek_agent_query_state", "1 for the state that the query is in", (*_QUERY, "state"))
_QUERY_RUNS = FAMILIES.counter("zeek_agent_query_runs_total", "runs", _QUERY)
_QUERY_ROWS = FAMILIES.counter("zeek_agent_query_rows_total", "rows delivered", _QUERY)
_QUERY_LOST = FAMILIES.counter(
    "zeek_agent_query_lost_total", "events removed from the store before they were delivered", _QUERY
)
_QUERY_ERRORS = FAMILIES.counter("zeek_agent_query_errors_total", "runs that failed", _QUERY)
_QUERY_KILLED = FAMILIES.counter("zeek_agent_query_killed_total", "runs that ended with their worker process", _QUERY)
_QUERY_CPU = FAMILIES.counter("zeek_agent_query_cpu_seconds_total", "processor time of its runs", _QUERY)
_QUERY_LAST = FAMILIES.gauge("zeek_agent_query_last_run_timestamp_seconds", "time of the last run", _QUERY)
_QUERY_DURATION = FAMILIES.gauge("zeek_agent_query_last_duration_seconds", "duration of the last run", _QUERY)
_QUERY_RESTING = FAMILIES.gauge(
    "zeek_agent_query_resting",
    "1 while the query is not run because it ended its worker process",
    _QUERY,
)
_QUERY_PEAK = FAMILIES.gauge(
    "zeek_agent_query_peak_bytes", "maximum memory of a worker process at the end of its runs", _QUERY
)
_QUERY_FILES = FAMILIES.gauge(
    "zeek_agent_query_files",
    "files not or not wholly read in the last run: `refused`, `skipped`, `truncated`",
    (*_QUERY, "outcome"),
)

_WORKERS = FAMILIES.gauge("zeek_agent_workers", "worker processes", ("class", "state"))
_WORKERS_RESIDENT = FAMILIES.gauge("zeek_agent_workers_resident_bytes", "their resident memory", ("class",))
_WORKERS_KILLED = FAMILIES.counter("zeek_agent_workers_killed_total", "worker processes killed or lost", ("cause",))
_WORKERS_ABANDONED = FAMILIES.counter(
    "zeek_agent_workers_abandoned_total", "worker processes that did not end when they were killed"
)
_ZYGOTE_STARTS = FAMILIES.counter(
    "zeek_agent_zygote_starts_total", "starts of the process from which workers are forked"
)

_STORED = FAMILIES.counter("zeek_agent_store_rows_total", "events stored", ("table",))
_STORE_LOST = FAMILIES.counter(
    "zeek_agent_store_lost_total",
    "events not stored, by cause: `store` (its queue was full), `decode` (they did not fit the table)",
    ("table", "cause"),
)
_EXPIRED = FAMILIES.counter("zeek_agent_store_expired_total", "events removed because of their age", ("table",))
_EVICTED = FAMILIES.counter("zeek_agent_store_evicted_total", "events removed because the store was full", ("table",))
_STORE_BYTES = FAMILIES.gauge("zeek_agent_store_bytes", "size of the event store's files; 0 in memory")
_STORE_LIMIT = FAMILIES.gauge("zeek_agent_store_limit_bytes", "`events.retention_bytes`")
_STORE_DEGRADED = FAMILIES.gauge(
    "zeek_agent_store_degraded", "1 if there is a notice about the event store, see `zeek-agent status`"
)
_FILES_LEFT = FAMILIES.gauge("zeek_agent_store_files_left", "files of the store that could not be removed")
_STATES = FAMILIES.gauge("zeek_agent_delivery_states", "queries whose delivery state is stored")
_STATES_BYTES = FAMILIES.gauge("zeek_agent_delivery_states_bytes", "size of these states")
_STATES_REFUSED = FAMILIES.counter(
    "zeek_agent_delivery_states_refused_total", "states not stored because `limits.state_bytes` was reached"
)
_RESULTS_BYTES = FAMILIES.gauge("zeek_agent_results_bytes", "size of the stored results of queries for differences")

_COLLECTOR_RESTARTS = FAMILIES.counter(
    "zeek_agent_collector_restarts_total", "processes of the embedded collector that ended by themselves"
)

_QUERY_STATES: Final = ("running", "waiting", "failing")


@dataclass(frozen=True, slots=True)
class AgentFigures:
    """The agent at one moment. Times are in seconds, sizes in bytes."""

    version: str
    id: str
    hostname: str
    uptime: float
    started: float
    """In seconds since the epoch."""
    cpu_seconds: float
    resident_bytes: int
    sources: Sequence[SourceStatus]
    gaps: Sequence[Gap]
    connections: Sequence[ConnectionStatus]
    lost: Mapping[str, int]
    """Events removed from the store before they were delivered, by destination."""
    queries: Sequence[QueryStatus]
    """Those of destinations."""
    workers: Sequence[WorkerStatus]
    workers_killed: Mapping[str, int]
    workers_abandoned: int
    zygote_starts: int
    tables: Mapping[str, TableCounters]
    store_bytes: int
    store_limit_bytes: int
    store_degraded: bool
    store_files_left: int
    delivery_states: Mapping[str, int]
    """`queries`, `bytes` and `refused`."""
    results_bytes: int
    collector: CollectorStats | None
    """The embedded collector, if there is one."""
    collector_restarts: int
    now: float


def agent_text(figures: AgentFigures) -> str:
    """The metrics of an agent."""
    exposition = Exposition([*FAMILIES, *collector_metrics.FAMILIES])
    exposition.add(_INFO, 1, figures.version, figures.id, figures.hostname)
    exposition.add(_UPTIME, figures.uptime)
    exposition.add(_START, figures.started)
    exposition.add(_CPU, figures.cpu_seconds)
    exposition.add(_RESIDENT, figures.resident_bytes)
    _add_sources(exposition, figures.sources)
    _add_gaps(exposition, figures.gaps)
    _add_connections(exposition, figures.connections, figures.lost)
    _add_queries(exposition, figures.queries, figures.now)
    _add_workers(exposition, figures)
    _add_store(exposition, figures)
    if figures.collector is not None:
        collector_metrics.add_collector(exposition, figures.collector)
        exposition.add(_COLLECTOR_RESTARTS, figures.collector_restarts)
    return exposition.text()


def _add_sources(exposition: Exposition, sources: Iterable[SourceStatus]) -> None:
    for one in sources:
        labels = one.source, one.backend
        exposition.add(_SOURCE_ACTIVE, one.active, *labels)
        exposition.add(_SOURCE_EVENTS, one.received, *labels)
        exposition.add(_SOURCE_LOST, one.lost_overrun, *labels, "overrun")
        exposition.add(_SOURCE_LOST, one.lost_decode, *labels, "decode")
        exposition.add(_SOURCE_LOST, one.lost_store, *labels, "store")


def _add_gaps(exposition: Exposition, gaps: Iterable[Gap]) -> None:
    counts, ends = Sums(), dict[str, float]()
    for gap in gaps:
        counts.count(1, gap.source)
        ends[gap.source] = max(gap.end, ends.get(gap.source, gap.end))
    counts.add_to(exposition, _GAPS)
    for source, end in ends.items():
        exposition.add(_GAP_END, end, source)


def _add_connections(exposition: Exposition, connections: Iterable[ConnectionStatus], lost: Mapping[str, int]) -> None:
    for one in connections:
        label = one.destination
        exposition.add(_CONNECTION_UP, one.state == "connected", label)
        exposition.add(_CONNECTION_SINCE, one.since, label)
        exposition.add(_INSTANCES, one.instances, label)
        exposition.add(_CONNECTION_QUERIES, one.queries, label)
        exposition.add(_QUEUED_ROWS, one.queued_rows, label)
        exposition.add(_UNACKNOWLEDGED, one.unacknowledged_bytes, label)
        exposition.add(_WINDOW, one.window_bytes, label)
        exposition.add(_SENT_ROWS, one.sent_rows, label)
        exposition.add(_SENT_BYTES, one.sent_bytes, label)
        exposition.add(_DROPPED_ROWS, one.dropped_rows, label)
        exposition.add(_RECONNECTS, one.reconnects, label)
        exposition.add(_NOT_DELIVERED, lost.get(label, 0), label)


def _add_queries(exposition: Exposition, queries: Sequence[QueryStatus], now: float) -> None:
    exposition.add(_QUERIES_OMITTED, max(len(queries) - QUERIES_MAX, 0))
    for one in queries[:QUERIES_MAX]:
        labels = one.recipient, one.event, one.id
        for state in _QUERY_STATES:
            exposition.add(_QUERY_STATE, one.state == state, *labels, state)
        exposition.add(_QUERY_RUNS, one.runs, *labels)
        exposition.add(_QUERY_ROWS, one.rows, *labels)
        exposition.add(_QUERY_LOST, one.lost, *labels)
        exposition.add(_QUERY_ERRORS, one.errors, *labels)
        exposition.add(_QUERY_KILLED, one.killed, *labels)
        exposition.add(_QUERY_CPU, one.cpu, *labels)
        exposition.add(_QUERY_LAST, one.last_run, *labels)
        exposition.add(_QUERY_DURATION, one.last_duration, *labels)
        exposition.add(_QUERY_RESTING, one.resting_until is not None and one.resting_until > now, *labels)
        exposition.add(_QUERY_PEAK, one.peak_bytes, *labels)
        exposition.add(_QUERY_FILES, one.files_refused, *labels, "refused")
        exposition.add(_QUERY_FILES, one.files_skipped, *labels, "skipped")
        exposition.add(_QUERY_FILES, one.files_truncated, *labels, "truncated")


def _add_workers(exposition: Exposition, figures: AgentFigures) -> None:
    counts, resident = Sums(), Sums()
    for worker in figures.workers:
        counts.count(1, worker.worker_class, worker.state)
        resident.count(worker.resident_bytes, worker.worker_class)
    counts.add_to(exposition, _WORKERS)
    resident.add_to(exposition, _WORKERS_RESIDENT)
    for cause, number in figures.workers_killed.items():
        exposition.add(_WORKERS_KILLED, number, cause)
    exposition.add(_WORKERS_ABANDONED, figures.workers_abandoned)
    exposition.add(_ZYGOTE_STARTS, figures.zygote_starts)


def _add_store(exposition: Exposition, figures: AgentFigures) -> None:
    for table, counters in figures.tables.items():
        exposition.add(_STORED, counters.stored, table)
        exposition.add(_EXPIRED, counters.expired, table)
        exposition.add(_EVICTED, counters.evicted, table)
        for cause in ("store", "decode"):
            exposition.add(_STORE_LOST, counters.lost[cause], table, cause)
    exposition.add(_STORE_BYTES, figures.store_bytes)
    exposition.add(_STORE_LIMIT, figures.store_limit_bytes)
    exposition.add(_STORE_DEGRADED, figures.store_degraded)
    exposition.add(_FILES_LEFT, figures.store_files_left)
    exposition.add(_STATES, figures.delivery_states["queries"])
    exposition.add(_STATES_BYTES, figures.delivery_states["bytes"])
    exposition.add(_STATES_REFUSED, figures.delivery_states["refused"])
    exposition.add(_RESULTS_BYTES, figures.results_bytes)
