"""Limits on what one agent may send per second: a token bucket that may go into debt.

Nothing is refused for it: the agent gets its next credit, or the acknowledgement of a small batch, once its debt is
paid, so its rows wait in its own event store.
"""

from __future__ import annotations

from typing import Final

BURST_SECONDS: Final = 10.0
"""An agent that was silent may send as much as in this time at once."""
DELAY_SECONDS_MAX: Final = 30.0
"""Longest delay, so that an agent is never taken for dead."""


class Allowance:
    """One agent's rows and bytes; a rate of 0 is no limit."""

    __slots__ = ("_bytes", "_bytes_rate", "_rows", "_rows_rate", "_since")

    def __init__(self, rows_per_second: float, bytes_per_second: float, now: float) -> None:
        self._rows_rate, self._bytes_rate = rows_per_second, bytes_per_second
        self._rows, self._bytes = rows_per_second * BURST_SECONDS, bytes_per_second * BURST_SECONDS
        self._since = now

    def spend(self, rows: int, size_bytes: int, now: float) -> float:
        """Count a batch. Returns the seconds until the debt is paid, 0 if there is none."""
        seconds = max(now - self._since, 0.0)
        self._since = now
        delay = 0.0
        if self._rows_rate:
            self._rows = min(self._rows + seconds * self._rows_rate, self._rows_rate * BURST_SECONDS) - rows
            delay = max(delay, -self._rows / self._rows_rate)
        if self._bytes_rate:
            self._bytes = min(self._bytes + seconds * self._bytes_rate, self._bytes_rate * BURST_SECONDS) - size_bytes
            delay = max(delay, -self._bytes / self._bytes_rate)
        return min(delay, DELAY_SECONDS_MAX)
