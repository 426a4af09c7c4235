"""The status of an event source in `zeek_agent_sources`."""

from __future__ import annotations

from typing import NamedTuple


class SourceStatus(NamedTuple):
    """A row of `zeek_agent_sources`, which describes the columns. Counters start with the agent."""

    source: str
    backend: str
    active: bool
    reason: str | None
    received: int = 0
    lost_overrun: int = 0
    lost_decode: int = 0
    lost_store: int = 0
    evicted: int = 0
    last_error: str | None = None
