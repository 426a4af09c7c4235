"""Figures of a running gateway, for its metrics and its log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from zeek_agent.gateway.causes import Cause


@dataclass(slots=True)
class Counters:
    """Since the start."""

    hellos: int = 0
    """Agents that were welcomed."""
    agent_hellos: Counter[str] = field(default_factory=Counter)
    """Hellos of agents for Zeek: `forwarded`, `absorbed`, `replayed`."""
    batches: Counter[str] = field(default_factory=Counter)
    """Batches received, `small` and `large`."""
    batch_bytes: int = 0
    rows: int = 0
    acks: int = 0
    limited: int = 0
    """Batches after which an agent had to wait because of its limits."""
    refused: Counter[Cause] = field(default_factory=Counter)
    ended: Counter[str] = field(default_factory=Counter)
    """Sessions that ended, by cause."""
    zeek_messages: Counter[str] = field(default_factory=Counter)
    """Messages of Zeek: `forwarded`, or `unaddressed` if no agent here is meant."""
    frames_down: int = 0
    """Messages of Zeek to agents."""


@dataclass(frozen=True, slots=True)
class GatewayStats:
    """The present state. Times are in seconds."""

    gateway: str
    cluster: str
    zeek: str
    bus_connected: bool
    bus_server: str
    zeek_connected: bool
    zeek_version: str
    agents: int
    peers: int
    grants_waiting: int
    oldest_want_seconds: float
    places_used: int
    places: int
    oldest_unacknowledged_seconds: float
    zeek_waiting_bytes: int
    zeek_window_bytes: int
    zeek_sent_bytes: int
    zeek_reconnects: int
    zeek_bad_messages: int
    outbox_messages: int
    outbox_bytes: int
    bus_dropped: int
    bus_reconnects: int
    grants: int
    grants_overdue: int
    grants_lapsed: int
    late_batches: int
    hellos_due: int
    counters: Counters

    @property
    def refused(self) -> Mapping[Cause, int]:
        return self.counters.refused

    def line(self) -> str:
        """One line for the log."""
        refused = ", ".join(f"{number:,} {cause}" for cause, number in sorted(self.refused.items())) or "none"
        return (
            f"{self.agents:,} agents, {self.counters.rows:,} rows in {self.counters.batches.total():,} batches, "
            f"{self.counters.acks:,} acknowledged, {self.grants_waiting:,} agents wait for credit, "
            f"{self.places_used} of {self.places} places used; refused: {refused}; "
            f"Zeek {_state(self.zeek_connected)}, bus {_state(self.bus_connected)}, {self.peers} other gateways"
        )


def _state(connected: bool) -> str:
    return "connected" if connected else "away"
