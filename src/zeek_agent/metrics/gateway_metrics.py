"""The metrics of a gateway."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from zeek_agent.metrics.exposition import Exposition, Families

if TYPE_CHECKING:
    from zeek_agent.gateway.stats import GatewayStats

FAMILIES: Final = Families()
"""Of a gateway."""

_INFO = FAMILIES.gauge(
    "zeek_agent_gateway_info", "always 1; the labels describe the gateway", ("gateway", "cluster", "zeek", "version")
)
_ZEEK_UP = FAMILIES.gauge("zeek_agent_gateway_zeek_up", "1 while connected to Zeek")
_ZEEK_RECONNECTS = FAMILIES.counter("zeek_agent_gateway_zeek_reconnects_total", "attempts to reconnect to Zeek")
_ZEEK_WAITING = FAMILIES.gauge("zeek_agent_gateway_zeek_waiting_bytes", "bytes for Zeek that it has not read")
_ZEEK_WINDOW = FAMILIES.gauge("zeek_agent_gateway_zeek_window_bytes", "limit on those that are sent")
_ZEEK_SENT = FAMILIES.counter("zeek_agent_gateway_zeek_sent_bytes_total", "bytes sent to Zeek")
_ZEEK_BAD = FAMILIES.counter(
    "zeek_agent_gateway_zeek_errors_total", "messages of Zeek that could not be read, and errors that it reported"
)
_OLDEST = FAMILIES.gauge(
    "zeek_agent_gateway_oldest_unacknowledged_seconds", "age of the oldest batch that Zeek has not acknowledged"
)
_BUS_UP = FAMILIES.gauge("zeek_agent_gateway_bus_up", "1 while connected to a NATS server")
_BUS_RECONNECTS = FAMILIES.counter("zeek_agent_gateway_bus_reconnects_total", "attempts to reconnect to the bus")
_BUS_DROPPED = FAMILIES.counter(
    "zeek_agent_gateway_bus_dropped_total", "messages dropped because the gateway did not keep up"
)
_OUTBOX = FAMILIES.gauge("zeek_agent_gateway_outbox_messages", "messages that wait for the NATS server")
_OUTBOX_BYTES = FAMILIES.gauge("zeek_agent_gateway_outbox_bytes", "their size")
_PEERS = FAMILIES.gauge("zeek_agent_gateway_peers", "other gateways of the cluster")
_SESSIONS = FAMILIES.gauge("zeek_agent_gateway_sessions", "agents with a session")
_WELCOMED = FAMILIES.counter("zeek_agent_gateway_welcomed_total", "sessions that began")
_ENDED = FAMILIES.counter("zeek_agent_gateway_ended_total", "sessions that ended, by cause", ("cause",))
_WAITING = FAMILIES.gauge("zeek_agent_gateway_grants_waiting", "agents that wait for credit")
_OLDEST_WANT = FAMILIES.gauge("zeek_agent_gateway_oldest_want_seconds", "how long the first of them has waited")
_PLACES = FAMILIES.gauge("zeek_agent_gateway_places", "large batches that may be on their way at one time")
_PLACES_USED = FAMILIES.gauge("zeek_agent_gateway_places_used", "those granted or on their way")
_GRANTS = FAMILIES.counter("zeek_agent_gateway_grants_total", "credits given")
_OVERDUE = FAMILIES.counter(
    "zeek_agent_gateway_grants_overdue_total", "credits that were not used soon and gave their place to others"
)
_LAPSED = FAMILIES.counter("zeek_agent_gateway_grants_lapsed_total", "credits that were not used in time")
_LATE = FAMILIES.counter("zeek_agent_gateway_late_batches_total", "batches whose credit had lapsed, accepted")
_LIMITED = FAMILIES.counter(
    "zeek_agent_gateway_limited_total", "batches after which an agent had to wait because of its limits"
)
_BATCHES = FAMILIES.counter("zeek_agent_gateway_batches_total", "batches received, `small` or `large`", ("size",))
_BATCH_BYTES = FAMILIES.counter("zeek_agent_gateway_batch_bytes_total", "their size")
_ROWS = FAMILIES.counter("zeek_agent_gateway_rows_total", "rows in them")
_ACKS = FAMILIES.counter("zeek_agent_gateway_acks_total", "batches that Zeek has acknowledged")
_REFUSED = FAMILIES.counter("zeek_agent_gateway_refused_total", "what was refused, by cause", ("cause",))
_HELLOS = FAMILIES.counter(
    "zeek_agent_gateway_agent_hellos_total", "hellos of agents: `forwarded` to Zeek, `absorbed`, `replayed`", ("how",)
)
_HELLOS_DUE = FAMILIES.gauge("zeek_agent_gateway_hellos_due", "agents whose hello waits for its turn")
_MESSAGES = FAMILIES.counter(
    "zeek_agent_gateway_zeek_messages_total",
    "messages of Zeek: `forwarded`, `unaddressed` if no agent here is meant, `ignored` if not of the API",
    ("how",),
)
_DOWN = FAMILIES.counter("zeek_agent_gateway_frames_down_total", "messages of Zeek to single agents")


def gateway_text(stats: GatewayStats) -> str:
    """The metrics of a gateway."""
    exposition = Exposition(FAMILIES)
    counters = stats.counters
    exposition.add(_INFO, 1, stats.gateway, stats.cluster, stats.zeek, stats.zeek_version)
    for family, value in (
        (_ZEEK_UP, stats.zeek_connected),
        (_ZEEK_RECONNECTS, stats.zeek_reconnects),
        (_ZEEK_WAITING, stats.zeek_waiting_bytes),
        (_ZEEK_WINDOW, stats.zeek_window_bytes),
        (_ZEEK_SENT, stats.zeek_sent_bytes),
        (_ZEEK_BAD, stats.zeek_bad_messages),
        (_OLDEST, stats.oldest_unacknowledged_seconds),
        (_BUS_UP, stats.bus_connected),
        (_BUS_RECONNECTS, stats.bus_reconnects),
        (_BUS_DROPPED, stats.bus_dropped),
        (_OUTBOX, stats.outbox_messages),
        (_OUTBOX_BYTES, stats.outbox_bytes),
        (_PEERS, stats.peers),
        (_SESSIONS, stats.agents),
        (_WELCOMED, counters.hellos),
        (_WAITING, stats.grants_waiting),
        (_OLDEST_WANT, stats.oldest_want_seconds),
        (_PLACES, stats.places),
        (_PLACES_USED, stats.places_used),
        (_GRANTS, stats.grants),
        (_OVERDUE, stats.grants_overdue),
        (_LAPSED, stats.grants_lapsed),
        (_LATE, stats.late_batches),
        (_LIMITED, counters.limited),
        (_BATCH_BYTES, counters.batch_bytes),
        (_ROWS, counters.rows),
        (_ACKS, counters.acks),
        (_HELLOS_DUE, stats.hellos_due),
        (_DOWN, counters.frames_down),
    ):
        exposition.add(family, value)
    for counted, by_label in (
        (_ENDED, counters.ended),
        (_BATCHES, counters.batches),
        (_REFUSED, counters.refused),
        (_HELLOS, counters.agent_hellos),
        (_MESSAGES, counters.zeek_messages),
    ):
        for label, number in sorted(by_label.items()):
            exposition.add(counted, number, str(label))
    return exposition.text()
