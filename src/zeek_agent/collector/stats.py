"""Figures of a collector at one moment, for the summary and `zeek-agent status`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zeek_agent.collector.agents import KnownAgent
from zeek_agent.collector.log_archive import ArchiveStats


@dataclass(frozen=True, slots=True)
class LogStats:
    """Rows of one log since the start, and rows lost because of a failing disk."""

    path: str
    rows: int
    dropped: int


@dataclass(frozen=True, slots=True)
class CollectorStats:
    """The collector at one moment."""

    started: float = 0.0
    """On the monotonic clock, in seconds; 0 before the start."""
    connections: int = 0
    unread_bytes: int = 0
    """Unread bytes of connections, beyond the allowance of each."""
    agents: tuple[KnownAgent, ...] = ()
    connected: frozenset[str] = frozenset()
    hosts: Mapping[str, int] = field(default_factory=dict)
    """Remembered hosts by state."""
    hosts_evicted: int = 0
    hosts_unremembered: int = 0
    hosts_error: str | None = None
    """Why hosts cannot be read or written now."""
    hosts_errors: int = 0
    conflicts: int = 0
    logs: tuple[LogStats, ...] = ()
    messages: int = 0
    rows: int = 0
    refused: int = 0
    ignored: int = 0
    agent_errors: int = 0
    disk_errors: int = 0
    disk_error: str | None = None
    archive: ArchiveStats | None = None
    """The rotated logs."""
    recent_errors: tuple[tuple[float, str], ...] = ()
