"""Figures of a collector at one moment, for the summary and `zeek-agent status`."""

from __future__ import annotations

from dataclasses import dataclass

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
